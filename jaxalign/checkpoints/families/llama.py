"""Llama 2 and 3, and what Mistral, Qwen, OLMo and Gemma share with them.

One block: RMS norm, grouped-query attention with rotary embeddings over the whole head, sequential
residual, a gated MLP. Sources: Llama 2 (arXiv 2307.09288), Llama 3 (arXiv 2407.21783).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from jaxalign.checkpoints.families.rotation import rotary, rotary_settings
from jaxalign.checkpoints.families.settings import Family, Settings, sizes
from jaxalign.checkpoints.tables import Table, TensorRule, same, transposed
from jaxalign.model.config import ModelConfig


def common(
    settings: Settings,
    positions: int,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    rotation: Callable[[Settings], dict[str, Any]] = rotary,
) -> dict[str, Any]:
    """What the line shares, with Gemma: sizes, heads, rotation, biases that are mostly absent.

    Args:
        settings: of the file.
        positions: what a missing ``max_position_embeddings`` means to transformers.
        kv_heads: what a missing ``num_key_value_heads`` means: as many as query heads by default.
        head_dim: what a missing ``head_dim`` means: ``D / H`` by default.
        rotation: reads the base and scaling of rotation.
    """
    fields = sizes(settings)
    width = settings.whole("head_dim", head_dim or fields["hidden_size"] // fields["num_heads"])
    settings.only("rope_interleaved", False)
    settings.only("pretraining_tp", 1)
    return fields | {
        "max_positions": settings.positions(positions),
        "num_kv_heads": settings.whole("num_key_value_heads", kv_heads or fields["num_heads"]),
        "head_size": width,
        "rotary_dims": width,
        **rotation(settings),
        "parallel_residual": False,
        "attention_bias": False,
        "mlp_bias": False,
        "norm": "rms",
        "norm_eps": settings.number("rms_norm_eps", 1e-6, zero=True),
        "gated": True,
    }


def line(settings: Settings, positions: int, **how: Any) -> dict[str, Any]:
    """What Llama, Mistral and Qwen share; arguments as ``common``'s."""
    return common(settings, positions, **how) | {
        "tied_embeddings": settings.flag("tie_word_embeddings", False),
        "activation": settings.word("hidden_act", "silu"),
    }


def _read_llama(settings: Settings) -> dict[str, Any]:
    return line(settings, 2048) | {
        "attention_bias": settings.flag("attention_bias", False),
        "mlp_bias": settings.flag("mlp_bias", False),
    }


def write_common(config: ModelConfig, architecture: str) -> dict[str, Any]:
    """The settings that the line and Gemma 2 share."""
    return {
        "architectures": [architecture],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied_embeddings,
        **rotary_settings(config),
    }


def _write_llama(config: ModelConfig) -> dict[str, Any]:
    return write_common(config, "LlamaForCausalLM") | {
        "hidden_act": config.activation,
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
    }


LAYER = "model.layers.{layer}."
EMBED, UNEMBED = "model.embed_tokens.weight", "lm_head.weight"
BUFFERS = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")


def _linear(published: str, leaf: str, part: int | None = None) -> tuple[TensorRule, TensorRule]:
    """A linear layer's weight and bias."""
    return (
        transposed(f"{LAYER}{published}.weight", f"blocks.{leaf}", part),
        same(f"{LAYER}{published}.bias", f"blocks.{leaf}_bias", part),
    )


def norm(published: str, leaf: str) -> TensorRule:
    """A norm of a block."""
    return same(f"{LAYER}{published}.weight", f"blocks.{leaf}.scale")


COMMON = (
    same(EMBED, "embed"),
    *_linear("self_attn.q_proj", "attention.query"),
    *_linear("self_attn.k_proj", "attention.key_value", 0),
    *_linear("self_attn.v_proj", "attention.key_value", 1),
    *_linear("self_attn.o_proj", "attention.out"),
    *_linear("mlp.gate_proj", "mlp.gate"),
    *_linear("mlp.up_proj", "mlp.up"),
    *_linear("mlp.down_proj", "mlp.down"),
    norm("input_layernorm", "attention_norm"),
    same("model.norm.weight", "final_norm.scale"),
    same(UNEMBED, "unembed"),
)
_LLAMA_NORMS = (
    norm("post_attention_layernorm", "mlp_norm"),
    norm("self_attn.q_norm", "attention.query_norm"),
    norm("self_attn.k_norm", "attention.key_norm"),
)
# Rules for what a model lacks (biases, norms of queries and keys, the unembedding where it is
# tied) are left out, so Mistral and Qwen share this table.
TABLE = Table(rules=(*COMMON, *_LLAMA_NORMS), embed=EMBED, unembed=UNEMBED, buffers=BUFFERS)
LLAMA = Family(title="Llama", read=_read_llama, write=_write_llama, table=TABLE)
