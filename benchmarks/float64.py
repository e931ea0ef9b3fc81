"""Importance of every head in f64, by NumPy: what importance in f32 is held against.

Written for this one purpose and for GPT-NeoX alone: every prompt at every position, one pass an
edit from the edited layer up, nothing shared with the library but its parameters.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
from scipy.special import erf

from jaxalign.errors import InputError
from jaxalign.model import ModelConfig, Params


def importance(
    params: Params, config: ModelConfig, tokens: np.ndarray, lengths: np.ndarray, target: np.ndarray
) -> np.ndarray:
    """``m(clean) − m(head zeroed)``, f64 ``[P, L·H]``.

    Args:
        params: f32.
        config: of a GPT-NeoX.
        tokens: int ``[P, S]``, padded on the right.
        lengths: int ``[P]``, real tokens.
        target: int ``[P]``.

    Raises:
        InputError: the model is none.
    """
    if config.norm != "layer" or config.gated or config.activation != "gelu" or config.windows:
        raise InputError("the f64 reference computes GPT-NeoX alone", "give --model demo or a size")
    wide: Any = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    unembed = wide.embed if wide.unembed is None else wide.unembed
    last = np.arange(len(tokens)), lengths - 1

    def margin(x: np.ndarray) -> np.ndarray:
        logits = _normed(x[last], wide.final_norm, config) @ unembed.T
        rows = np.arange(len(target))
        own = logits[rows, target]
        logits[rows, target] = -np.inf
        return own - logits.max(axis=-1)

    layers = [
        jax.tree.map(lambda leaf, n=n: leaf[n], wide.blocks) for n in range(config.num_layers)
    ]
    streams = [wide.embed[tokens]]
    for block in layers:
        streams.append(_block(streams[-1], block, config, None))
    clean, effects = margin(streams[-1]), []
    for number, block in enumerate(layers):
        for head in range(config.num_heads):
            x = _block(streams[number], block, config, head)
            for above in layers[number + 1 :]:
                x = _block(x, above, config, None)
            effects.append(clean - margin(x))
    return np.stack(effects, axis=1)


def _normed(x: np.ndarray, norm: Any, config: ModelConfig) -> np.ndarray:
    centred = x - x.mean(axis=-1, keepdims=True)
    unit = centred / np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + config.norm_eps)
    result: np.ndarray = unit * norm.scale + norm.bias
    return result


def _block(x: np.ndarray, block: Any, config: ModelConfig, without: int | None) -> np.ndarray:
    """The stream after a block, with a head's ``z`` set to zero where one is named."""
    z = _heads(_normed(x, block.attention_norm, config), block.attention, config)
    if without is not None:
        z[:, :, without] = 0
    attended = z.reshape(*x.shape[:2], -1) @ block.attention.out
    if block.attention.out_bias is not None:
        attended += block.attention.out_bias
    y = x if config.parallel_residual else x + attended
    hidden = _normed(y, block.mlp_norm, config) @ block.mlp.up + block.mlp.up_bias
    hidden = hidden * 0.5 * (1 + erf(hidden / math.sqrt(2)))
    out: np.ndarray = x + attended + hidden @ block.mlp.down + block.mlp.down_bias
    return out


def _heads(x: np.ndarray, weights: Any, config: ModelConfig) -> np.ndarray:
    shape = (*x.shape[:2], config.num_heads, config.head_size)
    read = np.einsum("psd,dce->cpse", x, weights.key_value)
    q = x @ weights.query
    if weights.query_bias is not None:
        q, read = q + weights.query_bias, read + weights.key_value_bias[:, None, None]
    q, k, v = (a.reshape(shape) for a in (q, *read))
    q, k = _rotated(q, config), _rotated(k, config)
    scores = np.einsum("pqhe,pkhe->phqk", q, k) / math.sqrt(config.query_scalar)
    future = np.triu(np.ones(scores.shape[-2:], bool), 1)
    powers = np.exp(np.where(future, -np.inf, scores - scores.max(axis=-1, keepdims=True)))
    z: np.ndarray = np.einsum("phqk,pkhe->pqhe", powers / powers.sum(axis=-1, keepdims=True), v)
    return z


def _rotated(x: np.ndarray, config: ModelConfig) -> np.ndarray:
    half = config.rotary_dims // 2
    frequency = config.rotary_base ** (-np.arange(half) / max(half, 1))
    angle = (np.arange(x.shape[1])[:, None] * frequency)[:, None]
    cos, sin = np.cos(angle), np.sin(angle)
    a, b, rest = np.split(x, (half, 2 * half), axis=-1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)
