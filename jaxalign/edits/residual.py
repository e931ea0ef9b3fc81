"""Edits of the residual stream: activation patching."""

from __future__ import annotations

from typing import Any, ClassVar

import jax.numpy as jnp
from flax import struct

from jaxalign.edits.declare import acts, shared
from jaxalign.edits.site import Kind, Site
from jaxalign.shapes import Array, Float, Leaf, lead


@struct.dataclass
class ResidualEdit(Site):
    """Replace the residual stream, for example by another run's (activation patching).

    Attributes:
        mask: bool ``[L + 1, B|1, S|1]``: index 0 is the stream after the embedding, ``l + 1`` the
            stream after block ``l``. A batch of M edits: ``[M, …]``.
        value: ``[L + 1, B|1, S|1, D]``.
    """

    point: ClassVar[str] = "resid"
    kind: ClassVar[Kind] = "replace"

    mask: Leaf = acts("L+1 B|1 S|1")
    value: Leaf = shared("L+1 B|1 S|1 D")

    def apply(
        self, x: Float[Array, "*rows B S D"], inputs: Array | None = None, weights: Any = None
    ) -> Float[Array, "*rows B S D"]:
        """The stream after the edit (``Site.apply``).

        Args:
            x: the stream.
            inputs, weights: not read.
        """
        value = jnp.asarray(self.value).astype(x.dtype)
        return jnp.where(lead(jnp.asarray(self.mask)[..., None], x), lead(value, x), x)
