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

import gguf
import jax
import jax.numpy as jnp
import numpy as np
from pythia_shape import tiny_checkpoint
from safetensors.numpy import load_file, save_file

from jaxalign.checkpoints import save_checkpoint
from jaxalign.checkpoints.families import config_from_hf
from jaxalign.model import ModelConfig
from jaxalign.model.params import param_shapes
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
LINEAR = ("query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h", "_proj")
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
    w: np.ndarray, bits: int, group_of: np.ndarray, symmetric: bool | str = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes ``[out, in]``, f16 scales and zero points ``[out, G]``, zero points from 1 up.

    ``symmetric="full range"`` is the rule of auto-round (its ``quant_tensor_sym``): the largest
    weight becomes the lowest code, so that its scale is negative where that weight is positive.
    """
    top, groups = 2**bits - 1, int(group_of.max()) + 1
    codes = np.zeros(w.shape, np.int64)
    scale, zero = (np.zeros((len(w), groups), kind) for kind in (np.float16, np.int64))
    for g in range(groups):
        part = w[:, group_of == g]
        if symmetric == "full range":
            largest = np.where(part.max(1) >= -part.min(1), -part.max(1), -part.min(1))
            s, z = 2 * largest / (top + 1), np.full(len(w), (top + 1) // 2)
        elif symmetric:
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
    symmetric: bool | str = False,
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
                "sym": bool(symmetric), "checkpoint_format": kind}  # fmt: skip
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


def write_bnb(folder: Path, source: Path, double: bool = False) -> None:
    """Tensors as bitsandbytes itself serialises them."""
    import bitsandbytes as bnb
    import torch

    stored: dict[str, Any] = {}
    for name, w in load_file(source / WEIGHTS).items():
        stored[name] = w
        if linear(name):
            codes, state = bnb.functional.quantize_4bit(
                torch.tensor(w), quant_type="nf4", blocksize=64, compress_statistics=double
            )
            stored[name] = codes.numpy()
            parts = state.as_dict(packed=True)
            stored |= {f"{name}.{part}": tensor.numpy() for part, tensor in parts.items()}
    write(folder, source, stored, {"quant_method": "bitsandbytes", "load_in_4bit": True})


def write_int8(folder: Path, source: Path) -> None:
    """The 8-bit layout, by loops."""
    stored: dict[str, Any] = {}
    for name, w in load_file(source / WEIGHTS).items():
        stored[name] = w
        if linear(name):
            largest = np.abs(w).max(1)
            stored[name] = np.round(w * 127 / largest[:, None]).astype(np.int8)
            stored[name.removesuffix("weight") + "SCB"] = largest
    write(folder, source, stored, {"quant_method": "bitsandbytes", "load_in_8bit": True})


def write_fp8(folder: Path, source: Path, damaged: str = "") -> None:
    """compressed-tensors' float-quantized, through PyTorch, which NumPy's writer cannot store."""
    import torch
    from safetensors.torch import save_file as save_torch

    write(folder, source, {"x": np.zeros(1)}, {
        "quant_method": "compressed-tensors", "format": "float-quantized",
        "quantization_status": "compressed", "config_groups": {"group_0": {
            "weights": {"num_bits": 8, "type": "float", "strategy": "channel"}}}})  # fmt: skip
    stored: dict[str, Any] = {}
    for name, w in load_file(source / WEIGHTS).items():
        stored[name] = torch.tensor(w)
        if linear(name):
            scale = stored[name].abs().amax(1, keepdim=True) / 448
            codes = (stored[name] / scale).to(torch.float8_e4m3fn)
            if name == damaged:
                codes.view(torch.uint8)[3, 5] = 0x7F  # NaN
            stored[name], stored[f"{name}_scale"] = codes, scale
    save_torch(stored, folder / WEIGHTS)


def write_ct(folder: Path, source: Path, **settings: Any) -> None:
    """compressed-tensors' pack-quantized int4, symmetric, by loops."""
    stored: dict[str, Any] = {}
    for name, w in load_file(source / WEIGHTS).items():
        if not linear(name):
            stored[name] = w
            continue
        base = name.removesuffix(".weight")
        scale = np.abs(w.reshape(len(w), -1, GROUP)).max(2) / 7.5
        codes = np.clip(np.round(w / np.repeat(scale, GROUP, axis=1)), -8, 7).astype(np.int64) + 8
        words = sum(codes[:, i::8].astype(np.uint32) << np.uint32(4 * i) for i in range(8))
        stored[f"{base}.weight_packed"] = words.view(np.int32)
        stored[f"{base}.weight_scale"] = scale.astype(np.float32)
        stored[f"{base}.weight_shape"] = np.array(w.shape, np.int64)
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP}
    group = {"weights": weights | settings, "targets": ["Linear"]}
    write(folder, source, stored, {
        "quant_method": "compressed-tensors", "format": "pack-quantized",
        "quantization_status": "compressed", "config_groups": {"group_0": group}})  # fmt: skip


