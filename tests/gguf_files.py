"""GGUF files of every architecture, from transformers' models, as llama.cpp writes them.

The converter's rules are written out here again, and names come from the ``gguf`` package.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from family_checkpoints import SIZES, theirs, torch_and_transformers
from llama_gguf import TOKENIZER, TOKENS, add, interleaved

import jaxalign

WIDE = {
    "vocab_size": len(TOKENS),
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
# K-quants have 256 weights a block, so every matrix has as many inputs, or a multiple.
WIDE_CASES = {
    "gptneox": WIDE,
    "gemma2": WIDE | {"head_dim": 64, "query_pre_attn_scalar": 64},
    **dict.fromkeys(("llama, scaled like 3.1", "mistral", "qwen2", "qwen3", "phi3"),
                    WIDE | {"head_dim": 64}),
}  # fmt: skip
GEMMA2 = {"head_dim": 16, "query_pre_attn_scalar": 16, "tie_word_embeddings": True}
# By name: the architecture, the variant of ``family_checkpoints``, what differs from it.
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gptneox": ("gptneox", "gpt_neox", {"rotary_pct": 0.25, "use_parallel_residual": False}),
    "gptneox, parallel": ("gptneox", "gpt_neox", {"rotary_pct": 1.0}),
    "llama, biases": ("llama", "llama, biases", {"hidden_act": "silu", "hidden_size": 64}),
    "llama, scaled like 3.1": ("llama", "llama", {"rope_parameters": LLAMA3, "head_dim": 32}),
    "llama, scaled linearly": ("llama", "llama, scaled linearly", {"tie_word_embeddings": True}),
    "mistral": ("llama", "mistral", {"head_dim": 12}),
    "qwen2": ("qwen2", "qwen2", {}),
    "qwen2, untied": ("qwen2", "qwen2", {"tie_word_embeddings": False}),
    "qwen3": ("qwen3", "qwen3", {}),
    "gemma2": ("gemma2", "gemma2", GEMMA2),
    # llama.cpp knows Gemma 2 27B by its layers.
    "gemma2, 46 layers": (
        "gemma2",
        "gemma2",
        GEMMA2 | {"num_hidden_layers": 46, "query_pre_attn_scalar": 8},
    ),
    "phi3": ("phi3", "phi3", {}),
    "phi3, window": ("phi3", "phi3, window", {}),
}
ONE_EACH = ("gptneox", "llama, scaled like 3.1", "mistral", "qwen2", "qwen3", "gemma2", "phi3")


def model_of(case: str, **overrides: Any) -> Any:
    """transformers' model of a case, every parameter random."""
    _, variant, changes = CASES[case]
    overrides = {"vocab_size": len(TOKENS)} | changes | overrides
    torch, _ = torch_and_transformers()
    model = neox(**overrides) if variant == "gpt_neox" else theirs(variant, **overrides)
    if model.config.hidden_size >= WIDE["hidden_size"]:  # as many summands, as large sums
        with torch.no_grad():
            for parameter in model.parameters():
                parameter *= 0.25 if parameter.ndim == 2 else 1
    return model


def neox(**settings: Any) -> Any:
    """transformers' GPT-NeoX, every parameter random."""
    torch, transformers = torch_and_transformers()
    sizes = {name: size for name, size in SIZES.items() if "key_value" not in name}
    rotary = {"rope_type": "default", "rope_theta": 500.0}
    rotary["partial_rotary_factor"] = settings.pop("rotary_pct")
    config = transformers.GPTNeoXConfig(**sizes | {"rope_parameters": rotary} | settings)
    config._attn_implementation = "eager"
    model = transformers.GPTNeoXForCausalLM(config).eval()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=draw)
            norm = "norm" in name and name.endswith("weight")
            parameter.copy_((0.3 * noise + norm) if parameter.ndim == 1 else 0.25 * noise)
    return model


