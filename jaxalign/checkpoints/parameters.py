"""Tables from published tensors to our parameters: complete, exclusive, there and back."""

from __future__ import annotations

import contextlib
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
from jaxalign.checkpoints.tables import TensorRule
from jaxalign.errors import InputError
from jaxalign.model.config import ModelConfig
from jaxalign.model.params import Params, param_shapes
from jaxalign.numerics.scheme import COMPUTE
from jaxalign.runtime.files import check_writable, replace_file

ALIGNMENT = 64  # bytes, as XLA's buffers


def leaf_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter by its dotted name, all layers together."""
    paths, _ = jax.tree_util.tree_flatten_with_path(param_shapes(config))
    return {".".join(key.name for key in path): leaf.shape for path, leaf in paths}


def rules_of(config: ModelConfig, leaves: Mapping[str, Any]) -> list[TensorRule]:
    """The rules of the family's table for the parameters ``leaves``, by their dotted names."""
    return FAMILIES[config.family].table.rules_for(leaves)


def unembeddings(config: ModelConfig) -> tuple[str, ...]:
    """What the unembedding is called: as published and, where it differs, in memory."""
    table = FAMILIES[config.family].table
    return tuple(sorted({table.unembed, *table.others(table.unembed)}))


def _published(names: Iterable[str], config: ModelConfig) -> dict[str, str]:
    """The names of tensors as they are stored, by the names that they are published under."""
    found, table = dict.fromkeys(names), FAMILIES[config.family].table
    usual = {name: table.usual(name) for name in found}
    return {name if usual[name] in found else usual[name]: name for name in found}


def check_names(
    checkpoint: Checkpoint | StateDict,
    config: ModelConfig,
    rules: list[TensorRule],
    names: Iterable[str],
) -> None:
    """Refuse tensors that are not all that a model has, or more than that.

    Args:
        checkpoint: whose tensors, for messages.
        config: the architecture.
        rules: of the family's table, for what the model has.
        names: of the tensors, as published.

    Raises:
        InputError: one is missing or not known; named.
    """
    table = FAMILIES[config.family].table
    expected = {name for rule in rules for name in rule.names(config)}
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

    Args:
        checkpoint: the tensors, on disk or in memory.
        config: the architecture.
        dtype: of the parameters, whatever the tensors' is.

    Raises:
        InputError: a tensor is missing, unknown, of a wrong shape, or not finite; named.
    """
    shapes = leaf_shapes(config)
    rules = rules_of(config, shapes)
    stored = _published(checkpoint.files, config)
    check_names(checkpoint, config, rules, stored)
    table = FAMILIES[config.family].table
    if config.tied_embeddings and table.unembed in stored:
        check_tied(checkpoint, stored[table.embed], stored[table.unembed])
    loaded = {
        name: _load_leaf(checkpoint, config, rules, name, shapes, dtype, stored) for name in shapes
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
    rules: list[TensorRule],
    leaf: str,
    shapes: dict[str, tuple[int, ...]],
    dtype: Any,
    stored: Mapping[str, str],
) -> jax.Array:
    stacked = _aligned(shapes[leaf], dtype)
    for rule in rules:
        layers = stacked if rule.layered else stacked[None]
        own = [(i, target) for i, target in enumerate(rule.targets) if target.leaf == leaf]
        for i, target in own:
            for layer, published in zip(layers, rule.names(config), strict=True):
                name = stored[published]
                _check_shape(checkpoint, name, rule.shape(shapes, config))
                place = target.of(layer)
                with np.errstate(over="ignore"):
                    place[...] = rule.load(checkpoint.read(name), config)[i]
                if not np.isfinite(place).all():
                    raise InputError(
                        f"{checkpoint.folder}: tensor {name!r} has values outside "
                        f"{jnp.dtype(dtype).name}",
                        "load it in float32",
                    )
    # Another device copies in the background: the next leaf waits until this one can be freed.
    return jax.block_until_ready(jax.device_put(stacked))


def _check_shape(checkpoint: Checkpoint | StateDict, name: str, expected: tuple[int, ...]) -> None:
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


def check_tied(checkpoint: Checkpoint | StateDict, embed: str, unembed: str) -> None:
    """Refuse an unembedding that differs from the embedding in a model that ties them.

    Args:
        checkpoint: with both.
        embed, unembed: the tensors' names in it.

    Raises:
        InputError: it differs.
    """
    if not np.array_equal(checkpoint.read(embed), checkpoint.read(unembed)):
        raise InputError(
            f"{checkpoint.folder}: config.json ties the embeddings, but tensor {unembed!r} differs "
            f"from {embed!r}",
            "set tie_word_embeddings to false in config.json",
        )


def float_type(dtype: Any) -> np.dtype:
    """The dtype of parameters that are not packed.

    Args:
        dtype: its name, or what NumPy or JAX take for it.

    Raises:
        InputError: models do not compute in it.
    """
    with contextlib.suppress(TypeError):  # of a name that is no dtype's
        if (found := jnp.dtype(dtype)) in map(jnp.dtype, COMPUTE.values()):
            return found
    raise InputError(
        f"dtype is {getattr(dtype, '__name__', dtype)}, and parameters are in one of "
        f"{', '.join(COMPUTE.values())}",
        "give one of these; codes come from jaxalign.cast(params, scheme)",
    )


def save_checkpoint(
    params: Params, config: ModelConfig, folder: Path | str, dtype: str = "float16"
) -> None:
    """Write ``config.json`` and ``model.safetensors`` in the published layout.

    Args:
        params: of any family, not packed.
        config: of the model.
        folder: where to; made where it is missing.
        dtype: of the numbers on disk: float32, float16 or bfloat16.

    Raises:
        InputError: another dtype, or the folder cannot be written to.
    """
    folder, numbers = Path(folder), float_type(dtype)
    check_writable(folder / SINGLE)
    folder.mkdir(parents=True, exist_ok=True)
    paths, _ = jax.tree_util.tree_flatten_with_path(params)
    leaves = {".".join(key.name for key in path): np.asarray(leaf) for path, leaf in paths}
    tensors = {}
    for rule in rules_of(config, leaves):
        for layer, name in enumerate(rule.names(config)):
            found = [
                target.of(leaves[target.leaf][layer] if rule.layered else leaves[target.leaf])
                for target in rule.targets
            ]
            tensors[name] = np.ascontiguousarray(rule.save(found, config)).astype(numbers)
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    (folder / SINGLE).chmod(0o644)  # the library leaves it to its owner alone
    settings = config_to_hf(config) | {"torch_dtype": numbers.name}
    replace_file(folder / "config.json", (json.dumps(settings, indent=2) + "\n").encode())
