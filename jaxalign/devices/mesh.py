"""Devices in a mesh, and where each parameter lies on it.

Two mesh axes. ``edits``: each device computes some rows of a sweep, beside its own clean row.
``model``: a copy of the parameters is sharded over several devices where one cannot hold it, in the
layout of Megatron-LM (Shoeybi et al. 2019, arXiv 1909.08053, section 3): attention by heads, the
MLP by hidden units, embedding and unembedding by tokens. Each block needs two all-reduces, after
``W_O`` and after the MLP. A run that starts in this block reuses the clean run's first one and adds
one for the value that its edit inserts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxalign.errors import InputError
from jaxalign.model.config import ModelConfig
from jaxalign.model.matrices import MATRICES, axes_of, sharded_axis
from jaxalign.model.params import Params, param_shapes

EDITS, MODEL = "edits", "model"

# The axes of a packed matrix's fields, given those of the matrix: its own, its inputs', or none.
PACKED_FIELDS = {
    "codes": "all",
    "scale": "all",
    "zero": "all",
    "offset": "all",
    "block_scale": "all",
    "block_offset": "all",
    "group_of": "inputs",
    "input_divisor": "inputs",
    "input_scale": "none",
}


def usable_devices(platform: str | None = None, count: int | None = None) -> list[jax.Device]:
    """The first ``count`` devices of every process, process by process; all by default.

    Args:
        platform: "cpu", "gpu" …, or None for JAX's default.
        count: how many of each process, or None for all of them.

    Raises:
        InputError: a process has fewer, or some process has another number or kind of device.
    """
    present = jax.devices(platform)
    processes = sorted({device.process_index for device in present})
    by_process = [[d for d in present if d.process_index == process] for process in processes]
    fewest = min(len(own) for own in by_process)
    some = "1" if fewest == 1 else f"1 to {fewest}"
    if count is not None and not 1 <= count <= fewest:
        raise InputError(
            f"--devices {count}: expected {some}, the {present[0].platform} devices found",
            f"give --devices {some}, or leave it out",
        )
    chosen = [device for own in by_process for device in own[:count]]
    sizes = [len(own[:count]) for own in by_process]
    if len(set(sizes)) > 1:
        raise InputError(
            f"the processes have {sizes} devices, expected as many in each",
            f"run every process with --devices {fewest}",
        )
    kinds = sorted({device.device_kind for device in chosen})
    if len(kinds) > 1:
        raise InputError(
            f"the devices are of several kinds ({', '.join(kinds)}), and only rows that ran on one "
            "kind may be compared",
            "choose devices of one kind, for example with CUDA_VISIBLE_DEVICES",
        )
    return chosen


def make_mesh(devices: Sequence[jax.Device], spread: int = 1) -> Mesh:
    """A mesh with axes ``edits`` and ``model``; neighbours in ``devices`` share a copy.

    Args:
        devices: as ``usable_devices`` orders them, so that a copy stays within a process where it
            can.
        spread: over how many devices a copy of the parameters is sharded.

    Raises:
        InputError: ``spread`` does not divide the number of devices.
    """
    if spread < 1 or len(devices) % spread:
        raise InputError(
            f"{len(devices)} devices cannot be cut into groups of {spread}",
            f"use a number of devices that is a multiple of {spread}",
        )
    return Mesh(np.array(devices).reshape(-1, spread), (EDITS, MODEL))


def choose_mesh(
    config: ModelConfig,
    devices: Sequence[jax.Device],
    budget: float,
    *,
    copies: int = 2,
    reserve: float = 0.0,
) -> Mesh | None:
    """The mesh that shards the parameters over as few devices as the budget allows.

    Every device holds ``copies`` times its part of the parameters in f32, and ``reserve``:
    the least ``n`` with ``copies · part_bytes(config, n) + reserve ≤ budget`` becomes the size of
    ``model``, and the rest of the devices goes to ``edits``.

    Args:
        config: the architecture.
        devices: from ``usable_devices``.
        budget: bytes of one device.
        copies: of the parameters; two where a low-precision one stands beside the f32 one.
        reserve: bytes a device needs beside them, at least one call's activations.

    Returns:
        None for a single device, which needs no mesh.

    Raises:
        InputError: no size fits; says what every size would need, or why it cannot be.
    """
    sizes = [n for n in range(1, len(devices) + 1) if len(devices) % n == 0]
    possible = [n for n in sizes if not _indivisible(config, n)]
    needs = {n: copies * part_bytes(config, n) + reserve for n in sizes}
    fitting = [n for n in possible if needs[n] <= budget]
    if fitting:
        return None if len(devices) == 1 else make_mesh(devices, fitting[0])
    raise _does_not_fit(config, needs, possible, budget)


def _does_not_fit(
    config: ModelConfig, needs: dict[int, float], possible: Sequence[int], budget: float
) -> InputError:
    would = [n for n in needs if n not in possible and needs[n] <= budget]
    count = max(needs)
    if would:
        return InputError(
            f"the parameters must be spread over {would[0]} of {count} devices, but the model's "
            f"{_indivisible(config, would[0])} cannot be divided by {would[0]}",
            f"use a number of devices with a divisor of at least {would[0]} that divides "
            f"{_fewest(config)}, or raise --memory-gb",
        )
    most = possible[-1]
    return InputError(
        f"the parameters need {needs[most] / 1e9:.3g} GB on each device when they are spread over "
        f"{most} of {count}, but the memory budget is {budget / 1e9:.3g} GB a device",
        "raise --memory-gb or use more devices",
    )


def _indivisible(config: ModelConfig, parts: int) -> str:
    """What of the model cannot be cut into ``parts`` equal parts; empty where all can."""
    if config.num_heads % parts:
        return f"{config.num_heads} heads"
    if config.num_kv_heads % parts:  # each stays with the query heads that it serves
        return f"{config.num_kv_heads} key and value heads"
    if config.intermediate_size % parts:
        return f"{config.intermediate_size} hidden units of the MLP"
    return ""


def _fewest(config: ModelConfig) -> str:
    """The heads that decide over how many devices a copy can be spread."""
    if config.num_kv_heads < config.num_heads:
        return f"{config.num_kv_heads} key and value heads"
    return f"{config.num_heads} heads"


def part_bytes(config: ModelConfig, spread: int, bytes_each: int = 4) -> int:
    """Bytes that one device holds of a copy of the parameters.

    Args:
        config: the architecture.
        spread: over how many devices the copy is sharded.
        bytes_each: of one number.
    """
    paths, _ = jax.tree_util.tree_flatten_with_path(param_shapes(config))
    parts = (
        math.prod(leaf.shape)
        // (1 if _sharded_axis(axes_of(path), leaf, spread) is None else spread)
        for path, leaf in paths
    )
    return bytes_each * sum(parts)


def _sharded_axis(axes: Sequence[str], leaf: Any, spread: int) -> int | None:
    """The axis of a parameter that is sharded, counted from its end, or None.

    A vocabulary that ``spread`` does not divide is replicated: unlike heads, which decide the
    layout, sharding it would only save memory.
    """
    axis = sharded_axis(axes)
    if axis is not None and axes[axis] == "V" and leaf.shape[axis] % spread:
        return None
    return axis


def _on(mesh: Mesh, rank: int, axis: int | None) -> NamedSharding:
    """A sharding of an array of ``rank`` axes, one of them or none over ``model``."""
    axes: list[str | None] = [None] * rank
    if axis is not None:
        axes[axis] = MODEL
    return NamedSharding(mesh, PartitionSpec(*axes))


def param_shardings(mesh: Mesh, config: ModelConfig) -> Params:
    """Where each parameter lies: a tree of ``NamedSharding``.

    Raises:
        InputError: the heads or the MLP cannot be divided by the size of ``model``.
    """
    spread = mesh.shape[MODEL]
    if what := _indivisible(config, spread):
        raise InputError(
            f"the model's {what} cannot be divided over {spread} devices",
            f"spread the parameters over a number of devices that divides {_fewest(config)}",
        )

    def sharding(path: Any, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        return _on(mesh, len(leaf.shape), _sharded_axis(axes_of(path), leaf, spread))

    return jax.tree_util.tree_map_with_path(sharding, param_shapes(config))


def place(leaf: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """One parameter on its devices; every device is sent its own part and no more.

    Nothing is exchanged between processes: each reads the same checkpoint.
    """
    return jax.make_array_from_callback(leaf.shape, sharding, lambda part: leaf[part])


def shard_packed(params: Params, mesh: Mesh | None) -> Params:
    """Parameters of any scheme on a mesh, packed matrices with their codes and scales.

    Codes, scales and zero points are sharded along the matrix's own axis. A field whose axis the
    mesh size does not divide (scales, when there are fewer groups than devices) is replicated.

    Raises:
        KeyError: ``model.matrices`` does not have a parameter.
    """
    if mesh is None:
        return params

    def shard(path: Any, leaf: jax.Array) -> jax.Array:
        axis = sharded_axis(_field_axes(path))
        if axis is not None and leaf.shape[axis] % mesh.shape[MODEL]:
            axis = None
        return jax.device_put(leaf, _on(mesh, leaf.ndim, axis))

    return jax.tree_util.tree_map_with_path(shard, params)


def _field_axes(path: Any) -> tuple[str, ...]:
    """The axes of a parameter, or of a field of a packed matrix."""
    if len(path) < 2 or path[-2].name not in MATRICES:
        return axes_of(path)
    axes = axes_of(path[:-1])
    return {"all": axes, "inputs": axes[:2], "none": axes[:1]}[PACKED_FIELDS[path[-1].name]]


def shard_params(params: Params, mesh: Mesh | None, config: ModelConfig) -> Params:
    """The parameters on a mesh, leaf by leaf.

    Args:
        params: dense, on the host or on one device.
        mesh: from ``choose_mesh``; None leaves the parameters as they are.
        config: the architecture.
    """
    if mesh is None:
        return params
    return jax.tree.map(
        lambda leaf, sharding: jax.block_until_ready(place(np.asarray(leaf), sharding)),
        params,
        param_shardings(mesh, config),
    )
