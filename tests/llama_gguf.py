"""Tiny GGUF files of Llama's architecture, with a byte-level tokenizer, by the gguf package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tokenizers.pre_tokenizers import ByteLevel

SPECIAL = ("<|endoftext|>", "<|im_start|>")
# In the order of their ranks; the second and last are there for runs of spaces and of new lines.
MERGES = ("Ġ t", "Ġ Ġ", "h e", "Ġt he", "i n", "r e", "1 9", "Ġ 1", "é n", "Ċ Ċ")
ALPHABET = sorted(ByteLevel.alphabet())
TOKENS = (*SPECIAL, *ALPHABET, *(merge.replace(" ", "") for merge in MERGES))
CONTROL, NORMAL = 3, 1
KINDS = (CONTROL,) * len(SPECIAL) + (NORMAL,) * (len(TOKENS) - len(SPECIAL))
LAYERS, HEADS, KEYS, HIDDEN, INNER = 3, 4, 2, 64, 96
LLAMA = {
    "block_count": LAYERS,
    "context_length": 64,
    "embedding_length": HIDDEN,
    "feed_forward_length": INNER,
    "attention.head_count": HEADS,
    "attention.head_count_kv": KEYS,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 500.0,
    "rope.dimension_count": HIDDEN // HEADS,
    "vocab_size": len(TOKENS),
}
TOKENIZER = {
    "model": "gpt2",
    "pre": "smollm",
    "tokens": list(TOKENS),
    "token_type": list(KINDS),
    "merges": list(MERGES),
    "bos_token_id": 1,
    "add_bos_token": False,
    "add_space_prefix": False,
}
SETTINGS = {f"llama.{name}": value for name, value in LLAMA.items()} | {
    f"tokenizer.ggml.{name}": value for name, value in TOKENIZER.items()
}
HF_SETTINGS = {
    "vocab_size": len(TOKENS),
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KEYS,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
}


def random_tensors(tied: bool = True, biases: bool = False) -> dict[str, np.ndarray]:
    """Tensors of a model of ``LLAMA`` under their published names."""
    rng = np.random.default_rng(0)
    width = HIDDEN // HEADS
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (len(TOKENS), HIDDEN)}
    for layer in range(LAYERS):
        block = f"model.layers.{layer}."
        for name, out, into in (
            ("self_attn.q_proj", HEADS * width, HIDDEN),
            ("self_attn.k_proj", KEYS * width, HIDDEN),
            ("self_attn.v_proj", KEYS * width, HIDDEN),
            ("self_attn.o_proj", HIDDEN, HEADS * width),
            ("mlp.gate_proj", INNER, HIDDEN),
            ("mlp.up_proj", INNER, HIDDEN),
            ("mlp.down_proj", HIDDEN, INNER),
        ):
            shapes[f"{block}{name}.weight"] = (out, into)
            if biases:
                shapes[f"{block}{name}.bias"] = (out,)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{block}{norm}.weight"] = (HIDDEN,)
    shapes["model.norm.weight"] = (HIDDEN,)
    if not tied:
        shapes["lm_head.weight"] = (len(TOKENS), HIDDEN)
    return {
        name: ((0.25 if len(shape) == 2 else 0.3) * rng.standard_normal(shape)
               + ("norm" in name)).astype(np.float32)
        for name, shape in shapes.items()
    }  # fmt: skip


def write_llama(
    path: Path,
    tensors: dict[str, np.ndarray],
    kind: str = "F32",
    architecture: str = "llama",
    extra: dict[str, np.ndarray] | None = None,
    leave_out: tuple[str, ...] = (),
    **changes: Any,
) -> dict[str, np.ndarray]:
    """Write a file as llama.cpp's converter lays it out; what its tensors decode to.

    Args:
        path: of the file.
        tensors: under their published names.
        kind: block type of the matrices.
        architecture: what the file says it is.
        extra: more tensors by their names in the file.
        leave_out: published names.
        changes: settings by their keys, None for one that is left out.
    """
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in {**SETTINGS, **changes}.items():
        if value is not None:
            add(writer, key, value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LAYERS)
    expected = {}
    for name, tensor in tensors.items():
        if name in leave_out:
            continue
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        heads = {"q_proj": HEADS, "k_proj": KEYS}.get(name.split(".")[-2])
        ours = interleaved(tensor, heads) if heads else tensor
        if ours.ndim == 1 or kind == "F32":
            writer.add_tensor(stored, ours)
            expected[name] = tensor
            continue
        number = gguf.GGMLQuantizationType[kind]
        blocks = gguf.quantize(ours, number)
        writer.add_tensor(stored, blocks, raw_dtype=number)
        decoded = gguf.dequantize(blocks, number).astype(np.float32)
        expected[name] = halves(decoded, heads) if heads else decoded
    for name, tensor in (extra or {}).items():
        writer.add_tensor(name, tensor)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file,
                 writer.write_tensors_to_file, writer.close):  # fmt: skip
        step()
    return expected


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """A head's rows (0, d/2, 1, d/2 + 1, …), one by one so that nothing is reshaped twice."""
    width = len(rows) // heads
    order = [h * width + half + i for h in range(heads)
             for i in range(width // 2) for half in (0, width // 2)]  # fmt: skip
    return rows[order]


def halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """The other way round."""
    out = np.empty_like(rows)
    out[interleaved(np.arange(len(rows)), heads)] = rows
    return out


def add(writer: Any, key: str, value: Any) -> None:
    """One setting, of its type."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
