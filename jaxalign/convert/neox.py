"""GPT-NeoX: the table from published tensors to our parameters."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from jaxalign.convert.rows import Row, Slot, Table, same, turned
from jaxalign.model.config import ModelConfig


def _split_heads(x: np.ndarray, config: ModelConfig) -> Sequence[np.ndarray]:
    """``[H·3·h, …]``, each head's q, k, v together, to ``[…, H·h]`` and ``[…, 2, H·h]``."""
    heads = x.T.reshape(*x.shape[1:], config.num_heads, 3, config.head_size)
    query, *key_value = (heads[..., i, :].reshape(*x.shape[1:], -1) for i in range(3))
    return query, np.stack(key_value, axis=-2)


def _join_heads(slots: Sequence[np.ndarray], config: ModelConfig) -> np.ndarray:
    query, key_value = slots
    parts = (query, key_value[..., 0, :], key_value[..., 1, :])
    heads = [x.reshape(*x.shape[:-1], config.num_heads, config.head_size) for x in parts]
    return np.stack(heads, axis=-2).reshape(*query.shape[:-1], -1).T


def _fused(kind: str, suffix: str) -> Row:
    slots = (Slot(f"blocks.attention.query{suffix}"), Slot(f"blocks.attention.key_value{suffix}"))
    return Row(f"{_LAYER}attention.query_key_value.{kind}", slots, _split_heads, _join_heads)


_LAYER = "gpt_neox.layers.{layer}."
TABLE = (
    same("gpt_neox.embed_in.weight", "embed"),
    same(f"{_LAYER}input_layernorm.weight", "blocks.attention_norm.scale"),
    same(f"{_LAYER}input_layernorm.bias", "blocks.attention_norm.bias"),
    _fused("weight", ""),
    _fused("bias", "_bias"),
    turned(f"{_LAYER}attention.dense.weight", "blocks.attention.out"),
    same(f"{_LAYER}attention.dense.bias", "blocks.attention.out_bias"),
    same(f"{_LAYER}post_attention_layernorm.weight", "blocks.mlp_norm.scale"),
    same(f"{_LAYER}post_attention_layernorm.bias", "blocks.mlp_norm.bias"),
    turned(f"{_LAYER}mlp.dense_h_to_4h.weight", "blocks.mlp.up"),
    same(f"{_LAYER}mlp.dense_h_to_4h.bias", "blocks.mlp.up_bias"),
    turned(f"{_LAYER}mlp.dense_4h_to_h.weight", "blocks.mlp.down"),
    same(f"{_LAYER}mlp.dense_4h_to_h.bias", "blocks.mlp.down_bias"),
    same("gpt_neox.final_layer_norm.weight", "final_norm.scale"),
    same("gpt_neox.final_layer_norm.bias", "final_norm.bias"),
    same("embed_out.weight", "unembed"),
)

# Buffers that older versions of transformers saved with the weights; the model recomputes them.
BUFFERS = re.compile(
    r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)"
    r"|gpt_neox\.rotary_emb\.inv_freq"
)

# What transformers 5 calls a tensor in memory, and still publishes under its old name.
RENAMED = {"lm_head.weight": "embed_out.weight"}

EMBED, UNEMBED = "gpt_neox.embed_in.weight", "embed_out.weight"

NEOX = Table(TABLE, EMBED, UNEMBED, BUFFERS, RENAMED)