def keys(architecture: str, config: Any) -> dict[str, Any]:
    """What the converter says of a model, without the architecture's name."""
    rope = config.rope_parameters
    heads, hidden = config.num_attention_heads, config.hidden_size
    said: dict[str, Any] = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": hidden,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": heads,
        "rope.freq_base": float(rope["rope_theta"]),
    }
    if architecture == "gptneox":
        return said | {
            "attention.layer_norm_epsilon": config.layer_norm_eps,
            "rope.dimension_count": int(rope["partial_rotary_factor"] * (hidden // heads)),
            "use_parallel_residual": config.use_parallel_residual,
        }
    width = getattr(config, "head_dim", None) or hidden // heads
    said |= {
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
    }
    if architecture in ("llama", "qwen3", "gemma2") and width != hidden // heads:
        said |= {"attention.key_length": width, "attention.value_length": width}
    if architecture in ("llama", "phi3"):
        said |= {"rope.dimension_count": width}
    if rope["rope_type"] == "linear":
        said |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
    if architecture == "phi3":
        said |= {
            "rope.scaling.original_context_length": config.original_max_position_embeddings,
            "attention.sliding_window": config.sliding_window or 0,
        }
    if architecture == "gemma2":
        said |= {
            "attention.sliding_window": config.sliding_window,
            "attn_logit_softcapping": config.attn_logit_softcapping,
            "final_logit_softcapping": config.final_logit_softcapping,
        }
    return said


def stretch(rope: dict[str, Any], width: int) -> np.ndarray:
    """The converter's factors of Llama 3.1, one frequency after the other."""
    low = rope["original_max_position_embeddings"] / rope["low_freq_factor"]
    high = rope["original_max_position_embeddings"] / rope["high_freq_factor"]
    factors = []
    for i in range(0, width, 2):
        wavelength = 2 * np.pi * rope["rope_theta"] ** (i / width)
        if wavelength < high:
            factors.append(1.0)
        elif wavelength > low:
            factors.append(rope["factor"])
        else:
            smooth = (low * rope["low_freq_factor"] / wavelength - rope["low_freq_factor"]) / (
                rope["high_freq_factor"] - rope["low_freq_factor"]
            )
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, np.float32)


def stored(architecture: str, name: str, tensor: np.ndarray, config: Any) -> np.ndarray:
    """A published tensor as the converter writes it."""
    heads = config.num_attention_heads
    if architecture == "llama":
        of = {"q_proj": heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        return interleaved(tensor, of) if of else tensor
    if architecture == "gptneox" and "query_key_value" in name:
        parts = tensor.reshape(heads, 3, -1, *tensor.shape[1:])
        return np.concatenate([parts[h, i] for i in range(3) for h in range(heads)])
    if architecture == "gemma2" and name.endswith("norm.weight"):
        return tensor + 1
    return tensor


def write_case(
    path: Path,
    case: str,
    kinds: dict[str, str] | str = "F32",
    leave_out: tuple[str, ...] = (),
    tokenizer: dict[str, Any] | None = None,
    changes: dict[str, Any] | None = None,
    **overrides: Any,
) -> Any:
    """Write a case's file.

    Args:
        path: of the file.
        case: of ``CASES``.
        kinds: block type of the matrices of blocks, one for all or by part ("ffn_up") or name
            ("blk.0.ffn_up.weight"), with "" for the rest.
        leave_out: tensors by their names in the file.
        tokenizer: settings of the tokenizer in place of ``TOKENIZER``.
        changes: of settings by whole keys; None for one that is left out.
        overrides: of transformers' settings.

    Returns:
        transformers' model, whose matrices are those that the blocks decode to.
    """
    torch, _ = torch_and_transformers()
    architecture = CASES[case][0]
    model = model_of(case, **overrides)
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    said = {f"{architecture}.{name}": value for name, value in keys(architecture, config).items()}
    given = TOKENIZER if tokenizer is None else tokenizer
    said |= {f"tokenizer.ggml.{name}": value for name, value in given.items()} | (changes or {})
    for key, value in said.items():
        if value is not None:
            add(writer, key, value)
    arch = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    for published, parameter in model.state_dict().items():
        if published in tied:
            continue
        name = names.get_name(published, try_suffixes=(".weight", ".bias"))
        if name is None:  # transformers 5 calls GPT-NeoX's unembedding so in memory
            name = {"lm_head.weight": "output.weight"}[published]
        if name in leave_out:
            continue
        ours = stored(architecture, published, parameter.numpy(), config)
        kind = kinds if isinstance(kinds, str) else kinds.get(name, kinds.get(
            name.split(".")[-2], kinds.get("", "F32")))  # fmt: skip
        if ours.ndim == 1 or not name.startswith("blk.") or kind == "F32":
            writer.add_tensor(name, np.ascontiguousarray(ours))
            continue
        number = gguf.GGMLQuantizationType[kind]
        blocks = blocks_of(ours, number)
        writer.add_tensor(name, blocks, raw_dtype=number)
        values = gguf.dequantize(blocks, number).astype(np.float32)
        order = stored(architecture, published, np.arange(len(ours)).reshape(-1, 1), config)[:, 0]
        with torch.no_grad():
            parameter[order.tolist()] = torch.from_numpy(values)
    if config.rope_parameters["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", stretch(config.rope_parameters, config.head_dim))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file,
                 writer.write_tensors_to_file, writer.close):  # fmt: skip
        step()
    return model


# Where each block type has numbers in f16: the bytes they begin at.
HALVES = {
    **dict.fromkeys(("Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "IQ4_XS", "IQ2_XXS", "IQ2_XS", "IQ2_S",
                     "IQ3_XXS", "IQ3_S", "IQ1_S"), (0,)),
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)),
    "Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,), "TQ1_0": (52,), "TQ2_0": (64,),
}  # fmt: skip


