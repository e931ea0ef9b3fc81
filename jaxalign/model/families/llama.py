"""The Llama line: Llama 2 and 3, Mistral, Qwen 2.5 and Qwen 3.

One block: RMS norm, grouped-query attention with rotary embeddings over the whole head, sequential
residual, a gated MLP. They differ in biases (Qwen 2.5: on query, key and value), in norms of
queries and keys (Qwen 3), in windows (Mistral: one size in all layers or none; Qwen: from a layer
on, where asked for) and in what a missing setting means.

Sources: Llama 2 (arXiv 2307.09288), Llama 3 (arXiv 2407.21783), Mistral 7B (arXiv 2310.06825),
Qwen2.5 (arXiv 2412.15115), Qwen3 (arXiv 2505.09388).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jaxalign.model.families.settings import (
    Family,
    Settings,
    layer_types,
    rotary_settings,
    sizes,
)

if TYPE_CHECKING:
    from jaxalign.model.config import ModelConfig


def common(settings: Settings) -> dict[str, Any]:
    """What the line shares, with Gemma 2: sizes, heads, rotation, biases that are mostly absent."""
    fields = sizes(settings)
    base, scaling = settings.rotary()
    width = int(settings.take("head_dim", fields["hidden_size"] // max(fields["num_heads"], 1)))
    settings.only("rope_interleaved", False)
    settings.only("pretraining_tp", 1)
    return fields | {
        "max_positions": int(settings.need("max_position_embeddings")),
        "key_value_heads": int(settings.take("num_key_value_heads", fields["num_heads"])),
        "head_width": width,
        "rotary_dims": width,
        "rotary_base": base,
        "rotary_scaling": scaling,
        "parallel_residual": False,
        "attention_bias": False,
        "mlp_bias": False,
        "norm": "rms",
        "norm_eps": float(settings.take("rms_norm_eps", 1e-6)),
        "gated": True,
    }


def _line(settings: Settings) -> dict[str, Any]:
    return common(settings) | {
        "tied_embeddings": bool(settings.take("tie_word_embeddings", False)),
        "activation": str(settings.take("hidden_act", "silu")),
    }


def _read_llama(settings: Settings) -> dict[str, Any]:
    return _line(settings) | {
        "attention_bias": bool(settings.take("attention_bias", False)),
        "mlp_bias": bool(settings.take("mlp_bias", False)),
    }


def _read_mistral(settings: Settings) -> dict[str, Any]:
    window = settings.nullable("sliding_window", 4096)  # null: none; missing: the first Mistral's
    settings.left.setdefault("num_key_value_heads", 8)
    fields = _line(settings)
    windows = () if window is None else (int(window),) * fields["num_layers"]
    return fields | {"windows": windows}


def _qwen_windows(settings: Settings, layers: int) -> dict[str, Any]:
    """Windows from ``max_window_layers`` on, or layer by layer, where ``use_sliding_window``."""
    used = bool(settings.take("use_sliding_window", False))
    size = settings.nullable("sliding_window", 4096)
    first = int(settings.take("max_window_layers", 28))
    size = int(size) if used and size is not None else None
    windows = settings.windows(layers, size)
    if windows is None:
        windows = tuple(size if layer >= first else None for layer in range(layers))
    return {"windows": windows if any(windows) else ()}


def _read_qwen2(settings: Settings) -> dict[str, Any]:
    settings.only("use_mrope", False)
    settings.left.setdefault("num_key_value_heads", 32)
    fields = _line(settings)
    biases = {"attention_bias": True, "attention_out_bias": False}
    return fields | biases | _qwen_windows(settings, fields["num_layers"])


def _read_qwen3(settings: Settings) -> dict[str, Any]:
    settings.left.setdefault("head_dim", 128)
    settings.left.setdefault("num_key_value_heads", 32)
    fields = _line(settings)
    bias = bool(settings.take("attention_bias", False))
    more = {"attention_bias": bias, "query_key_norms": True}
    return fields | more | _qwen_windows(settings, fields["num_layers"])


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


def _write_mistral(config: ModelConfig) -> dict[str, Any]:
    window = config.windows[0] if config.windows else None
    return write_common(config, "MistralForCausalLM") | {
        "hidden_act": config.activation,
        "sliding_window": window,
    }


def _write_windows(config: ModelConfig) -> dict[str, Any]:
    sizes = [window for window in config.windows if window is not None]
    return {
        "hidden_act": config.activation,
        "use_sliding_window": bool(sizes),
        "sliding_window": sizes[0] if sizes else None,
        "layer_types": layer_types(config),
    }


def _write_qwen2(config: ModelConfig) -> dict[str, Any]:
    return write_common(config, "Qwen2ForCausalLM") | _write_windows(config)


def _write_qwen3(config: ModelConfig) -> dict[str, Any]:
    settings = write_common(config, "Qwen3ForCausalLM") | _write_windows(config)
    return settings | {"attention_bias": config.attention_bias}


LLAMA = Family("Llama", _read_llama, _write_llama)
QWEN2 = Family("Qwen 2", _read_qwen2, _write_qwen2)
QWEN3 = Family("Qwen 3", _read_qwen3, _write_qwen3)
MISTRAL = Family("Mistral", _read_mistral, _write_mistral)
