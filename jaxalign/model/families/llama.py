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


def common(
    settings: Settings, positions: int, kv_heads: int | None = None, head_dim: int | None = None
) -> dict[str, Any]:
    """What the line shares, with Gemma 2: sizes, heads, rotation, biases that are mostly absent.

    Args:
        settings: of the file.
        positions: what a missing ``max_position_embeddings`` means to transformers.
        kv_heads: what a missing ``num_key_value_heads`` means: as many as query heads by default.
        head_dim: what a missing ``head_dim`` means: ``D / H`` by default.
    """
    fields = sizes(settings)
    base, scaling = settings.rotary()
    width = settings.whole("head_dim", head_dim or fields["hidden_size"] // fields["num_heads"])
    settings.only("rope_interleaved", False)
    settings.only("pretraining_tp", 1)
    return fields | {
        "max_positions": settings.positions(positions),
        "key_value_heads": settings.whole("num_key_value_heads", kv_heads or fields["num_heads"]),
        "head_width": width,
        "rotary_dims": width,
        "rotary_base": base,
        "rotary_scaling": scaling,
        "parallel_residual": False,
        "attention_bias": False,
        "mlp_bias": False,
        "norm": "rms",
        "norm_eps": settings.number("rms_norm_eps", 1e-6, zero=True),
        "gated": True,
    }


def _line(settings: Settings, positions: int, **missing: int) -> dict[str, Any]:
    return common(settings, positions, **missing) | {
        "tied_embeddings": settings.flag("tie_word_embeddings", False),
        "activation": settings.word("hidden_act", "silu"),
    }


def _read_llama(settings: Settings) -> dict[str, Any]:
    return _line(settings, 2048) | {
        "attention_bias": settings.flag("attention_bias", False),
        "mlp_bias": settings.flag("mlp_bias", False),
    }


def _read_mistral(settings: Settings) -> dict[str, Any]:
    window = settings.optional_whole("sliding_window", 4096)  # missing: the first Mistral's
    fields = _line(settings, 4096 * 32, kv_heads=8)
    windows = () if window is None else (window,) * fields["num_layers"]
    return fields | {"windows": windows}


def _qwen_windows(settings: Settings, layers: int) -> dict[str, Any]:
    """Windows from ``max_window_layers`` on, or layer by layer, where ``use_sliding_window``."""
    used = settings.flag("use_sliding_window", False)
    size = settings.optional_whole("sliding_window", 4096)
    first = settings.whole("max_window_layers", 28, least=0)
    size = size if used else None
    windows = settings.windows(layers, size)
    if windows is None:
        windows = tuple(size if layer >= first else None for layer in range(layers))
    return {"windows": windows if any(windows) else ()}


def _read_qwen2(settings: Settings) -> dict[str, Any]:
    settings.only("use_mrope", False)
    fields = _line(settings, 32768, kv_heads=32)
    biases = {"attention_bias": True, "attention_out_bias": False}
    return fields | biases | _qwen_windows(settings, fields["num_layers"])


def _read_qwen3(settings: Settings) -> dict[str, Any]:
    fields = _line(settings, 32768, kv_heads=32, head_dim=128)
    bias = settings.flag("attention_bias", False)
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
