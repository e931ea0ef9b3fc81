"""SmoothQuant: range moves from activations to weights, so that both fit into int8.

Xiao et al. 2022, arXiv 2211.10438, equation 4; and the fixed scale of static int8 inputs.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax.numpy as jnp

from jaxalign.numerics.quantize import LEAST_RANGE, divide
from jaxalign.shapes import Array, Float


def smoothing_scale(
    weights: Sequence[Float[Array, "A _"]], largest: Float[Array, " A"], alpha: float = 0.5
) -> Float[Array, " A"]:
    """``s_a = max|x_a|^α / max|W_a|^(1−α)``, weights' maximum and ``s`` at least 1e-5.

    Args:
        weights: f32 matrices ``[A, O]`` of the layers that read ``x``.
        largest: ``max|x|`` over calibration tokens.
        alpha: how much of the range goes to the weights.

    Returns:
        ``s``: multiply the matrices' rows by it, and divide their input by it.

    Example:
        >>> smoothing_scale([jnp.ones((2, 3))], jnp.array([16.0, 1.0]))
        Array([4., 1.], dtype=float32)
    """
    widest = functools.reduce(jnp.maximum, (jnp.abs(w).max(axis=1) for w in weights))
    widest = jnp.maximum(widest, LEAST_RANGE)
    return jnp.maximum(largest**alpha / widest ** (1 - alpha), LEAST_RANGE)


def static_input_scale(largest: Float[Array, " A"]) -> Float[Array, ""]:
    """``max|x| / 127`` over inputs and calibration tokens, the maximum at least 1e-5."""
    top = jnp.maximum(largest.max(), LEAST_RANGE)
    return divide(top, jnp.full_like(top, 127))
