"""One quantized linear layer in the layout that every format is brought to, ``[out, in]``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np

from jaxalign.checkpoints.quantized.tensors import AS_WRITTEN
from jaxalign.errors import InputError
from jaxalign.numerics.codebooks import CODEBOOKS
from jaxalign.numerics.scheme import WeightFormat

# What a layer may have beside its codes, one a group or block and output.
BESIDE_CODES = ("scale", "zero", "offset", "block_scale", "block_offset")
# The zero point that symmetric codes stand around.
MIDDLE = {4: 8, 8: 0}


@dataclass(frozen=True)
class PackedLinear:
    """A linear layer of ``A`` inputs in ``G`` groups.

    Attributes:
        codes: ``[out, A]``: uint8 of 0 to 15 for 4-bit codes (two to a byte only later), int8, or
            float8.
        scale: ``[out, G]``, of the dtype in which the tool that wrote it dequantizes; that of a
            block of outputs stands at each of them.
        zero: ``[out, G]`` in the codes' dtype, or None for symmetric codes.
        group_of: int32 ``[A]``, the group of each input, or None where those of a group stand
            together.
        format: what the codes mean.
        input_divisor: f32 ``[A]``, what the layer's input is divided by, or None.
        offset, block_scale, block_offset: as ``QTensor``'s, ``[out, …]``, or None.
    """

    codes: np.ndarray
    scale: np.ndarray
    zero: np.ndarray | None
    group_of: np.ndarray | None
    format: WeightFormat
    input_divisor: np.ndarray | None = None
    offset: np.ndarray | None = None
    block_scale: np.ndarray | None = None
    block_offset: np.ndarray | None = None

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The codes and what the layer has beside them, by field."""
        parts = {name: getattr(self, name) for name in ("codes", *BESIDE_CODES)}
        return {name: part for name, part in parts.items() if part is not None}

    def with_arrays(self, arrays: Mapping[str, np.ndarray]) -> PackedLinear:
        """The layer with other codes and other arrays beside them.

        Args:
            arrays: by field.
        """
        return replace(self, **arrays)  # type: ignore[arg-type]

    @property
    def groups(self) -> np.ndarray:
        """The group of each input, ``[A]``."""
        size = self.format.group if self.format.block else None
        standing = in_order(self.codes.shape[1], self.scale.shape[1], size)
        return standing if self.group_of is None else self.group_of


