"""AWQ: salient inputs are scaled up before rounding, and weights clipped, by output error.

Lin et al. 2023, arXiv 2306.00978, sections 3.2 and 3.3, with the grids of its published code.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax

from jaxalign.numerics.moments import output_error
from jaxalign.numerics.qtensor import unpack
from jaxalign.numerics.quantize import quantize
from jaxalign.numerics.scheme import WeightFormat
from jaxalign.shapes import Array, Float

GRID = 20  # candidates of the exponent, and steps between no clipping and clipping to nothing
CLIPS = 10  # of which the first half is tried
LEAST_SCALE = 1e-4


def scale_candidates(mean_absolute: Float[Array, " A"]) -> Float[Array, "candidates A"]:
    """``s_r = E|x|^r``, ``r = i / 20``, each divided by ``sqrt(max s · min s)``."""
    exponent = jnp.arange(GRID, dtype=jnp.float32)[:, None] / GRID
    scale = jnp.maximum(mean_absolute[None] ** exponent, LEAST_SCALE)
    middle = jnp.sqrt(scale.max(axis=1, keepdims=True) * scale.min(axis=1, keepdims=True))
    return scale / middle


def search_scale(
    weights: Sequence[Float[Array, "A _"]],
    mean_absolute: Float[Array, " A"],
    second: Float[Array, "A A"],
    form: WeightFormat,
) -> Float[Array, " A"]:
    """The scale of a group of linear layers that read one input ``x``.

    ``argmin_s E|(Q(s·W)/s − W)ᵀ x|²`` over ``scale_candidates``, the first one at a tie; the error
    is that of all the layers' outputs together.

    Args:
        weights: f32 matrices ``[A, O]`` of the layers.
        mean_absolute: ``E|x|``.
        second: ``E[x xᵀ]``.
        form: how the scaled matrices are rounded, ``Q``.

    Returns:
        ``s``: multiply the matrices' rows by it, and divide their input by it.
    """

    def error(scale: Array) -> Array:
        columns = scale[:, None]
        changes = (unpack(quantize(w * columns, form)) / columns - w for w in weights)
        return functools.reduce(jnp.add, (output_error(change, second) for change in changes))

    candidates = scale_candidates(mean_absolute)
    return candidates[jnp.argmin(lax.map(error, candidates))]


def search_clip(
    w: Float[Array, "A O"], second: Float[Array, "A A"], form: WeightFormat
) -> Float[Array, "G O"]:
    """The largest absolute weight to keep in each group of each output.

    Of ``max|w| · (1 − i/20)``, ``i = 0 … 9``, the one with the least error of what that group adds
    to the output, ``E((Q(clip(w)) − w)ᵀ x_group)²``; the largest one at a tie.

    Args:
        w: f32 matrix.
        second: ``E[x xᵀ]`` of its input.
        form: how it is rounded, ``Q``.
    """
    groups = form.groups(len(w))
    size = len(w) // groups
    largest = jnp.abs(w).reshape(groups, size, -1).max(axis=1)
    own = second.reshape(groups, size, groups, size)[jnp.arange(groups), :, jnp.arange(groups)]

    def attempt(step: Array, best: tuple[Array, Array]) -> tuple[Array, Array]:
        least, kept = best
        limit = largest * (1 - step / GRID)
        change = (unpack(quantize(clip(w, limit), form)) - w).reshape(groups, size, -1)
        moved = jnp.einsum("gab,gbo->gao", own, change, precision=lax.Precision.HIGHEST)
        error = (change * moved).sum(axis=1)
        better = error < least
        return jnp.where(better, error, least), jnp.where(better, limit, kept)

    start = (jnp.full_like(largest, jnp.inf), largest)
    return lax.fori_loop(0, CLIPS, lambda i, best: attempt(i.astype(jnp.float32), best), start)[1]


def clip(w: Float[Array, "A O"], limit: Float[Array, "G O"]) -> Float[Array, "A O"]:
    """``w`` within ``±limit`` of its group."""
    limit = jnp.repeat(limit, len(w) // len(limit), axis=0)
    return jnp.clip(w, -limit, limit)