def random_blocks(rows: int, count: int, kind: Any, seed: int = 0) -> np.ndarray:
    """Blocks of random codes, with scales of many sizes, some of them subnormal and negative."""
    rng = np.random.default_rng(seed)
    size = gguf.GGML_QUANT_SIZES[kind][1]
    blocks = rng.integers(0, 256, (rows, count, size), np.uint8)
    for start in HALVES.get(kind.name, ()):
        sizes = rng.standard_normal((rows, count, 1)) * 10.0 ** rng.integers(
            -7, 1, (rows, count, 1)
        )
        blocks[..., start : start + 2] = sizes.astype(np.float16).view(np.uint8)
    if kind.name == "MXFP4":
        blocks[..., 0] = rng.integers(118, 128, (rows, count))
    if kind.name == "NVFP4":
        blocks[..., :4] = rng.integers(0, 64, (rows, count, 4))
    if kind.name == "IQ1_M":  # its scale is dealt over the high nibbles of four numbers
        blocks[..., 49::2] &= 0x0F
        blocks[..., 55] |= 0x20
    return blocks.reshape(rows, -1)


def blocks_of(matrix: np.ndarray, kind: Any) -> np.ndarray:
    """A matrix in blocks: by the package, or each block's best codes with plain scales."""
    try:
        return gguf.quantize(matrix, kind)
    except NotImplementedError:
        return k_quants(matrix, kind.name)


def k_quants(matrix: np.ndarray, kind: str) -> np.ndarray:
    """A simple quantizer to K-quants, which the package only decodes: one step a block."""
    blocks = matrix.reshape(-1, 256)
    low = blocks.min(1, keepdims=True)
    high = blocks.max(1, keepdims=True)
    if kind == "Q4_K":  # scale and offset of every group are 1
        d, m = _half((high - low) / 15), _half(-low)
        q = np.clip(np.round((blocks + m) / d), 0, 15).astype(np.uint8).reshape(-1, 4, 2, 32)
        codes = (q[:, :, 0] | q[:, :, 1] << 4).reshape(len(q), -1)
        scales = np.array([1] * 4 + [1] * 4 + [0x11] * 4, np.uint8)
        parts = [_bytes(d), _bytes(m), np.tile(scales, (len(q), 1)), codes]
    elif kind == "Q6_K":
        d = _half(np.maximum(high, -low) / 31)
        q = np.clip(np.round(blocks / d) + 32, 0, 63).astype(np.uint8).reshape(-1, 2, 4, 32)
        low4, high2 = q & 15, q >> 4
        ql = np.concatenate([low4[:, :, 0:2] | low4[:, :, 2:4] << 4], axis=2)
        qh = high2[:, :, 0] | high2[:, :, 1] << 2 | high2[:, :, 2] << 4 | high2[:, :, 3] << 6
        ones = np.ones((len(q), 16), np.uint8)
        parts = [ql.reshape(len(q), -1), qh.reshape(len(q), -1), ones, _bytes(d)]
    else:
        raise NotImplementedError(kind)
    return np.concatenate(parts, axis=1).reshape(len(matrix), -1)


def _half(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float16).astype(np.float32)


def _bytes(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float16).view(np.uint8)


def original_of(folder: Path, model: Any, file: Path) -> jaxalign.Model:
    """transformers' model as a folder, with the file's tokenizer, loaded."""
    model.save_pretrained(folder)
    jaxalign.load(file).tokenizer.save(str(folder / "tokenizer.json"))
    return jaxalign.load(folder)
