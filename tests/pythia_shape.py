"""Random-weight GPT-NeoX checkpoints in the published layout, for tests and benchmarks.

`write_checkpoint` writes a file that a loader cannot tell from a published Pythia by its names,
shapes or types: f16 tensors, untied embeddings, and the extra buffers (`attention.bias`,
`attention.masked_bias`, `attention.rotary_emb.inv_freq`) that old transformers saved with weights.
`tiny_checkpoint` writes a model small enough for parity tests, any setting changed by keyword.

Every one-dimensional parameter is random. Default ones and zeros would hide a swapped layer norm
or a forgotten bias. Matrices are drawn with standard deviation 1/sqrt(fan in), so that activations
stay near unit size at every width; embeddings with 1.

    python tests/pythia_shape.py FOLDER [--size 70m] [--tokenizer FILE]

Only numpy and safetensors are needed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

# Layers, residual width, heads, vocabulary, from the config.json of EleutherAI/pythia-* on the hub.
# The two largest pad the vocabulary further, for model parallelism.
PYTHIA_SIZES: dict[str, dict[str, int]] = {
    name: {"layers": layers, "width": width, "heads": heads, "vocab": vocab}
    for name, layers, width, heads, vocab in (
        ("14m", 6, 128, 4, 50304),
        ("31m", 6, 256, 8, 50304),
        ("70m", 6, 512, 8, 50304),
        ("160m", 12, 768, 12, 50304),
        ("410m", 24, 1024, 16, 50304),
        ("1b", 16, 2048, 8, 50304),
        ("1.4b", 24, 2048, 16, 50304),
        ("2.8b", 32, 2560, 32, 50304),
        ("6.9b", 32, 4096, 32, 50432),
        ("12b", 36, 5120, 40, 50688),
    )
}

MASK_LENGTH = 2048  # positions of the causal mask stored in `attention.bias`


def pythia_config(size: str = "70m") -> dict[str, Any]:
    """The fields of EleutherAI/pythia-`size`'s published config.json."""
    if size not in PYTHIA_SIZES:
        raise ValueError(f"size: expected one of {', '.join(PYTHIA_SIZES)}; got {size!r}")
    shape = PYTHIA_SIZES[size]
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "bos_token_id": 0,
        "eos_token_id": 0,
        "hidden_act": "gelu",
        "hidden_size": shape["width"],
        "initializer_range": 0.02,
        "intermediate_size": 4 * shape["width"],
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 2048,
        "model_type": "gpt_neox",
        "num_attention_heads": shape["heads"],
        "num_hidden_layers": shape["layers"],
        "rotary_emb_base": 10000,
        "rotary_pct": 0.25,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "transformers_version": "4.24.0",
        "use_cache": True,
        "use_parallel_residual": True,
        "vocab_size": shape["vocab"],
    }


def tiny_config(**overrides: Any) -> dict[str, Any]:
    """A 3-layer, 4-head, width-32 config; `overrides` replace fields, and None removes one.

    `rope_parameters` (the spelling of transformers 5) replaces `rotary_pct` and `rotary_emb_base`:
    a file that has both could be read either way.
    """
    config = pythia_config("14m") | {
        "hidden_size": 32,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "torch_dtype": "float32",
        "vocab_size": 97,
    }
    if overrides.get("rope_parameters") is not None:
        config |= {"rotary_pct": None, "rotary_emb_base": None}
    return {name: value for name, value in (config | overrides).items() if value is not None}


