"""Tables from published tensors to our parameters: complete, exclusive, there and back."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from jaxalign.checkpoints.families import FAMILIES, config_to_hf
from jaxalign.checkpoints.files import SINGLE, Checkpoint, StateDict
from jaxalign.checkpoints.tables import Row
from jaxalign.errors import InputError
from jaxalign.model.config import ModelConfig
from jaxalign.model.params import Params, param_shapes
from jaxalign.runtime.files import check_writable, replace_file

ALIGNMENT = 64  # bytes, as XLA's buffers


def _leaves(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Our leaves by dotted name, with their shapes."""
    paths, _ = jax.tree_util.tree_flatten_with_path(param_shapes(config))
    return {".".join(key.name for key in path): leaf.shape for path, leaf in paths}


def _rows(config: ModelConfig, shapes: Mapping[str, Any]) -> list[Row]:
    """The rows of the table whose slots this model has."""
    table = FAMILIES[config.family].table
    return [row for row in table.rows if all(slot.leaf in shapes for slot in row.slots)]


def unembeddings(config: ModelConfig) -> tuple[str, ...]:
    """What the unembedding is called: as published and, where it differs, in memory."""
    table = FAMILIES[config.family].table
    return tuple(sorted({table.unembed, *(
        new for new, old in table.renamed.items() if old == table.unembed)}))  # fmt: skip


def _published(names: Iterable[str], config: ModelConfig) -> dict[str, str]:
    """The names of tensors as they are stored, by the names that they are published under."""
    found, renamed = dict.fromkeys(names), FAMILIES[config.family].table.renamed
    usual = {name: renamed.get(name, name) for name in found}
    return {name if usual[name] in found else usual[name]: name for name in found}


