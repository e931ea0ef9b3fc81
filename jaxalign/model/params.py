"""Parameters: a tree of arrays, layers stacked on a leading ``L`` axis."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from jaxalign.errors import InputError, require_type
from jaxalign.model.config import ModelConfig
from jaxalign.model.matrices import (
    MATRICES,
    NORMS,
    TOKEN_MATRICES,
    layer_leaves,
    matrix_name,
    shape_of,
)
from jaxalign.numerics.qtensor import MatrixLeaf, QTensor
from jaxalign.numerics.quantize import quantize
from jaxalign.numerics.scheme import Scheme, as_scheme
from jaxalign.runtime.compile import jit
from jaxalign.shapes import Array, ArrayLeaf, Float, outline


@struct.dataclass
class Norm:
    """A norm. ``scale``, ``bias``: ``[L, D]`` (the final norm ``[D]``); RMS norms have no bias,
    norms without parameters neither."""

    scale: ArrayLeaf | None
    bias: ArrayLeaf | None = None

    __repr__ = outline


@struct.dataclass
class Attention:
    """Attention projections.

    ``query`` ``[L, D, H·h]``; ``key_value`` ``[L, D, 2, K·h]``: the key heads and the value heads;
    ``out`` ``[L, H·h, D]``: rows ``i·h … (i+1)·h`` are ``W_O`` of head ``i``;
    ``query_bias`` ``[L, H·h]``, ``key_value_bias`` ``[L, 2, K·h]`` and ``out_bias`` ``[L, D]``, or
    None; ``query_norm`` and ``key_norm`` of each head, whose scale is ``[L, h]``, or those over all
    heads together, ``[L, H·h]`` and ``[L, K·h]``; None where there is none.
    """

    query: MatrixLeaf
    query_bias: ArrayLeaf | None
    key_value: MatrixLeaf
    key_value_bias: ArrayLeaf | None
    out: MatrixLeaf
    out_bias: ArrayLeaf | None
    query_norm: Norm | None = None
    key_norm: Norm | None = None
    query_norm_over_heads: Norm | None = None
    key_norm_over_heads: Norm | None = None

    __repr__ = outline


@struct.dataclass
class MLP:
    """``up`` ``[L, D, F]``, ``down`` ``[L, F, D]``, and their biases ``[L, F]`` and ``[L, D]``.

    A gated MLP has ``gate`` and its bias, too, of ``up``'s shapes; what is not there is None.
    """

    up: MatrixLeaf
    up_bias: ArrayLeaf | None
    down: MatrixLeaf
    down_bias: ArrayLeaf | None
    gate: MatrixLeaf | None = None
    gate_bias: ArrayLeaf | None = None

    __repr__ = outline


@struct.dataclass
class Block:
    """One decoder block, or all of them stacked; norms that a family lacks are None."""

    attention_norm: Norm | None
    attention: Attention
    mlp_norm: Norm | None
    mlp: MLP
    attention_post_norm: Norm | None = None
    mlp_post_norm: Norm | None = None

    __repr__ = outline


@struct.dataclass
class Params:
    """``embed`` ``[V, D]``, ``blocks`` stacked, ``final_norm``, ``unembed`` ``[V, D]``.

    ``unembed`` is None where the embedding serves as the unembedding. ``positions``
    ``[positions, D]`` are added to the embeddings; None in models that know positions otherwise.
    """

    embed: ArrayLeaf
    blocks: Block
    final_norm: Norm
    unembed: ArrayLeaf | None
    positions: ArrayLeaf | None = None

    @property
    def dtype(self) -> Any:
        """The dtype of the weights."""
        return self.embed.dtype

    __repr__ = outline


def param_shapes(config: ModelConfig) -> Params:
    """The shape of every leaf, as a tree of ``jax.ShapeDtypeStruct`` in f32."""

    def leaf(axes: tuple[str, ...] | None) -> Any:
        return None if axes is None else jax.ShapeDtypeStruct(shape_of(axes, config), jnp.float32)

    def norm(name: str, present: bool = True) -> Any:
        axes = None if config.norm == "nonparametric" else NORMS[name]
        bias = leaf(axes) if config.norm == "layer" else None
        return Norm(leaf(axes), bias) if present else None

    def part(name: str) -> dict[str, Any]:
        return {leaf_name: leaf(axes) for leaf_name, axes in layer_leaves(config, name).items()}

    head_norm = config.query_key_norms and not config.norms_over_heads
    wide_norm = config.query_key_norms and config.norms_over_heads
    return Params(
        embed=leaf(TOKEN_MATRICES["embed"]),
        blocks=Block(
            attention_norm=norm("attention_norm", config.pre_norms),
            attention=Attention(
                **part("attention"),
                query_norm=norm("query_norm", head_norm),
                key_norm=norm("key_norm", head_norm),
                query_norm_over_heads=norm("query_norm_over_heads", wide_norm),
                key_norm_over_heads=norm("key_norm_over_heads", wide_norm),
            ),
            mlp_norm=norm("mlp_norm", config.pre_norms),
            mlp=MLP(**part("mlp")),
            attention_post_norm=norm("attention_post_norm", config.post_norms),
            mlp_post_norm=norm("mlp_post_norm", config.post_norms),
        ),
        final_norm=norm("final_norm"),
        unembed=None if config.tied_embeddings else leaf(TOKEN_MATRICES["unembed"]),
        positions=leaf(TOKEN_MATRICES["positions"]) if config.learned_positions else None,
    )


def init_params(key: jax.Array, config: ModelConfig, dtype: Any = jnp.float32) -> Params:
    """Random parameters for training from scratch.

    Matrices are normal with standard deviation 0.02, those that write to the residual stream
    smaller by ``sqrt(2 L)`` (Radford et al. 2019, section 2.3); norms start as the identity.

    Args:
        key: a random key (``jax.random.key``).
        config: the architecture.
        dtype: of every parameter.

    Raises:
        KeyError: ``model.matrices`` does not have a parameter of the tree.
    """
    shapes = param_shapes(config)
    paths, tree = jax.tree_util.tree_flatten_with_path(shapes)
    keys = jax.random.split(key, len(paths))

    def draw(path: Any, shape: tuple[int, ...], key: jax.Array) -> jax.Array:
        name, matrix = path[-1].name, matrix_name(path)
        if name == "scale":
            return jnp.full(shape, 0 if config.norm == "rms+1" else 1, dtype)
        if name.endswith("bias"):
            return jnp.zeros(shape, dtype)
        writes = matrix is not None and MATRICES[matrix].residual
        shrink = math.sqrt(2 * config.num_layers) if writes else 1.0
        return (0.02 / shrink * jax.random.normal(key, shape)).astype(dtype)

    leaves = [draw(path, leaf.shape, k) for (path, leaf), k in zip(paths, keys, strict=True)]
    return jax.tree_util.tree_unflatten(tree, leaves)


def cast(params: Params, scheme: Scheme | str) -> Params:
    """The parameters as a scheme has them: packed matrices, the rest in its dtype.

    Codes are rounded to the nearest; a scheme that chooses them otherwise is for ``calibrate``.
    Arrays that already are in the dtype stay the same arrays.

    Args:
        params: in f32.
        scheme: the precision or its name.

    Raises:
        InputError: the scheme's groups do not divide a matrix's inputs, or it does not round to
            the nearest.
    """
    scheme = as_scheme(scheme)
    require_type("params", params, Params, "the parameters of a model, model.params")
    if not scheme.to_nearest:
        raise InputError(
            f"scheme {scheme.name!r} chooses its codes or scales, which rounding to the nearest "
            "does not",
            "use jaxalign.calibration.calibrate(params, config, scheme, tokens, lengths)",
        )

    def leaf(path: Any, value: Any) -> Any:
        if matrix_name(path) is not None and scheme.weights is not None:
            return pack(value, scheme)
        return jnp.asarray(value, scheme.compute_dtype)

    return jax.tree_util.tree_map_with_path(leaf, params)


_cast = jit(cast, static_argnames=("scheme",))


def compiled_cast(params: Params, scheme: Scheme) -> Params:
    """``cast`` as one compiled program, where by itself it would be one for every shape.

    Arrays that already are in the dtype stay the same arrays.

    Args:
        params: arrays.
        scheme: the precision.

    Raises:
        InputError: as ``cast`` does.
    """
    if scheme.weights is None and params.dtype == scheme.compute_dtype:
        return params

    def changing(path: Any, leaf: Any) -> Any:
        packed = matrix_name(path) is not None and scheme.weights is not None
        return leaf if packed or leaf.dtype != scheme.compute_dtype else None

    # A program returns copies, so what stays is not given to it.
    made = _cast(jax.tree_util.tree_map_with_path(changing, params), scheme=scheme)
    return jax.tree.map(lambda old, new: old if new is None else new, params, made)


def pack(stacked: Float[Array, "L A *out"], scheme: Scheme) -> QTensor:
    """The matrices of all layers in a scheme's weight format, a layer at a time."""
    assert scheme.weights is not None
    one = functools.partial(quantize, form=scheme.weights, outputs=stacked.ndim - 2)
    return replace(lax.map(one, stacked.astype(jnp.float32)), inputs=scheme.inputs)


def norm_offset(config: ModelConfig) -> float:
    """What a norm adds to its ``scale`` before it multiplies: 1 in Gemma's, else 0."""
    return 1.0 if config.norm == "rms+1" else 0.0


def scaling_norm(weights: Block, matrix: str) -> str | None:
    """The name of the norm that scales what a matrix reads; None where a model has none there, or
    one without parameters.

    Args:
        weights: of one layer or of all.
        matrix: its name in ``MATRICES``.
    """
    name = MATRICES[matrix].reads
    norm = None if name is None else getattr(weights, name)
    return None if norm is None or norm.scale is None else name


def divided_norm(norm: Norm, by: Float[Array, "*L D"], config: ModelConfig) -> Norm:
    """The norm whose output is that of ``norm`` divided by ``by``.

    Args:
        norm: of one layer or of all, with ``L`` in front; it has a scale.
        by: divisor of each coordinate.
        config: the architecture, which says whether the norm adds one to its scale (Gemma).
    """
    assert norm.scale is not None
    offset = norm_offset(config)
    bias = None if norm.bias is None else norm.bias / by
    return Norm((norm.scale + offset) / by - offset, bias)


def count(params: Params) -> int:
    """How many numbers the parameters hold."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
