"""The pieces of a block, each a function of arrays with any number of leading row axes."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from jaxalign.edits.site import NOTHING, Edits
from jaxalign.model.config import ModelConfig
from jaxalign.model.params import MLP, Attention, Norm
from jaxalign.model.prefix import Prefix
from jaxalign.model.rotary import frequencies
from jaxalign.numerics.dot import dot
from jaxalign.numerics.qtensor import QTensor
from jaxalign.numerics.scheme import F32, Scheme
from jaxalign.runtime.products import precision_for
from jaxalign.shapes import Array, ArrayLeaf, Bool, Float, Int, lead


@struct.dataclass
class Pass:
    """What all parts of one pass through the model, or through one layer of it, share.

    Attributes:
        config: the architecture (static).
        scheme: the precision (static).
        real: bool ``[B, S]``, True at positions that hold a token of the prompt; None where
            nothing is rounded over a whole example.
        window: int, how many positions a query of this layer sees, its own the last; None for all
            before it.
        prefix: what stands before runs that hold the last positions of their prompts only; None
            where runs hold all.
    """

    config: ModelConfig = struct.field(pytree_node=False)
    scheme: Scheme = struct.field(pytree_node=False, default=F32)
    real: ArrayLeaf | None = None
    window: ArrayLeaf | None = None
    prefix: Prefix | None = None


def layer_norm(x: Float[Array, "*rows D"], norm: Norm, eps: float) -> Float[Array, "*rows D"]:
    """Layer norm computed in f32 and rounded once to ``x.dtype``, as PyTorch does.

    Args:
        x: what is normalised, over its last axis.
        norm: scale and bias, ``[D]`` each.
        eps: added to the variance.
    """
    wide = x.astype(jnp.float32)
    centred = wide - wide.mean(axis=-1, keepdims=True)
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    unit = centred * lax.rsqrt(variance + eps)
    assert norm.bias is not None
    scale, bias = (lead(p.astype(jnp.float32), x) for p in (norm.scale, norm.bias))
    scaled = unit * scale + bias
    return scaled.astype(x.dtype)


def rms_norm(
    x: Float[Array, "*rows D"], norm: Norm, eps: float, from_one: bool = False
) -> Float[Array, "*rows D"]:
    """``x / sqrt(mean x² + eps)`` in f32, times ``w`` or (``from_one``) ``1 + w``.

    As in each reference implementation: Llama rounds ``x / rms`` to ``x.dtype`` and then multiplies
    by ``w``; Gemma multiplies by ``1 + w`` in f32 and then rounds.

    Args:
        x: what is normalised, over its last axis.
        norm: its ``scale`` ``w``, ``[D]``.
        eps: added to the mean square.
        from_one: whether ``w`` is stored as a difference from 1.
    """
    wide = x.astype(jnp.float32)
    unit = wide * lax.rsqrt(jnp.square(wide).mean(axis=-1, keepdims=True) + eps)
    scale = lead(norm.scale, x)
    if from_one:
        return (unit * (1 + scale.astype(jnp.float32))).astype(x.dtype)
    return scale.astype(x.dtype) * unit.astype(x.dtype)


def normalize(
    x: Float[Array, "*rows D"], norm: Norm, config: ModelConfig
) -> Float[Array, "*rows D"]:
    """``x`` after a norm of the model's kind.

    Args:
        x: what is normalised, over its last axis.
        norm: scale, and bias where the kind has one.
        config: the kind and its epsilon.
    """
    if config.norm == "layer":
        return layer_norm(x, norm, config.norm_eps)
    return rms_norm(x, norm, config.norm_eps, from_one=config.norm == "rms+1")


def rotate(
    x: Float[Array, "*rows B S H h"], positions: Int[Array, "#B S"], config: ModelConfig
) -> Float[Array, "*rows B S H h"]:
    """Rotate the first ``rotary_dims`` coordinates by their position's angles.

    Coordinates ``i`` and ``i + rotary_dims / 2`` form a pair (RoFormer, arXiv 2104.09864, in
    GPT-NeoX's half layout), ``rotary.frequencies`` their frequencies; angles and products in f32,
    rounded once.

    Args:
        x: queries or keys.
        positions: where they stand.
        config: base, scaling and ``rotary_dims``.
    """
    half = config.rotary_dims // 2
    frequency = frequencies(config.rotary_dims, config.rotary_base, config.rotary_scaling)
    angle = positions[..., None, None].astype(jnp.float32) * frequency[None, None, None]
    cos, sin = lead(jnp.cos(angle), x), lead(jnp.sin(angle), x)
    first, second, rest = jnp.split(x, (half, 2 * half), axis=-1)
    a, b = first.astype(jnp.float32), second.astype(jnp.float32)
    turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return jnp.concatenate([turned.astype(x.dtype), rest], axis=-1)


def at_position(
    x: Float[Array, "*rows B S D"], position: Int[Array, " B"]
) -> Float[Array, "*rows B 1 D"]:
    """``x`` at one position of each prompt."""
    return jnp.take_along_axis(x, lead(position[:, None, None], x), axis=-2)


def _project(
    x: Float[Array, "*rows A"],
    w: Float[Array, "A *out"] | QTensor,
    bias: Float[Array, "*out"] | None,
    real: Bool[Array, "B S"] | None,
) -> Array:
    """``x w + b`` in ``x``'s dtype, ``[*rows, *out]``."""
    y = dot(x, w, real)
    if bias is not None:
        y = y + lead(bias.astype(jnp.float32), y)
    return y.astype(x.dtype)


def keys_values(
    x: Float[Array, "*rows B S D"],
    weights: Attention,
    run: Pass,
    positions: Int[Array, "#B S"] | None = None,
    edit: Edits = NOTHING,
) -> tuple[Float[Array, "*rows B S K h"], Float[Array, "*rows B S K h"]]:
    """Rotated keys and the values of normed inputs.

    Args:
        x: the inputs.
        weights: of the layer's attention.
        run: the pass.
        positions: where the inputs stand; at every position by default.
        edit: of this layer; nothing by default.
    """
    y = _project(x, weights.key_value, weights.key_value_bias, run.real)
    k, v = (_heads(part, run.config) for part in jnp.moveaxis(y, -2, 0))
    k, v = (edit.apply_at(p, part, x, weights.key_value) for p, part in (("k", k), ("v", v)))
    if weights.key_norm is not None:
        k = normalize(k, weights.key_norm, run.config)
    positions = jnp.arange(x.shape[-2])[None] if positions is None else positions
    return rotate(k, positions, run.config), v


def queries(
    x: Float[Array, "*rows B Q D"],
    positions: Int[Array, "#B Q"],
    weights: Attention,
    run: Pass,
    edit: Edits = NOTHING,
) -> Float[Array, "*rows B Q H h"]:
    """Rotated queries of normed inputs.

    Args:
        x: the inputs.
        positions: where they stand.
        weights: of the layer's attention.
        run: the pass, with ``real`` of these positions.
        edit: of this layer; nothing by default.
    """
    q = _heads(_project(x, weights.query, weights.query_bias, run.real), run.config)
    q = edit.apply_at("q", q, x, weights.query)
    if weights.query_norm is not None:
        q = normalize(q, weights.query_norm, run.config)
    return rotate(q, positions, run.config)


def _heads(y: Array, config: ModelConfig) -> Array:
    """A projection by head, ``[…, H, h]``."""
    return y.reshape(*y.shape[:-1], -1, config.head_size)


def soft_cap(x: Float[Array, "..."], cap: float | None) -> Float[Array, "..."]:
    """``c · tanh(x / c)``; ``x`` where there is no cap."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def attend(
    q: Float[Array, "*rows B Q H h"],
    k: Float[Array, "*rows B S K h"],
    v: Float[Array, "*rows B S K h"],
    positions: Int[Array, "#B Q"],
    run: Pass,
    edit: Edits = NOTHING,
) -> Float[Array, "*rows B Q H h"]:
    """What each head reads, ``z``: causal; ``H / K`` query heads share a head of keys and values.

    Scores and softmax are f32; the probabilities are rounded to the run's dtype. An edit never lets
    a position see one behind it.

    Args:
        q: rotated queries.
        k: rotated keys of every position, or of those behind the pass's prefix.
        v: values of the same positions.
        positions: where the queries stand.
        run: the pass: prefix, scale and soft cap of the scores, and the layer's window.
        edit: of this layer; nothing by default.
    """
    config, window = run.config, run.window
    # To a head of keys and values, the G query heads of its group are more queries at the same
    # positions: [Q, K, G, h] -> [G·Q, K, h].
    groups = q.shape[-2] // k.shape[-2]
    grouped = jnp.moveaxis(q.reshape(*q.shape[:-2], -1, groups, q.shape[-1]), -2, -4)
    positions = jnp.tile(positions, (1, groups))
    asking = grouped.reshape(*q.shape[:-3], -1, *k.shape[-2:])
    scores = jnp.einsum(
        "...qke,...ske->...kqs",
        asking,
        k,
        precision=precision_for(q, k),
        preferred_element_type=jnp.float32,
    )
    if run.prefix is not None:
        scores = run.prefix.scores(asking, scores)
    scores = soft_cap(scores * (1 / math.sqrt(config.query_scalar)), config.attention_cap)
    keys = jnp.arange(scores.shape[-1])[None, None]
    visible = keys <= positions[:, :, None]  # [B|1, G·Q, S]
    if window is not None:
        visible = visible & (keys > positions[:, :, None] - window)
    visible = lead(visible[:, None], scores)

    def edited(point: str, x: Array) -> Array:
        """``x`` after its edits, which take heads and positions apart: ``[…, H, Q, S]``."""
        apart = x.reshape(*x.shape[:-3], q.shape[-2], q.shape[-3], x.shape[-1])
        after = edit.apply_at(point, apart)
        return x if after is apart else after.reshape(x.shape)

    masked = jnp.where(visible, scores, -jnp.inf)
    scores = edited("scores", masked)
    if scores is not masked:
        scores = jnp.where(visible, scores, -jnp.inf)
    softmax = jax.nn.softmax(scores, axis=-1)
    probabilities = edited("pattern", softmax)
    if probabilities is not softmax:
        probabilities = jnp.where(visible, probabilities, 0)
    before = None
    if run.prefix is not None:
        before, probabilities = run.prefix.gather(probabilities)
    z = jnp.einsum(
        "...kqs,...ske->...qke",
        probabilities.astype(v.dtype),
        v,
        precision=precision_for(v),
        preferred_element_type=jnp.float32,
    )
    z = (z if before is None else z + before).astype(v.dtype)
    return jnp.moveaxis(z.reshape(grouped.shape), -4, -2).reshape(q.shape)


def project_heads(
    z: Float[Array, "*rows B Q H h"],
    weights: Attention,
    real: Bool[Array, "B Q"] | None = None,
) -> Float[Array, "*rows B Q D"]:
    """The attention output ``concat(z) @ W_O + b``.

    Args:
        z: what each head reads.
        weights: of the layer's attention.
        real: True at positions of ``z`` that hold a token of the prompt.
    """
    return _project(z.reshape(*z.shape[:-2], -1), weights.out, weights.out_bias, real)


def attention(
    x: Float[Array, "*rows B S D"], weights: Attention, run: Pass, edit: Edits
) -> tuple[Array, Array, tuple[Array, Array]]:
    """Causal self-attention of normed inputs.

    Args:
        x: the inputs, ``[*rows, B, S, D]``.
        weights: of the layer's attention.
        run: the pass.
        edit: of this layer.

    Returns:
        ``z`` after its edits ``[*rows, B, S, H, h]``, the projected output ``[*rows, B, S, D]``,
        and rotated keys and values ``[*rows, B, S, K, h]``.
    """
    prefix = run.prefix
    positions = jnp.arange(x.shape[-2])[None] if prefix is None else prefix.positions
    q = queries(x, positions, weights, run, edit)
    k, v = keys_values(x, weights, run, positions, edit)
    z = edit.apply_at("z", attend(q, k, v, positions, run, edit))
    return z, project_heads(z, weights, run.real), (k, v)


def activate(x: Float[Array, "*rows F"], name: str) -> Float[Array, "*rows F"]:
    """The MLP's nonlinearity, by its Hugging Face name, in f32 (rounded by the caller)."""
    match name:
        case "gelu" | "gelu_python":
            # As PyTorch writes it; jax.nn.gelu asks for erfc, which costs three times as much.
            return x * 0.5 * (1 + lax.erf(x * math.sqrt(0.5)))
        case "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast":
            return jax.nn.gelu(x, approximate=True)
        case "quick_gelu":
            return x * jax.nn.sigmoid(1.702 * x)
        case "relu":
            return jax.nn.relu(x)
        case "silu":
            return jax.nn.silu(x)
    raise ValueError(f"activation is {name!r}, which ModelConfig would have refused")


def mlp(
    x: Float[Array, "*rows D"],
    weights: MLP,
    config: ModelConfig,
    real: Bool[Array, "B S"] | None = None,
    edit: Edits = NOTHING,
) -> tuple[Float[Array, "*rows F"], Float[Array, "*rows D"]]:
    """The MLP of normed inputs, its neurons after their edits and what it writes:
    ``activation(x W_up + b) W_down + b``, rounded after each step.

    Gated: ``(activation(x W_gate + b) * (x W_up + b)) W_down + b``.

    Args:
        x: the inputs.
        weights: of the layer's MLP.
        config: the architecture.
        real: True at positions of ``x`` that hold a token of the prompt.
        edit: of this layer; nothing by default.
    """
    up = _project(x, weights.up, weights.up_bias, real)
    up = edit.apply_at("mlp_up", up, x, weights.up)
    if weights.gate is None:
        hidden = _active(up, config)
    else:
        gate = _project(x, weights.gate, weights.gate_bias, real)
        hidden = _active(edit.apply_at("mlp_gate", gate, x, weights.gate), config) * up
    hidden = edit.apply_at("mlp_hidden", hidden)
    return hidden, _project(hidden, weights.down, weights.down_bias, real)


def _active(x: Array, config: ModelConfig) -> Array:
    return activate(x.astype(jnp.float32), config.activation).astype(x.dtype)
