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

from jaxalign.errors import InputError
from jaxalign.model.config import ModelConfig
from jaxalign.numerics.qtensor import QTensor
from jaxalign.numerics.quantize import quantize
from jaxalign.numerics.scheme import Scheme
from jaxalign.shapes import Array, Float, Leaf


@struct.dataclass
class Norm:
    """A norm. ``scale``, ``bias``: ``[L, D]`` (the final norm ``[D]``); RMS norms have no bias."""

    scale: Leaf
    bias: Leaf | None = None


@struct.dataclass
class Attention:
    """Attention projections.

    ``query`` ``[L, D, H·h]``; ``key_value`` ``[L, D, 2, K·h]``: the key heads and the value heads;
    ``out`` ``[L, H·h, D]``: rows ``i·h … (i+1)·h`` are ``W_O`` of head ``i``;
    ``query_bias`` ``[L, H·h]``, ``key_value_bias`` ``[L, 2, K·h]`` and ``out_bias`` ``[L, D]``, or
    None; ``query_norm`` and ``key_norm``, whose scale is ``[L, h]``, or None.
    """

    query: Leaf
    query_bias: Leaf | None
    key_value: Leaf
    key_value_bias: Leaf | None
    out: Leaf
    out_bias: Leaf | None
    query_norm: Norm | None = None
    key_norm: Norm | None = None


@struct.dataclass
class MLP:
    """``up`` ``[L, D, F]``, ``down`` ``[L, F, D]``, and their biases ``[L, F]`` and ``[L, D]``.

    A gated MLP has ``gate`` and its bias, too, of ``up``'s shapes; what is not there is None.
    """

    up: Leaf
    up_bias: Leaf | None
    down: Leaf
    down_bias: Leaf | None
    gate: Leaf | None = None
    gate_bias: Leaf | None = None


@struct.dataclass
class Block:
    """One decoder block, or all of them stacked; post norms only in families that have them."""

    attention_norm: Norm
    attention: Attention
    mlp_norm: Norm
    mlp: MLP
    attention_post_norm: Norm | None = None
    mlp_post_norm: Norm | None = None


@struct.dataclass
class Params:
    """``embed`` ``[V, D]``, ``blocks`` stacked, ``final_norm``, ``unembed`` ``[V, D]``.

    ``unembed`` is None where the embedding serves as the unembedding.
    """

    embed: Leaf
    blocks: Block
    final_norm: Norm
    unembed: Leaf | None

    @property
    def dtype(self) -> Any:
        """The dtype of the weights."""
        return self.embed.dtype


def param_shapes(config: ModelConfig) -> Params:
    """The shape of every leaf, as a tree of ``jax.ShapeDtypeStruct`` in f32."""
    L, D, F, V = (
        config.num_layers,
        config.hidden_size,
        config.intermediate_size,
        config.vocab_size,
    )

    H, K = config.attention_width, config.num_kv_heads * config.head_size

    def leaf(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    def norm(*shape: int) -> Norm:
        return Norm(leaf(*shape), leaf(*shape) if config.norm == "layer" else None)

    bias, head_norm = config.attention_bias, config.query_key_norms
    return Params(
        embed=leaf(V, D),
        blocks=Block(
            attention_norm=norm(L, D),
            attention=Attention(
                query=leaf(L, D, H),
                query_bias=leaf(L, H) if bias else None,
                key_value=leaf(L, D, 2, K),
                key_value_bias=leaf(L, 2, K) if bias else None,
                out=leaf(L, H, D),
                out_bias=leaf(L, D) if config.out_bias else None,
                query_norm=norm(L, config.head_size) if head_norm else None,
                key_norm=norm(L, config.head_size) if head_norm else None,
            ),
            mlp_norm=norm(L, D),
            mlp=MLP(
                up=leaf(L, D, F),
                up_bias=leaf(L, F) if config.mlp_bias else None,
                down=leaf(L, F, D),
                down_bias=leaf(L, D) if config.mlp_bias else None,
                gate=leaf(L, D, F) if config.gated else None,
                gate_bias=leaf(L, F) if config.gated and config.mlp_bias else None,
            ),
            attention_post_norm=norm(L, D) if config.post_norms else None,
            mlp_post_norm=norm(L, D) if config.post_norms else None,
        ),
        final_norm=norm(D),
        unembed=None if config.tied_embeddings else leaf(V, D),
    )


def init_params(key: jax.Array, config: ModelConfig, dtype: Any = jnp.float32) -> Params:
    """Random parameters for training from scratch.

    Matrices are normal with standard deviation 0.02, those that write to the residual stream
    smaller by ``sqrt(2 L)`` (Radford et al. 2019, section 2.3); norms start as the identity.
    """
    shapes = param_shapes(config)
    paths, tree = jax.tree_util.tree_flatten_with_path(shapes)
    keys = jax.random.split(key, len(paths))

    def draw(path: Any, shape: tuple[int, ...], key: jax.Array) -> jax.Array:
        name = path[-1].name
        if name == "scale":
            return jnp.full(shape, 0 if config.norm == "rms+1" else 1, dtype)
        if name.endswith("bias"):
            return jnp.zeros(shape, dtype)
        shrink = math.sqrt(2 * config.num_layers) if name in ("out", "down") else 1.0
        return (0.02 / shrink * jax.random.normal(key, shape)).astype(dtype)

    leaves = [draw(path, leaf.shape, k) for (path, leaf), k in zip(paths, keys, strict=True)]
    return jax.tree_util.tree_unflatten(tree, leaves)


# The matrices of linear layers in blocks, which are what a scheme packs.
MATRICES = ("query", "key_value", "out", "gate", "up", "down")


def cast(params: Params, scheme: Scheme) -> Params:
    """The parameters as a scheme has them: packed matrices, the rest in its dtype.

    Codes are rounded to the nearest; a scheme that chooses them otherwise is for ``calibrate``.
    Arrays that already are in the dtype stay the same arrays.

    Raises:
        InputError: the scheme's groups do not divide a matrix's inputs, or it does not round to
            the nearest.
    """
    if scheme.method or scheme.from_file or scheme.inputs == "int8-static":
        raise InputError(
            f"scheme {scheme.name!r} chooses its codes or scales, which rounding to the nearest "
            "does not",
            "use jaxalign.calibration.calibrate(params, config, scheme, tokens, lengths)",
        )

    def leaf(path: Any, value: Any) -> Any:
        if scheme.weights is not None and path[-1].name in MATRICES:
            return pack(value, scheme)
        return jnp.asarray(value, scheme.compute_dtype)

    return jax.tree_util.tree_map_with_path(leaf, params)


def pack(stacked: Float[Array, "L A *out"], scheme: Scheme) -> QTensor:
    """The matrices of all layers in a scheme's weight format, a layer at a time."""
    assert scheme.weights is not None
    one = functools.partial(quantize, form=scheme.weights, outputs=stacked.ndim - 2)
    return replace(lax.map(one, stacked.astype(jnp.float32)), inputs=scheme.inputs)


def norm_offset(config: ModelConfig) -> float:
    """What a norm adds to its ``scale`` before it multiplies: 1 in Gemma's, else 0."""
    return 1.0 if config.norm == "rms+1" else 0.0


def divided_norm(norm: Norm, by: Float[Array, "*L D"], config: ModelConfig) -> Norm:
    """The norm whose output is divided by ``by``."""
    offset = norm_offset(config)
    bias = None if norm.bias is None else norm.bias / by
    return Norm((norm.scale + offset) / by - offset, bias)


def count(params: Params) -> int:
    """How many numbers the parameters hold."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
