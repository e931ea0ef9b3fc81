"""GPT-NeoX (Black et al. 2022, arXiv 2204.06745; Pythia: arXiv 2304.01373)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jaxalign.errors import InputError
from jaxalign.model.families.settings import ROTARY, Family, Settings, sizes

if TYPE_CHECKING:
    from jaxalign.model.config import ModelConfig


def _read(settings: Settings) -> dict[str, Any]:
    fields = sizes(settings)
    fraction, base = _rotary(settings)
    return fields | {
        "max_positions": int(settings.take("max_position_embeddings", 2048)),
        "rotary_dims": int(fields["hidden_size"] // max(fields["num_heads"], 1) * fraction),
        "rotary_base": base,
        "parallel_residual": bool(settings.take("use_parallel_residual", True)),
        "tied_embeddings": bool(settings.take("tie_word_embeddings", False)),
        "attention_bias": bool(settings.take("attention_bias", True)),
        "activation": str(settings.take("hidden_act", "gelu")),
        "norm_eps": float(settings.take("layer_norm_eps", 1e-5)),
    }


def _rotary(settings: Settings) -> tuple[float, float]:
    """The rotary fraction and base, from whichever spelling holds them."""
    given = {name: settings.take(name, {}) for name in ROTARY}
    for name, rope in given.items():
        kind = rope.get("rope_type", rope.get("type", "default"))
        unknown = set(rope) - {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
        if kind != "default" or unknown:
            raise InputError(
                f"{name} asks for rotary scaling ({kind}{''.join(f', {u}' for u in unknown)})",
                "use a model with plain rotary embeddings; GPT-NeoX has no scaling here",
            )
    new = given["rope_parameters"]
    late_base = settings.take("rope_theta", 10000.0)
    base = new.get("rope_theta", settings.take("rotary_emb_base", late_base))
    late_fraction = settings.take("partial_rotary_factor", 0.25)
    fraction = new.get("partial_rotary_factor", settings.take("rotary_pct", late_fraction))
    return float(fraction), float(base)


def _write(config: ModelConfig) -> dict[str, Any]:
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_positions,
        "rotary_pct": config.rotary_dims / config.head_size,
        "rotary_emb_base": config.rotary_base,
        "use_parallel_residual": config.parallel_residual,
        "tie_word_embeddings": config.tied_embeddings,
        "attention_bias": config.attention_bias,
        "hidden_act": config.activation,
        "layer_norm_eps": config.norm_eps,
    }


NEOX = Family("GPT-NeoX", _read, _write)
