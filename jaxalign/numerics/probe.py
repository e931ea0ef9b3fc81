"""A matrix that tells what its linear layer reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flax import struct

from jaxalign.numerics.qtensor import QTensor


def _unseen(x: Any) -> None:
    raise ValueError("an Observed matrix needs a function that takes its layer's inputs")


@struct.dataclass
class Observed(QTensor):
    """The array ``codes`` in the place of a packed matrix: ``dot`` hands its inputs to ``see``.

    So a model need not know that it is watched. ``see`` is called while a program is traced, so
    what it gathers must leave the same program as a result.

    Example:
        >>> seen = {}
        >>> w = Observed(jnp.eye(2), see=lambda x: seen.update(x=x))
        >>> y = dot(jnp.ones((3, 2)), w)
        >>> seen["x"].shape
        (3, 2)
    """

    scale: Any = None
    see: Callable[[Any], None] = struct.field(pytree_node=False, default=_unseen)
