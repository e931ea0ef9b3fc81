"""Every parameter of a quantized checkpoint against the original's."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.checkpoints.load import Model
from jaxalign.checkpoints.quantized.closeness import Rounding, relative_error, rounding_of
from jaxalign.checkpoints.quantized.moved import moved_between, moved_norms
from jaxalign.checkpoints.quantized.read import Quantized
from jaxalign.errors import InputError
from jaxalign.model.config import ModelConfig
from jaxalign.model.params import norm_offset
from jaxalign.numerics import jit
from jaxalign.numerics.dot import dense
from jaxalign.numerics.qtensor import QTensor

REMEDY = "give the original that this checkpoint was made from to --model"
# What GGUF calls matrices that are not quantized; those of other formats are not listed at all.
FLOATS = ("F32", "F16", "BF16")
# Of a number that a file has in 16 bits at least; and where a factor was found from matrices.
ROUNDED, FITTED = 2.0**-7, 0.15
SMALLEST = 2.0**-20  # below it float16 keeps few digits


@dataclass
class _Expected:
    """What a file's parameters should be: the original's, with what the tool moved.

    Attributes:
        wanted: the original's parameters by dotted name.
        offset: what norms add to their scale, 0 or 1.
        inputs: what a matrix's inputs were multiplied by, ``[L, A]``.
        outputs: what its outputs, or a vector's elements, were divided by, ``[L, *out]``.
        fitted: names of which a factor was found from the matrices themselves.
    """

    wanted: Mapping[str, Any]
    offset: float
    inputs: dict[str, np.ndarray] = field(default_factory=dict)
    outputs: dict[str, np.ndarray] = field(default_factory=dict)
    fitted: set[str] = field(default_factory=set)

    def of(self, name: str, layer: int | None) -> np.ndarray:
        """One layer's parameter, f32."""
        value = _dense(self.wanted[name], layer)
        if name in self.inputs:
            value = value * self.inputs[name][layer].reshape(-1, *[1] * (value.ndim - 1))
        if name not in self.outputs:
            return value
        offset = self.offset if name.endswith("norm.scale") else 0
        return (value + offset) / self.outputs[name][layer] - offset


def check_weights(path: Path, quantized: Quantized, original: Model) -> dict[str, np.ndarray]:
    """The relative error of every quantized matrix, by dotted name, f64 ``[L]`` or ``[1]``.

    What a file leaves in floating point (norms, biases, layers left out) is the original's up to
    the file's dtype. A quantized matrix is one that rounding can have left (``closeness``). Where a
    tool may have moved scales between parameters (AWQ, SmoothQuant), the original's are first
    multiplied by what was moved (``moved``): what does not cancel stays as an error.

    Args:
        path: the checkpoint, for messages.
        quantized: the checkpoint as it was read.
        original: the model that was quantized.

    Raises:
        InputError: a parameter is not one that quantizing the original leaves; named.
    """
    found = _named(quantized.params)
    expected = _Expected(_named(original.params), norm_offset(original.config))
    if quantized.rescaled:
        _move(found, expected, original.config)
    errors = {}
    for name, value in found.items():
        layers = range(value.shape[0]) if name.startswith("blocks.") else [None]
        stored = quantized.matrices.get(name, FLOATS[0])
        of_layers = []
        for layer in layers:
            where = f"{path}: {name}" + ("" if layer is None else f" of layer {layer}")
            want = expected.of(name, layer)
            if stored in FLOATS:
                tolerance = FITTED if name in expected.fitted else ROUNDED
                _check_floats(_dense(value, layer), want, tolerance, where)
            else:
                of_layers.append(_error(value, stored, layer, want, where))
        if of_layers:
            errors[name] = np.array(of_layers)
    return errors


def _named(params: Any) -> dict[str, Any]:
    """Parameters by dotted name."""
    paths, _ = jax.tree_util.tree_flatten_with_path(
        params, is_leaf=lambda x: isinstance(x, QTensor)
    )
    return {".".join(key.name for key in path): x for path, x in paths}


