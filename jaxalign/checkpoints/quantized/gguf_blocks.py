"""Blocks of a GGUF file as codes, scales and offsets, without a rounding: packed they stay.

The old types (``Q4_0`` … ``Q8_0``) have 32 weights a block, with a scale in f16 and, in the ``_1``
ones, an offset. Those of K-quants have 256 weights in groups of 16 or 32; a group's scale and
offset are small integers, and the block has two numbers in f16 that multiply them. Every product
of a code with its scales has at most 24 bits, so what JAX computes of them in f32 is what ``gguf``
computes.

Source: ggml's ``ggml-common.h`` (how the blocks lie), and the ``gguf`` package's ``quants.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from jaxalign.checkpoints.quantized.linear import PackedLinear
from jaxalign.numerics.scheme import WeightFormat

# Fields of a ``PackedLinear`` by name, each ``[blocks, any number of them]``.
Parts = dict[str, np.ndarray]


def packed_blocks(blocks: np.ndarray, kind: str) -> PackedLinear | None:
    """The matrix of some blocks, packed; None for a type that is not kept so.

    Args:
        blocks: uint8 ``[out, blocks, bytes]``.
        kind: the blocks' type, ``"Q4_K"``.
    """
    if kind not in PACKED:
        return None
    form, read = PACKED[kind]
    rows, count, size = blocks.shape
    parts = read(np.ascontiguousarray(blocks).reshape(rows * count, size))
    whole = {name: part.reshape(rows, -1) for name, part in parts.items()}
    plain = PackedLinear(whole["codes"], whole["scale"], None, None, form)
    return plain.with_arrays(whole)


def in_one_format(layers: Sequence[PackedLinear]) -> list[PackedLinear] | None:
    """K-quants of several types with the same weights in one format; None where that is not so.

    llama.cpp's mixtures (``Q4_K_M``) have some layers of a matrix in another type than the rest.
    Codes become signed bytes, groups the smallest ones, and what has no offset gets one of −0,
    which changes nothing.

    Args:
        layers: ``[out, …]`` or transposed, of one shape, each of ``packed_blocks``.
    """
    if any(layer.block_scale is None for layer in layers):
        return None
    return [_widest(layer) for layer in layers]


def _widest(layer: PackedLinear) -> PackedLinear:
    """A K-quant in groups of 16 with an offset; the axis of inputs is the first."""
    form, codes = layer.format, layer.codes.astype(np.int8)
    if not form.offset_bits:
        codes -= np.int8(2 ** (form.bits - 1))
    repeats = form.group // SMALLEST  # type: ignore[operator]
    scale = np.repeat(layer.scale, repeats, axis=0)
    offset, block = layer.offset, layer.block_offset
    if offset is None or block is None:
        offset, block = np.ones_like(layer.scale), np.full_like(layer.block_scale, -0.0)
    return replace(
        layer,
        codes=codes,
        scale=scale,
        offset=np.repeat(offset, repeats, axis=0),
        block_offset=block,
        format=WIDEST,
    )


def _halves(part: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(part).view(np.float16)


def _bits(packed: np.ndarray, width: int, run: int) -> np.ndarray:
    """Fields of some bits: all bytes of a run give their lowest ones, then their next ones."""
    shifts = np.arange(0, 8, width, dtype=np.uint8).reshape(-1, 1)
    fields = packed.reshape(len(packed), -1, 1, run) >> shifts & np.uint8((1 << width) - 1)
    return fields.reshape(len(packed), -1)


def _fifth(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Codes of five bits, from four and a bit of each of 32 weights in 4 bytes."""
    return low | np.unpackbits(high, axis=-1, bitorder="little") << 4


def _q4_0(b: np.ndarray) -> Parts:
    return {"scale": _halves(b[:, :2]), "codes": _bits(b[:, 2:], 4, 16)}


def _q4_1(b: np.ndarray) -> Parts:
    return {
        "scale": _halves(b[:, :2]),
        "offset": _halves(b[:, 2:4]),
        "codes": _bits(b[:, 4:], 4, 16),
    }


def _q5_0(b: np.ndarray) -> Parts:
    return {"scale": _halves(b[:, :2]), "codes": _fifth(_bits(b[:, 6:], 4, 16), b[:, 2:6])}


