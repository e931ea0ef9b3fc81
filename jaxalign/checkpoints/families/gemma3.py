"""Gemma 3 (Gemma Team 2025, arXiv 2503.19786): Gemma 2's block with norms of queries and keys.

In place of soft caps each head's queries and keys are normed. Most layers have a window and rotate
with a base of their own; scaling for longer contexts is the other layers' alone. Of a model that
sees pictures, too, the text model is read.
"""

from __future__ import annotations

import re
from typing import Any

from jaxalign.checkpoints.families.gemma2 import NORMS, read_gemma, write_gemma
from jaxalign.checkpoints.families.llama import (
    COMMON,
    EMBED,
    UNEMBED,
    common,
    norm,
)
from jaxalign.checkpoints.families.rotation import rope_of, scaling_of
from jaxalign.checkpoints.families.settings import Family, Settings
from jaxalign.checkpoints.tables import Table
from jaxalign.errors import InputError
from jaxalign.model.config import ModelConfig

# What a missing size means where it stands in text_config: files name there what differs.
_SIZES = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
}
_BASE, _LOCAL_BASE = 1_000_000.0, 10_000.0


def _rotation(settings: Settings) -> dict[str, Any]:
    """The bases of layers without and with a window, in the old spelling or by layer type."""
    base = settings.number("rope_theta", _BASE)
    local = settings.number("rope_local_base_freq", _LOCAL_BASE)
    name, rope = rope_of(settings)
    if name == "rope_parameters":
        windowed, rope = _by_layer_type(rope)
        local = windowed.number("rope_theta", local)
        if scaling_of(f"{name}: sliding_attention", windowed) is not None:
            raise InputError(
                f"{windowed.where} asks for rotary scaling, which layers with a window do not have",
                settings.as_published,
            )
    base = rope.number("rope_theta", base)
    scaling = scaling_of(name, rope)
    return {"rotary_base": base, "local_rotary_base": local, "rotary_scaling": scaling}


def _by_layer_type(rope: Settings) -> tuple[Settings, Settings]:
    """The rotation of layers with a window, and of those without."""
    kinds = ("sliding_attention", "full_attention")
    if other := sorted(rope.left.keys() - set(kinds)):
        raise InputError(
            f"{rope.where} has {', '.join(other)}, expected {' and '.join(kinds)}",
            rope.as_published,
        )
    windowed, whole = (rope.inner(kind) for kind in kinds)
    return windowed, whole


def _read(settings: Settings) -> dict[str, Any]:
    fields = common(settings, 131072, kv_heads=4, head_dim=256, rotation=_rotation)
    settings.only("attn_logit_softcapping", None)  # transformers takes it and does not apply it
    windows = _windows(settings, fields["num_layers"])
    return fields | read_gemma(settings, None) | {
        "family": "gemma3_text",
        "query_key_norms": True,
        "windows": windows,
        "local_rotary_base": fields["local_rotary_base"] if windows else None,
    }  # fmt: skip


def _windows(settings: Settings, layers: int) -> tuple[int | None, ...]:
    """Each layer's window: by ``layer_types``, or all but every sixth (or other) layer's."""
    size = settings.optional_whole("sliding_window", 4096)
    pattern = settings.whole("sliding_window_pattern", 6)
    windows = settings.windows(layers, size)
    if windows is None:
        windows = tuple(size if (n + 1) % pattern else None for n in range(layers))
    return windows if any(windows) else ()


def _read_with_pictures(settings: Settings) -> dict[str, Any]:
    """The text model of one that sees pictures: its settings stand in ``text_config``."""
    settings.inner("vision_config")
    for name in ("mm_tokens_per_image", "boi_token_index", "eoi_token_index", "image_token_index"):
        settings.whole(name, 0, least=0)
    text = settings.inner("text_config")
    tied = settings.flag("tie_word_embeddings", True)
    if text.left.get("tie_word_embeddings", tied) != tied:
        raise settings.wrong("tie_word_embeddings", tied, "text_config's value")
    settings.left |= _SIZES | {"tie_word_embeddings": tied} | text.left
    settings.given |= text.given
    settings.notes.append(
        f"{settings.where} is of a model that sees pictures, too: its text model alone is read"
    )
    return _read(settings)


def _write(config: ModelConfig) -> dict[str, Any]:
    local = config.local_rotary_base
    own = {} if local is None else {"rope_local_base_freq": local}
    return write_gemma(config, "Gemma3ForCausalLM") | own


_HEAD_NORMS = (
    norm("self_attn.q_norm", "attention.query_norm"),
    norm("self_attn.k_norm", "attention.key_norm"),
)
_TABLE = Table(
    rules=(*COMMON, *NORMS, *_HEAD_NORMS),
    embed=EMBED,
    unembed=UNEMBED,
    # Not read: what turns pictures into embeddings.
    buffers=re.compile(r"(model\.)?(vision_tower|multi_modal_projector)\..*"),
    # A model that sees pictures, on disk and in memory.
    renamed={
        "language_model.model.": "model.",
        "language_model.lm_head.": "lm_head.",
        "model.language_model.": "model.",
    },
)
GEMMA3_TEXT = Family(title="Gemma 3", read=_read, write=_write, table=_TABLE)
GEMMA3 = Family(title="Gemma 3", read=_read_with_pictures, write=_write, table=_TABLE)
