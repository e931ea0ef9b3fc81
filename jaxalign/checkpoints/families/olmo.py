"""OLMo (Groeneveld et al. 2024, arXiv 2402.00838): Llama's block behind norms without parameters.

Its norms are layer norms without scale and bias, so its files have no tensor of a norm. Some of its
models keep queries, keys and values within bounds (``clip_qkv``).
"""

from __future__ import annotations

from typing import Any

from jaxalign.checkpoints.families.llama import TABLE, line, write_common
from jaxalign.checkpoints.families.settings import Family, Settings
from jaxalign.model.config import ModelConfig

EPSILON = 1e-5  # of the norms; no setting names it


def _read(settings: Settings) -> dict[str, Any]:
    settings.only("rms_norm_eps", EPSILON)
    return line(settings, 2048) | {
        "attention_bias": settings.flag("attention_bias", False),
        "norm": "nonparametric",
        "norm_eps": EPSILON,
        "qkv_clip": settings.optional_number("clip_qkv", None),
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    settings = write_common(config, "OlmoForCausalLM") | {
        "hidden_act": config.activation,
        "attention_bias": config.attention_bias,
        "clip_qkv": config.qkv_clip,
        "pad_token_id": None,
    }
    del settings["rms_norm_eps"]
    return settings


# Rules for what a model lacks are left out: here those of all norms.
OLMO = Family(title="OLMo", read=_read, write=_write, table=TABLE)
