"""Qwen 2, 2.5 and 3: Llama's block, with biases or norms of queries and keys, and some windows.

Qwen 2.5 has biases on query, key and value, Qwen 3 norms of each head's queries and keys; both may
have windows from a layer on. Sources: Qwen2.5 (arXiv 2412.15115), Qwen3 (arXiv 2505.09388).
"""

from __future__ import annotations

from typing import Any

from jaxalign.checkpoints.families.llama import TABLE, line, write_common
from jaxalign.checkpoints.families.settings import Family, Settings, layer_types
from jaxalign.model.config import ModelConfig


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
    fields = line(settings, 32768, kv_heads=32)
    biases = {"attention_bias": True, "out_bias": False}
    return fields | biases | _qwen_windows(settings, fields["num_layers"])


def _read_qwen3(settings: Settings) -> dict[str, Any]:
    fields = line(settings, 32768, kv_heads=32, head_dim=128)
    bias = settings.flag("attention_bias", False)
    more = {"attention_bias": bias, "query_key_norms": True}
    return fields | more | _qwen_windows(settings, fields["num_layers"])


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


QWEN2 = Family(title="Qwen 2", read=_read_qwen2, write=_write_qwen2, table=TABLE)
QWEN3 = Family(title="Qwen 3", read=_read_qwen3, write=_write_qwen3, table=TABLE)
