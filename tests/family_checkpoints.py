"""Tiny random checkpoints of every family, written by transformers itself.

All parameters are random, those of one axis too: their defaults (ones and zeros) would hide a
missing norm or bias.
"""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.checkpoints import load_params, open_checkpoint
from jaxalign.checkpoints.families import config_from_hf
from jaxalign.model import ModelConfig, Params

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
GEMMA2 = {"head_dim": 16, "query_pre_attn_scalar": 9, "sliding_window": 4} | {
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 3.0,
}

# Its default padding token is beyond a vocabulary of 97.
PHI3 = {"pad_token_id": 0, "rms_norm_eps": 1e-3}

GEMMA3 = {"head_dim": 16, "query_pre_attn_scalar": 9, "sliding_window": 4} | {
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 2.5, "rope_theta": 500.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
    },
}
# What sees pictures in a Gemma 3 that does.
PICTURES = {
    "vision_config": {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
    },
    "mm_tokens_per_image": 4,
}
# GPT-2's names of sizes; its keys and values have as many heads as its queries.
GPT2_NAMES = {
    "hidden_size": "n_embd",
    "intermediate_size": "n_inner",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
    "num_key_value_heads": None,
}
LONGROPE = {
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 500.0,
        "partial_rotary_factor": 0.5,
        "short_factor": [1.2, 3.5],
        "long_factor": [2.0, 9.0],
    },
    "original_max_position_embeddings": 24,
}
# Missing, their padding token is one of the published vocabulary.
OLMO = {"pad_token_id": None}

# By name: the family and the settings that differ from SIZES.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, no groups": ("llama", {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    "llama, one key": ("llama", {"num_key_value_heads": 1, "rms_norm_eps": 1e-2}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"}),
    "llama, scaled like 3.1": ("llama", {"rope_parameters": LLAMA3, "head_dim": 12}),
    "llama, scaled linearly": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 500.0}},
    ),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2, windows": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3, biases, windows": (
        "qwen3",
        {
            "head_dim": 12,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 5,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "tie_word_embeddings": True,
        },
    ),
    "mistral": ("mistral", {"sliding_window": None, "head_dim": 16}),
    "mistral, window": ("mistral", {"sliding_window": 4, "num_key_value_heads": 1}),
    "gemma2": ("gemma2", GEMMA2),
    "gemma2, no caps": (
        "gemma2",
        GEMMA2
        | {
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "head_dim": 8,
            "attention_bias": True,
            "tie_word_embeddings": False,
        },
    ),
    "phi3": ("phi3", PHI3 | {"tie_word_embeddings": True}),
    "phi3, window": ("phi3", PHI3 | {"sliding_window": 4, "num_key_value_heads": 1}),
    "phi3, longrope": ("phi3", PHI3 | LONGROPE),
    "gemma3": ("gemma3_text", GEMMA3),
    "gemma3, untied": ("gemma3_text", GEMMA3 | {"tie_word_embeddings": False}),
    "gemma3, all windows, cap": (
        "gemma3_text",
        {
            "head_dim": 8,
            "sliding_window": 5,
            "final_logit_softcapping": 3.0,
            "attention_bias": True,
            "tie_word_embeddings": False,
        },
    ),
    "gemma3, no windows": ("gemma3_text", GEMMA3 | {"layer_types": ["full_attention"] * 3}),
    "gemma3, with pictures": ("gemma3", GEMMA3),
    "gpt2": ("gpt2", {"layer_norm_epsilon": 1e-3}),
    "gpt2, untied, relu": (
        "gpt2",
        {"tie_word_embeddings": False, "activation_function": "relu", "intermediate_size": None},
    ),
    "olmo": ("olmo", OLMO | {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "olmo, clipped, biases": ("olmo", OLMO | {"clip_qkv": 1.5, "attention_bias": True}),
    "olmo2": ("olmo2", OLMO | {"rms_norm_eps": 1e-3}),
    "olmo2, biases, one key": (
        "olmo2",
        OLMO | {"attention_bias": True, "num_key_value_heads": 1, "tie_word_embeddings": True},
    ),
}
# One of each family, with windows where the family has them.
ONE_EACH = (
    "llama, scaled like 3.1",
    "qwen2, windows",
    "qwen3, biases, windows",
    "mistral, window",
    "gemma2",
    "gemma3, untied",
    "phi3, window",
    "phi3, longrope",
    "gpt2, untied, relu",
    "olmo, clipped, biases",
    "olmo2",
)


def spelled(family: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a model as its family spells them."""
    if family == "gemma3":
        return {"text_config": settings} | PICTURES
    if family != "gpt2":
        return settings
    renamed = {GPT2_NAMES.get(name, name): value for name, value in settings.items()}
    return {name: value for name, value in renamed.items() if name is not None}


def torch_and_transformers() -> tuple[Any, Any]:
    """Both libraries; what they warn about at import is not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        import transformers

        _ = transformers.LlamaForCausalLM, transformers.Gemma2ForCausalLM
        _ = transformers.Qwen2ForCausalLM, transformers.Qwen3ForCausalLM
        _ = transformers.MistralForCausalLM, transformers.GPTNeoXForCausalLM
        _ = transformers.Phi3ForCausalLM, transformers.OlmoForCausalLM
        _ = transformers.Olmo2ForCausalLM, transformers.GPT2LMHeadModel
        _ = transformers.Gemma3ForCausalLM, transformers.Gemma3ForConditionalGeneration
    return torch, transformers


def theirs(variant: str, **overrides: Any) -> Any:
    """transformers' model of a variant, every parameter random, in f32."""
    torch, transformers = torch_and_transformers()
    family, settings = VARIANTS[variant]
    config = transformers.AutoConfig.for_model(
        family, **spelled(family, SIZES | settings | overrides)
    )
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=draw)
            norm = ("norm" in name or ".ln_" in name) and name.endswith("weight")
            scaled = 0.3 * noise + (1 if norm and not family.startswith("gemma") else 0)
            parameter.copy_(scaled if parameter.ndim == 1 else 0.25 * noise)
    return model


def write(folder: Path, variant: str, **overrides: Any) -> Any:
    """Write a variant's checkpoint as transformers publishes it; the model."""
    model = theirs(variant, **overrides)
    model.save_pretrained(folder)
    return model


def read(folder: Path) -> tuple[Params, ModelConfig]:
    """A checkpoint as ours."""
    config = config_from_hf(json.loads((folder / "config.json").read_text()))
    return load_params(open_checkpoint(folder), config), config


def made_once(tmp_path_factory: Any, write: Callable[[Path, str], Any]) -> Callable[[str], Any]:
    """From a variant to transformers' model, our parameters and our configuration, made once.

    ``write`` writes a variant's checkpoint into a folder and returns transformers' model.
    """

    @functools.cache
    def get(variant: str) -> tuple[Any, Params, ModelConfig]:
        folder = tmp_path_factory.mktemp("checkpoint")
        return write(folder, variant), *read(folder)

    return get


def prompts(batch: int = 3, length: int = 11) -> np.ndarray:
    """Random tokens."""
    return np.random.default_rng(1).integers(3, 97, (batch, length)).astype(np.int32)
