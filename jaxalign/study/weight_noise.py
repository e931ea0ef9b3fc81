"""A scheme's error in the weights: its matrices as arrays, and random ones as far from f32's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxalign.model.config import ModelConfig
from jaxalign.model.params import MATRICES, Block, Norm, Params, norm_offset
from jaxalign.numerics.compile import jit
from jaxalign.numerics.dot import dense
from jaxalign.numerics.qtensor import QTensor
from jaxalign.numerics.scheme import Scheme
from jaxalign.shapes import Array, Float
from jaxalign.study.calls import Late, spec_of
from jaxalign.study.session import Session

AFTER_ATTENTION_NORM, AFTER_MLP_NORM = ("query", "key_value"), ("up", "gate")


def low_matrices(high: Block, low: Block, config: ModelConfig) -> dict[str, Array]:
    """What a layer's packed matrices compute, as f32 arrays that stand where ``high``'s stand.

    A calibration may move scales between a matrix and what comes before it: a divisor of the input
    (``QTensor.input_divisor``) or a changed norm. Both are moved back into the matrix, so that it
    can be put alone into the unchanged model.
    """
    norms = {
        **dict.fromkeys(AFTER_ATTENTION_NORM, (high.attention_norm, low.attention_norm)),
        **dict.fromkeys(AFTER_MLP_NORM, (high.mlp_norm, low.mlp_norm)),
    }
    found = {}
    for name, w in _matrices(low).items():
        array = dense(w, jnp.float32)
        if isinstance(w, QTensor) and w.input_divisor is not None:
            array = array / _rows(w.input_divisor, array)
        if name in norms:
            array = array * _rows(_folded(*norms[name], config), array)
        found[name] = array
    return found


def _matrices(block: Block) -> dict[str, Any]:
    """The matrices of a layer by name, packed or not."""
    packed = lambda leaf: isinstance(leaf, QTensor)  # noqa: E731
    paths, _ = jax.tree_util.tree_flatten_with_path(block, is_leaf=packed)
    return {path[-1].name: leaf for path, leaf in paths if path[-1].name in MATRICES}


def _rows(a: Float[Array, " A"], like: Array) -> Array:
    return a.reshape(-1, *[1] * (like.ndim - 1))


def _folded(high: Norm, low: Norm, config: ModelConfig) -> Float[Array, " D"]:
    """By what a calibrated norm's output has to be multiplied less: 1 where it is the same."""

    def ratio(a: Array, b: Array) -> Array:
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        return jnp.where(a == b, 1, a / jnp.where(b == 0, 1, b))

    offset = norm_offset(config)
    scale = ratio(low.scale + offset, high.scale + offset)
    if high.bias is None or low.bias is None:
        return scale
    return jnp.where(high.scale == 0, ratio(low.bias, high.bias), scale)


def noisy(high: Params, low: Params, key: jax.Array, config: ModelConfig) -> Params:
    """``high`` with normal noise in every matrix, as far from it as ``low``'s are.

    The Frobenius norm of the noise is that of ``low − high`` in every matrix and, since it is set
    head by head in the attention's matrices, in every head's share.
    """

    def layer(given: tuple[jax.Array, Block, Block]) -> Block:
        key, weights, lows = given
        target = low_matrices(weights, lows, config)

        def leaf(path: Any, w: Array) -> Array:
            name = path[-1].name
            if name not in target:
                return w
            own = jax.random.fold_in(key, MATRICES.index(name))
            return w + _noise(own, target[name] - w, name, config.head_size)

        return jax.tree_util.tree_map_with_path(leaf, weights)

    keys = jax.random.split(key, config.num_layers)
    return replace(high, blocks=lax.map(layer, (keys, high.blocks, low.blocks)))


def _noise(key: jax.Array, error: Array, name: str, head_size: int) -> Array:
    """Noise of an error's shape and of its norm in every head."""
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    if name == "out":
        shape, axes = (-1, head_size, error.shape[-1]), (1, 2)
    elif name in ("query", "key_value"):
        shape = (*error.shape[:-1], -1, head_size)
        axes = (0, len(shape) - 1)
    else:
        shape, axes = error.shape, tuple(range(error.ndim))
    parts = error.reshape(shape)
    draw = jax.random.normal(key, parts.shape)

    def norm(a: Array) -> Array:
        return jnp.sqrt(jnp.square(a).sum(axis=axes, keepdims=True))

    return (draw * (norm(parts) / norm(draw))).reshape(error.shape)


noisy_params = jit(noisy, static_argnames=("config",))


def moves_matrices(high: Params, scheme: Scheme) -> bool:
    """Whether a scheme changes a matrix: by packing it, or by a dtype that does not hold it.

    Args:
        high: f32.
        scheme: the precision.
    """
    if scheme.weights is not None:
        return True
    return bool(_differ(_matrices(high.blocks), scheme=scheme))


def _differ_in(matrices: dict[str, Array], scheme: Scheme) -> Array:
    rounded = {name: w.astype(scheme.compute_dtype) for name, w in matrices.items()}
    same = [(rounded[name].astype(w.dtype) == w).all() for name, w in matrices.items()]
    return ~jnp.stack(same).all()


_differ = jit(_differ_in, static_argnames=("scheme",))


def late_noise(session: Session, scheme: Scheme, draw: int) -> Late:
    """f32 parameters with noise as large as a scheme's error, as the argument of a call.

    Args:
        session: whose seed draws; of all draws it keeps the last.
        scheme: whose error.
        draw: number of the draw, from 0.
    """
    params = session.model.params
    key = jax.random.fold_in(jax.random.key(session.options.seed), draw)

    def make() -> Params:
        return noisy_params(params, session.low(scheme), key, config=session.config)

    return Late(
        make=lambda: session.last("noise", (scheme, draw), make),
        spec=None if session.mesh else spec_of(params),
    )
