"""Mistral: Llama's block, with one window in all layers or none (Mistral 7B, arXiv 2310.06825)."""

from __future__ import annotations

from typing import Any

from jaxalign.checkpoints.families.llama import TABLE, line, write_common
from jaxalign.checkpoints.families.settings import Family, Settings
from jaxalign.model.config import ModelConfig


def _read(settings: Settings) -> dict[str, Any]:
    window = settings.optional_whole("sliding_window", 4096)  # missing: the first Mistral's
    fields = line(settings, 4096 * 32, kv_heads=8)
    windows = () if window is None else (window,) * fields["num_layers"]
    return fields | {"windows": windows}


def _write(config: ModelConfig) -> dict[str, Any]:
    window = config.windows[0] if config.windows else None
    return write_common(config, "MistralForCausalLM") | {
        "hidden_act": config.activation,
        "sliding_window": window,
    }


MISTRAL = Family(title="Mistral", read=_read, write=_write, table=TABLE)
