"""OLMo 2 (Team OLMo 2025, arXiv 2501.00656): Llama's block with its norms behind its parts.

Attention and MLP read the stream as it is, and what they write is normed before it is added.
Queries and keys are normed over all heads together. Norms round after they multiply by ``w``.
"""

from __future__ import annotations

from typing import Any

from jaxalign.checkpoints.families.llama import (
    BUFFERS,
    COMMON,
    EMBED,
    UNEMBED,
    line,
    norm,
    write_common,
)
from jaxalign.checkpoints.families.settings import Family, Settings
from jaxalign.checkpoints.tables import Table
from jaxalign.model.config import ModelConfig


def _read(settings: Settings) -> dict[str, Any]:
    epsilon = settings.number("rms_norm_eps", 1e-5, zero=True)
    return line(settings, 2048) | {
        "attention_bias": settings.flag("attention_bias", False),
        "norm": "rms+0",
        "norm_eps": epsilon,
        "pre_norms": False,
        "post_norms": True,
        "query_key_norms": True,
        "norms_over_heads": True,
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    return write_common(config, "Olmo2ForCausalLM") | {
        "hidden_act": config.activation,
        "attention_bias": config.attention_bias,
        "pad_token_id": None,
    }


_NORMS = (
    norm("post_attention_layernorm", "attention_post_norm"),
    norm("post_feedforward_layernorm", "mlp_post_norm"),
    norm("self_attn.q_norm", "attention.query_norm_over_heads"),
    norm("self_attn.k_norm", "attention.key_norm_over_heads"),
)
_TABLE = Table(rules=(*COMMON, *_NORMS), embed=EMBED, unembed=UNEMBED, buffers=BUFFERS)
OLMO2 = Family(title="OLMo 2", read=_read, write=_write, table=_TABLE)
