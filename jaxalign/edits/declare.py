"""How a site declares its arrays: which axes they have, and which of them have rows."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
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
        chooses: whether its elements are 0 or 1 (False or True) and nothing between.
        common: whether the field is a tree of arrays, with any axes where ``*`` stands, of which
            there is one copy however many rows and batches of edits read it.
        index: whether its elements count something, from 0: integers.
    """

    name: str
    axes: tuple[str, ...]
    per_row: bool
    acts: bool = False
    chooses: bool = False
    common: bool = False
    index: bool = False

    @property
    def layered(self) -> bool:
        """Whether the first axis runs over layers, or over the embedding and the layers."""
        return self.axes[:1] in (("L",), ("L+1",))

    @property
    def by_position(self) -> bool:
        """Whether the axis behind that of prompts runs over positions."""
        return self._inside[1:2] in (("S",), ("S|1",))

    @property
    def query(self) -> int | None:
        """Which axis, behind that of layers, runs over the positions that attend; None where none
        does."""
        return self._inside.index("Q|1") if "Q|1" in self._inside else None

    @property
    def _inside(self) -> tuple[str, ...]:
        """The axes of one layer."""
        return self.axes[1:] if self.layered else self.axes

    def has(self, letter: str) -> bool:
        """Whether an axis is ``letter``, or ``letter`` or 1."""
        return letter in self.axes or f"{letter}|1" in self.axes


def _declare(axes: str, default: Any = MISSING, **settings: Any) -> Any:
    given = {} if default is MISSING else {"default": default}
    return struct.field(metadata={"site": {"axes": tuple(axes.split())} | settings}, **given)


def acts(axes: str, *, chooses: bool = False) -> Any:
    """Declare the array that says where each row acts; a row of zeros changes nothing.

    Args:
        axes: of one row, for example ``"L B|1 S|1 H"``: ``L`` (blocks) or ``L+1`` (the embedding,
            then blocks), none at the point ``final_norm``; ``B|1``; and any others.
        chooses: whether another number than 0 and 1 is a mistake.

    Raises:
        ValueError: the first axes are others.
    """
    first, second = (*axes.split(), "", "")[:2]
    if first != "B|1" and (first not in ("L", "L+1") or second != "B|1"):
        raise ValueError(f"acts({axes!r}): the first axes have to be L or L+1, then B|1")
    return _declare(axes, per_row=True, acts=True, chooses=chooses)


def per_row(axes: str, default: Any = MISSING, *, index: bool = False) -> Any:
    """Declare an array of which each row has its own, for example ``"D"``, a direction a row.

    Args:
        axes: of one row.
        default: None for an array that may be left out.
        index: whether its elements count something, from 0: integers.
    """
    return _declare(axes, default, per_row=True, index=index)


def shared(axes: str, default: Any = MISSING) -> Any:
    """Declare an array that all rows share, for example ``"L B|1 S|1 D"``.

    Args:
        axes: of the array.
        default: None for an array that may be left out.
    """
    return _declare(axes, default, per_row=False)


def common(axes: str) -> Any:
    """Declare a tree of arrays that all rows share and nobody copies, such as a dictionary.

    Batches of edits share a program's line of runs only where they have the same tree.

    Args:
        axes: of every array of the tree: ``"L *"`` or ``"*"``, which stands for any others.
    """
    return _declare(axes, per_row=False, common=True)