def _q5_1(b: np.ndarray) -> Parts:
    return {
        "scale": _halves(b[:, :2]),
        "offset": _halves(b[:, 2:4]),
        "codes": _fifth(_bits(b[:, 8:], 4, 16), b[:, 4:8]),
    }


def _q8_0(b: np.ndarray) -> Parts:
    return {"scale": _halves(b[:, :2]), "codes": np.ascontiguousarray(b[:, 2:]).view(np.int8)}


def _q2_k(b: np.ndarray) -> Parts:
    return {
        "scale": (b[:, :16] & 15).view(np.int8),
        "offset": (b[:, :16] >> 4).view(np.int8),
        "codes": _bits(b[:, 16:80], 2, 32),
        "block_scale": _halves(b[:, 80:82]),
        "block_offset": -_halves(b[:, 82:84]),
    }


def _q3_k(b: np.ndarray) -> Parts:
    high, low = b[:, :32], _bits(b[:, 32:96], 2, 32)
    low_scales, high_scales = _bits(b[:, 96:104], 4, 8), _bits(b[:, 104:108], 2, 4)
    return {
        "codes": low | _bits(high, 1, 32) << 2,
        "scale": (low_scales | high_scales << 4).view(np.int8) - np.int8(32),
        "block_scale": _halves(b[:, 108:110]),
    }


def _scales_and_offsets(b: np.ndarray) -> Parts:
    """Eight scales and offsets of six bits each, in twelve bytes, behind the two of the block."""
    scale, offset, both = b[:, 4:8], b[:, 8:12], b[:, 12:16]
    scales = [scale & 63, both & 15 | scale >> 2 & 48]
    offsets = [offset & 63, both >> 4 | offset >> 2 & 48]
    return {
        "block_scale": _halves(b[:, :2]),
        "block_offset": -_halves(b[:, 2:4]),
        "scale": np.concatenate(scales, axis=1).view(np.int8),
        "offset": np.concatenate(offsets, axis=1).view(np.int8),
    }


def _q4_k(b: np.ndarray) -> Parts:
    return _scales_and_offsets(b) | {"codes": _bits(b[:, 16:], 4, 32)}


def _q5_k(b: np.ndarray) -> Parts:
    return _scales_and_offsets(b) | {
        "codes": _bits(b[:, 48:], 4, 32) | _bits(b[:, 16:48], 1, 32) << 4
    }


def _q6_k(b: np.ndarray) -> Parts:
    return {
        "codes": _bits(b[:, :128], 4, 64) | _bits(b[:, 128:192], 2, 32) << 4,
        "scale": np.ascontiguousarray(b[:, 192:208]).view(np.int8),
        "block_scale": _halves(b[:, 208:210]),
    }


def _format(bits: int, group: int, scale_bits: int, offset_bits: int = 0) -> WeightFormat:
    return WeightFormat(
        f"int{bits}", group, scale_bits=scale_bits, offset_bits=offset_bits, wide=True
    )


# A scale's bits count its share of the block's: 16 bits for 8 groups are 2 for each.
PACKED: Mapping[str, tuple[WeightFormat, Callable[[np.ndarray], Parts]]] = {
    "Q4_0": (_format(4, 32, 16), _q4_0),
    "Q4_1": (_format(4, 32, 16, 16), _q4_1),
    "Q5_0": (_format(5, 32, 16), _q5_0),
    "Q5_1": (_format(5, 32, 16, 16), _q5_1),
    "Q8_0": (_format(8, 32, 16), _q8_0),
    "Q2_K": (_format(2, 16, 4 + 1, 4 + 1), _q2_k),
    "Q3_K": (_format(3, 16, 6 + 1), _q3_k),
    "Q4_K": (_format(4, 32, 6 + 2, 6 + 2), _q4_k),
    "Q5_K": (_format(5, 32, 6 + 2, 6 + 2), _q5_k),
    "Q6_K": (_format(6, 16, 8 + 1), _q6_k),
}
SMALLEST = 16
# What holds every K-quant.
WIDEST = _format(8, SMALLEST, 8 + 1, 8 + 1)
