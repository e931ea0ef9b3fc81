"""Layers of a checkpoint, quantized and not, through the conversion table into parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.checkpoints.quantized.gguf_blocks import in_one_format
from jaxalign.checkpoints.quantized.linear import BESIDE_CODES, MIDDLE, PackedLinear, in_order
from jaxalign.checkpoints.tables import TensorRule
from jaxalign.model.config import ModelConfig
from jaxalign.numerics.qtensor import QTensor, pack_nibbles, unpack

# What fills one target of one layer: an array, or a ``PackedLinear`` whose arrays are transposed,
# so that codes are ``[A, *out]``.
Piece = PackedLinear | np.ndarray


@dataclass(frozen=True)
class Leaf:
    """A parameter of all layers.

    Attributes:
        value: an array, or a ``QTensor`` where every layer is quantized alike.
        quantized: which layers came quantized, in part at least.
    """

    value: Any
    quantized: tuple[bool, ...]

    @property
    def mixed(self) -> bool:
        """Whether quantized layers had to be unpacked to stand in one array with others."""
        return any(self.quantized) and not isinstance(self.value, QTensor)


def leaf(
    name: str,
    shape: tuple[int, ...],
    rules: Sequence[TensorRule],
    config: ModelConfig,
    read: Callable[[TensorRule, str], Piece],
    dtype: Any,
) -> Leaf:
    """One parameter from the published tensors that fill it.

    Args:
        name: the parameter's dotted name.
        shape: the parameter's shape.
        rules: of the conversion table, for what this model has.
        config: the architecture.
        read: gives a published tensor, ``[out, in]`` or ``[out]``: an array or a ``PackedLinear``.
        dtype: of the parameter where it is not packed.
    """
    own = [rule for rule in rules if any(target.leaf == name for target in rule.targets)]
    layered = own[0].layered
    layers = range(config.num_layers if layered else 1)
    parts = _one_format([_parts(name, layer, own, config, read) for layer in layers])
    pieces = [_side_by_side(sides) for sides in parts]
    quantized = tuple(any(isinstance(side, PackedLinear) for side in sides) for sides in parts)
    if not layered and isinstance(
        pieces[0], PackedLinear
    ):  # a row a token is looked up: never packed
        return Leaf(jnp.asarray(rows_of(pieces[0]).astype(dtype)), quantized)
    if (packed := _stacked(pieces, len(shape) - 2)) is not None:
        return Leaf(packed, quantized)
    arrays = [_dense(piece) if isinstance(piece, PackedLinear) else piece for piece in pieces]
    value = np.stack(arrays) if layered else arrays[0]
    return Leaf(jnp.asarray(value.astype(dtype)), quantized)


def _parts(
    name: str,
    layer: int,
    rules: Sequence[TensorRule],
    config: ModelConfig,
    read: Callable[[TensorRule, str], Piece],
) -> list[Piece]:
    """What one layer has of a leaf: all of it, or its parts in their order."""
    parts: dict[int | None, Piece] = {}
    for rule in rules:
        found = transposed(read(rule, rule.names(config)[layer]), rule, config)
        for target, piece in zip(rule.targets, found, strict=True):
            if target.leaf == name:
                parts[target.part] = piece
    return [parts[None]] if None in parts else [parts[i] for i in range(len(parts))]


def _one_format(parts: list[list[Piece]]) -> list[list[Piece]]:
    """The pieces of all layers, in one format where their formats differ and one holds them."""
    flat = [side for sides in parts for side in sides]
    packed = [side for side in flat if isinstance(side, PackedLinear)]
    if len(packed) < len(flat) or len({side.format for side in packed}) == 1:
        return parts
    found = in_one_format(packed)
    if found is None:
        return parts
    count = len(parts[0])
    return [list(found[start : start + count]) for start in range(0, len(found), count)]


def _side_by_side(sides: Sequence[Piece]) -> Piece:
    """The parts of a leaf (keys and values) as one piece, packed if they are alike."""
    if len(sides) == 1:
        return sides[0]
    packed = [side for side in sides if isinstance(side, PackedLinear)]
    if len(packed) == len(sides) and alike(packed):
        return _each(lambda *arrays: np.stack(arrays, axis=-2), packed)
    arrays = [_dense(side) if isinstance(side, PackedLinear) else side for side in sides]
    return np.stack(arrays, axis=-2)


def transposed(tensor: Piece, rule: TensorRule, config: ModelConfig) -> list[Piece]:
    """A published tensor as what fills each target of its rule.

    Args:
        tensor: an array ``[out, in]`` or ``[out]``, or a ``PackedLinear``.
        rule: the tensor's rule of the conversion table.
        config: the architecture.
    """
    if not isinstance(tensor, PackedLinear):
        return list(rule.load(tensor, config))
    loaded = {name: rule.load(part, config) for name, part in tensor.arrays.items()}
    return [
        tensor.with_arrays({name: parts[i] for name, parts in loaded.items()})
        for i in range(len(rule.targets))
    ]


def alike(layers: Sequence[PackedLinear]) -> bool:
    """Whether layers differ in nothing but their numbers, so that they can be one ``QTensor``."""
    first = layers[0]
    return all(
        replace(one.format, zero=False) == replace(first.format, zero=False)
        and (one.codes.dtype, one.scale.dtype) == (first.codes.dtype, first.scale.dtype)
        and one.scale.shape == first.scale.shape
        and _same(one.input_divisor, first.input_divisor)
        and _same(one.group_of, first.group_of)
        for one in layers
    )


def _same(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    return a is b or (a is not None and b is not None and np.array_equal(a, b))


def _each(join: Callable[..., np.ndarray], layers: Sequence[PackedLinear]) -> PackedLinear:
    """Layers joined to one, codes with codes and scales with scales."""
    if any(one.zero is not None for one in layers):
        layers = [replace(one, zero=_zero(one)) for one in layers]
    parts = [one.arrays for one in layers]
    joined = {name: join(*(part[name] for part in parts)) for name in parts[0]}
    return layers[0].with_arrays(joined)


def _zero(layer: PackedLinear) -> np.ndarray:
    if layer.zero is not None:
        return layer.zero
    return np.full(layer.scale.shape, MIDDLE[layer.format.bits], layer.codes.dtype)


def _stacked(pieces: Sequence[Piece], outputs: int) -> QTensor | None:
    """All layers as one ``QTensor``; None where they cannot be one."""
    layers = [piece for piece in pieces if isinstance(piece, PackedLinear)]
    if len(layers) < len(pieces):
        return None
    plain = [replace(one, group_of=None, input_divisor=None) for one in layers]
    if not alike(plain):
        return None
    whole = _each(lambda *arrays: np.stack(arrays), plain)
    order = divisor = None
    if any(one.group_of is not None for one in layers):
        order = np.stack([_groups(one) for one in layers])
    if any(one.input_divisor is not None for one in layers):
        ones = np.ones(pieces[0].codes.shape[0], np.float32)  # type: ignore[union-attr]
        divisor = np.stack([ones if x is None else x for x in (o.input_divisor for o in layers)])
    return _qtensor(replace(whole, group_of=order, input_divisor=divisor), outputs)


def _groups(layer: PackedLinear) -> np.ndarray:
    standing = in_order(layer.codes.shape[0], layer.scale.shape[0])
    return standing if layer.group_of is None else layer.group_of


def _qtensor(layer: PackedLinear, outputs: int) -> QTensor:
    """Transposed arrays as a ``QTensor``, 4-bit codes two to a byte."""
    codes, zero, form = jnp.asarray(layer.codes), layer.zero, layer.format
    if form.per_byte == 2:
        codes = pack_nibbles(codes, -1 - outputs)
    # Zero points that all stand in the middle are what symmetric codes are.
    if zero is not None and (zero == MIDDLE[form.bits]).all():
        zero = None
    form = replace(form, zero=zero is not None)
    names = (*BESIDE_CODES, "group_of", "input_divisor")
    parts = {name: getattr(replace(layer, zero=zero), name) for name in names}
    arrays = {name: None if part is None else jnp.asarray(part) for name, part in parts.items()}
    return QTensor(codes, **arrays, format=form, outputs=outputs)  # type: ignore[arg-type]


def _dense(layer: PackedLinear) -> np.ndarray:
    """One layer's transposed matrix unpacked, f32, with its input divisor folded in."""
    matrix = unpack(_qtensor(replace(layer, input_divisor=None), layer.codes.ndim - 1))
    dense = np.asarray(matrix.astype(jnp.float32))
    if layer.input_divisor is None:
        return dense
    return dense / layer.input_divisor.reshape(-1, *[1] * (dense.ndim - 1))


def packed_matrix(layer: PackedLinear) -> QTensor:
    """A layer as it is published, ``[out, …]``, as the matrix ``[A, out]`` of its inputs."""
    return _qtensor(layer.with_arrays({name: x.T for name, x in layer.arrays.items()}), 1)


def rows_of(layer: PackedLinear) -> np.ndarray:
    """A layer as it is published, ``[out, in]``, unpacked to f32."""
    return _dense(layer.with_arrays({name: x.T for name, x in layer.arrays.items()})).T


def params_of(loaded: Mapping[str, Leaf], shapes: Any) -> Any:
    """Leaves by dotted name as the tree of parameters."""
    paths, tree = jax.tree_util.tree_flatten_with_path(shapes)
    names = [".".join(key.name for key in path) for path, _ in paths]
    return jax.tree_util.tree_unflatten(tree, [loaded[name].value for name in names])
