"""Phi-3: Llama's block; query, key and value in one tensor, gate and up in another.

Source: Phi-3 (arXiv 2404.14219). Its models of long contexts scale rotation in a way that is
refused (``longrope``).
"""

from __future__ import annotations

from typing import Any

from jaxalign.checkpoints.families.llama import (
    BUFFERS,
    EMBED,
    LAYER,
    UNEMBED,
    line,
    norm,
    write_common,
)
from jaxalign.checkpoints.families.settings import Family, Settings
from jaxalign.checkpoints.tables import Table, Target, concatenated, same, transposed
from jaxalign.model.config import ModelConfig


def _read(settings: Settings) -> dict[str, Any]:
    for name in ("resid_pdrop", "embd_pdrop"):  # off outside training
        settings.number(name, 0.0, zero=True)
    # The length that longrope starts from; without longrope nothing reads it.
    settings.whole("original_max_position_embeddings", 4096)
    settings.only("attention_bias", False)
    epsilon = settings.number("rms_norm_eps", 1e-5, zero=True)
    window = settings.optional_whole("sliding_window", None)
    fields = line(settings, 4096) | {"norm_eps": epsilon}
    if fields["rotary_scaling"] is not None:
        raise settings.wrong("rope_scaling", fields["rotary_scaling"].kind, "none, as Phi-3 has it")
    return fields | {"windows": () if window is None else (window,) * fields["num_layers"]}


def _write(config: ModelConfig) -> dict[str, Any]:
    return write_common(config, "Phi3ForCausalLM") | {
        "hidden_act": config.activation,
        "sliding_window": config.windows[0] if config.windows else None,
        "pad_token_id": None,  # missing, transformers assumes a token of the published vocabulary
    }


_RULES = (
    same(EMBED, "embed"),
    norm("input_layernorm", "attention_norm"),
    concatenated(
        f"{LAYER}self_attn.qkv_proj.weight",
        (
            Target(leaf="blocks.attention.query"),
            Target(leaf="blocks.attention.key_value", part=0),
            Target(leaf="blocks.attention.key_value", part=1),
        ),
        lambda config: [
            heads * config.head_size
            for heads in (config.num_heads, config.num_kv_heads, config.num_kv_heads)
        ],
    ),
    transposed(f"{LAYER}self_attn.o_proj.weight", "blocks.attention.out"),
    norm("post_attention_layernorm", "mlp_norm"),
    concatenated(
        f"{LAYER}mlp.gate_up_proj.weight",
        (Target(leaf="blocks.mlp.gate"), Target(leaf="blocks.mlp.up")),
        lambda config: [config.intermediate_size] * 2,
    ),
    transposed(f"{LAYER}mlp.down_proj.weight", "blocks.mlp.down"),
    same("model.norm.weight", "final_norm.scale"),
    same(UNEMBED, "unembed"),
)
PHI3 = Family(
    title="Phi-3",
    read=_read,
    write=_write,
    table=Table(rules=_RULES, embed=EMBED, unembed=UNEMBED, buffers=BUFFERS),
)
