"""A layer in which some matrices, and some heads' shares of others, are those of a scheme."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.model.config import ModelConfig
from jaxalign.model.params import Block
from jaxalign.shapes import Array, Bool, lead


def mix(
    high: Block,
    low: dict[str, Array],
    chosen: Bool[Array, " N"],
    heads: Bool[Array, " H"],
    names: tuple[str, ...],
    config: ModelConfig,
) -> Block:
    """A layer with the chosen matrices, and the chosen heads' shares of others, from ``low``.

    A head's share are its columns of ``query``, those of the key and value head that it reads,
    and its rows of ``out``.
    """

    def leaf(path: Any, w: Array) -> Array:
        name = path[-1].name
        if name not in low:
            return w
        taken = jnp.broadcast_to(chosen[names.index(name)], (1,) * w.ndim)
        if name in ("query", "key_value", "out"):
            taken = taken | _share(name, heads, w, config)
        return jnp.where(taken, low[name], w)

    return jax.tree_util.tree_map_with_path(leaf, high)


def _share(name: str, heads: Bool[Array, " H"], w: Array, config: ModelConfig) -> Array:
    """Where heads' shares of an attention matrix of one layer are, with axes of size 1."""
    if name == "out":
        return jnp.repeat(heads, config.head_size)[:, None]
    groups = heads.reshape(w.shape[-1] // config.head_size, -1).any(axis=1)
    return lead(jnp.repeat(groups, config.head_size), w)
