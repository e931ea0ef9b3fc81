"""Rounding a matrix to the nearest codes of a format."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxalign.numerics.codebooks import CODEBOOKS
from jaxalign.numerics.qtensor import QTensor, pack_nibbles
from jaxalign.numerics.scheme import WeightFormat
from jaxalign.shapes import Array, Float

LEAST_RANGE = 1e-5
FLOAT8 = {"e4m3fn": jnp.float8_e4m3fn, "e5m2": jnp.float8_e5m2}


def quantize(w: Float[Array, "..."], form: WeightFormat, outputs: int = 1) -> QTensor:
    """Round ``w`` to the nearest codes.

    Args:
        w: f32 ``[…, A, *out]``.
        form: the format.
        outputs: how many axes ``*out`` are.

    Raises:
        InputError: the format's groups do not divide ``A``.
    """
    axis = w.ndim - 1 - outputs
    groups = form.groups(w.shape[axis])
    x = w.reshape(*w.shape[:axis], groups, -1, *w.shape[axis + 1 :])
    inside = axis + 1
    codes, scale, zero = _codes(x, form, inside)
    codes = codes.reshape(w.shape)
    if form.bits == 4:
        codes = pack_nibbles(codes, axis)
    zero = zero if zero is None else jnp.squeeze(zero, inside)
    return QTensor(codes, jnp.squeeze(scale, inside), zero, format=form, outputs=outputs)


def divide(x: Array, by: Array) -> Array:
    """``x / by``, truly divided: XLA would multiply by ``1 / by``, and codes near a tie flip."""
    return x / lax.optimization_barrier(jnp.broadcast_to(by, x.shape))


def _codes(x: Array, form: WeightFormat, axis: int) -> tuple[Array, Array, Array | None]:
    """Codes of groups along ``axis``, their scales and zero points (that axis kept, size 1)."""
    largest = jnp.abs(x).max(axis=axis, keepdims=True)
    if form.codes in CODEBOOKS:
        return _nearest(x, largest, CODEBOOKS[form.codes]), largest, None
    if form.zero:
        high, low = x.max(axis=axis, keepdims=True), x.min(axis=axis, keepdims=True)
        scale = divide(jnp.maximum(high - low, LEAST_RANGE), jnp.full_like(high, form.levels))
        zero = jnp.clip(-jnp.round(divide(low, scale)), 0, form.levels)
        codes = jnp.clip(jnp.round(divide(x, scale)) + zero, 0, form.levels)
        return codes.astype(jnp.uint8), scale, zero
    scale = divide(jnp.maximum(largest, LEAST_RANGE), jnp.full_like(largest, form.levels))
    y = divide(x, scale)
    if form.codes in FLOAT8:
        return jnp.clip(y, -form.levels, form.levels).astype(FLOAT8[form.codes]), scale, None
    if form.codes == "int4":
        return (jnp.clip(jnp.round(y), -8, 7) + 8).astype(jnp.uint8), scale, None
    return jnp.clip(jnp.round(y), -127, 127).astype(jnp.int8), scale, None


def _nearest(x: Array, largest: Array, book: np.ndarray) -> Array:
    """The code of the nearest value of a codebook, the lower one at a midpoint."""
    unit = jnp.clip(x * divide(jnp.ones_like(largest), largest), -1, 1)
    order = np.argsort(book, kind="stable")
    middles = (book[order][1:] + book[order][:-1]) / 2
    return jnp.asarray(order, jnp.uint8)[jnp.searchsorted(middles, unit, side="left")]
