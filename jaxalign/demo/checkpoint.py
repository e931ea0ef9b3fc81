"""The training script's own checkpoint: one file, replaced as a whole."""

import json
import os
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

FILE_NAME = "training_state.npz"
State = TypeVar("State")


def save(folder: Path, state: Any, losses: list[float], settings: dict[str, Any]) -> None:
    """Write the state, so that a crash leaves either the old file or the new one.

    Args:
      folder: to write into.
      state: a pytree of arrays.
      losses: of every step so far; their number is the step to go on from.
      settings: of the run, compared by ``restore``.
    """
    leaves = {f"leaf{index}": leaf for index, leaf in enumerate(jax.tree.leaves(state))}
    temporary = folder / f"{FILE_NAME}.partial"
    with temporary.open("wb") as file:
        np.savez(file, losses=np.array(losses), settings=np.array(json.dumps(settings)), **leaves)
    os.replace(temporary, folder / FILE_NAME)


def restore(folder: Path, like: State, settings: dict[str, Any]) -> tuple[State, list[float]]:
    """Read what ``save`` wrote.

    Args:
      folder: to read from.
      like: a state of the same structure.
      settings: of the run that goes on.

    Returns:
      The state and the losses so far.

    Raises:
      ValueError: the checkpoint belongs to a run with other settings.
    """
    with np.load(folder / FILE_NAME) as stored:
        found = json.loads(str(stored["settings"]))
        changed = sorted(name for name in settings if settings[name] != found.get(name))
        if changed:
            raise ValueError(
                f"{folder / FILE_NAME} belongs to a run with other settings ({', '.join(changed)});"
                " remove it to start anew, or give the same settings to go on"
            )
        leaves, structure = jax.tree.flatten(like)
        loaded = [
            jax.numpy.asarray(stored[f"leaf{index}"], leaf.dtype)
            for index, leaf in enumerate(leaves)
        ]
        return jax.tree.unflatten(structure, loaded), stored["losses"].tolist()
