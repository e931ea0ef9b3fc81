"""Rounding a matrix to the nearest codes of a format."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxalign.numerics.codebooks import CODEBOOKS
from jaxalign.numerics.double_quantization import round_scales
from jaxalign.numerics.qtensor import QTensor, pack_nibbles
from jaxalign.numerics.scheme import WeightFormat
from jaxalign.shapes import Array, Float, UInt8

LEAST_RANGE = 1e-5
# What compressed-tensors writes for a scale that e4m3 rounds to 0.
ZERO_E4M3 = 0.125
MANTISSA = 23  # bits of f32's
FLOAT8 = {"e4m3fn": jnp.float8_e4m3fn, "e5m2": jnp.float8_e5m2}


def quantize(w: Float[Array, "..."], form: WeightFormat, outputs: int = 1) -> QTensor:
    """Round ``w`` to the nearest codes.

    Ties go to the even code, in nf4 and fp4 to the lower value. docs/schemes.md has the equation
    of each format and the package that it equals to the bit. A scale of a whole matrix, or of a
    block of outputs, belongs to the last axis of ``*out``: axes before it count matrices.

    Args:
        w: f32 ``[…, A, *out]``.
        form: the format.
        outputs: how many axes ``*out`` are.

    Raises:
        InputError: the format's groups do not divide ``A``.

    Example:
        >>> w = jnp.array([[0.7], [-0.1], [0.2], [0.3]])
        >>> unpack(quantize(w, WeightFormat("int4", levels=7)))[:, 0].round(1).tolist()
        [0.7, -0.1, 0.2, 0.3]
    """
    axis = w.ndim - 1 - outputs
    groups = form.groups(w.shape[axis])
    inputs, inside = w.shape[axis], axis + 1
    if form.block and form.group:
        w = _whole_blocks(w, axis, form.group)
    x = w.reshape(*w.shape[:axis], groups, -1, *w.shape[axis + 1 :])
    codes, scale, zero = _codes(x, form, inside)
    codes = lax.slice_in_dim(codes.reshape(w.shape), 0, inputs, axis=axis)
    if form.per_byte == 2:
        codes = pack_nibbles(codes, axis)
    scale = jnp.squeeze(scale, inside)
    if form.double:
        scale = round_scales(scale, axis)
    zero = zero if zero is None else jnp.squeeze(zero, inside)
    return QTensor(codes, scale, zero, format=form, outputs=outputs)


def divide(x: Array, by: Array) -> Array:
    """``x / by``, truly divided: XLA would multiply by ``1 / by``, and codes near a tie flip."""
    return x / lax.optimization_barrier(jnp.broadcast_to(by, x.shape))


def to_float8(y: Float[Array, "..."], codes: str) -> Float[Array, "..."]:
    """``y`` as the nearest float8 code; what is too large becomes the largest one.

    Clipped, then cast: a cast to e4m3fn alone makes NaN of what lies above 464.

    Args:
        codes: "e4m3fn" or "e5m2".
    """
    most = float(jnp.finfo(FLOAT8[codes]).max)
    return jnp.clip(y, -most, most).astype(FLOAT8[codes])


def _codes(x: Array, form: WeightFormat, axis: int) -> tuple[Array, Array, Array | None]:
    """Codes of groups along ``axis``, their scales and zero points (that axis kept, size 1)."""
    largest = jnp.abs(x).max(axis=axis, keepdims=True)
    if form.codes == "e2m1" or form.block:
        return _of_floats(x, largest, form, axis)
    if form.codes in CODEBOOKS:
        return _nearest(x, largest, CODEBOOKS[form.codes]), largest, None
    if form.absmax:
        return _absmax_int8(x, form, axis)
    if form.zero:
        high, low = x.max(axis=axis, keepdims=True), x.min(axis=axis, keepdims=True)
        scale = divide(jnp.maximum(high - low, LEAST_RANGE), jnp.full_like(high, form.levels))
        zero = jnp.clip(-jnp.round(divide(low, scale)), 0, form.levels)
        codes = jnp.clip(jnp.round(divide(x, scale)) + zero, 0, form.levels)
        kept = jnp.int8 if form.bits == 8 else jnp.uint8
        return (codes + form.lowest).astype(kept), scale, zero + form.lowest
    scale = divide(jnp.maximum(largest, LEAST_RANGE), jnp.full_like(largest, form.levels))
    y = divide(x, scale)
    if form.codes in FLOAT8:
        return to_float8(y, form.codes), scale, None
    if form.bits < 8:
        middle = 2 ** (form.bits - 1)
        return (jnp.clip(jnp.round(y), -middle, middle - 1) + middle).astype(jnp.uint8), scale, None
    # With 127.5 levels the lowest code, −128, is used, too.
    return jnp.clip(jnp.round(y), -math.ceil(form.levels), 127).astype(jnp.int8), scale, None


def _of_floats(x: Array, largest: Array, form: WeightFormat, axis: int) -> tuple[Any, ...]:
    """Codes and scales of NVFP4, MXFP4 and float8 by blocks, as compressed-tensors has them."""
    if form.scales == "e8m0":
        exponent = _power_above(largest)
        # Exact, and finite where a group is all zeros and its scale the least there is.
        y, scale = x * power_of_two(254 - exponent), power_of_two(exponent)
    else:
        beside = form.scales == "e4m3"
        scale = _e4m3_scales(largest, form, axis) if beside else _of_blocks(largest, form)
        y = divide(x, scale)
    return to_e2m1(y) if form.codes == "e2m1" else to_float8(y, form.codes), scale, None


def to_e2m1(y: Float[Array, "..."]) -> UInt8[Array, "..."]:
    """The code of the nearest e2m1 value, the even code at a midpoint; beyond 6 it is that of 6."""
    size, code = jnp.abs(y), jnp.where(y < 0, 8, 0)
    values = CODEBOOKS["e2m1"][:8]
    for low, middle in enumerate(((values[1:] + values[:-1]) / 2).tolist()):
        above = size > middle if low % 2 == 0 else size >= middle
        code = code + jnp.where(above, 1, 0)
    return code.astype(jnp.uint8)


def _power_above(largest: Array) -> Array:
    """The e8m0 code of each group's scale, int32: ``127 + ⌊log2 max|w|⌉ − 2``.

    The logarithm is rounded up from 1.75 · 2ⁿ, since 7 would round to 8, which e2m1 does not have.
    OCP's specification (Microscaling Formats v1.0) always rounds down, and so clips more.
    """
    bits = lax.bitcast_convert_type(largest.astype(jnp.float32), jnp.int32)
    quarter = 1 << (MANTISSA - 2)
    return jnp.clip((bits + quarter >> MANTISSA) - 2, 0, 254)


def power_of_two(code: Array) -> Float[Array, "..."]:
    """The number ``2^(code − 127)`` of an e8m0 code, f32.

    Args:
        code: int32, 0 to 254.
    """
    bits = jnp.where(code > 0, code << MANTISSA, 1 << (MANTISSA - 1))
    return lax.bitcast_convert_type(bits, jnp.float32)


def _e4m3_scales(largest: Array, form: WeightFormat, axis: int) -> Array:
    """NVFP4's scales of groups as f32: in e4m3, over the scale of their whole matrix."""
    whole = largest.max(axis=(axis - 1, -1), keepdims=True)
    # PyTorch divides a number by a tensor as it multiplies by the reciprocal, rounded twice.
    of_matrix = _reciprocal(whole) * (form.levels * float(jnp.finfo(jnp.float8_e4m3fn).max))
    of_matrix = jnp.where(jnp.isfinite(of_matrix), of_matrix, 1)
    scale = divide(largest, jnp.full_like(largest, form.levels)) * of_matrix
    scale = to_float8(scale, "e4m3fn").astype(jnp.float32)
    return divide(jnp.where(scale == 0, ZERO_E4M3, scale), of_matrix)


