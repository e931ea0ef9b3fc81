"""A layer in which some matrices, and some heads' shares of others, are those of a scheme."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.model.config import ModelConfig
from jaxalign.model.matrices import MATRICES, matrix_name
from jaxalign.model.params import Block
from jaxalign.shapes import Array, Bool


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

    Args:
        high: one layer's parameters in f32, without the axis of the layers.
        low: the same layer's matrices in a scheme, by name, f32.
        chosen: which matrices are the scheme's, in the order of ``names``.
        heads: whose shares are the scheme's.
        names: of the matrices that ``chosen`` is about.
        config: the architecture.

    Raises:
        KeyError: ``model.matrices`` does not have a parameter of ``high``.
    """

    def leaf(path: Any, w: Array) -> Array:
        name = matrix_name(path)
        if name is None or name not in low:
            return w
        taken = jnp.broadcast_to(chosen[names.index(name)], (1,) * w.ndim)
        if (axis := MATRICES[name].heads) is not None:
            taken = taken | _share(axis, heads, w, config)
        return jnp.where(taken, low[name], w)

    return jax.tree_util.tree_map_with_path(leaf, high)


def _share(axis: int, heads: Bool[Array, " H"], w: Array, config: ModelConfig) -> Array:
    """Where heads' shares of a matrix whose ``axis`` runs over heads are, with axes of size 1.

    A key and value head is shared by the query heads that read it.
    """
    count = w.shape[axis] // config.head_size
    taken = jnp.repeat(heads.reshape(count, -1).any(axis=1), config.head_size)
    return jnp.expand_dims(taken, [i for i in range(w.ndim) if i != axis])
