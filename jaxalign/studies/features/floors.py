"""Other ways of being as far from f32 as a scheme: noise in each group of weights, and pruning."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxalign.model.config import ModelConfig
from jaxalign.model.matrices import MATRICES, matrix_name
from jaxalign.model.params import Block, Params
from jaxalign.numerics.scheme import Scheme
from jaxalign.runtime.compile import jit
from jaxalign.shapes import Array
from jaxalign.study.calls import Late, spec_of
from jaxalign.study.session import Session
from jaxalign.study.weight_noise import low_matrices

# Shares of the weights at which perplexity is measured, to find where it is the scheme's.
SHARES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


@functools.partial(jit, static_argnames=("config", "group"))
def group_noisy(
    high: Params, low: Params, key: jax.Array, *, config: ModelConfig, group: int | None
) -> Params:
    """``high`` with normal noise whose norm is the scheme's error in each group of weights.

    A weight that is large is kept nearly exactly by the scale of its own group: noise that is as
    large as the error of the whole matrix moves it, this noise less.

    Args:
        high: f32.
        low: the same parameters in a scheme.
        key: a random key.
        config: the architecture (static).
        group: inputs that share a scale; None for all inputs of an output (static).
    """

    def layer(given: tuple[jax.Array, Block, Block]) -> Block:
        key, weights, lows = given
        target = low_matrices(weights, lows, config)

        def leaf(path: Any, w: Array) -> Array:
            name = path[-1].name
            if name not in target:
                return w
            own = jax.random.fold_in(key, list(MATRICES).index(name))
            inputs, size = len(w), group or len(w)
            # The last group of a format of blocks may be smaller.
            rest = [(0, -inputs % size), *[(0, 0)] * (w.ndim - 1)]
            shape = (-1, size, *w.shape[1:])
            error, draw = (
                jnp.pad(a, rest).reshape(shape)
                for a in (target[name] - w, jax.random.normal(own, w.shape))
            )
            norm, drawn = (jnp.sqrt((a**2).sum(axis=1, keepdims=True)) for a in (error, draw))
            return w + (draw * norm / drawn).reshape(-1, *w.shape[1:])[:inputs]

        return jax.tree_util.tree_map_with_path(leaf, weights)

    keys = jax.random.split(key, config.num_layers)
    return replace(high, blocks=lax.map(layer, (keys, high.blocks, low.blocks)))


@jit
def pruned(high: Params, share: Array) -> Params:
    """``high`` with the smallest weights of every matrix of every layer set to 0.

    Args:
        high: f32.
        share: of the weights.
    """

    def leaf(path: Any, w: Array) -> Array:
        if matrix_name(path) is None:
            return w
        size = jnp.abs(w).reshape(len(w), -1)
        least = jnp.quantile(size, share, axis=1)
        return jnp.where(jnp.abs(w) < least.reshape(-1, *[1] * (w.ndim - 1)), 0, w)

    blocks = jax.tree_util.tree_map_with_path(leaf, high.blocks)
    return replace(high, blocks=blocks)


def late_group_noise(session: Session, scheme: Scheme, draw: int) -> Late:
    """f32 parameters with noise as large as a scheme's error in each group.

    Args:
        session: whose seed draws.
        scheme: whose error.
        draw: number of the draw, from 0.
    """
    params, config = session.model.params, session.config
    group = None if scheme.weights is None else scheme.weights.group

    def make() -> Params:
        key = jax.random.fold_in(jax.random.key(session.options.seed), draw)
        found: Params = group_noisy(params, session.low(scheme), key, config=config, group=group)
        return found

    return Late(
        make=lambda: session.last("noise", ("group", scheme, draw), make),
        spec=None if session.mesh else spec_of(params),
    )


def late_pruned(session: Session, share: float) -> Late:
    """f32 parameters without their smallest weights.

    Args:
        session: of the study.
        share: of the weights of each matrix.
    """
    params = session.model.params
    return Late(
        make=lambda: session.last("noise", ("pruned", share), lambda: pruned(params, share)),
        spec=None if session.mesh else spec_of(params),
    )


def share_of(loss: float, clean: float, shares: np.ndarray, losses: np.ndarray) -> float | None:
    """The share of weights whose removal costs a loss, between those that were measured.

    Args:
        loss: the logarithm of the perplexity that is wanted, nats a token.
        clean: of f32.
        shares: that were measured, rising.
        losses: of each.

    Returns:
        None where the scheme costs nothing, or more than the largest share.
    """
    # Removing few weights may help: what is beyond the first rise is read.
    rises, at = np.maximum.accumulate([0.0, *(losses - clean)]), np.array([0.0, *shares])
    wanted = loss - clean
    if not 0 < wanted <= rises[-1]:
        return None
    after = int(np.searchsorted(rises, wanted))
    before = after - 1
    ends = rises[before], rises[after]
    if ends[0] > 0:  # costs grow by a factor a step
        wanted, ends = np.log(wanted), (np.log(ends[0]), np.log(ends[1]))
    part = (wanted - ends[0]) / (ends[1] - ends[0])
    return float(at[before] + part * (at[after] - at[before]))
