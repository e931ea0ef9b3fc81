"""Phi-3: Llama's block; query, key and value in one tensor, gate and up in another.

Its models of long contexts scale rotation in two ways, for texts up to the context of pretraining
and for longer ones (``longrope``); the first is run here. Some rotate a part of each head. Source:
Phi-3 (arXiv 2404.14219).
"""

from __future__ import annotations

import math
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
from jaxalign.checkpoints.families.rotation import rope_of
from jaxalign.checkpoints.families.settings import Family, Settings
from jaxalign.checkpoints.tables import Table, Target, concatenated, same, transposed
from jaxalign.errors import InputError
from jaxalign.model.config import ModelConfig
from jaxalign.model.rotary import RotaryScaling

LONGROPE = ("longrope", "su", "yarn")  # its name, and two that older files have for it


def _read(settings: Settings) -> dict[str, Any]:
    for name in ("resid_pdrop", "embd_pdrop"):  # off outside training
        settings.number(name, 0.0, zero=True)
    settings.only("attention_bias", False)
    epsilon = settings.number("rms_norm_eps", 1e-5, zero=True)
    window = settings.optional_whole("sliding_window", None)
    fields = line(settings, 4096, rotation=lambda settings: {}) | {"norm_eps": epsilon}
    fields |= _rotation(settings, fields["max_positions"], fields["head_size"])
    return fields | {"windows": () if window is None else (window,) * fields["num_layers"]}


def _rotation(settings: Settings, positions: int, width: int) -> dict[str, Any]:
    """Base, rotated coordinates and, for longrope, scaling and the context that is run here."""
    # The length that longrope starts from; without longrope nothing reads it.
    original = settings.whole("original_max_position_embeddings", 4096)
    name, rope = rope_of(settings)
    fraction = settings.number("partial_rotary_factor", 1.0)
    fraction = rope.number("partial_rotary_factor", fraction)
    dims = int(width * fraction)
    fields = {
        "rotary_base": rope.number("rope_theta", settings.number("rope_theta", 10000.0)),
        "rotary_dims": dims,
    }
    kind = rope.kind()
    if kind == "default" and not rope.left:
        return fields
    if kind not in LONGROPE:
        raise InputError(
            f"{name} asks for rotary scaling ({', '.join([kind, *sorted(rope.left)])}), expected "
            "default or longrope",
            settings.as_published,
        )
    scaling = _longrope(rope, positions, original, dims // 2)
    if positions > original:
        settings.notes.append(
            f"{settings.where} has longrope: texts up to {original} tokens are read, with its "
            f"short factors; the long ones, up to {positions}, are not run here"
        )
    return fields | {"rotary_scaling": scaling, "max_positions": min(positions, original)}


def _longrope(rope: Settings, positions: int, original: int, half: int) -> RotaryScaling:
    """The factors of each frequency, and how much longer rotated queries and keys are."""
    within = rope.whole("original_max_position_embeddings", original)
    if within != original:
        raise rope.wrong("original_max_position_embeddings", within, f"{original}, as beside it")
    stretch = rope.number("factor", positions / original)
    usual = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
    scaling = RotaryScaling(
        "longrope",
        original_positions=original,
        short=_factors(rope, "short_factor", half),
        long=_factors(rope, "long_factor", half),
        amplitude=rope.number("attention_factor", usual),
        longest=positions,
    )
    if rope.left:
        raise InputError(
            f"{rope.where} has settings that are not known: {', '.join(sorted(rope.left))}",
            rope.as_published,
        )
    return scaling


def _factors(rope: Settings, name: str, half: int) -> tuple[float, ...]:
    """One positive number for each rotated pair of coordinates."""
    values = rope.take(name, None)
    if not isinstance(values, list) or len(values) != half:
        raise rope.wrong(name, values, f"a list of {half} numbers, one for each pair that rotates")
    one = [Settings({name: value}, rope.where) for value in values]
    return tuple(each.number(name) for each in one)


def _written_rotation(config: ModelConfig) -> dict[str, Any]:
    """The settings of rotation beyond Llama's."""
    settings: dict[str, Any] = {}
    if config.rotary_dims != config.head_size:
        settings["partial_rotary_factor"] = config.rotary_dims / config.head_size
    if (scaling := config.rotary_scaling) is None:
        return settings
    return settings | {
        "max_position_embeddings": scaling.longest,
        "original_max_position_embeddings": scaling.original_positions,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": list(scaling.short),
            "long_factor": list(scaling.long),
            "attention_factor": scaling.amplitude,
        },
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    return write_common(config, "Phi3ForCausalLM") | {
        "hidden_act": config.activation,
        "sliding_window": config.windows[0] if config.windows else None,
        **_written_rotation(config),
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
