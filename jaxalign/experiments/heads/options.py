"""How a heads study runs, as a frozen value."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from jaxalign.edits import HEAD_MODES
from jaxalign.engine import ENGINES, Engine
from jaxalign.errors import InputError
from jaxalign.model.params import Params
from jaxalign.numerics.scheme import F16, F32, INT8_SIM, Scheme

MEAN_POSITIONS = ("last", "all")

# How a scheme's parameters are made from the f32 ones.
Prepare = Callable[[Params, Scheme], Params]


@dataclass(frozen=True)
class Options:
    """How the study runs.

    Attributes:
        schemes: low precisions to compare with f32.
        repaired: names of the schemes whose repair curves are computed.
        head_mode: "true" or "edge-align".
        mean_positions: "last" or "all": where reference means are taken.
        max_repair_k: how many heads are restored at most.
        use_all_prompts: keep prompts that the model answers wrongly.
        memory_gb: budget for weights and activations of one call, in 1e9 bytes.
        engine: "wave", or "vmap" for the plain path that defines it.
        seed: of donors, random orders, bootstraps and permutations.

    Raises:
        InputError: a value that cannot be used.
    """

    schemes: tuple[Scheme, ...] = (F16, INT8_SIM)
    repaired: tuple[str, ...] = ("f16",)
    head_mode: str = "true"
    mean_positions: str = "last"
    max_repair_k: int = 10
    use_all_prompts: bool = False
    memory_gb: float = 4.0
    engine: Engine = "wave"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.head_mode not in HEAD_MODES:
            raise InputError(
                f"head mode {self.head_mode!r} is unknown", f"use {' or '.join(HEAD_MODES)}"
            )
        if self.mean_positions not in MEAN_POSITIONS:
            raise InputError(
                f"mean positions {self.mean_positions!r} is unknown",
                f"use {' or '.join(MEAN_POSITIONS)}",
            )
        names = [scheme.name for scheme in self.schemes]
        if repeated := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            raise InputError(
                f"schemes name {', '.join(repeated)} more than once", "name each scheme once"
            )
        if F32.name in names:
            raise InputError(
                "f32 is among the schemes, but it is what all others are compared with",
                "leave it out",
            )
        if unknown := [name for name in self.repaired if name not in names]:
            raise InputError(
                f"repair is asked for in {', '.join(unknown)}, which is not among the schemes",
                f"name schemes of {', '.join(names) or 'the study'}",
            )
        if self.engine not in ENGINES:
            raise InputError(f"engine {self.engine!r} is unknown", f"use {' or '.join(ENGINES)}")
        if self.max_repair_k < 1:
            raise InputError(f"--max-repair-k is {self.max_repair_k}", "give at least 1")
        if not 0 < self.memory_gb < math.inf:
            raise InputError(f"--memory-gb is {self.memory_gb}", "give a positive number")
        if self.seed < 0:
            raise InputError(f"--seed is {self.seed}", "give 0 or a positive whole number")
