"""GPT-NeoX: the table from published tensors to our parameters, complete and exclusive."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from jaxalign.convert.checkpoint import SINGLE, Checkpoint, StateDict
from jaxalign.errors import InputError
from jaxalign.model.config import ModelConfig
from jaxalign.model.params import Params, param_shapes

ALIGNMENT = 64  # bytes, as XLA's buffers

Rearrange = Callable[[np.ndarray, ModelConfig], np.ndarray]


@dataclass(frozen=True)
class Row:
    """One row of the table: a published tensor, our leaf, and the way there and back."""

    published: str
    leaf: str
    load: Rearrange
    save: Rearrange


def _as_is(x: np.ndarray, config: ModelConfig) -> np.ndarray:
    return x


def _transpose(x: np.ndarray, config: ModelConfig) -> np.ndarray:
    return x.T


def _split_heads(x: np.ndarray, config: ModelConfig) -> np.ndarray:
    """``[H·3·h, …]``, each head's q, k, v together, to ``[…, 3, H·h]``."""
    heads = x.T.reshape(*x.shape[1:], config.num_heads, 3, config.head_size)
    return heads.swapaxes(-3, -2).reshape(*x.shape[1:], 3, -1)


def _join_heads(x: np.ndarray, config: ModelConfig) -> np.ndarray:
    heads = x.reshape(*x.shape[:-1], config.num_heads, config.head_size)
    return heads.swapaxes(-3, -2).reshape(*x.shape[:-2], -1).T


_LAYER = "gpt_neox.layers.{layer}."
_QKV = f"{_LAYER}attention.query_key_value"
TABLE = (
    Row("gpt_neox.embed_in.weight", "embed", _as_is, _as_is),
    Row(f"{_LAYER}input_layernorm.weight", "blocks.attention_norm.scale", _as_is, _as_is),
    Row(f"{_LAYER}input_layernorm.bias", "blocks.attention_norm.bias", _as_is, _as_is),
    Row(f"{_QKV}.weight", "blocks.attention.qkv", _split_heads, _join_heads),
    Row(f"{_QKV}.bias", "blocks.attention.qkv_bias", _split_heads, _join_heads),
    Row(f"{_LAYER}attention.dense.weight", "blocks.attention.out", _transpose, _transpose),
    Row(f"{_LAYER}attention.dense.bias", "blocks.attention.out_bias", _as_is, _as_is),
    Row(f"{_LAYER}post_attention_layernorm.weight", "blocks.mlp_norm.scale", _as_is, _as_is),
    Row(f"{_LAYER}post_attention_layernorm.bias", "blocks.mlp_norm.bias", _as_is, _as_is),
    Row(f"{_LAYER}mlp.dense_h_to_4h.weight", "blocks.mlp.up", _transpose, _transpose),
    Row(f"{_LAYER}mlp.dense_h_to_4h.bias", "blocks.mlp.up_bias", _as_is, _as_is),
    Row(f"{_LAYER}mlp.dense_4h_to_h.weight", "blocks.mlp.down", _transpose, _transpose),
    Row(f"{_LAYER}mlp.dense_4h_to_h.bias", "blocks.mlp.down_bias", _as_is, _as_is),
    Row("gpt_neox.final_layer_norm.weight", "final_norm.scale", _as_is, _as_is),
    Row("gpt_neox.final_layer_norm.bias", "final_norm.bias", _as_is, _as_is),
    Row("embed_out.weight", "unembed", _as_is, _as_is),
)

# Buffers that older versions of transformers saved with the weights; the model recomputes them.
BUFFERS = re.compile(
    r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)"
    r"|gpt_neox\.rotary_emb\.inv_freq"
)

# What transformers 5 calls a tensor in memory, and still publishes under its old name.
RENAMED = {"lm_head.weight": "embed_out.weight"}


