"""Runs that hold only the last positions of their prompts: what stands before them is known."""

from __future__ import annotations

import jax.numpy as jnp
from flax import struct

from jaxalign.runtime.products import precision_for
from jaxalign.shapes import Array, ArrayLeaf, Float


@struct.dataclass
class Prefix:
    """Keys and values of clean runs, which edited runs of the same prompts see before their own.

    A causal model's position never sees those after it, so that a run which is edited from one
    position on has the clean run's keys and values before it.

    Attributes:
        keys, values: of the clean run of each prompt, ``[B, S, K, h]``, keys rotated.
        positions: int ``[N, Q]``, where each run's own ``Q`` positions stand, one behind the other.
            The ``N`` runs are whole rows: the ``B`` prompts in their order, again and again.
    """

    keys: ArrayLeaf
    values: ArrayLeaf
    positions: ArrayLeaf

    @property
    def _place(self) -> Array:
        """Where each of the ``S`` positions stands among a run's own, negative before them."""
        return (jnp.arange(self.keys.shape[1])[None] - self.positions[:, :1])[:, None, None]

    def _by_row(self, a: Array) -> Array:
        return a.reshape(-1, len(self.keys), *a.shape[1:])

    def scores(
        self, q: Float[Array, "N X K h"], own: Float[Array, "N K X Q"]
    ) -> Float[Array, "N K X S"]:
        """Products of queries with the keys of all positions.

        Args:
            q: rotated queries.
            own: their products with the runs' own keys.
        """
        before = jnp.einsum(
            "rbqke,bske->rbkqs",
            self._by_row(q),
            self.keys,
            precision=precision_for(q, self.keys),
            preferred_element_type=jnp.float32,
        )
        place = self._place
        behind = jnp.take_along_axis(own, jnp.clip(place, 0, own.shape[-1] - 1), axis=-1)
        return jnp.where(place >= 0, behind, before.reshape(behind.shape))

    def gather(
        self, probabilities: Float[Array, "N K X S"]
    ) -> tuple[Float[Array, "N X K h"], Float[Array, "N K X Q"]]:
        """What queries read before a run's own positions, in f32, and the probabilities of these.

        Args:
            probabilities: of all positions.
        """
        own = jnp.take_along_axis(probabilities, self.positions[:, None, None], axis=-1)
        before = jnp.einsum(
            "rbkqs,bske->rbqke",
            self._by_row(jnp.where(self._place < 0, probabilities, 0).astype(self.values.dtype)),
            self.values,
            precision=precision_for(self.values),
            preferred_element_type=jnp.float32,
        )
        return before.reshape(-1, *before.shape[2:]), own
