"""Axis letters, one meaning each, and the array types built from them.

==========  ==================================================================================
``M``       edited rows of a sweep
``R``       rows of one call, the clean one first: ``1 + M``
``N``       runs in a line: rows by prompts, sorted by where they start
``L``       layers; ``L+1`` the embedding, then the layers
``B``       prompts of one call; ``P`` prompts of a whole study
``S``       positions; prompts are padded on the right
``Q``       positions that ask (queries), where they are not all of ``S``
``T``       positions that a cache has room for
``D``       width of the residual stream
``H``       query heads; ``K`` heads of keys and values; ``h`` the width of one head
``C``       width of what one head contributes: ``D``, for edge-align ``D/H``
``F``       width of the MLP
``E``       what one row edits: coordinates of a matrix, features of a dictionary
``A``       inputs of a matrix; ``O`` its outputs; ``G`` groups of inputs that share a scale
``V``       vocabulary; ``v`` a part of it
``U``       units that a plan keeps in 16 bits or packs
``X|1``     in docstrings, and ``#X`` in signatures: ``X``, or 1 that broadcasts
==========  ==================================================================================

A ``*`` in front of a name stands for any number of leading axes, ``*rows`` for those of rows. An
axis that one function alone has is spelled out (``devices``, ``steps``).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int8, UInt8, UInt32

# A leaf of a tree that is built or read on the host, too, where it is a NumPy array: of edits and
# of measures.
Leaf = Any
# A leaf of a tree of JAX arrays. Tree transformations put other things there (axis numbers,
# shardings, shapes), so the type is checked by mypy and not while a program runs.
if TYPE_CHECKING:
    ArrayLeaf: TypeAlias = Array
else:
    ArrayLeaf = Any

Tokens = Int[Array, "B S"]
Lengths = Int[Array, " B"]
Residual = Float[Array, "*rows B S D"]


def lead(a: Array, like: Array) -> Array:
    """``a`` with axes of size 1 in front, as many as it takes to have ``like``'s rank.

    Rank promotion is an error in the tests, because it hides a missing axis.
    """
    return jnp.expand_dims(a, tuple(range(like.ndim - a.ndim)))


def outline(tree: Any) -> str:
    """A dataclass of arrays in few words: the dtype and shape of each array, no numbers.

    Args:
        tree: the dataclass.

    Example:
        >>> model.params.final_norm
        Norm(scale=float32[128], bias=float32[128])
    """
    parts = []
    for field in dataclasses.fields(tree):
        value = getattr(tree, field.name)
        shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
        if dtype is not None and isinstance(shape, tuple):
            parts.append(f"{field.name}={dtype}{list(shape)}".replace(" ", ""))
        elif value is not None:
            parts.append(f"{field.name}={value!r}")
    return f"{type(tree).__name__}({', '.join(parts)})"


__all__ = [
    "Array",
    "ArrayLeaf",
    "Bool",
    "Float",
    "Int",
    "Int8",
    "Leaf",
    "Lengths",
    "Residual",
    "Tokens",
    "UInt8",
    "UInt32",
    "lead",
    "outline",
]
