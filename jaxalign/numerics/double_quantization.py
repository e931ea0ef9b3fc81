"""Double quantization: scales that are themselves stored in 8 bits (QLoRA, section 3).

A scale is ``map[code] · block + offset``: ``map`` has 256 values (Dettmers et al. 2022, "8-bit
Optimizers", arXiv 2110.02861, section 2.1: dynamic tree quantization), ``block`` is the largest
distance from the offset among 256 scales, and ``offset`` the mean of all scales of a matrix.
"""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxalign.errors import InputError
from jaxalign.numerics.scheme import SCALES_PER_BLOCK
from jaxalign.shapes import Array, Float


@functools.cache
def dynamic_map() -> np.ndarray:
    """The 256 values of bitsandbytes' signed dynamic map, rising, f32.

    A code has a sign, a decimal exponent ``−6 … 0`` and a fraction between 0.1 and 1 with as many
    steps as bits are left: ``2^i`` for exponent ``i − 6``. Values are the middles of those steps;
    0 and 1 make it 256.
    """
    values = [0.0, 1.0]
    for i in range(7):
        middles = _middles(2**i + 1)
        scaled = (np.float32(10.0 ** (i - 6)) * middles).tolist()
        values += scaled + [-value for value in scaled]
    return np.sort(np.array(values, np.float32))


def _middles(count: int) -> np.ndarray:
    """Middles of ``count`` points from 0.1 to 1, laid from both ends as PyTorch lays them.

    The step is f32; a point is rounded once, so it is computed in f64 here.
    """
    low, high = np.float32(0.1), np.float32(1)
    step = np.float64((high - low) / np.float32(count - 1))
    i = np.arange(count)
    points = np.where(i < count // 2, low + step * i, high - step * (count - 1 - i))
    points = points.astype(np.float32)
    return (points[:-1] + points[1:]) / 2


def nested_scales(
    codes: np.ndarray,
    block: np.ndarray,
    values: np.ndarray,
    offset: float,
    size: int = SCALES_PER_BLOCK,
) -> np.ndarray:
    """The scales that bitsandbytes' nested tensors stand for: ``values[code] · block + offset``.

    On the host: compiled code would make one rounding of the product and the sum.

    Args:
        codes: ``absmax`` of the file, uint8 ``[n]``.
        block: ``nested_absmax``, f32 ``[ceil(n / size)]``.
        values: ``nested_quant_map``, f32 ``[256]``.
        offset: ``nested_offset`` of the quant state.
        size: ``nested_blocksize`` of the quant state.

    Raises:
        InputError: sizes or dtypes that do not belong together.
    """
    blocks = -(-codes.size // size) if size > 0 else 0
    for name, array, dtype, wanted in (
        ("absmax", codes, np.uint8, codes.size),
        ("nested_absmax", block, np.float32, blocks),
        ("nested_quant_map", values, np.float32, 256),
    ):
        if array.dtype != dtype or array.size != wanted:
            raise InputError(
                f"{name} holds {array.size} {array.dtype}, expected {wanted} "
                f"{np.dtype(dtype).name} ({codes.size} scales in blocks of {size})",
                "the file is damaged or was not written by bitsandbytes: quantize again",
            )
    spread = np.repeat(block.reshape(-1), size)[: codes.size]
    return values.reshape(-1)[codes.reshape(-1)] * spread + np.float32(offset)


def round_scales(scale: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
    """Scales as double quantization leaves them, f32.

    Args:
        scale: ``[…, G, *out]``, one a group.
        axis: that of the groups; axes before it count matrices, each with its own offset. Blocks
            of 256 are counted as the published ``[*out, G]`` lies in memory.

    Returns:
        ``map[code] · block + offset`` of each.
    """
    published = jnp.moveaxis(scale, axis, -1)
    flat = published.reshape(*scale.shape[:axis], -1)
    count = flat.shape[-1]
    offset = flat.mean(axis=-1, keepdims=True)
    rest = -count % SCALES_PER_BLOCK
    moved = jnp.pad(flat - offset, [(0, 0)] * axis + [(0, rest)])
    moved = moved.reshape(*moved.shape[:-1], -1, SCALES_PER_BLOCK)
    block = jnp.abs(moved).max(axis=-1, keepdims=True)
    whole = jnp.maximum(block, jnp.finfo(block.dtype).tiny)
    values = dynamic_map()
    middles = jnp.asarray((values[1:] + values[:-1]) / 2)
    unit = moved * (jnp.ones_like(whole) / lax.optimization_barrier(whole))
    product = jnp.asarray(values)[jnp.searchsorted(middles, unit, side="left")] * block
    rounded = product.reshape(*flat.shape[:-1], -1)[..., :count] + offset
    return jnp.moveaxis(rounded.reshape(published.shape), -1, axis)