def in_order(inputs: int, groups: int, size: int | None = None) -> np.ndarray:
    """The group of each input where those of a group stand together, int32 ``[A]``.

    Args:
        inputs: ``A``.
        groups: how many groups there are.
        size: inputs of a group, where the last may have fewer; None where all have as many.
    """
    return (np.arange(inputs) // (size or inputs // groups)).astype(np.int32)


def checked(layer: PackedLinear, where: str) -> PackedLinear:
    """The layer, if every scale can be one.

    A tool that finds nothing but zeros writes a scale of zero or its least one; a scale of zero
    over codes that stand for something else was not written by it, unless scales are rounded
    themselves.

    Args:
        layer: codes, scales and zero points, ``[out, …]``.
        where: what the layer is called, for messages.

    Raises:
        InputError: a scale is NaN, infinite, negative where no tool writes a negative one, or zero
            where codes are not.
    """
    scale = layer.scale.astype(np.float32)
    if not np.isfinite(scale).all():
        raise InputError(f"{where} has scales that are NaN or infinite", AS_WRITTEN)
    if (negative := (scale < 0) & ~may_be_negative(layer)).any():
        raise InputError(f"{where} has {int(negative.sum())} negative scales", AS_WRITTEN)
    zero = [] if layer.format.double else np.argwhere(scale == 0).tolist()
    if any(_values(layer, row, group).any() for row, group in zero):
        raise InputError(
            f"{where} has {len(zero)} scales of zero over codes that are not zero", AS_WRITTEN
        )
    return layer


def may_be_negative(layer: PackedLinear) -> np.ndarray:
    """Which scales may be negative, bool ``[out, G]``.

    Those of symmetric integers: codes reach from −8 to 7, so auto-round gives the scale the sign
    that puts the largest weight on −8. And those of double quantization, which rounds scales around
    their mean.
    """
    form, shape = layer.format, layer.scale.shape
    if form.double:
        return np.ones(shape, bool)
    if form.absmax or not form.codes.startswith("int"):
        return np.zeros(shape, bool)
    return np.ones(shape, bool) if layer.zero is None else layer.zero == MIDDLE[form.bits]


def _values(layer: PackedLinear, row: int, group: int) -> np.ndarray:
    """What the codes of one group stand for, before the scale."""
    codes = layer.codes[row, layer.groups == group]
    if layer.format.codes in CODEBOOKS:
        return CODEBOOKS[layer.format.codes][codes]
    middle = MIDDLE[layer.format.bits] if layer.codes.dtype.kind in "iu" else 0
    zero = middle if layer.zero is None else float(layer.zero[row, group])
    return codes.astype(np.float32) - zero


def fields(words: np.ndarray, bits: int) -> np.ndarray:
    """The ``32 / bits`` unsigned fields of int32 words, lowest bits first: ``[…, n]`` uint8."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    return (words.view(np.uint32)[..., None] >> shifts & ((1 << bits) - 1)).astype(np.uint8)


def signed(codes: np.ndarray) -> np.ndarray:
    """8-bit codes of 0 to 255 around 128 as int8 around 0."""
    return (codes ^ 0x80).view(np.int8)


def integers(
    codes: np.ndarray,
    scale: np.ndarray,
    zero: np.ndarray | None,
    group_of: np.ndarray | None,
    bits: int,
    levels: int | float,
) -> PackedLinear:
    """A layer of integers, ``W = (code − zero) · scale``.

    Args:
        codes: unsigned, uint8 ``[out, A]``, 0 to ``2^bits − 1``.
        scale: ``[out, G]``.
        zero: unsigned zero points, uint8 ``[out, G]``, or None where all are ``2^(bits − 1)``.
        group_of: int32 ``[A]``, the group of each input, or None where those of a group stand
            together.
        bits: of a code, 4 or 8.
        levels: steps from the smallest code to the largest, or from zero to the largest.
    """
    if bits == 8:
        codes, zero = signed(codes), None if zero is None else signed(zero)
    form = WeightFormat(
        f"int{bits}",
        _group(codes, scale),
        levels=levels,
        zero=zero is not None,
        scale_bits=8 * scale.itemsize,
        zero_bits=bits,
    )
    return PackedLinear(codes, scale, zero, group_of, form)


def groups_in(inputs: int, size: int | None, where: str) -> int:
    """How many groups the inputs of a layer make.

    Args:
        inputs: how many inputs the layer has.
        size: inputs of a group; None or −1 for one group.
        where: what the layer is called, for messages.

    Raises:
        InputError: the size is no group size, or does not divide the inputs.
    """
    if size in (None, -1):
        return 1
    if not isinstance(size, int) or size < 1 or inputs % size:
        raise InputError(
            f"{where} has {inputs} inputs, which groups of {size} do not divide", AS_WRITTEN
        )
    return inputs // size


def float8(codes: np.ndarray, scale: np.ndarray) -> PackedLinear:
    """A layer of float8 codes."""
    name = "e4m3fn" if codes.dtype == jnp.float8_e4m3fn else "e5m2"
    levels = float(jnp.finfo(codes.dtype).max)
    form = WeightFormat(name, _group(codes, scale), levels, scale_bits=8 * scale.itemsize)
    return PackedLinear(codes, scale, None, None, form)


def block_float8(codes: np.ndarray, scale: np.ndarray, block: tuple[int, int]) -> PackedLinear:
    """A layer of float8 codes with a scale for each block.

    Args:
        codes: ``[out, A]``.
        scale: ``[⌈out/r⌉, ⌈A/c⌉]``.
        block: ``r`` outputs and ``c`` inputs of a block.
    """
    rows, columns = block
    layer = float8(codes, np.repeat(scale, rows, axis=0)[: len(codes)])
    return replace(layer, format=replace(layer.format, group=columns, block=rows))


def _group(codes: np.ndarray, scale: np.ndarray) -> int | None:
    """Inputs that share a scale; None where all do."""
    return None if scale.shape[1] == 1 else codes.shape[1] // scale.shape[1]
