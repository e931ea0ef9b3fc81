"""Edits at any point of the model: replace, add, scale."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxalign.edits.declare import Declared, acts, per_row, shared
from jaxalign.edits.edges import blinded
from jaxalign.edits.points import axes_at
from jaxalign.edits.site import Kind, Site
from jaxalign.shapes import Array, Leaf, lead


class Anywhere(Site):
    """A site whose point is chosen; its arrays have the axes of that point (``edits.points``)."""

    reads_inputs: ClassVar[bool] = False

    def declared(self) -> Iterator[Declared]:
        """As declared, with the point's own axes."""
        for each in super().declared():
            yield replace(each, axes=axes_at(self.point, each.axes))


def _one_of(site: Site, first: str, second: str) -> str | None:
    """What is wrong where not exactly one of two arrays is given."""
    given = [name for name in (first, second) if getattr(site, name) is not None]
    if len(given) == 1:
        return None
    what = "both are" if given else "neither is"
    return f"{type(site).__name__} takes {first} or {second}, and {what} given"


@struct.dataclass
class Replace(Anywhere):
    """Put a value in the place of the run's own (activation patching, ablation).

    Attributes:
        point: a name of ``edits.points.POINTS``.
        mask: bool: where. Like the point's value, each axis but that of layers may be 1; a batch
            of M edits has ``M`` in front.
        value: what stands there in every row, like the point's value; broadcasts like ``mask``.
        own: in its place, a value for each row: ``[M]``, then as ``value`` without layers.

    Example:
        >>> patch = Replace("mlp_out", mask, clean["mlp_out"])  # [M, L, 1, S, 1], [L, B, S, D]
    """

    kind: ClassVar[Kind] = "replace"

    point: str = struct.field(pytree_node=False)  # type: ignore[misc]
    mask: Leaf = acts("L B|1 position|1 unit|1", chooses=True)
    value: Leaf = shared("L B|1 position|1 unit|1", default=None)
    own: Leaf = per_row("B|1 position|1 unit|1", default=None)

    def problem(self, sizes: dict[str, int], windows: Sequence[int | None] = ()) -> str | None:
        """One value, the rows' own or theirs together; and no position without any source.

        Args:
            sizes: of the run, by axis letter.
            windows: of each layer, how many positions up to its own a query sees; empty for all.
        """
        wrong = _one_of(self, "value", "own")
        if wrong or self.point != "scores":
            return wrong
        found = self._blinded(sizes["S"], windows)
        if found is None:
            return None
        layer, position, window = found
        seen = "" if window is None else f", of the {window} positions that it sees"
        return (
            f"position {position} of layer {layer} has every source knocked out{seen}, and then "
            "its attention is not defined: leave it one, or scale the pattern"
        )

    def _blinded(
        self, size: int, windows: Sequence[int | None]
    ) -> tuple[int, int, int | None] | None:
        """``edges.blinded`` of scores that become −∞; None where arrays are traced."""
        value = self.value if self.own is None else self.own
        if any(isinstance(array, jax.core.Tracer) for array in (self.mask, value)):
            return None
        cut = np.isneginf(np.asarray(value, np.float32))
        if not cut.any():
            return None
        if self.value is None:  # which is the same in every layer
            cut = np.expand_dims(cut, -5 if cut.ndim > 4 else 0)
        try:
            cut = np.asarray(self.mask, bool) & cut
        except ValueError:
            return None  # a shape that does not fit, which ``check`` says by name
        fits = cut.ndim > 4 and {*cut.shape[-2:]} <= {1, size}
        return blinded(cut, size, windows) if fits and len(windows) in (0, cut.shape[-5]) else None

    def apply(self, x: Array, inputs: Array | None = None, weights: Any = None) -> Array:
        """The value after the edit (``Site.apply``).

        Args:
            x: the value.
            inputs, weights: not read.
        """
        value = jnp.asarray(self.value if self.own is None else self.own).astype(x.dtype)
        return jnp.where(lead(jnp.asarray(self.mask), x), lead(value, x), x)


@struct.dataclass
class Add(Anywhere):
    """Add ``coefficient · direction``, in f32 and rounded once (steering, a feature's direction).

    A row costs its direction and its coefficients, never a table of the whole run. The gradient by
    ``value`` at zero is the gradient by the run's value at that point.

    Attributes:
        point: a name of ``edits.points.POINTS``.
        coefficient: how much, 0 for nowhere (a bool mask will do): like the point's value, each
            axis but that of layers may be 1; a batch of M edits has ``M`` in front.
        direction: what each row adds: ``[M]``, then what a position of the point's value has
            (``[M, D]``, of heads ``[M, H|1, h|1]``).
        value: in its place, what all rows add: like the point's value; broadcasts.

    Example:
        >>> steer = Add("resid", coefficient, directions)  # [M, L + 1, 1, 1, 1], [M, D]
    """

    kind: ClassVar[Kind] = "add"

    point: str = struct.field(pytree_node=False)  # type: ignore[misc]
    coefficient: Leaf = acts("L B|1 position|1 unit|1")
    direction: Leaf = per_row("unit|1", default=None)
    value: Leaf = shared("L B|1 position|1 unit|1", default=None)

    def problem(self, sizes: dict[str, int], windows: Sequence[int | None] = ()) -> str | None:
        """One direction, the rows' own or theirs together."""
        return _one_of(self, "direction", "value")

    def apply(self, x: Array, inputs: Array | None = None, weights: Any = None) -> Array:
        """The value after the edit (``Site.apply``).

        Args:
            x: the value.
            inputs, weights: not read.
        """
        added = self.value if self.direction is None else self.direction
        coefficient = lead(jnp.asarray(self.coefficient, jnp.float32), x)
        moved = x.astype(jnp.float32) + coefficient * lead(jnp.asarray(added, jnp.float32), x)
        return jnp.where(coefficient != 0, moved.astype(x.dtype), x)


@struct.dataclass
class Scale(Anywhere):
    """Multiply by ``1 + by``, in f32 and rounded once: −1 removes, 1 doubles, 0 leaves it alone.

    Attributes:
        point: a name of ``edits.points.POINTS``.
        by: like the point's value, each axis but that of layers may be 1; a batch of M edits has
            ``M`` in front.

    Example:
        >>> without = Scale("mlp_hidden", -chosen)  # neurons [M, L, 1, 1, F], 1.0 where removed
    """

    kind: ClassVar[Kind] = "scale"

    point: str = struct.field(pytree_node=False)  # type: ignore[misc]
    by: Leaf = acts("L B|1 position|1 unit|1")

    def apply(self, x: Array, inputs: Array | None = None, weights: Any = None) -> Array:
        """The value after the edit (``Site.apply``).

        Args:
            x: the value.
            inputs, weights: not read.
        """
        by = lead(jnp.asarray(self.by, jnp.float32), x)
        return jnp.where(by != 0, (x.astype(jnp.float32) * (1 + by)).astype(x.dtype), x)
