"""HQQ: zero points that make the error sparse, found without any text."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from jaxalign.numerics.qtensor import QTensor, pack_nibbles
from jaxalign.numerics.quantize import divide
from jaxalign.numerics.scheme import WeightFormat
from jaxalign.shapes import Array, Float

STEPS = 20
NORM = 0.7
BETA = 10.0
# A group narrower than this has scale 1, and no scale is finer than one in 20 000.
LEAST_WIDTH = 1e-4
FINEST = 2e4


def hqq(w: Float[Array, "A *out"], form: WeightFormat, outputs: int = 1) -> QTensor:
    """Round ``w`` with zero points that minimise ``Σ|w − (q − z)·s|^p``, ``p = 0.7``.

    ``1/s = levels / (max − min)`` of a group stays; ``z`` starts as ``−min / s``, unrounded, and is
    moved in half-quadratic steps, at most 20, while the mean error of the matrix falls::

        q = clip(round(w/s + z), 0, levels)
        r = w − (q − z)·s
        e = sign(r) · max(|r| − |r|^(p−1) / β, 0)      the part of the error that may be large
        z = mean(q − (w − e)/s)                        over the group

    Args:
        w: f32; one matrix (``jax.vmap`` for more: each stops by its own error).
        form: int4 with zero points.
        outputs: how many axes ``*out`` are.

    Raises:
        InputError: the format's groups do not divide ``A``.

    Source: Badri and Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models",
    and the package hqq, whose default this is.
    """
    groups = form.groups(w.shape[0])
    x = w.astype(jnp.float32).reshape(groups, -1, *w.shape[1:])
    low, high = x.min(axis=1, keepdims=True), x.max(axis=1, keepdims=True)
    width = high - low
    inverse = form.levels * divide(jnp.ones_like(width), jnp.where(width > 0, width, 1))
    inverse = jnp.minimum(jnp.where(width <= LEAST_WIDTH, 1, inverse), FINEST)
    zero = _search(x, inverse, -low * inverse, form.levels)
    codes = _round(x, inverse, zero, form.levels).astype(jnp.uint8).reshape(w.shape)
    scale = divide(jnp.ones_like(inverse), inverse)[:, 0]
    return QTensor(pack_nibbles(codes, 0), scale, zero[:, 0], format=form, outputs=outputs)


def _round(x: Array, inverse: Array, zero: Array, levels: int | float) -> Array:
    return jnp.clip(jnp.round(x * inverse + zero), 0, levels)


def _search(x: Array, inverse: Array, zero: Array, levels: int | float) -> Array:
    """The zero points after the last step that was taken."""

    def step(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        number, zero, best, _ = state
        codes = _round(x, inverse, zero, levels)
        residual = x - divide(codes - zero, inverse)
        sparse = jnp.abs(residual)
        sparse = jnp.maximum(sparse - sparse ** (NORM - 1) / BETA, 0) * jnp.sign(residual)
        moved = (codes - (x - sparse) * inverse).mean(axis=1, keepdims=True)
        error = jnp.abs(residual).mean()
        # The step that finds the error no smaller is the last one, and counts.
        return number + 1, moved, jnp.minimum(error, best), error < best

    def more(state: tuple[Array, Array, Array, Array]) -> Array:
        return (state[0] < STEPS) & state[3]

    start = jnp.array(0), zero, jnp.array(jnp.inf, jnp.float32), jnp.array(True)
    return lax.while_loop(more, step, start)[1]