def write_llama(folder: Path, tokenizer: Path) -> Path:
    """A random f32 Llama with grouped queries, every parameter random."""
    config = ModelConfig(
        vocab_size=4096, num_layers=2, num_heads=4, hidden_size=64, intermediate_size=96,
        num_kv_heads=2, family="llama", norm="rms", gated=True, mlp_bias=False,
        attention_bias=False, activation="silu", parallel_residual=False, rotary_dims=16,
    )  # fmt: skip
    rng = np.random.default_rng(3)
    shapes = param_shapes(config)
    params = jax.tree.map(
        lambda x: rng.normal(1 if len(x.shape) < 3 else 0, 0.3, x.shape).astype("f4"), shapes
    )
    save_checkpoint(params, config, folder, "float32")
    shutil.copy(tokenizer, folder / "tokenizer.json")
    return folder


def move_scales(folder: Path, source: Path, spread: float = 0.5) -> Path:
    """A Llama that computes the same with scales moved as AWQ and SmoothQuant move them."""
    tensors, rng = load_file(source / WEIGHTS), np.random.default_rng(5)
    for layer in range(2):
        block = f"model.layers.{layer}."
        into, between, after = (
            np.exp(spread * rng.standard_normal(size)).astype("f4") for size in (64, 32, 96)
        )
        for norm, readers in (
            ("input_layernorm", [f"self_attn.{name}_proj" for name in "qkv"]),
            ("post_attention_layernorm", ["mlp.gate_proj", "mlp.up_proj"]),
        ):
            tensors[f"{block}{norm}.weight"] /= into
            for reader in readers:
                tensors[f"{block}{reader}.weight"] *= into
        shared = np.repeat(between.reshape(2, 1, 16), 2, axis=1).reshape(-1)
        tensors[f"{block}self_attn.v_proj.weight"] /= between[:, None]
        tensors[f"{block}self_attn.o_proj.weight"] *= shared
        tensors[f"{block}mlp.up_proj.weight"] /= after[:, None]
        tensors[f"{block}mlp.down_proj.weight"] *= after
    shutil.copytree(source, folder)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def write_gguf(
    path: Path, source: Path, kind: Any, architecture: str = "gptneox", **settings: Any
) -> dict[str, np.ndarray]:
    """A file as llama.cpp's converter lays it out; what the package decodes it to."""
    tensors, config = load_file(source / "model.safetensors"), config_of(source)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(settings.get("layers", config.num_layers))
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_rope_dimension_count(config.rotary_dims)
    writer.add_parallel_residual(config.parallel_residual)
    writer.add_layer_norm_eps(config.norm_eps)
    if "tokens" in settings:
        writer.add_token_list(settings["tokens"])
    expected = {}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPTNEOX, config.num_layers)
    for name, tensor in tensors.items():
        ours, heads = tensor, (config.num_heads, 3, config.head_size)
        if "query_key_value" in name:
            per_head = tensor.reshape(*heads, *tensor.shape[1:])
            ours = np.concatenate(
                [per_head[:, i].reshape(config.hidden_size, *tensor.shape[1:]) for i in range(3)]
            )
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if not linear(name):
            writer.add_tensor(stored, ours)
            expected[name] = tensor
            continue
        blocks = quantized_blocks(ours, kind)
        writer.add_tensor(stored, blocks, raw_dtype=kind)
        decoded = gguf.dequantize(blocks, kind).astype(np.float32)
        if "query_key_value" in name:
            decoded = decoded.reshape(3, config.num_heads, config.head_size, -1)
            decoded = decoded.transpose(1, 0, 2, 3).reshape(tensor.shape)
        expected[name] = decoded
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file,
                 writer.write_tensors_to_file, writer.close):  # fmt: skip
        step()
    return expected


def quantized_blocks(w: np.ndarray, kind: Any) -> np.ndarray:
    """Blocks by the package's quantizer, or by hand where it can only decode."""
    try:
        return gguf.quantize(w, kind)
    except NotImplementedError:
        size, width = gguf.GGML_QUANT_SIZES[kind]
        blocks = np.random.default_rng(w.size).integers(
            0, 256, (len(w), w.shape[1] // size, width), np.uint8
        )
        scales = {"Q4_K": slice(0, 4), "Q5_K": slice(0, 4), "Q6_K": slice(-2, None)}[kind.name]
        count = blocks[..., scales].shape[-1] // 2
        blocks[..., scales] = np.full(count, 0.01, np.float16).view(np.uint8)
        return blocks.reshape(len(w), -1)
