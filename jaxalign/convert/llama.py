"""The Llama line and Gemma 2: the tables from published tensors to our parameters.

The models name their tensors alike; a row whose leaves a model lacks (biases, norms of queries and
keys, the unembedding where it is tied) is not used.
"""

from __future__ import annotations

import re

from jaxalign.convert.rows import Row, Table, same, turned

_LAYER = "model.layers.{layer}."
_EMBED, _UNEMBED = "model.embed_tokens.weight", "lm_head.weight"
_BUFFERS = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")


def _linear(published: str, leaf: str, part: int | None = None) -> tuple[Row, Row]:
    """A linear layer's weight and bias."""
    return (
        turned(f"{_LAYER}{published}.weight", f"blocks.{leaf}", part),
        same(f"{_LAYER}{published}.bias", f"blocks.{leaf}_bias", part),
    )


def _norm(published: str, leaf: str) -> Row:
    return same(f"{_LAYER}{published}.weight", f"blocks.{leaf}.scale")


_COMMON = (
    same(_EMBED, "embed"),
    *_linear("self_attn.q_proj", "attention.query"),
    *_linear("self_attn.k_proj", "attention.key_value", 0),
    *_linear("self_attn.v_proj", "attention.key_value", 1),
    *_linear("self_attn.o_proj", "attention.out"),
    *_linear("mlp.gate_proj", "mlp.gate"),
    *_linear("mlp.up_proj", "mlp.up"),
    *_linear("mlp.down_proj", "mlp.down"),
    _norm("input_layernorm", "attention_norm"),
    same("model.norm.weight", "final_norm.scale"),
    same(_UNEMBED, "unembed"),
)
_LLAMA_NORMS = (
    _norm("post_attention_layernorm", "mlp_norm"),
    _norm("self_attn.q_norm", "attention.query_norm"),
    _norm("self_attn.k_norm", "attention.key_norm"),
)
# Gemma 2's name for what stands behind the attention is Llama's for what stands before the MLP.
_GEMMA2_NORMS = (
    _norm("post_attention_layernorm", "attention_post_norm"),
    _norm("pre_feedforward_layernorm", "mlp_norm"),
    _norm("post_feedforward_layernorm", "mlp_post_norm"),
)

LLAMA = Table((*_COMMON, *_LLAMA_NORMS), _EMBED, _UNEMBED, _BUFFERS)
GEMMA2 = Table((*_COMMON, *_GEMMA2_NORMS), _EMBED, _UNEMBED, _BUFFERS)
