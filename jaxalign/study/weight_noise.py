"""A scheme's error in the weights: its matrices as arrays, and random ones as far from f32's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxalign.model.config import ModelConfig
from jaxalign.model.matrices import MATRICES, Matrix, matrix_name
from jaxalign.model.params import Block, Norm, Params, norm_offset, scaling_norm
from jaxalign.numerics.dot import dense
from jaxalign.numerics.qtensor import QTensor
from jaxalign.numerics.scheme import Scheme
from jaxalign.runtime.compile import jit
from jaxalign.shapes import Array, Float
from jaxalign.study.calls import Late, spec_of
from jaxalign.study.session import Session


def low_matrices(high: Block, low: Block, config: ModelConfig) -> dict[str, Array]:
    """What a layer's packed matrices compute, as f32 arrays that stand where ``high``'s stand.

    A calibration may move scales between a matrix and what comes before it: a divisor of the input
    (``QTensor.input_divisor``) or a changed norm. Both are moved back into the matrix, so that it
    can be put alone into the unchanged model.

    Args:
        high: one layer's parameters in f32, without the axis of the layers.
        low: the same layer in a scheme.
        config: the architecture of both.

    Returns:
        The matrices by name, f32 ``[A, *out]``.

    Raises:
        KeyError: ``model.matrices`` does not have a parameter of ``low``.
    """
    found = {}
    for name, w in _matrices(low).items():
        array = dense(w, jnp.float32)
        if isinstance(w, QTensor) and w.input_divisor is not None:
            array = array / _rows(w.input_divisor, array)
        if (norm := scaling_norm(high, name)) is not None:
            folded = _folded(getattr(high, norm), getattr(low, norm), config)
            array = array * _rows(folded, array)
        found[name] = array
    return found


def _matrices(block: Block) -> dict[str, Any]:
    """The matrices of a layer by name, packed or not."""
    packed = lambda leaf: isinstance(leaf, QTensor)  # noqa: E731
    paths, _ = jax.tree_util.tree_flatten_with_path(block, is_leaf=packed)
    named = ((matrix_name(path), leaf) for path, leaf in paths)
    return {name: leaf for name, leaf in named if name is not None}


def _rows(a: Float[Array, " A"], like: Array) -> Array:
    return a.reshape(-1, *[1] * (like.ndim - 1))


def _folded(high: Norm, low: Norm, config: ModelConfig) -> Float[Array, " D"]:
    """The ratio ``low / high`` of a norm's output, per coordinate.

    Multiply the following matrix by it to use that matrix behind the original norm. It is 1 where
    calibration left the norm alone.
    """

    def ratio(a: Array, b: Array) -> Array:
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        return jnp.where(a == b, 1, a / jnp.where(b == 0, 1, b))

    assert high.scale is not None  # as ``scaling_norm`` says
    assert low.scale is not None
    offset = norm_offset(config)
    scale = ratio(low.scale + offset, high.scale + offset)
    if high.bias is None or low.bias is None:
        return scale
    return jnp.where(high.scale == 0, ratio(low.bias, high.bias), scale)


def noisy(high: Params, low: Params, key: jax.Array, config: ModelConfig) -> Params:
    """``high`` with normal noise in every matrix, as far from it as ``low``'s are.

    The Frobenius norm of the noise is that of ``low − high`` in every matrix and, since it is set
    head by head in the attention's matrices, in every head's share.

    Args:
        high: the parameters in f32.
        low: the same parameters in a scheme.
        key: a random key (``jax.random.key``).
        config: the architecture of both.
    """
    return with_noise(high, error_norms(high, low, config), key, config)


def error_norms(high: Params, low: Params, config: ModelConfig) -> dict[str, Array]:
    """How far ``low``'s matrices are from ``high``'s, head by head.

    Args:
        high: the parameters in f32.
        low: the same parameters in a scheme.
        config: the architecture of both.

    Returns:
        Frobenius norms by a matrix's name, ``[L, …]`` with 1 for every axis summed over.
    """

    def layer(given: tuple[Block, Block]) -> dict[str, Array]:
        weights, lows = given
        target, here = low_matrices(weights, lows, config), _matrices(weights)
        return {
            name: _norm(*_by_head(target[name] - here[name], MATRICES[name], config.head_size))
            for name in target
        }

    return lax.map(layer, (high.blocks, low.blocks))


def with_noise(
    high: Params, norms: dict[str, Array], key: jax.Array, config: ModelConfig
) -> Params:
    """``high`` with normal noise of given norms in its matrices.

    Apart from ``error_norms``, so that all schemes share one program: it takes seconds to compile.

    Args:
        high: the parameters in f32.
        norms: from ``error_norms``.
        key: a random key.
        config: the architecture.
    """

    def layer(given: tuple[jax.Array, Block, dict[str, Array]]) -> Block:
        key, weights, norms = given

        def leaf(path: Any, w: Array) -> Array:
            name = path[-1].name
            if name not in norms:
                return w
            own = jax.random.fold_in(key, list(MATRICES).index(name))
            parts, summed = _by_head(w, MATRICES[name], config.head_size)
            draw = jax.random.normal(own, parts.shape)
            return w + (draw * (norms[name] / _norm(draw, summed))).reshape(w.shape)

        return jax.tree_util.tree_map_with_path(leaf, weights)

    keys = jax.random.split(key, config.num_layers)
    return replace(high, blocks=lax.map(layer, (keys, high.blocks, norms)))


def _by_head(a: Array, matrix: Matrix, head_size: int) -> tuple[Array, tuple[int, ...]]:
    """A matrix with an axis for its heads, and the axes that make one head's share of it.

    Keys and values are apart, too.
    """
    axes, shape = list(matrix.axes), list(a.shape)
    if matrix.heads is not None:
        axes[matrix.heads : matrix.heads + 1] = ["head", "h"]
        shape[matrix.heads : matrix.heads + 1] = [-1, head_size]
    return a.reshape(shape), tuple(i for i, axis in enumerate(axes) if axis not in ("head", "2"))


def _norm(a: Array, summed: tuple[int, ...]) -> Array:
    return jnp.sqrt(jnp.square(a).sum(axis=summed, keepdims=True))


_error_norms = jit(error_norms, static_argnames=("config",))
_with_noise = jit(with_noise, static_argnames=("config",))


def noisy_params(high: Params, low: Params, key: jax.Array, *, config: ModelConfig) -> Params:
    """``noisy`` by two compiled programs, of which the larger is the same for all schemes.

    Args:
        high, low, key, config: as ``noisy`` has them.
    """
    moved: Params = _with_noise(high, _error_norms(high, low, config=config), key, config=config)
    return moved


def moves_matrices(high: Params, scheme: Scheme) -> bool:
    """Whether a scheme changes a matrix: by packing it, or by a dtype that does not hold it.

    Args:
        high: f32.
        scheme: the precision.
    """
    if scheme.weights is not None or scheme.matrix_bits is not None:
        return True
    if high.dtype == scheme.compute_dtype:
        return False
    return bool(_differ(_matrices(high.blocks), scheme=scheme))


def _differ_in(matrices: dict[str, Array], scheme: Scheme) -> Array:
    rounded = {name: w.astype(scheme.compute_dtype) for name, w in matrices.items()}
    same = [(rounded[name].astype(w.dtype) == w).all() for name, w in matrices.items()]
    return ~jnp.stack(same).all()


_differ = jit(_differ_in, static_argnames=("scheme",))


_key_of = jit(
    lambda draw, seed: jax.random.fold_in(jax.random.key(seed), draw), static_argnames=("seed",)
)


def late_noise(session: Session, scheme: Scheme, draw: int) -> Late:
    """f32 parameters with noise as large as a scheme's error, as the argument of a call.

    Args:
        session: whose seed draws; of all draws it keeps the last.
        scheme: whose error.
        draw: number of the draw, from 0.
    """
    params = session.model.params
    key = _key_of(np.uint32(draw), seed=session.options.seed)

    def make() -> Params:
        return noisy_params(params, session.low(scheme), key, config=session.config)

    return Late(
        make=lambda: session.last("noise", (scheme, draw), make),
        spec=None if session.mesh else spec_of(params),
    )
