"""One point of ``benchmarks.devices``, in a process that has as many devices as it says.

    python -m benchmarks.devices_point FOLDER --prompts N --tokens N --devices N --runs N --keep F

With ``--coordinator``, ``--processes`` and ``--process-id`` it is one process of several; the first
one keeps the importance in ``F`` (.npy). The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

import jaxalign
from benchmarks import workload
from benchmarks.timing import once
from jaxalign.devices.deal import sharded_sweep
from jaxalign.devices.mesh import make_mesh, shard_params, usable_devices
from jaxalign.edits import Edit, HeadEdit, head_ablation_masks
from jaxalign.measures.metrics import Answer
from jaxalign.model import ModelConfig, Params
from jaxalign.processes.distributed import fetch, is_first, processes
from jaxalign.runtime.environment import select_device
from jaxalign.shapes import Array, Float, Int, Lengths, Tokens


def zero_edit(config: ModelConfig) -> Edit:
    """Every head zeroed in turn."""
    masks = head_ablation_masks(config.num_layers, config.num_heads)
    return Edit(HeadEdit(masks, np.zeros((config.num_layers, 1, 1, 1, 1), np.float32)))


@functools.partial(jaxalign.jit, static_argnames=("config", "mesh"))
def importance(
    params: Params,
    tokens: Tokens,
    lengths: Lengths,
    target: Int[Array, " B"],
    *,
    config: ModelConfig,
    mesh: Mesh | None,
) -> Float[Array, "M B"]:
    """``m(clean) − m(head zeroed)`` of every head, in one call over the devices of ``mesh``."""
    answer = Answer(target, target)
    [out] = sharded_sweep(mesh, params, tokens, lengths, config, [zero_edit(config)], answer)
    return out.logit_diff[:1] - out.logit_diff[1:]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the call, on the clock and of all cores."""
    where = select_device(options.device)
    devices = usable_devices(where.platform, options.devices)
    mesh = make_mesh(devices) if len(devices) > 1 else None
    model = jaxalign.load(str(options.folder))
    params = shard_params(model.params, mesh, model.config)
    prompts = workload.random_prompts(model.config, options.prompts, options.tokens)
    asked = prompts.tokens, np.array(prompts.lengths, np.int32), prompts.target
    call = functools.partial(importance, params, *asked, config=model.config, mesh=mesh)
    found, first = once(call)
    if is_first():
        np.save(options.keep, fetch(found))
    before = time.process_time()
    seconds = [once(call)[1] for _ in range(options.runs)]
    return {
        "platform": where.platform,
        "devices": len(devices),
        "first": round(first, 4),
        "seconds": float(f"{min(seconds):.4g}"),
        "median": float(f"{statistics.median(seconds):.4g}"),
        "cpu_seconds": float(f"{(time.process_time() - before) / options.runs:.4g}"),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; the exit code is 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.devices_point")
    parser.add_argument("folder", type=Path)
    for name in ("prompts", "tokens", "devices", "runs"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--keep", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--coordinator")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--process-id", type=int)
    options = parser.parse_args(arguments)
    with processes(options.coordinator, options.processes, options.process_id):
        print(json.dumps(measure(options)), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
