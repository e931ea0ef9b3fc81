"""Axis letters, and the array types built from them.

==========  =====================================================
``M``       edited rows of a sweep (``1 + M`` with the clean row)
``L``       layers
``B``       prompts in a batch
``S``       positions; prompts are padded on the right
``D``       width of the residual stream
``H``       attention heads; ``h`` is one head's width
``F``       width of the MLP
``V``       vocabulary
``1``       an axis that broadcasts
==========  =====================================================

A ``*`` in front of a name stands for any number of leading axes.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int8, UInt8

# A leaf of a parameter tree. Tree transformations put other things than arrays there (axis
# numbers, shardings, shape structs), so the type of a leaf is checked where it is used.
Leaf = Any

Tokens = Int[Array, "B S"]
Lengths = Int[Array, " B"]
Residual = Float[Array, "*rows B S D"]


def lead(a: Array, like: Array) -> Array:
    """``a`` with axes of size 1 in front, as many as it takes to have ``like``'s rank.

    Rank promotion is an error in the tests, because it hides a missing axis.
    """
    return jnp.expand_dims(a, tuple(range(like.ndim - a.ndim)))


__all__ = [
    "Array",
    "Bool",
    "Float",
    "Int",
    "Int8",
    "Leaf",
    "Lengths",
    "Residual",
    "Tokens",
    "UInt8",
    "lead",
]
