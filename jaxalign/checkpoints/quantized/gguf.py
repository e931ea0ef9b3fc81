"""GGUF files of GPT-NeoX models, whose blocks the ``gguf`` package decodes.

Names are llama.cpp's; ``attn_qkv`` has all queries, then all keys, then all values, where the
published tensor has each head's three together. A tensor's dimensions are stored fastest first.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.checkpoints.families import FAMILIES
from jaxalign.checkpoints.gguf_file import GGUFFile, open_gguf
from jaxalign.checkpoints.gguf_tensors import Spelling, tensors_of
from jaxalign.checkpoints.parameters import load_params
from jaxalign.checkpoints.quantized.settings import shown
from jaxalign.errors import InputError
from jaxalign.model.config import ModelConfig
from jaxalign.model.params import Params

ARCHITECTURE = "gptneox"
SPELLING = Spelling(
    outside={
        "token_embd": "gpt_neox.embed_in",
        "output_norm": "gpt_neox.final_layer_norm",
        "output": "embed_out",
    },
    layer="gpt_neox.layers.{layer}.",
    inside={
        "attn_norm": "input_layernorm",
        "attn_qkv": "attention.query_key_value",
        "attn_output": "attention.dense",
        "ffn_norm": "post_attention_layernorm",
        "ffn_up": "mlp.dense_h_to_4h",
        "ffn_down": "mlp.dense_4h_to_h",
    },
)
# Of what a file says of the model: what changes no number. ``context_of`` has the context.
PASSED_OVER = ("context_length", "tensor_data_layout")
REMEDY = "convert and quantize the original again"
TOKENS = "tokenizer.ggml.tokens"


def load_gguf(path: Path, config: ModelConfig, dtype: Any) -> tuple[Params, str, dict[str, str]]:
    """The parameters of a file, a title, and the block type of each kind of matrix.

    Args:
        path: the file.
        config: the architecture of the original.
        dtype: of the parameters.

    Raises:
        InputError: the ``gguf`` package is missing, the file is damaged, of another architecture,
            or disagrees with ``config``.
    """
    file = open_gguf(path)
    _check_architecture(file, config)

    def arranged(name: str, decoded: np.ndarray) -> np.ndarray:
        """Each head's three parts together."""
        if "query_key_value" not in name or decoded.shape[0] % (3 * config.num_heads):
            return decoded  # a shape that does not fit is the table's to refuse
        heads = decoded.reshape(3, config.num_heads, -1, *decoded.shape[1:])
        return heads.swapaxes(0, 1).reshape(decoded.shape)

    names = SPELLING.names(file, REMEDY)
    params = load_params(tensors_of(file, names, arranged), config, dtype)
    types: dict[str, Counter[str]] = {}
    for rule in FAMILIES[config.family].table.rules:
        for tensor in (file.tensors[names[name]] for name in rule.names(config) if name in names):
            for target in rule.targets if len(tensor.shape) == 2 else ():
                types.setdefault(target.leaf, Counter())[tensor.kind.name] += 1
    blocks = sum((count for leaf, count in types.items() if "." in leaf), Counter())
    title = f"GGUF, mostly {blocks.most_common(1)[0][0]}"
    return params, title, {leaf: " and ".join(sorted(count)) for leaf, count in types.items()}


def tokens_of(path: Path) -> list[str] | None:
    """The vocabulary of a file in the order of the token numbers; None where it has none.

    Raises:
        InputError: see ``open_gguf``; or what the file has under that key is no list of texts.
    """
    tokens = open_gguf(path).settings.get(TOKENS)
    if not isinstance(tokens, list | None) or not all(isinstance(t, str) for t in tokens or ()):
        raise InputError(
            f"{path} is damaged: {TOKENS} is {shown(tokens)}, expected a list of texts", REMEDY
        )
    return tokens


def context_of(path: Path) -> Any:
    """The longest sequence that a file names; None where it names none."""
    return open_gguf(path).settings.get(f"{ARCHITECTURE}.context_length")


def _check_architecture(file: GGUFFile, config: ModelConfig) -> None:
    """Whatever the file says of the model is true of it."""
    found = file.settings.get("general.architecture")
    if found != ARCHITECTURE:
        raise InputError(
            f"{file.path} is of the architecture {shown(found)}, expected {ARCHITECTURE!r}",
            "GGUF is read for GPT-NeoX models only",
        )
    expected = {
        "block_count": config.num_layers,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_size,
        "attention.value_length": config.head_size,
        "attention.layer_norm_epsilon": float(np.float32(config.norm_eps)),
        "rope.dimension_count": config.rotary_dims,
        "rope.freq_base": float(np.float32(config.rotary_base)),
        "rope.scaling.type": "none",
        "use_parallel_residual": config.parallel_residual,
        "vocab_size": config.vocab_size,
    }
    for key, said in file.settings.items():
        name = key.removeprefix(f"{ARCHITECTURE}.")
        if name == key or name in PASSED_OVER:
            continue
        value = expected.get(name, "nothing of it")
        if type(said) is not type(value) or said != value:
            raise InputError(
                f"{file.path} says {name} {shown(said)}, but the original has {value}",
                "give the original that this file was made from to --model",
            )
