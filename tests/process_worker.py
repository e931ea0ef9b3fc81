"""One process of a run that tests start: a sweep over all devices, or an endless exchange.

    python tests/process_worker.py FOLDER sweep|exchange|greet --coordinator HOST:PORT …

Each process writes what it found to FOLDER/<its number>.npz.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxalign.devices.deal import sharded_sweep
from jaxalign.devices.mesh import EDITS, MODEL, make_mesh, shard_params, usable_devices
from jaxalign.edits import Edit, HeadEdit, head_ablation_masks
from jaxalign.model import ModelConfig, init_params
from jaxalign.numerics import jit
from jaxalign.processes.distributed import fetch, from_first, is_first, processes

CONFIG = ModelConfig(96, 3, 4, 32, 64, rotary_dims=2)
TOKENS = np.random.default_rng(0).integers(0, 96, (3, 9))
LENGTHS = np.array([9, 5, 7])
CONTENT = b"of the first process"


def sweep_on(mesh: Any) -> Any:
    """Last logits under the ablation of each head, on a mesh or (None) on one device."""
    params = shard_params(init_params(jax.random.key(0), CONFIG), mesh, CONFIG)
    masks = head_ablation_masks(CONFIG.num_layers, CONFIG.num_heads)
    edit = Edit(HeadEdit(masks, np.zeros((CONFIG.num_layers, 1, 1, 1, 1), np.float32)))

    def run(params: Any, tokens: Any, lengths: Any) -> Any:
        return sharded_sweep(mesh, params, tokens, lengths, CONFIG, [edit], lambda x: x)[0]

    return jit(run)(params, TOKENS, LENGTHS)


def found() -> dict[str, Any]:
    """What a process of a run sees: devices, what the first one sent, arrays spread over all."""
    devices = usable_devices()
    mesh = make_mesh(devices, 2)
    own = CONTENT if is_first() else b"something else"
    spread = jax.NamedSharding(mesh, jax.P((EDITS, MODEL)))
    numbers = jax.make_array_from_callback(
        (4, 2), spread, lambda part: np.arange(8.0).reshape(4, 2)[part]
    )
    return {
        "owners": [device.process_index for device in devices],
        "sent": np.frombuffer(from_first(own), np.uint8),
        "nothing": np.frombuffer(from_first(b"" if is_first() else own), np.uint8),
        "numbers": fetch({"numbers": numbers})["numbers"],
        "logits": fetch(sweep_on(mesh)),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("work", choices=("sweep", "exchange", "greet"))
    parser.add_argument("--coordinator")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--process-id", type=int)
    given = parser.parse_args()
    with processes(given.coordinator, given.processes, given.process_id):
        if given.work == "sweep":
            np.savez(given.folder / f"{given.process_id}.npz", **found())
        if given.work == "greet":
            index = jax.process_index()
            sent = from_first(CONTENT if is_first() else b"")
            (given.folder / f"greeted {index} of {jax.process_count()}").write_bytes(sent)
        while given.work == "exchange":
            from_first(CONTENT)
            (given.folder / f"exchanging {given.process_id}").touch()


if __name__ == "__main__":
    main()
