"""Layers of a checkpoint, quantized and not, through the conversion table into parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.checkpoints.quantized.linear import MIDDLE, PackedLinear, in_order
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
    parts = [_parts(name, layer, own, config, read) for layer in layers]
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
    codes, scale = rule.load(tensor.codes, config), rule.load(tensor.scale, config)
    zero = [None] * len(codes) if tensor.zero is None else rule.load(tensor.zero, config)
    return [replace(tensor, codes=codes[i], scale=scale[i], zero=zero[i])
            for i in range(len(codes))]  # fmt: skip


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
    return replace(
        layers[0],
        codes=join(*(one.codes for one in layers)),
        scale=join(*(one.scale for one in layers)),
        zero=None if all(one.zero is None for one in layers) else join(*map(_zero, layers)),
    )


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
    if form.bits == 4:
        codes = pack_nibbles(codes, -1 - outputs)
    # Zero points that all stand in the middle are what symmetric codes are.
    if zero is not None and (zero == MIDDLE[form.bits]).all():
        zero = None
    form = replace(form, zero=zero is not None)
    order, divisor = layer.group_of, layer.input_divisor
    return QTensor(
        codes,
        jnp.asarray(layer.scale),
        None if zero is None else jnp.asarray(zero),
        None if order is None else jnp.asarray(order),
        None if divisor is None else jnp.asarray(divisor),
        format=form,
        outputs=outputs,
    )


def _dense(layer: PackedLinear) -> np.ndarray:
    """One layer's transposed matrix unpacked, f32, with its input divisor folded in."""
    matrix = unpack(_qtensor(replace(layer, input_divisor=None), layer.codes.ndim - 1))
    dense = np.asarray(matrix.astype(jnp.float32))
    if layer.input_divisor is None:
        return dense
    return dense / layer.input_divisor.reshape(-1, *[1] * (dense.ndim - 1))


def rows_of(layer: PackedLinear) -> np.ndarray:
    """A layer as it is published, ``[out, in]``, unpacked to f32."""
    zero = None if layer.zero is None else layer.zero.T
    return _dense(replace(layer, codes=layer.codes.T, scale=layer.scale.T, zero=zero)).T


def params_of(loaded: dict[str, Leaf], shapes: Any) -> Any:
    """Leaves by dotted name as the tree of parameters."""
    paths, tree = jax.tree_util.tree_flatten_with_path(shapes)
    names = [".".join(key.name for key in path) for path, _ in paths]
    return jax.tree_util.tree_unflatten(tree, [loaded[name].value for name in names])