def _of_blocks(largest: Array, form: WeightFormat) -> Array:
    """The scale of each block, at each of its outputs."""
    assert form.block is not None
    outputs = largest.shape[-1]
    blocks = _whole_blocks(largest, -1, form.block).reshape(*largest.shape[:-1], -1, form.block)
    most = blocks.max(axis=-1)
    scale = divide(most, jnp.full_like(most, form.levels))
    scale = jnp.where(scale == 0, jnp.finfo(scale.dtype).eps, scale)
    return jnp.repeat(scale, form.block, axis=-1)[..., :outputs]


def _whole_blocks(w: Array, axis: int, size: int) -> Array:
    """``w`` with zeros behind it, so that ``size`` divides an axis."""
    rest = [(0, 0)] * w.ndim
    rest[axis] = (0, -w.shape[axis] % size)
    return jnp.pad(w, rest)


def _reciprocal(largest: Array) -> Array:
    """``1 / largest``, finite where a group is all zeros."""
    return divide(jnp.ones_like(largest), jnp.maximum(largest, jnp.finfo(largest.dtype).tiny))


def _nearest(x: Array, largest: Array, book: np.ndarray) -> Array:
    """The code of the nearest value of a codebook, the lower one at a midpoint.

    The code is that of the lowest value, and what it changes by at each midpoint below ``x``:
    comparisons and sums, which a processor does for many elements at once.
    """
    unit = jnp.clip(x * _reciprocal(largest), -1, 1)
    order = np.argsort(book, kind="stable")
    middles = (book[order][1:] + book[order][:-1]) / 2
    code = jnp.full(x.shape, int(order[0]), jnp.int32)
    for middle, step in zip(middles, np.diff(order), strict=True):
        code = code + jnp.where(unit > float(middle), int(step), 0)
    return code.astype(jnp.uint8)


def _absmax_int8(x: Array, form: WeightFormat, axis: int) -> tuple[Array, Array, None]:
    """bitsandbytes' int8: of weights in f16, scaled by ``127 · (1 / absmax)`` in f32."""
    half = x.astype(jnp.float16).astype(jnp.float32)
    largest = jnp.abs(half).max(axis=axis, keepdims=True)
    codes = jnp.round(half * (form.levels * _reciprocal(largest)))
    return codes.astype(jnp.int8), largest, None
