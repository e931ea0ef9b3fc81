"""GGUF files of Llama's architecture as models of their own: dequantized, with their tokenizer.

llama.cpp rotates neighbouring rows of a query or key head, (0, 1), (2, 3), …, where the published
layout rotates (0, d/2), (1, d/2 + 1), …; its converter reorders the rows, and they are put back.
Source: llama.cpp, ``convert_hf_to_gguf.py`` (``LlamaModel.permute``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from jaxalign.checkpoints.families.settings import MOST_LAYERS, Settings
from jaxalign.checkpoints.files import StateDict
from jaxalign.checkpoints.gguf_file import GGUFFile, open_gguf
from jaxalign.checkpoints.gguf_tensors import Spelling, tensors_of
from jaxalign.checkpoints.gguf_tokenizer import read_gguf_tokenizer
from jaxalign.errors import InputError, shown
from jaxalign.model.config import ModelConfig
from jaxalign.model.rotary import RotaryScaling

ARCHITECTURE = "llama"
SPELLING = Spelling(
    outside={"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"},
    layer="model.layers.{layer}.",
    inside={
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    },
)
# Frequencies of the rotation that the converter has stretched as Llama 3.1 asks for.
STRETCHED = "rope_freqs.weight"
# The blocks of a file mean what the gguf package reads since this version of the quantizers.
BLOCKS_VERSION = 2
# Keys whose values reach no number of the model: where the file comes from, how it was made, and
# how its blocks are laid out, which the reader of the file has seen to.
NEUTRAL = ("general.", "quantize.imatrix.")
# Levels of a block type, and how many numbers share them.
GRIDS = {
    "Q4_0": (16, 32),
    "Q4_1": (16, 32),
    "Q5_0": (32, 32),
    "Q5_1": (32, 32),
    "Q8_0": (255, 32),
    "Q4_K": (16, 32),
    "Q5_K": (32, 32),
}
EXACT = ("F32", "F16", "BF16")
REMEDY = "use a file that llama.cpp's converter made of a Llama model"


@dataclass(frozen=True, kw_only=True)
class GGUFModel:
    """A file, opened and checked, of which no tensor has been decoded.

    Attributes:
        file: the file.
        config: the architecture.
        tokenizer: from the file.
        tensors: under their published names.
        notes: what the user has to know about how the settings were read.
    """

    file: GGUFFile
    config: ModelConfig
    tokenizer: Tokenizer
    tensors: StateDict
    notes: tuple[str, ...]


def open_gguf_model(path: Path, ignored: Sequence[str] = ()) -> GGUFModel:
    """Open a GGUF file of the architecture ``llama`` as a model.

    Args:
        path: the file.
        ignored: keys of the file that are not known here and that the user says change nothing.

    Raises:
        InputError: the ``gguf`` package is missing; the file is damaged or of another
            architecture; a setting is missing, out of range, or not known and not ignored; a
            tensor is not known; a tokenizer that is not read here. Each is named.
    """
    file = open_gguf(path)
    check_readable(file)
    names = SPELLING.names(file, REMEDY)
    given = {key: value for key, value in file.settings.items() if not key.startswith(NEUTRAL)}
    settings = Settings(given, str(path), ignored, "GGUF file")
    tokenizer = read_gguf_tokenizer(file, settings)
    config = _config(settings, file)
    settings.finish()
    heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}

    def arranged(name: str, decoded: np.ndarray) -> np.ndarray:
        """The rows of queries and keys in the published order."""
        part = name.split(".")[-2]
        if part not in heads or decoded.shape[0] % (2 * heads[part]):
            return decoded  # a shape that does not fit is the table's to refuse
        pairs = decoded.reshape(heads[part], -1, 2, *decoded.shape[1:])
        return pairs.swapaxes(1, 2).reshape(decoded.shape)

    tensors = tensors_of(file, names, arranged)
    return GGUFModel(
        file=file,
        config=config,
        tokenizer=tokenizer,
        tensors=tensors,
        notes=tuple(settings.notes),
    )


def check_readable(file: GGUFFile) -> None:
    """Refuse a file of another architecture, or whose blocks or rotation are not read here.

    Args:
        file: its head.

    Raises:
        InputError: it is one.
    """
    found = file.settings.get("general.architecture")
    if found != ARCHITECTURE:
        raise InputError(
            f"{file.path} is of the architecture {shown(found)}, expected {ARCHITECTURE!r}",
            "use the model's folder with config.json and safetensors, or a GGUF file of Llama's "
            "architecture",
        )
    version = file.settings.get("general.quantization_version", BLOCKS_VERSION)
    if version != BLOCKS_VERSION:
        raise InputError(
            f"{file.path} has blocks of version {shown(version)}, expected {BLOCKS_VERSION}",
            "convert and quantize the original again",
        )
    if STRETCHED in file.tensors:
        raise InputError(
            f"{file.path}: tensor {STRETCHED!r} stretches the rotation, which is not read from "
            "GGUF files",
            "use the model's folder with config.json and safetensors",
        )


def blocks_note(file: GGUFFile) -> str:
    """Which blocks the weights were dequantized from, and how fine their grid is, for people.

    Args:
        file: its head.
    """
    counts = Counter(t.kind.name for t in file.tensors.values() if len(t.shape) > 1)
    parts = [f"{count} in {name}" for name, count in counts.most_common()]
    grids = [
        f"{name} has {GRIDS[name][0]} levels in groups of {GRIDS[name][1]}"
        for name, _ in counts.most_common()
        if name in GRIDS
    ]
    if set(counts) <= set(EXACT):
        return f"weights from GGUF: {', '.join(parts)}"
    return f"weights dequantized to f32 from GGUF blocks: matrices {', '.join(parts)}" + (
        f"; {', '.join(grids)}" if grids else ""
    )


def _config(settings: Settings, file: GGUFFile) -> ModelConfig:
    """The architecture, from the keys of llama.cpp's ``llama``."""

    def key(name: str) -> str:
        return f"{ARCHITECTURE}.{name}"

    layers = settings.whole(key("block_count"), most=MOST_LAYERS)
    heads = settings.whole(key("attention.head_count"))
    hidden = settings.whole(key("embedding_length"))
    width = settings.whole(key("attention.key_length"), hidden // heads)
    settings.only(key("attention.value_length"), width)
    settings.only(key("rope.dimension_count"), width)
    for name in ("expert_count", "expert_used_count"):  # a mixture of experts has some
        settings.only(key(name), 0)
    settings.only(key("attention.causal"), True)
    settings.only(key("tensor_data_layout"), "Meta AI original pth")
    tokens = file.settings["tokenizer.ggml.tokens"]
    return ModelConfig(
        family="llama",
        vocab_size=settings.whole(key("vocab_size"), len(tokens)),
        num_layers=layers,
        num_heads=heads,
        hidden_size=hidden,
        intermediate_size=settings.whole(key("feed_forward_length")),
        max_positions=settings.whole(key("context_length")),
        num_kv_heads=settings.whole(key("attention.head_count_kv"), heads),
        head_size=width,
        rotary_dims=width,
        rotary_base=settings.number(key("rope.freq_base"), 10000.0),
        rotary_scaling=_scaling(settings, key),
        parallel_residual=False,
        attention_bias="blk.0.attn_q.bias" in file.tensors,
        mlp_bias="blk.0.ffn_up.bias" in file.tensors,
        norm="rms",
        norm_eps=settings.number(key("attention.layer_norm_rms_epsilon"), zero=True),
        gated=True,
        tied_embeddings="output.weight" not in file.tensors,
        activation="silu",
    )


def _scaling(settings: Settings, key: Any) -> RotaryScaling | None:
    """How the rotation is stretched: linearly or not at all."""
    kind = settings.word(key("rope.scaling.type"), "none")
    if kind == "none":
        return None
    if kind != "linear":
        raise settings.wrong(key("rope.scaling.type"), kind, "'none' or 'linear'")
    return RotaryScaling("linear", factor=settings.number(key("rope.scaling.factor")))
