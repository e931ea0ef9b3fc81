"""Edits of the attention output: steering."""

from __future__ import annotations

from typing import Any, ClassVar

import jax.numpy as jnp
from flax import struct

from jaxalign.edits.declare import acts, shared
from jaxalign.edits.site import Kind, Site
from jaxalign.shapes import Array, Float, Leaf, lead


@struct.dataclass
class AttentionAdd(Site):
    """Add to the projected attention output, in f32, rounded once.

    The gradient by ``value`` at zero is the gradient by every head's contribution.

    Attributes:
        mask: bool ``[L, B|1, S|1]``: where something is added. A batch of M edits: ``[M, …]``.
        value: ``[L, B|1, S|1, D]``: what is added.
    """

    point: ClassVar[str] = "attn_out"
    kind: ClassVar[Kind] = "add"

    mask: Leaf = acts("L B|1 S|1")
    value: Leaf = shared("L B|1 S|1 D")

    def apply(
        self, x: Float[Array, "*rows B S D"], inputs: Array | None = None, weights: Any = None
    ) -> Float[Array, "*rows B S D"]:
        """The attention output after the edit (``Site.apply``).

        Args:
            x: the attention output.
            inputs, weights: not read.
        """
        moved = x.astype(jnp.float32) + lead(jnp.asarray(self.value, jnp.float32), x)
        return jnp.where(lead(jnp.asarray(self.mask)[..., None], x), moved.astype(x.dtype), x)
