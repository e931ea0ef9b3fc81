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
        "max_positions": settings.positions(2048),
        "rotary_dims": int(fields["hidden_size"] // fields["num_heads"] * fraction),
        "rotary_base": base,
        "parallel_residual": settings.flag("use_parallel_residual", True),
        "tied_embeddings": settings.flag("tie_word_embeddings", False),
        "attention_bias": settings.flag("attention_bias", True),
        "activation": settings.word("hidden_act", "gelu"),
        "norm_eps": settings.number("layer_norm_eps", 1e-5, zero=True),
    }


def _rotary(settings: Settings) -> tuple[float, float]:
    """The rotary fraction and base, from whichever spelling holds them."""
    new, old = (settings.inner(name) for name in ROTARY)
    late_base = settings.number("rope_theta", 10000.0)
    base = new.number("rope_theta", settings.number("rotary_emb_base", late_base))
    late = settings.number("partial_rotary_factor", 0.25, zero=True)
    early = settings.number("rotary_pct", late, zero=True)
    fraction = new.number("partial_rotary_factor", early, zero=True)
    for name, rope in zip(ROTARY, (new, old), strict=True):
        kind = rope.kind()
        if kind != "default" or rope.left:
            raise InputError(
                f"{name} asks for rotary scaling ({', '.join([kind, *sorted(rope.left)])})",
                "use a model with plain rotary embeddings; GPT-NeoX has no scaling here",
            )
    if fraction > 1:
        raise settings.wrong("rotary_pct", fraction, "a number from 0 to 1")
    return fraction, base


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
