"""Rotary frequencies, and how models trained on short texts stretch them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import jax.numpy as jnp

from jaxalign.errors import InputError
from jaxalign.shapes import Array, Float

ScalingKind = Literal["linear", "llama3", "longrope"]
SCALINGS = get_args(ScalingKind)
if not TYPE_CHECKING:
    ScalingKind = str  # another word is refused below, by an error that a user reads


@dataclass(frozen=True)
class RotaryScaling:
    """Slower rotations for longer contexts.

    ``linear`` divides every frequency by ``factor`` (Chen et al. 2023, arXiv 2306.15595).
    ``llama3`` divides those that turn less than ``low`` times within the context of pretraining,
    keeps those that turn more than ``high`` times, and passes from one to the other in between
    (Llama Team 2024, arXiv 2407.21783, and the code published with it).
    ``longrope`` divides each frequency by a factor of its own, and has other factors for texts
    longer than ``original_positions``, which are not run here (Ding et al. 2024, arXiv 2402.13753).

    Attributes:
        kind: one of ``SCALINGS``.
        factor: by how much; 1 for longrope.
        low, high: turns within ``original_positions`` (``low_freq_factor``, ``high_freq_factor``).
        original_positions: context of pretraining.
        short, long: longrope's factors up to ``original_positions`` and beyond.
        amplitude: rotated queries and keys are longer by it.
        longest: the context that longrope's long factors are for.
    """

    kind: ScalingKind
    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    original_positions: int = 8192
    short: tuple[float, ...] = ()
    long: tuple[float, ...] = ()
    amplitude: float = 1.0
    longest: int = 0

    def __post_init__(self) -> None:
        if self.kind not in SCALINGS:
            raise InputError(
                f"rotary scaling {self.kind!r} is not implemented",
                f"use a model with plain rotary embeddings or one of {', '.join(SCALINGS)}",
            )
        if not 0 < self.factor < math.inf:
            raise InputError(f"rotary scaling's factor is {self.factor}", "give a positive number")
        if self.kind == "llama3" and not (0 < self.low < self.high and self.original_positions > 0):
            raise InputError(
                f"llama3 rotary scaling has low_freq_factor {self.low}, high_freq_factor "
                f"{self.high} and original_max_position_embeddings {self.original_positions}, "
                "expected 0 < low < high and a positive context",
                "correct config.json",
            )


def frequencies(
    dims: int, base: float, scaling: RotaryScaling | None = None
) -> Float[Array, " half"]:
    """Radians a position of each pair of coordinates: ``base^(−2i / dims)``, then scaled; f32.

    Args:
        dims: how many coordinates are rotated (even).
        base: ``rope_theta``.

    Source: RoFormer (arXiv 2104.09864), section 3.4.2; for scaling see ``RotaryScaling``.
    """
    half = dims // 2
    plain = base ** (-jnp.arange(half, dtype=jnp.float32) / max(half, 1))
    if scaling is None:
        return plain
    if scaling.kind == "longrope":
        return plain / jnp.asarray(scaling.short, jnp.float32)
    slow = plain / scaling.factor
    if scaling.kind == "linear":
        return slow
    turns = scaling.original_positions * plain / (2 * math.pi)
    share = jnp.clip((turns - scaling.low) / (scaling.high - scaling.low), 0, 1)
    return (1 - share) * slow + share * plain
