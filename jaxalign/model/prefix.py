"""Runs that hold only the last positions of their prompts: what stands before them is known."""

from __future__ import annotations

import jax.numpy as jnp
from flax import struct

from jaxalign.runtime.products import precision_for
from jaxalign.shapes import Array, ArrayLeaf, Float, Int


@struct.dataclass
class Prefix:
    """Keys and values of clean runs, which edited runs of the same prompts see before their own.

    A causal model's position never sees those after it, so that a run which is edited from one
    position on has the clean run's keys and values before it. Several runs of one prompt may share
    a bin, one behind the other.

    Attributes:
        keys, values: of the clean run of each prompt, ``[B, S, K, h]``, keys rotated.
        positions: int ``[N, Q]``, the position of its prompt that each position of ``N`` bins has.
            Bins are of all prompts in their order, again and again.
        first: int ``[N, Q]``, the first position of the run that it is of.
    """

    keys: ArrayLeaf
    values: ArrayLeaf
    positions: ArrayLeaf
    first: ArrayLeaf

    def _own(self, asking: int) -> tuple[Array, Array]:
        """Where each prompt's position stands in the bin of each query, int ``[N, 1, X, S]``, and
        whether the query's own run has it.

        Args:
            asking: ``X``, queries, a multiple of ``Q``: the bin's positions again and again.
        """
        every = jnp.arange(self.keys.shape[1])[None, None]
        ahead = jnp.arange(self.positions.shape[1])[None] - self.positions
        own = every >= self.first[..., None]
        times = (1, asking // own.shape[1], 1)
        place = jnp.tile(ahead[..., None] + every, times)
        return place[:, None], jnp.tile(own, times)[:, None]

    def _by_bin(self, a: Array) -> Array:
        return a.reshape(-1, len(self.keys), *a.shape[1:])

    def scores(
        self, q: Float[Array, "N X K h"], own: Float[Array, "N K X Q"]
    ) -> Float[Array, "N K X S"]:
        """Products of queries with the keys of all positions.

        Args:
            q: rotated queries.
            own: their products with the keys in their bin.
        """
        before = jnp.einsum(
            "rbqke,bske->rbkqs",
            self._by_bin(q),
            self.keys,
            precision=precision_for(q, self.keys),
            preferred_element_type=jnp.float32,
        )
        place, is_own = self._own(own.shape[2])
        behind = jnp.take_along_axis(own, jnp.clip(place, 0, own.shape[-1] - 1), axis=-1)
        return jnp.where(is_own, behind, before.reshape(behind.shape))

    def gather(
        self, probabilities: Float[Array, "N K X S"], own: Float[Array, "N Q K h"]
    ) -> Float[Array, "N X K h"]:
        """What queries read of all positions, in f32.

        Args:
            probabilities: of all positions.
            own: the values in their bin.
        """
        _, is_own = self._own(probabilities.shape[2])
        before = jnp.einsum(
            "rbkqs,bske->rbqke",
            self._by_bin(jnp.where(is_own, 0, probabilities).astype(self.values.dtype)),
            self.values,
            precision=precision_for(self.values),
            preferred_element_type=jnp.float32,
        )
        place, mine = self._beside(probabilities.shape[2])
        share = jnp.where(mine, jnp.take_along_axis(probabilities, place, axis=-1), 0)
        # A share of 0 of what is not finite is not 0: one run must not spoil those beside it.
        finite = jnp.isfinite(own)
        behind = jnp.einsum(
            "...kqs,...ske->...qke",
            share.astype(own.dtype),
            jnp.where(finite, own, 0),
            precision=precision_for(own),
            preferred_element_type=jnp.float32,
        )
        spoilt = ~finite.all(axis=(-1, -2))  # [N, Q]
        spoils = (mine & spoilt[:, None, None]).any(axis=-1)[:, 0]  # [N, X]
        read = behind + before.reshape(behind.shape)
        return jnp.where(spoils[..., None, None], jnp.nan, read)

    def _beside(self, asking: int) -> tuple[Int[Array, "N 1 X Q"], Array]:
        """Which position of the prompt stands at each place of a query's bin, were all of it the
        query's own run, and whether it is.

        Args:
            asking: ``X``, as for ``_own``.
        """
        places = jnp.arange(self.positions.shape[1])
        at = self.positions[..., None] + places[None, None] - places[None, :, None]
        mine = (at >= self.first[..., None]) & (at <= self.positions[..., None])
        times = (1, asking // at.shape[1], 1)
        at = jnp.clip(at, 0, self.keys.shape[1] - 1)
        return jnp.tile(at, times)[:, None], jnp.tile(mine, times)[:, None]