def _layer(value: Any, layer: int | None) -> Any:
    return value if layer is None else jax.tree.map(lambda leaf: leaf[layer], value)


_unpacked = jit(functools.partial(dense, dtype=jnp.float32))


def _dense(value: Any, layer: int | None) -> np.ndarray:
    """One layer of a parameter, f32, with its input divisor folded in."""
    w = _layer(value, layer)
    if not isinstance(w, QTensor):
        return np.asarray(w).astype(np.float32)
    matrix = np.asarray(_unpacked(w))
    if w.input_divisor is None:
        return matrix
    return matrix / np.asarray(w.input_divisor).reshape(-1, *[1] * w.outputs)


def _check_floats(found: np.ndarray, wanted: np.ndarray, tolerance: float, where: str) -> None:
    with np.errstate(over="ignore"):
        off = float(np.linalg.norm(found - wanted)) / (float(np.linalg.norm(wanted)) or 1.0)
    apart = ~(np.abs(found - wanted) <= tolerance * np.abs(wanted) + SMALLEST)
    if apart.any():
        place = tuple(int(i) for i in np.argwhere(apart)[0])
        raise InputError(
            f"{where} is off by {off:.2g} of its norm from the original's, though it is not "
            f"quantized ({int(apart.sum())} of {apart.size} differ; at {list(place)} it has "
            f"{found[place]:.4g}, expected {wanted[place]:.4g})",
            REMEDY,
        )


def _error(value: Any, stored: str, layer: int | None, want: np.ndarray, where: str) -> float:
    """The relative error of one layer's matrix; an embedding's tokens are its outputs."""
    got = _dense(value, layer).reshape(len(want), -1)
    if layer is None:
        got, want = got.T, want.T
    bits = 8 if stored.startswith("Q8") else 4
    rounding = Rounding(step=None, groups=np.zeros(len(got), int), bits=bits)
    if isinstance(value, QTensor):
        rounding = rounding_of(_layer(value, layer))
    return relative_error(got, want.reshape(got.shape), rounding, where)


def _move(found: Mapping[str, Any], expected: _Expected, config: ModelConfig) -> None:
    """Find what the tool moved, first behind the norms, then between neighbours."""
    wanted = expected.wanted
    vectors = [
        {name: np.asarray(x, np.float32) for name, x in params.items() if "_norm." in name}
        for params in (found, wanted)
    ]
    for name, factor in moved_norms(vectors[0], vectors[1], expected.offset).items():
        if name in wanted:
            expected.inputs[name] = factor
        for kind in ("scale", "bias"):
            if f"{name}.{kind}" in wanted:
                expected.outputs[f"{name}.{kind}"] = factor
    heads, shared = config.num_kv_heads, config.num_heads // config.num_kv_heads
    for layer in range(config.num_layers):
        value, out = "blocks.attention.key_value", "blocks.attention.out"
        factor = moved_between(_dense(found[value], layer)[:, 1], expected.of(value, layer)[:, 1])
        spread = np.repeat(factor.reshape(heads, 1, -1), shared, axis=1).reshape(-1)
        _put(expected, value, out, layer, np.stack([np.ones_like(factor), factor]), spread)
        if config.gated:
            up, down = "blocks.mlp.up", "blocks.mlp.down"
            factor = moved_between(_dense(found[up], layer), expected.of(up, layer))
            _put(expected, up, down, layer, factor, factor)


def _put(
    expected: _Expected,
    before: str,
    after: str,
    layer: int,
    outputs: np.ndarray,
    inputs: np.ndarray,
) -> None:
    """Note what was moved between two matrices of a layer, and out of the first one's bias."""
    if (outputs == 1).all():
        return
    count = len(expected.wanted[before])
    for name in (before, f"{before}_bias"):
        if name in expected.wanted:
            expected.outputs.setdefault(name, np.ones((count, *outputs.shape), np.float32))
            expected.outputs[name][layer] = outputs
    expected.inputs.setdefault(after, np.ones((count, *inputs.shape), np.float32))
    expected.inputs[after][layer] = inputs
    expected.fitted |= {before, f"{before}_bias", after}
