"""Quantized checkpoints for tests: AWQ's and GPTQ's layouts written from their description.

These two tools need a GPU, so their files are packed here, bit by bit and by loops, apart from the
reader's code. `write_*` return the weights that the file stands for, under their published names.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from pythia_shape import tiny_checkpoint
from safetensors.numpy import load_file, save_file

from jaxalign.checkpoints.families import config_from_hf
from jaxalign.convert import save_checkpoint
from jaxalign.model import ModelConfig
from jaxalign.numerics.dot import dense
from jaxalign.numerics.qtensor import QTensor

WEIGHTS = "model.safetensors"
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 96,
}
LINEAR = ("query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
GROUP = 32


def original(folder: Path, **settings: Any) -> Path:
    """The f32 checkpoint that the others are made from."""
    return tiny_checkpoint(folder, **(SIZES | settings))


def config_of(folder: Path) -> ModelConfig:
    """The architecture of a folder, quantized or not."""
    settings = json.loads((folder / "config.json").read_text())
    settings.pop("quantization_config", None)
    return config_from_hf(settings)


def linear(name: str) -> bool:
    """Whether a published tensor is the weight of a linear layer in a block."""
    return any(name.endswith(f"{layer}.weight") for layer in LINEAR)


def published(params: Any, config: ModelConfig, folder: Path) -> dict[str, np.ndarray]:
    """Parameters, unpacked, as f32 tensors under their published names."""
    whole = jax.tree.map(
        lambda x: divided(x) if isinstance(x, QTensor) else x,
        params,
        is_leaf=lambda x: isinstance(x, QTensor),
    )
    save_checkpoint(whole, config, folder, "float32")
    return load_file(folder / WEIGHTS)


def divided(w: QTensor) -> np.ndarray:
    """A packed matrix as an undivided input meets it, f32."""
    matrix = np.asarray(dense(w, jnp.float32))
    if w.input_divisor is None:
        return matrix
    shape = (*w.input_divisor.shape, *[1] * w.outputs)
    return matrix / np.asarray(w.input_divisor).reshape(shape)


def round_to_codes(
    w: np.ndarray, bits: int, group_of: np.ndarray, symmetric: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes ``[out, in]``, f16 scales and zero points ``[out, G]``, zero points from 1 up."""
    top, groups = 2**bits - 1, int(group_of.max()) + 1
    codes = np.zeros(w.shape, np.int64)
    scale, zero = (np.zeros((len(w), groups), kind) for kind in (np.float16, np.int64))
    for g in range(groups):
        part = w[:, group_of == g]
        if symmetric:
            s, z = 2 * np.abs(part).max(1) / top, np.full(len(w), (top + 1) // 2)
        else:
            s = (part.max(1) - part.min(1)) / top
            z = np.clip(np.round(-part.min(1) / s), 1, top)
        scale[:, g], zero[:, g] = s, z
        step = scale[:, g].astype(np.float32)[:, None]
        codes[:, group_of == g] = np.clip(np.round(part / step) + z[:, None], 0, top)
    return codes, scale, zero


def words_of(codes: np.ndarray, bits: int, order: tuple[int, ...] | None = None) -> np.ndarray:
    """Codes along the last axis in int32 words; field ``i`` is the code ``order[i]`` of a word."""
    count = 32 // bits
    words = np.zeros((*codes.shape[:-1], codes.shape[-1] // count), np.uint32)
    for word in range(words.shape[-1]):
        for i, place in enumerate(order or range(count)):
            words[..., word] |= codes[..., word * count + place].astype(np.uint32) << i * bits
    return np.ascontiguousarray(words.view(np.int32))


def write_awq(folder: Path, source: Path, order: tuple[int, ...] = (0, 2, 4, 6, 1, 3, 5, 7),
              scaled: bool = True) -> dict[str, np.ndarray]:  # fmt: skip
    """AutoAWQ's gemm layout; with ``scaled``, scales moved into norms and behind the activation."""
    tensors, rng = load_file(source / WEIGHTS), np.random.default_rng(7)
    stands, stored = dict(tensors), {}
    moved: dict[str, np.ndarray] = {}
    for layer in range(SIZES["num_hidden_layers"] if scaled else 0):
        block = f"gpt_neox.layers.{layer}."
        for norm, after in (("input_layernorm", "attention.query_key_value"),
                            ("post_attention_layernorm", "mlp.dense_h_to_4h")):  # fmt: skip
            moved[f"{block}{after}.weight"] = s = np.exp(rng.standard_normal(64)).astype("f4")
            for kind in ("weight", "bias"):
                stands[f"{block}{norm}.{kind}"] = stored[f"{block}{norm}.{kind}"] = (
                    tensors[f"{block}{norm}.{kind}"] / s
                )
        moved[f"{block}mlp.dense_4h_to_h.weight"] = s = np.exp(rng.standard_normal(128) / 2)
        stored[f"{block}mlp.act.scales"] = s.astype(np.float16)
    for name, w in tensors.items():
        if not linear(name):
            stored.setdefault(name, w)
            continue
        base = name.removesuffix(".weight")
        s = moved.get(name, np.ones(w.shape[1])).astype(np.float16).astype(np.float32)
        groups = np.arange(w.shape[1]) // GROUP
        codes, scale, zero = round_to_codes(w * s, 4, groups)
        stored[f"{base}.qweight"] = words_of(codes.T, 4, order)
        stored[f"{base}.qzeros"] = words_of(zero.T, 4, order)
        stored[f"{base}.scales"] = np.ascontiguousarray(scale.T)
        exact = ((codes - zero[:, groups]) * scale[:, groups]).astype(np.float16)
        by_activation = base.endswith("4h_to_h") and scaled
        stands[name] = exact.astype(np.float32) / (s if by_activation else 1)
    write(folder, source, stored, {"quant_method": "awq", "bits": 4, "group_size": GROUP,
                                   "version": "gemm", "zero_point": True})  # fmt: skip
    return stands


def write_gptq(
    folder: Path,
    source: Path,
    version: int = 1,
    bits: int = 4,
    act_order: bool = False,
    symmetric: bool = False,
    skip: Callable[[str], bool] = lambda name: False,
) -> dict[str, np.ndarray]:
    """AutoGPTQ's layout, v1 or v2."""
    tensors, rng = load_file(source / WEIGHTS), np.random.default_rng(8)
    stands, stored = dict(tensors), {}
    for name, w in tensors.items():
        if not linear(name) or skip(name):
            stored[name] = w
            continue
        base = name.removesuffix(".weight")
        groups = np.arange(w.shape[1]) // GROUP
        groups = rng.permutation(groups) if act_order else groups
        codes, scale, zero = round_to_codes(w, bits, groups, symmetric)
        kept = zero - 1 if version == 1 else zero
        stored[f"{base}.qweight"] = np.ascontiguousarray(words_of(codes, bits).T)
        stored[f"{base}.qzeros"] = words_of(kept.T, bits)
        stored[f"{base}.scales"] = np.ascontiguousarray(scale.T)
        stored[f"{base}.g_idx"] = groups.astype(np.int32)
        exact = (codes - zero[:, groups]).astype(np.float16) * scale[:, groups]
        stands[name] = exact.astype(np.float32)
    kind = "gptq" if version == 1 else "gptq_v2"
    settings = {"quant_method": "gptq", "bits": bits, "group_size": GROUP, "desc_act": act_order,
                "sym": symmetric, "checkpoint_format": kind}  # fmt: skip
    write(folder, source, stored, settings)
    return stands


def write(folder: Path, source: Path, tensors: dict[str, Any], settings: dict[str, Any]) -> None:
    """A folder with these tensors and the source's config, said to be quantized."""
    folder.mkdir(parents=True, exist_ok=True)
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    save_file(contiguous, folder / WEIGHTS, metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    if (source / "tokenizer.json").is_file():
        shutil.copy(source / "tokenizer.json", folder)