def _leaves(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Our leaves by dotted name, with their shapes."""
    paths, _ = jax.tree_util.tree_flatten_with_path(param_shapes(config))
    return {".".join(key.name for key in path): leaf.shape for path, leaf in paths}


def _published_names(row: Row, config: ModelConfig) -> list[str]:
    if "{layer}" not in row.published:
        return [row.published]
    return [row.published.format(layer=layer) for layer in range(config.num_layers)]


def _check_names(checkpoint: Checkpoint | StateDict, config: ModelConfig, rows: list[Row]) -> None:
    """Every tensor is expected and every expected tensor is there, or an error that names one."""
    expected = {name for row in rows for name in _published_names(row, config)}
    present = {name for name in checkpoint.files if not BUFFERS.fullmatch(name)}
    if config.tied_embeddings:
        present.discard("embed_out.weight")
    for name in sorted(expected - present):
        raise InputError(
            f"{checkpoint.folder}: tensor {name!r} is missing ({len(expected - present)} in all)",
            "use the config.json that belongs to these weights, or download them again",
        )
    for name in sorted(present - expected):
        raise InputError(
            f"{checkpoint.folder}: tensor {name!r} is not known ({len(present - expected)} in all)",
            "use a GPT-NeoX checkpoint with the config.json that belongs to it",
        )


def load_params(
    checkpoint: Checkpoint | StateDict, config: ModelConfig, dtype: Any = jnp.float32
) -> Params:
    """Published tensors as our parameters in ``dtype``.

    One stacked leaf at a time is filled from the memory-mapped files and handed to the device, so
    beside the finished parameters there is never more than one leaf in memory; on the CPU, where
    the leaf itself becomes the parameter, never more than one tensor.

    Raises:
        InputError: a tensor is missing, unknown, of a wrong shape, or not finite; named.
    """
    shapes = _leaves(config)
    rows = [row for row in TABLE if row.leaf in shapes]
    _check_names(checkpoint, config, rows)
    if config.tied_embeddings and "embed_out.weight" in checkpoint.files:
        _check_tied(checkpoint)
    loaded = {
        row.leaf: _load_leaf(checkpoint, config, row, shapes[row.leaf], dtype) for row in rows
    }
    _, tree = jax.tree_util.tree_flatten(param_shapes(config))
    return jax.tree_util.tree_unflatten(tree, [loaded[name] for name in shapes])


def params_from_state_dict(
    tensors: Mapping[str, Any], config: ModelConfig, dtype: Any = jnp.float32
) -> Params:
    """Tensors in memory under the names that Hugging Face's GPT-NeoX gives them, as parameters.

    Args:
        tensors: arrays, or PyTorch tensors on the CPU (``GPTNeoXForCausalLM.state_dict()``).
        config: the architecture, for example ``ModelConfig.from_hf(model.config.to_dict())``.
        dtype: of the parameters.

    Raises:
        InputError: a tensor is missing, unknown, of a wrong shape, or not finite; named.

    Example:
        >>> params = params_from_state_dict(hf.state_dict(), config)
        >>> jaxalign.forward(params, tokens, config).logits
    """
    named = {
        published if (published := RENAMED.get(name, name)) not in tensors else name: tensor
        for name, tensor in tensors.items()
    }
    return load_params(StateDict(named), config, dtype)


def _load_leaf(
    checkpoint: Checkpoint | StateDict,
    config: ModelConfig,
    row: Row,
    shape: tuple[int, ...],
    dtype: Any,
) -> jax.Array:
    names = _published_names(row, config)
    stacked = _aligned(shape, dtype)
    slots = stacked if "{layer}" in row.published else stacked[None]
    for slot, name in zip(slots, names, strict=True):
        # The table's rearrangements are their own check: what `save` would write must have the
        # shape that is on disk.
        expected = row.save(np.broadcast_to(np.int8(0), slot.shape), config).shape
        if checkpoint.shapes[name] != expected:
            raise InputError(
                f"{checkpoint.folder}: tensor {name!r} has shape {checkpoint.shapes[name]}, "
                f"expected {expected}",
                "use the config.json that belongs to these weights",
            )
        with np.errstate(over="ignore"):
            slot[...] = row.load(checkpoint.read(name), config)
        if not np.isfinite(slot).all():
            raise InputError(
                f"{checkpoint.folder}: tensor {name!r} has values outside {jnp.dtype(dtype).name}",
                "load it in float32",
            )
    # Another device copies in the background: the next leaf waits until this one can be freed.
    return jax.block_until_ready(jax.device_put(stacked))


def _aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An uninitialised array that the CPU backend takes over as it is; others it would copy."""
    size = math.prod(shape) * jnp.dtype(dtype).itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def _check_tied(checkpoint: Checkpoint | StateDict) -> None:
    embed, unembed = map(checkpoint.read, ("gpt_neox.embed_in.weight", "embed_out.weight"))
    if not np.array_equal(embed, unembed):
        raise InputError(
            f"{checkpoint.folder}: config.json ties the embeddings, but tensor "
            "'embed_out.weight' differs from 'gpt_neox.embed_in.weight'",
            "set tie_word_embeddings to false in config.json",
        )


def save_checkpoint(
    params: Params, config: ModelConfig, folder: Path | str, dtype: str = "float16"
) -> None:
    """Write ``config.json`` and ``model.safetensors`` in the published layout."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths, _ = jax.tree_util.tree_flatten_with_path(params)
    leaves = {".".join(key.name for key in path): np.asarray(leaf) for path, leaf in paths}
    tensors = {}
    for row in TABLE:
        if row.leaf not in leaves:
            continue
        leaf = leaves[row.leaf]
        slots = leaf if "{layer}" in row.published else leaf[None]
        for slot, name in zip(slots, _published_names(row, config), strict=True):
            tensors[name] = np.ascontiguousarray(row.save(slot, config)).astype(jnp.dtype(dtype))
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    (folder / SINGLE).chmod(0o644)  # the library leaves it to its owner alone
    settings = config.to_hf() | {"torch_dtype": dtype}
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
