"""Causal self-attention: queries, keys and values, what each head reads, and what it writes."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from jaxalign.edits.site import NOTHING, Edits
from jaxalign.model.config import ModelConfig
from jaxalign.model.layers import EVERYTHING, Pass, normalize, project, soft_cap
from jaxalign.model.params import Attention, Norm
from jaxalign.model.rotary import frequencies
from jaxalign.runtime.products import precision_for
from jaxalign.shapes import Array, Bool, Float, Int, lead


def rotate(
    x: Float[Array, "*rows B S H h"], positions: Int[Array, "#B S"], run: Pass
) -> Float[Array, "*rows B S H h"]:
    """Rotate the first ``rotary_dims`` coordinates by their position's angles.

    Coordinates ``i`` and ``i + rotary_dims / 2`` form a pair (RoFormer, arXiv 2104.09864, in
    GPT-NeoX's half layout), ``rotary.frequencies`` their frequencies; angles and products in f32,
    rounded once.

    Args:
        x: queries or keys.
        positions: where they stand.
        run: the pass: ``rotary_dims``, base and scaling, and the layer's window, with which the
            base may change.
    """
    config = run.config
    half = config.rotary_dims // 2
    if half == 0:
        return x
    frequency = frequencies(config.rotary_dims, config.rotary_base, config.rotary_scaling)
    if config.local_rotary_base is not None and run.window is not None:
        local = frequencies(config.rotary_dims, config.local_rotary_base)
        frequency = jnp.where(run.window == EVERYTHING, frequency, local)
    angle = positions[..., None, None].astype(jnp.float32) * frequency[None, None, None]
    cos, sin = lead(jnp.cos(angle), x), lead(jnp.sin(angle), x)
    if config.rotary_scaling is not None and config.rotary_scaling.amplitude != 1:
        cos, sin = (part * config.rotary_scaling.amplitude for part in (cos, sin))
    first, second, rest = jnp.split(x, (half, 2 * half), axis=-1)
    a, b = first.astype(jnp.float32), second.astype(jnp.float32)
    turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return jnp.concatenate([turned.astype(x.dtype), rest], axis=-1)


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
    y = project(x, weights.key_value, weights.key_value_bias, run.real)
    k, v = (_heads(part, run.config) for part in jnp.moveaxis(y, -2, 0))
    k, v = (edit.apply_at(p, part, x, weights.key_value) for p, part in (("k", k), ("v", v)))
    k, v = (_clipped(part, run.config) for part in (k, v))
    k = _normed(k, weights.key_norm, weights.key_norm_over_heads, run.config)
    positions = jnp.arange(x.shape[-2])[None] if positions is None else positions
    return rotate(k, positions, run), v


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
    q = _heads(project(x, weights.query, weights.query_bias, run.real), run.config)
    q = _clipped(edit.apply_at("q", q, x, weights.query), run.config)
    q = _normed(q, weights.query_norm, weights.query_norm_over_heads, run.config)
    return rotate(q, positions, run)


def _clipped(x: Array, config: ModelConfig) -> Array:
    """Queries, keys or values as some models bound them, after their edits."""
    return x if config.qkv_clip is None else jnp.clip(x, -config.qkv_clip, config.qkv_clip)


def _normed(x: Array, each: Norm | None, together: Norm | None, config: ModelConfig) -> Array:
    """Queries or keys ``[…, H, h]`` after the norm of each head, or of all heads together."""
    if together is not None:
        return normalize(x.reshape(*x.shape[:-2], -1), together, config).reshape(x.shape)
    return normalize(x, each, config)


def _heads(y: Array, config: ModelConfig) -> Array:
    """A projection by head, ``[…, H, h]``."""
    return y.reshape(*y.shape[:-1], -1, config.head_size)


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
    if run.prefix is not None:
        z = run.prefix.gather(probabilities, v)
    else:
        z = jnp.einsum(
            "...kqs,...ske->...qke",
            probabilities.astype(v.dtype),
            v,
            precision=precision_for(v),
            preferred_element_type=jnp.float32,
        )
    z = z.astype(v.dtype)
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
    return project(z.reshape(*z.shape[:-2], -1), weights.out, weights.out_bias, real)


def attention(
    x: Float[Array, "*rows B S D"], weights: Attention, run: Pass, edit: Edits
) -> tuple[Array, tuple[Array, Array]]:
    """Causal self-attention of normed inputs, up to what each head reads.

    Args:
        x: the inputs, ``[*rows, B, S, D]``.
        weights: of the layer's attention.
        run: the pass.
        edit: of this layer.

    Returns:
        ``z`` after its edits ``[*rows, B, S, H, h]``, and rotated keys and values
        ``[*rows, B, S, K, h]``.
    """
    prefix = run.prefix
    positions = jnp.arange(x.shape[-2])[None] if prefix is None else prefix.positions
    q = queries(x, positions, weights, run, edit)
    k, v = keys_values(x, weights, run, positions, edit)
    return edit.apply_at("z", attend(q, k, v, positions, run, edit)), (k, v)
