"""GPT-NeoX (Black et al. 2022, arXiv 2204.06745; Pythia: arXiv 2304.01373)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxalign.checkpoints.families.settings import ROTARY, Family, Settings, sizes
from jaxalign.checkpoints.tables import Table, Target, TensorRule, same, transposed
from jaxalign.errors import InputError
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
    if "partial_rotary_factor" in settings.given and early != late:
        raise settings.wrong("partial_rotary_factor", late, f"rotary_pct's value, {early}")
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


def _split_heads(x: np.ndarray, config: ModelConfig) -> Sequence[np.ndarray]:
    """``[H·3·h, …]``, each head's q, k, v together, to ``[…, H·h]`` and ``[…, 2, H·h]``."""
    heads = x.T.reshape(*x.shape[1:], config.num_heads, 3, config.head_size)
    query, *key_value = (heads[..., i, :].reshape(*x.shape[1:], -1) for i in range(3))
    return query, np.stack(key_value, axis=-2)


def _join_heads(found: Sequence[np.ndarray], config: ModelConfig) -> np.ndarray:
    query, key_value = found
    parts = (query, key_value[..., 0, :], key_value[..., 1, :])
    heads = [x.reshape(*x.shape[:-1], config.num_heads, config.head_size) for x in parts]
    return np.stack(heads, axis=-2).reshape(*query.shape[:-1], -1).T


def _fused(kind: str, suffix: str) -> TensorRule:
    leaves = (f"blocks.attention.query{suffix}", f"blocks.attention.key_value{suffix}")
    return TensorRule(
        published=f"{_LAYER}attention.query_key_value.{kind}",
        targets=tuple(Target(leaf=leaf) for leaf in leaves),
        load=_split_heads,
        save=_join_heads,
    )


_LAYER = "gpt_neox.layers.{layer}."
_RULES = (
    same("gpt_neox.embed_in.weight", "embed"),
    same(f"{_LAYER}input_layernorm.weight", "blocks.attention_norm.scale"),
    same(f"{_LAYER}input_layernorm.bias", "blocks.attention_norm.bias"),
    _fused("weight", ""),
    _fused("bias", "_bias"),
    transposed(f"{_LAYER}attention.dense.weight", "blocks.attention.out"),
    same(f"{_LAYER}attention.dense.bias", "blocks.attention.out_bias"),
    same(f"{_LAYER}post_attention_layernorm.weight", "blocks.mlp_norm.scale"),
    same(f"{_LAYER}post_attention_layernorm.bias", "blocks.mlp_norm.bias"),
    transposed(f"{_LAYER}mlp.dense_h_to_4h.weight", "blocks.mlp.up"),
    same(f"{_LAYER}mlp.dense_h_to_4h.bias", "blocks.mlp.up_bias"),
    transposed(f"{_LAYER}mlp.dense_4h_to_h.weight", "blocks.mlp.down"),
    same(f"{_LAYER}mlp.dense_4h_to_h.bias", "blocks.mlp.down_bias"),
    same("gpt_neox.final_layer_norm.weight", "final_norm.scale"),
    same("gpt_neox.final_layer_norm.bias", "final_norm.bias"),
    same("embed_out.weight", "unembed"),
)

# Buffers that older versions of transformers saved with the weights; the model recomputes them.
_BUFFERS = re.compile(
    r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)"
    r"|gpt_neox\.rotary_emb\.inv_freq"
)

# What transformers 5 calls a tensor in memory, and still publishes under its old name.
_RENAMED = {"lm_head.weight": "embed_out.weight"}

_TABLE = Table(
    rules=_RULES,
    embed="gpt_neox.embed_in.weight",
    unembed="embed_out.weight",
    buffers=_BUFFERS,
    renamed=_RENAMED,
)
NEOX = Family(title="GPT-NeoX", read=_read, write=_write, table=_TABLE)
