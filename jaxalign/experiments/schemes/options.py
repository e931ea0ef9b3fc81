"""How a comparison of schemes runs, as a frozen value."""

from __future__ import annotations

from dataclasses import dataclass, field

from jaxalign.numerics.scheme import Scheme, scheme_named
from jaxalign.study.option import (
    check_options,
    memory_option,
    option,
    schemes_listed,
    seed_option,
)

# The schemes of the table, from many bits to few.
TABLE = (
    "bf16",
    "f16",
    "int8-sim",
    "int8",
    "smoothquant",
    "llm-int8",
    "fp8-e4m3",
    "fp8-e5m2",
    "int4-g64",
    "int4-sym-g64",
    "hqq-g64",
    "awq-g64",
    "gptq-g64",
    "gptq-actorder-g64",
    "nf4",
    "nf4-dq",
    "fp4",
)


@dataclass(frozen=True, kw_only=True)
class SchemesOptions:
    """How the comparison runs.

    Attributes:
        schemes: low precisions to compare with f32.
        memory_gb: of one device for weights and activations, in 1e9 bytes.
        seed: of noise, bootstraps and permutations.

    Raises:
        InputError: a value that cannot be used.
    """

    schemes: tuple[Scheme, ...] = field(
        default=tuple(map(scheme_named, TABLE)),
        metadata=option(
            "--schemes",
            metavar="LIST",
            parse=schemes_listed,
            help="low precisions, with commas; docs/schemes.md has them all",
        ),
    )
    memory_gb: float = field(default=4.0, metadata=memory_option())
    seed: int = field(default=0, metadata=seed_option())

    def __post_init__(self) -> None:
        check_options(self)
