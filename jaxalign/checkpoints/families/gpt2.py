"""GPT-2 (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners").

A learned vector of each position is added to the embeddings, and nothing is rotated. Its linear
layers are published ``[in, out]`` (Conv1D), and its tensors with or without ``transformer.`` in
front.
"""

from __future__ import annotations

import re
from typing import Any

from jaxalign.checkpoints.families.settings import MOST_LAYERS, Family, Settings
from jaxalign.checkpoints.tables import Table, Target, TensorRule, same, side_by_side
from jaxalign.model.config import ModelConfig


def _read(settings: Settings) -> dict[str, Any]:
    for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):  # off outside training
        settings.number(name, 0.1, zero=True)
    settings.only("scale_attn_weights", True)
    settings.only("scale_attn_by_inverse_layer_idx", False)
    settings.only("reorder_and_upcast_attn", False)
    width = settings.whole("n_embd")
    positions = settings.positions(1024, "n_positions")
    settings.whole("n_ctx", positions)  # an older name, which nothing reads
    return {
        "vocab_size": settings.whole("vocab_size"),
        "num_layers": settings.whole("n_layer", most=MOST_LAYERS),
        "num_heads": settings.whole("n_head"),
        "hidden_size": width,
        "intermediate_size": settings.whole("n_inner", 4 * width),
        "max_positions": positions,
        "learned_positions": True,
        "rotary_dims": 0,
        "parallel_residual": False,
        "tied_embeddings": settings.flag("tie_word_embeddings", True),
        "activation": settings.word("activation_function", "gelu_new"),
        "norm_eps": settings.number("layer_norm_epsilon", 1e-5, zero=True),
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_embd": config.hidden_size,
        "n_inner": config.intermediate_size,
        "n_positions": config.max_positions,
        "activation_function": config.activation,
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tied_embeddings,
        # Missing, transformers assumes tokens of the published vocabulary.
        "bos_token_id": None,
        "eos_token_id": None,
    }


_LAYER = "transformer.h.{layer}."


def _linear(published: str, leaf: str) -> tuple[TensorRule, TensorRule]:
    """A linear layer's weight, ``[in, out]`` as ours, and bias."""
    leaf = f"blocks.{leaf}"
    return same(f"{published}.weight", leaf), same(f"{published}.bias", f"{leaf}_bias")


def _norm(published: str, leaf: str) -> tuple[TensorRule, TensorRule]:
    return same(f"{published}.weight", f"{leaf}.scale"), same(f"{published}.bias", f"{leaf}.bias")


def _attention(kind: str, suffix: str) -> TensorRule:
    """Query, key and value in one tensor."""
    key_value = f"blocks.attention.key_value{suffix}"
    return side_by_side(
        f"{_LAYER}attn.c_attn.{kind}",
        (
            Target(leaf=f"blocks.attention.query{suffix}"),
            Target(leaf=key_value, part=0),
            Target(leaf=key_value, part=1),
        ),
        lambda config: [config.attention_width] * 3,
    )


_RULES = (
    same("transformer.wte.weight", "embed"),
    same("transformer.wpe.weight", "positions"),
    *_norm(f"{_LAYER}ln_1", "blocks.attention_norm"),
    _attention("weight", ""),
    _attention("bias", "_bias"),
    *_linear(f"{_LAYER}attn.c_proj", "attention.out"),
    *_norm(f"{_LAYER}ln_2", "blocks.mlp_norm"),
    *_linear(f"{_LAYER}mlp.c_fc", "mlp.up"),
    *_linear(f"{_LAYER}mlp.c_proj", "mlp.down"),
    *_norm("transformer.ln_f", "final_norm"),
    same("lm_head.weight", "unembed"),
)
_TABLE = Table(
    rules=_RULES,
    embed="transformer.wte.weight",
    unembed="lm_head.weight",
    buffers=re.compile(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)"),
    renamed={name: f"transformer.{name}" for name in ("wte.", "wpe.", "h.", "ln_f.")},
    inputs_first=True,
)
GPT2 = Family(title="GPT-2", read=_read, write=_write, table=_TABLE)
