"""How a site declares its arrays: which axes they have, and which of them have rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flax import struct


@dataclass(frozen=True, kw_only=True)
class Declared:
    """How a site declares one of its arrays.

    Attributes:
        name: of the field.
        axes: letters of ``jaxalign.shapes`` without the rows' ``M``; ``B|1`` may also be 1.
        per_row: whether each row of a batch of edits has its own.
        acts: whether a nonzero element says that the site acts there.
    """

    name: str
    axes: tuple[str, ...]
    per_row: bool
    acts: bool = False

    @property
    def layered(self) -> bool:
        """Whether the first axis runs over layers, or over the embedding and the layers."""
        return self.axes[:1] in (("L",), ("L+1",))

    def has(self, letter: str) -> bool:
        """Whether an axis is ``letter``, or ``letter`` or 1."""
        return letter in self.axes or f"{letter}|1" in self.axes


def _declare(axes: str, **settings: Any) -> Any:
    return struct.field(metadata={"site": {"axes": tuple(axes.split())} | settings})


def acts(axes: str) -> Any:
    """Declare the array that says where each row acts; a row of zeros changes nothing.

    Args:
        axes: of one row, for example ``"L B|1 S|1 H"``: ``L`` (blocks) or ``L+1`` (the embedding,
            then blocks), ``B|1``, and any others.

    Raises:
        ValueError: the first two axes are others.
    """
    if tuple(axes.split()[:2]) not in {("L", "B|1"), ("L+1", "B|1")}:
        raise ValueError(f"acts({axes!r}): the first axes have to be L or L+1, then B|1")
    return _declare(axes, per_row=True, acts=True)


def per_row(axes: str) -> Any:
    """Declare an array of which each row has its own, for example ``"D"``, a direction a row."""
    return _declare(axes, per_row=True)


def shared(axes: str) -> Any:
    """Declare an array that all rows share, for example ``"L B|1 S|1 D"``."""
    return _declare(axes, per_row=False)
