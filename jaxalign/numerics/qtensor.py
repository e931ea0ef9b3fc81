"""Packed matrices: a quantized weight that stands wherever an array stood.

For a matrix ``[…, A, *out]`` of ``A`` inputs:

=================  ==========================  =================================================
``codes``          uint8 ``[…, A/2, *out]``    codes of up to 4 bits: input ``2i`` in the high
                                               half of byte ``i``, input ``2i + 1`` in the low half
                   uint8 ``[…, A, *out]``      codes of 5 to 7 bits
                   int8 ``[…, A, *out]``       8-bit codes; float8 codes in their own dtype
``scale``          ``[…, G, *out]``            one a group of ``A/G`` inputs that stand together;
                                               of a block of outputs, the same for each of them
``zero``           ``[…, G, *out]`` or None    zero points
``group_of``       int32 ``[…, A]`` or None    the group of each input, where those of a group do
                                               not stand together (GPTQ's act-order)
``offset``         ``[…, G, *out]`` or None    what is added to every weight of a group (GGUF)
``block_scale``    f16 ``[…, B, *out]`` / None what the scales of the groups of a block are
                                               multiplied by, where those are int8 (GGUF)
``block_offset``   f16 ``[…, B, *out]`` / None the same of offsets
``input_divisor``  f32 ``[…, A]`` or None      what the layer's input is divided by (AWQ,
                                               SmoothQuant, where no norm before it can take it)
``input_scale``    f32 ``[…]`` or None         the fixed scale of static int8 inputs
=================  ==========================  =================================================

A weight is ``value(code) · scale``, ``(value(code) − zero) · scale``, or, where the format says
``absmax``, ``(value(code) · scale) · (1 / levels)``: computed in f32, rounded to ``scale``'s dtype
(a format that is ``wide`` keeps f32), then to the dtype of the run. With offsets it is
``value(code) · scale + offset``; blocks multiply the scales and offsets of their groups. ``value``
is the code itself for int8, float8 and for fewer bits with zero points or offsets, ``code − 2ⁿ⁻¹``
for n bits without, and the codebook's entry for nf4, fp4 and e2m1. Scales that are quantized
themselves stand as the f32 numbers that they mean. Leading axes (layers) are those of an array, so
``scan``, ``vmap`` and indexing over layers treat a ``QTensor`` as they treat an array.
``invariants.check`` checks all of the above.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from jaxalign.numerics.codebooks import CODEBOOKS
from jaxalign.numerics.scheme import WeightFormat
from jaxalign.shapes import Array, ArrayLeaf, Float, UInt8, outline


@struct.dataclass
class QTensor:
    """A packed matrix; the table above has its fields.

    Attributes:
        format: how it is packed (static).
        inputs: how the layer's input is rounded, of ``scheme.INPUTS``, or None (static).
        outputs: how many axes the outputs have, ``*out`` (static).
    """

    codes: ArrayLeaf
    scale: ArrayLeaf
    zero: ArrayLeaf | None = None
    group_of: ArrayLeaf | None = None
    input_divisor: ArrayLeaf | None = None
    input_scale: ArrayLeaf | None = None
    offset: ArrayLeaf | None = None
    block_scale: ArrayLeaf | None = None
    block_offset: ArrayLeaf | None = None
    format: WeightFormat = struct.field(pytree_node=False, default=WeightFormat("int8"))
    inputs: str | None = struct.field(pytree_node=False, default=None)
    outputs: int = struct.field(pytree_node=False, default=1)

    @property
    def axis(self) -> int:
        """The axis of the inputs, counted from the end."""
        return -1 - self.outputs

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the matrix that it stands for."""
        shape = list(self.codes.shape)
        shape[self.axis] *= self.format.per_byte
        return tuple(shape)

    @property
    def size(self) -> int:
        """How many numbers it stands for."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return sum(part.size * jnp.dtype(part.dtype).itemsize for part in jax.tree.leaves(self))

    __repr__ = outline


# A matrix of a tree of parameters, packed or not; see ``shapes.ArrayLeaf``.
if TYPE_CHECKING:
    MatrixLeaf: TypeAlias = Array | QTensor
else:
    MatrixLeaf = Any


def pack_nibbles(codes: UInt8[Array, "..."], axis: int) -> UInt8[Array, "..."]:
    """4-bit codes two to a byte along ``axis``, the first of a pair in the high half."""
    pairs = jnp.moveaxis(codes, axis, -1).reshape(*_without(codes.shape, axis), -1, 2)
    return jnp.moveaxis(pairs[..., 0] << 4 | pairs[..., 1], -1, axis)


def unpack_nibbles(packed: UInt8[Array, "..."], axis: int) -> UInt8[Array, "..."]:
    """``pack_nibbles`` undone."""
    pairs = jnp.stack([packed >> 4, packed & 15], axis=axis % packed.ndim + 1)
    shape = list(packed.shape)
    shape[axis] *= 2
    return pairs.reshape(shape)


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    axis %= len(shape)
    return shape[:axis] + shape[axis + 1 :]


def unpack(w: QTensor) -> Float[Array, "..."]:
    """The matrix ``[…, A, *out]`` that ``w`` stands for, in its scale's dtype or, if wide, f32."""
    values = code_values(w)
    if w.zero is not None:
        values = values - spread(w, w.zero.astype(jnp.float32))
    values = values * spread(w, group_scales(w))
    if w.format.absmax:
        values = values * (1 / w.format.levels)
    if w.offset is not None:
        # The products have at most 24 bits, so that a fused multiply and add rounds as two steps.
        values = values + spread(w, _of_groups(w, w.offset, w.block_offset))
    return values if w.format.wide else values.astype(w.scale.dtype)


def group_scales(w: QTensor) -> Float[Array, "..."]:
    """The scale of every group, f32 ``[…, G, *out]``, with its block's where it has one."""
    return _of_groups(w, w.scale, w.block_scale)


def _of_groups(w: QTensor, part: Array, block: Array | None) -> Array:
    """What every group has, f32, from a number a group and one a block."""
    part = part.astype(jnp.float32)
    if block is None:
        return part
    count = part.shape[w.axis] // block.shape[w.axis]
    return part * jnp.repeat(block.astype(jnp.float32), count, axis=w.axis)


def code_values(w: QTensor) -> Float[Array, "..."]:
    """``value(code)`` of every code, f32."""
    if w.format.bits == 8:
        return w.codes.astype(jnp.float32)
    codes = unpack_nibbles(w.codes, w.axis) if w.format.per_byte == 2 else w.codes
    if w.format.codes in CODEBOOKS:
        return jnp.asarray(CODEBOOKS[w.format.codes])[codes]
    values = codes.astype(jnp.float32)
    from_zero = w.zero is not None or w.offset is not None
    return values if from_zero else values - 2 ** (w.format.bits - 1)


def spread(w: QTensor, part: Array) -> Array:
    """The scale or zero point of every input, ``[…, A, *out]``, from those of groups."""
    if w.group_of is not None:
        index = w.group_of.reshape(*w.group_of.shape, *[1] * w.outputs)
        return jnp.take_along_axis(part, index, axis=w.axis)
    inputs, block = w.shape[w.axis], w.format.block is not None
    size = w.format.group if block else inputs // part.shape[w.axis]
    assert size is not None
    # The last block may have fewer inputs.
    return lax.slice_in_dim(jnp.repeat(part, size, axis=w.axis), 0, inputs, axis=w.axis)