def tensor_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter of `config`'s checkpoint, in file order.

    Matrices are `[out, in]`, as PyTorch's Linear stores them; `query_key_value` is `[H · 3 · h, D]`
    with query, key and value of one head side by side.
    """
    width, inner = config["hidden_size"], config["intermediate_size"]
    block: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (width,),
        "input_layernorm.bias": (width,),
        "post_attention_layernorm.weight": (width,),
        "post_attention_layernorm.bias": (width,),
        "attention.query_key_value.weight": (3 * width, width),
        "attention.query_key_value.bias": (3 * width,),
        "attention.dense.weight": (width, width),
        "attention.dense.bias": (width,),
        "mlp.dense_h_to_4h.weight": (inner, width),
        "mlp.dense_h_to_4h.bias": (inner,),
        "mlp.dense_4h_to_h.weight": (width, inner),
        "mlp.dense_4h_to_h.bias": (width,),
    }
    if not config.get("attention_bias", True):
        del block["attention.query_key_value.bias"], block["attention.dense.bias"]
    shapes: dict[str, tuple[int, ...]] = {"gpt_neox.embed_in.weight": (config["vocab_size"], width)}
    for layer in range(config["num_hidden_layers"]):
        shapes |= {f"gpt_neox.layers.{layer}.{name}": shape for name, shape in block.items()}
    shapes["gpt_neox.final_layer_norm.weight"] = (width,)
    shapes["gpt_neox.final_layer_norm.bias"] = (width,)
    if not config.get("tie_word_embeddings", False):
        shapes["embed_out.weight"] = (config["vocab_size"], width)
    return shapes


def _draw(name: str, shape: tuple[int, ...], seed: int, index: int) -> np.ndarray:
    """One random f32 parameter; its stream depends on seed and index alone, not on sharding."""
    values = np.random.default_rng([seed, index]).standard_normal(shape, dtype=np.float32)
    if len(shape) == 1:
        is_scale = "layer_norm.weight" in name or "layernorm.weight" in name
        return 1.0 + 0.1 * values if is_scale else 0.1 * values
    if name == "gpt_neox.embed_in.weight":
        return values
    return values * np.float32(shape[1] ** -0.5)


def _buffers(config: dict[str, Any], layer: int, dtype: np.dtype) -> dict[str, np.ndarray]:
    """What published files carry beside a layer's parameters: causal mask, fill, rotary table."""
    rotary = config.get("rope_parameters", {})
    base = float(rotary.get("rope_theta", config.get("rotary_emb_base", 10000)))
    fraction = rotary.get("partial_rotary_factor", config.get("rotary_pct", 0.25))
    width = int(config["hidden_size"] // config["num_attention_heads"] * fraction)
    exponents = np.arange(0, width, 2, dtype=np.float32) / max(width, 1)
    prefix = f"gpt_neox.layers.{layer}.attention."
    mask = np.tril(np.ones((MASK_LENGTH, MASK_LENGTH), dtype=bool))
    # -1e9 is outside f16, where the cast gives -inf: a check for finite weights must not see it.
    fill = -np.inf if dtype == np.float16 else -1e9
    return {
        prefix + "bias": mask[None, None],
        prefix + "masked_bias": np.asarray(fill, dtype=dtype),
        prefix + "rotary_emb.inv_freq": (1.0 / base**exponents).astype(dtype),
    }


def _tensors(
    config: dict[str, Any], seed: int, dtype: np.dtype, buffers: bool
) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of the file, one at a time, so that a large model is never held whole."""
    for index, (name, shape) in enumerate(tensor_shapes(config).items()):
        yield name, _draw(name, shape, seed, index).astype(dtype)
        if buffers and name.endswith("mlp.dense_4h_to_h.bias"):
            yield from _buffers(config, int(name.split(".")[2]), dtype).items()


def _numpy_dtype(name: str) -> np.dtype:
    """numpy's dtype for a config's `torch_dtype`; bfloat16 comes from ml_dtypes."""
    if name == "bfloat16":
        import ml_dtypes  # a dependency of jax; only bfloat16 files need it here

        return np.dtype(ml_dtypes.bfloat16)
    if name not in ("float16", "float32"):
        raise ValueError(f"dtype: expected float16, bfloat16 or float32; got {name!r}")
    return np.dtype(name)


def _shard_numbers(shapes: dict[str, tuple[int, ...]], shards: int) -> dict[str, int]:
    """Parameter name -> number of its file, from 1: consecutive, about equal in size."""
    total = sum(int(np.prod(shape)) for shape in shapes.values())
    number, seen, numbers = 1, 0, {}
    for name, shape in shapes.items():
        if number < shards and seen >= number * total / shards:
            number += 1
        numbers[name] = number
        seen += int(np.prod(shape))
    if number != shards:
        raise ValueError(f"shards: expected 1 to {number} for this shape; got {shards}")
    return numbers


def _write(
    folder: Path,
    config: dict[str, Any],
    *,
    seed: int,
    tokenizer: str | Path | None,
    shards: int,
    buffers: bool,
) -> Path:
    """Write config.json, the weights in `shards` files, their index if several, a tokenizer."""
    numbers = _shard_numbers(tensor_shapes(config), shards)
    dtype = _numpy_dtype(config["torch_dtype"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    number, size = 1, 0
    weight_map: dict[str, str] = {}

    def file_number(item: tuple[str, np.ndarray]) -> int:
        nonlocal number  # a buffer has no number of its own: it stays with the parameter before it
        number = numbers.get(item[0], number)
        return number

    for key, part in itertools.groupby(_tensors(config, seed, dtype, buffers), file_number):
        tensors = dict(part)
        many = f"model-{key:05d}-of-{shards:05d}.safetensors"
        file = "model.safetensors" if shards == 1 else many
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
        size += sum(values.nbytes for values in tensors.values())
    if shards > 1:
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    if tokenizer is not None:
        shutil.copyfile(tokenizer, folder / "tokenizer.json")
    return folder


def write_checkpoint(
    folder: str | Path,
    *,
    size: str = "70m",
    seed: int = 0,
    dtype: str = "float16",
    tokenizer: str | Path | None = None,
    shards: int = 1,
    buffers: bool = True,
    **overrides: Any,
) -> Path:
    """Write a random checkpoint of exactly Pythia's shape and layout; returns the folder.

    Args:
        folder: where config.json, the safetensors and tokenizer.json go; made if missing.
        size: a key of `PYTHIA_SIZES`.
        seed: the weights depend on seed and size alone (not on `shards`; `dtype` only rounds them).
        dtype: on disk: "float16" as published, "bfloat16" or "float32".
        tokenizer: a tokenizer.json to copy into the folder.
        shards: number of weight files; more than one also writes model.safetensors.index.json.
        buffers: include the published files' extra buffers.
        overrides: fields of config.json to replace.
    """
    config = pythia_config(size) | {"torch_dtype": dtype} | overrides
    return _write(
        Path(folder), config, seed=seed, tokenizer=tokenizer, shards=shards, buffers=buffers
    )


def tiny_checkpoint(
    folder: str | Path,
    *,
    seed: int = 0,
    dtype: str = "float32",
    tokenizer: str | Path | None = None,
    shards: int = 1,
    buffers: bool = False,
    **overrides: Any,
) -> Path:
    """Write a random 3-layer, 4-head, width-32 checkpoint for parity tests; returns the folder.

    `overrides` are fields of config.json: `use_parallel_residual`, `tie_word_embeddings`,
    `rotary_pct`, `rotary_emb_base`, `rope_parameters`, `attention_bias`, `hidden_act`,
    `layer_norm_eps`, any size. None removes a field. The other arguments are `write_checkpoint`'s.

        tiny_checkpoint(tmp_path, use_parallel_residual=False, attention_bias=False)
    """
    config = tiny_config(**({"torch_dtype": dtype} | overrides))
    return _write(
        Path(folder), config, seed=seed, tokenizer=tokenizer, shards=shards, buffers=buffers
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Write a random checkpoint of a Pythia model's exact shape and layout."
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", default="70m", choices=list(PYTHIA_SIZES))
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json to copy into the folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="float16", choices=["float16", "bfloat16", "float32"])
    parser.add_argument("--shards", type=int, default=1)
    options = vars(parser.parse_args())
    folder = write_checkpoint(options.pop("folder"), **options)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    print(f"{folder}: {size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
