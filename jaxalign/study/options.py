"""Options that every study takes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxalign.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Common:
    """What a session needs of a study's options; a study's own dataclass inherits it.

    Attributes:
        memory_gb: of one device for weights and activations, in 1e9 bytes.
        seed: of everything drawn at random.

    Raises:
        InputError: a value that cannot be used.
    """

    memory_gb: float = 4.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.memory_gb < math.inf:
            raise InputError(f"--memory-gb is {self.memory_gb}", "give a positive number")
        if self.seed < 0:
            raise InputError(f"--seed is {self.seed}", "give 0 or a positive whole number")
