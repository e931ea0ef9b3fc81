"""Options that every study takes."""

from __future__ import annotations

from dataclasses import dataclass, field

from jaxalign.runtime.memory import default_memory_gb
from jaxalign.runtime.products import Products
from jaxalign.study.option import (
    check_options,
    memory_option,
    products_option,
    seed_option,
)


@dataclass(frozen=True, kw_only=True)
class Common:
    """What a session needs of a study's options; a study's own dataclass inherits it.

    Attributes:
        memory_gb: of one device for weights and activations, in 1e9 bytes; by default a share of
            what the device has (``runtime.memory.default_memory_gb``).
        seed: of everything drawn at random.
        products: how f32 matrix products are computed; only a GPU has a choice.

    Raises:
        InputError: a value that cannot be used.
    """

    memory_gb: float = field(default_factory=default_memory_gb, metadata=memory_option())
    seed: int = field(default=0, metadata=seed_option())
    products: Products = field(default="highest", metadata=products_option())

    def __post_init__(self) -> None:
        check_options(self)
