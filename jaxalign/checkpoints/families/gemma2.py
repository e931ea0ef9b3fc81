"""Gemma 2 (Gemma Team 2024, arXiv 2408.00118).

Beside the Llama line's block: a norm behind attention and MLP, too; norms scale by ``1 + w``;
embeddings times ``sqrt(D)``; soft caps on attention scores and logits; a window in every other
layer; scores divided by the root of a number of its own.
"""

from __future__ import annotations

from typing import Any

from jaxalign.checkpoints.families.llama import (
    BUFFERS,
    COMMON,
    EMBED,
    UNEMBED,
    common,
    norm,
    write_common,
)
from jaxalign.checkpoints.families.settings import Family, Settings, layer_types
from jaxalign.checkpoints.tables import Table
from jaxalign.errors import InputError
from jaxalign.model.config import ModelConfig


def read_gemma(settings: Settings, logit_cap: float | None) -> dict[str, Any]:
    """What Gemma 2 and 3 share beside the Llama line's fields.

    Args:
        settings: of the file.
        logit_cap: what a missing ``final_logit_softcapping`` means.
    """
    settings.only("use_bidirectional_attention", False)
    activation = settings.word("hidden_activation", "gelu_pytorch_tanh")
    settings.only("hidden_act", activation)  # older files repeat it here
    return {
        "tied_embeddings": settings.flag("tie_word_embeddings", True),
        "attention_bias": settings.flag("attention_bias", False),
        "activation": activation,
        "norm": "rms+1",
        "post_norms": True,
        "scaled_embedding": True,
        "query_scalar": settings.number("query_pre_attn_scalar", 256),
        "logit_cap": settings.optional_number("final_logit_softcapping", logit_cap),
    }


def _read(settings: Settings) -> dict[str, Any]:
    fields = common(settings, 8192, kv_heads=4, head_dim=256)
    return fields | read_gemma(settings, 30.0) | {
        "attention_cap": settings.optional_number("attn_logit_softcapping", 50.0),
        "windows": _windows(settings, fields["num_layers"]),
    }  # fmt: skip


def _windows(settings: Settings, layers: int) -> tuple[int | None, ...]:
    size = settings.optional_whole("sliding_window", 4096)
    settings.only("sliding_window_size", size)
    windows = settings.windows(layers, size)
    if windows is None:
        if size is None:
            raise InputError(
                "config.json has a null sliding_window, but a Gemma 2 whose every other layer has "
                "one",
                "give sliding_window, or layer_types",
            )
        windows = tuple(size if layer % 2 == 0 else None for layer in range(layers))
    return windows if any(windows) else ()


def write_gemma(config: ModelConfig, architecture: str) -> dict[str, Any]:
    """The settings that Gemma 2 and 3 share."""
    sizes = [window for window in config.windows if window is not None]
    scalar = config.query_scalar
    return write_common(config, architecture) | {
        "hidden_activation": config.activation,
        "attention_bias": config.attention_bias,
        "query_pre_attn_scalar": int(scalar) if scalar == int(scalar) else scalar,
        "final_logit_softcapping": config.logit_cap,
        "sliding_window": sizes[0] if sizes else None,
        "layer_types": layer_types(config),
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    capped = {"attn_logit_softcapping": config.attention_cap}
    return write_gemma(config, "Gemma2ForCausalLM") | capped


# Gemma's name for what stands behind the attention is Llama's for what stands before the MLP.
NORMS = (
    norm("post_attention_layernorm", "attention_post_norm"),
    norm("pre_feedforward_layernorm", "mlp_norm"),
    norm("post_feedforward_layernorm", "mlp_post_norm"),
)

_TABLE = Table(rules=(*COMMON, *NORMS), embed=EMBED, unembed=UNEMBED, buffers=BUFFERS)
GEMMA2 = Family(title="Gemma 2", read=_read, write=_write, table=_TABLE)