def _check_names(
    checkpoint: Checkpoint | StateDict, config: ModelConfig, rows: list[Row], names: Iterable[str]
) -> None:
    """Every tensor is expected and every expected tensor is there, or an error that names one."""
    table = FAMILIES[config.family].table
    expected = {name for row in rows for name in row.names(config)}
    present = {name for name in names if not table.buffers.fullmatch(name)}
    if config.tied_embeddings:
        present.discard(table.unembed)
    for name in sorted(expected - present):
        raise InputError(
            f"{checkpoint.folder}: tensor {name!r} is missing ({len(expected - present)} in all)",
            "use the config.json that belongs to these weights, or download them again",
        )
    for name in sorted(present - expected):
        raise InputError(
            f"{checkpoint.folder}: tensor {name!r} is not known ({len(present - expected)} in all)",
            f"use a {FAMILIES[config.family].title} checkpoint with the config.json that belongs "
            "to it",
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
    rows = _rows(config, shapes)
    stored = _published(checkpoint.files, config)
    _check_names(checkpoint, config, rows, stored)
    table = FAMILIES[config.family].table
    if config.tied_embeddings and table.unembed in stored:
        _check_tied(checkpoint, stored[table.embed], stored[table.unembed])
    loaded = {
        name: _load_leaf(checkpoint, config, rows, name, shapes, dtype, stored) for name in shapes
    }
    _, tree = jax.tree_util.tree_flatten(param_shapes(config))
    return jax.tree_util.tree_unflatten(tree, [loaded[name] for name in shapes])


def params_from_state_dict(
    tensors: Mapping[str, Any], config: ModelConfig, dtype: Any = jnp.float32
) -> Params:
    """Tensors in memory under the names that Hugging Face's models give them, as parameters.

    Args:
        tensors: arrays, or PyTorch tensors on the CPU (``state_dict()`` of a causal language model
            of transformers).
        config: the architecture, for example ``config_from_hf(model.config.to_dict())``.
        dtype: of the parameters.

    Raises:
        InputError: a tensor is missing, unknown, of a wrong shape, or not finite; named.

    Example:
        >>> params = params_from_state_dict(hf.state_dict(), config)
        >>> jaxalign.forward(params, tokens, config).logits
    """
    return load_params(StateDict(tensors), config, dtype)


def _load_leaf(
    checkpoint: Checkpoint | StateDict,
    config: ModelConfig,
    rows: list[Row],
    leaf: str,
    shapes: dict[str, tuple[int, ...]],
    dtype: Any,
    stored: Mapping[str, str],
) -> jax.Array:
    stacked = _aligned(shapes[leaf], dtype)
    for row in rows:
        layers = stacked if "{layer}" in row.published else stacked[None]
        own = [(i, slot) for i, slot in enumerate(row.slots) if slot.leaf == leaf]
        for i, slot in own:
            for layer, published in zip(layers, row.names(config), strict=True):
                name = stored[published]
                _check_shape(checkpoint, config, row, name, shapes)
                place = slot.of(layer)
                with np.errstate(over="ignore"):
                    place[...] = row.load(checkpoint.read(name), config)[i]
                if not np.isfinite(place).all():
                    raise InputError(
                        f"{checkpoint.folder}: tensor {name!r} has values outside "
                        f"{jnp.dtype(dtype).name}",
                        "load it in float32",
                    )
    # Another device copies in the background: the next leaf waits until this one can be freed.
    return jax.block_until_ready(jax.device_put(stacked))


def _check_shape(
    checkpoint: Checkpoint | StateDict,
    config: ModelConfig,
    row: Row,
    name: str,
    shapes: dict[str, tuple[int, ...]],
) -> None:
    # The table's rearrangements are their own check: what `save` would write must have the shape
    # that is on disk.
    layers = 1 if "{layer}" in row.published else 0
    slots = [slot.of(np.broadcast_to(np.int8(0), shapes[slot.leaf][layers:])) for slot in row.slots]
    expected = row.save(slots, config).shape
    if checkpoint.shapes[name] != expected:
        raise InputError(
            f"{checkpoint.folder}: tensor {name!r} has shape {checkpoint.shapes[name]}, "
            f"expected {expected}",
            "use the config.json that belongs to these weights",
        )


def _aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An uninitialised array that the CPU backend takes over as it is; others it would copy."""
    size = math.prod(shape) * jnp.dtype(dtype).itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def _check_tied(checkpoint: Checkpoint | StateDict, embed: str, unembed: str) -> None:
    if not np.array_equal(*map(checkpoint.read, (embed, unembed))):
        raise InputError(
            f"{checkpoint.folder}: config.json ties the embeddings, but tensor {unembed!r} differs "
            f"from {embed!r}",
            "set tie_word_embeddings to false in config.json",
        )


def save_checkpoint(
    params: Params, config: ModelConfig, folder: Path | str, dtype: str = "float16"
) -> None:
    """Write ``config.json`` and ``model.safetensors`` in the published layout.

    Args:
        params: of any family, not packed.
        config: of the model.
        folder: where to; made where it is missing.
        dtype: of the numbers on disk, by its NumPy name.

    Raises:
        InputError: the folder cannot be written to.
    """
    folder = Path(folder)
    check_writable(folder / SINGLE)
    paths, _ = jax.tree_util.tree_flatten_with_path(params)
    leaves = {".".join(key.name for key in path): np.asarray(leaf) for path, leaf in paths}
    tensors = {}
    for row in _rows(config, {name: leaf.shape for name, leaf in leaves.items()}):
        layered = "{layer}" in row.published
        for layer, name in enumerate(row.names(config)):
            slots = [
                slot.of(leaves[slot.leaf][layer] if layered else leaves[slot.leaf])
                for slot in row.slots
            ]
            tensors[name] = np.ascontiguousarray(row.save(slots, config)).astype(jnp.dtype(dtype))
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    (folder / SINGLE).chmod(0o644)  # the library leaves it to its owner alone
    settings = config_to_hf(config) | {"torch_dtype": dtype}
    replace_file(folder / "config.json", (json.dumps(settings, indent=2) + "\n").encode())
