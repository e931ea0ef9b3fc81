"""Every engine by name, called alike, and the prompts' lengths that the parity tests run it on."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.devices.deal import sharded_sweep
from jaxalign.devices.mesh import make_mesh, shard_params
from testing.edits import swept

LENGTHS = jnp.array([11, 4, 7])


def sharded(
    params: Any, tokens: Any, lengths: Any, config: Any, edits: Any, readout: Any
) -> list[Any]:
    """A sweep whose rows are dealt to three devices."""
    mesh = make_mesh(jax.devices()[:3], 1)
    call = jax.jit(lambda p, e: sharded_sweep(mesh, p, tokens, lengths, config, e, readout))
    found: list[Any] = call(shard_params(params, mesh, config), edits)
    return found


ENGINES = {
    "wave": functools.partial(swept, engine="wave"),
    "vmap": functools.partial(swept, engine="vmap"),
    "sharded": sharded,
}
