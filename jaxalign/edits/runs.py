"""Runs in a line, and what concerns each of them in the arrays of a site.

A run is one row of one batch of edits on one prompt. Batches of edits of one shape are stacked
(``batch.stack``), so that all of them share one compiled body, however many there are.

Runs of few positions share *bins* (``engine.packing``): what is ``[N]`` of runs is then ``[N, Q]``,
for each position of ``N`` bins that of its run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jax.sharding import PartitionSpec

from jaxalign.edits.declare import Declared
from jaxalign.shapes import Array, ArrayLeaf, Bool, Float


@struct.dataclass
class Runs:
    """Runs in a line, ``[N]`` each: the clean run of each prompt, then edited ones; in bins
    ``[N, Q]``.

    Attributes:
        stack: which stack of edits; -1 for a clean run.
        row: which row of that stack.
        value: which of the stack's shared arrays.
        prompt: which prompt.
        position: int ``[N, Q]``, the positions of the prompt that are computed; None for all.
        place: where these stand in what is known of the clean runs; None for in its order.
        first: of bins, the first position of the run that each position is of.
    """

    stack: ArrayLeaf
    row: ArrayLeaf
    value: ArrayLeaf
    prompt: ArrayLeaf
    position: ArrayLeaf | None = None
    place: ArrayLeaf | None = None
    first: ArrayLeaf | None = None

    @property
    def binned(self) -> bool:
        """Whether several runs may share a bin."""
        return self.row.ndim > 1

    def apart(self) -> Runs:
        """Each position of each bin as a run of its own, of this one position."""
        flat = jax.tree.map(lambda a: a.reshape(-1), self)
        alone = {"position": flat.position[:, None], "place": flat.place[:, None]}
        return flat.replace(**alone, first=None)

    def of_clean(self, a: Float[Array, "B Q *unit"]) -> Float[Array, "N Q *unit"]:
        """What is known of the clean runs, for each of these runs.

        Args:
            a: of each prompt, at all positions or at those that any of these runs has.
        """
        if self.place is None:
            return a[self.prompt]
        prompt = self.prompt if self.binned else self.prompt[:, None]
        return a[prompt, self.place]


@dataclass(frozen=True)
class Pick:
    """Gathers what concerns each of ``N`` runs from the arrays of one site of one stack.

    Attributes:
        of: the site, its arrays by row ``[R, …]``, shared ones ``[G, …]``.
        number: of its stack.
        runs: ``N`` of them.
    """

    of: Any
    number: int
    runs: Runs

    def __call__(self, name: str, *index: Array) -> Array:
        """Each run's part of an array, ``[N, S|1, …]`` (the axis S only where it is declared).

        Zeros, so that the site does not act, for runs of another stack where the array is the one
        that says where the site acts.

        Args:
            name: of the array.
            index: of the axes behind ``S``, ``[N, S|1]`` each; all of them by default.
        """
        [declared] = [each for each in self.of.declared() if each.name == name]
        return self._gather(declared, getattr(self.of, name), *index)

    def site(self) -> Any:
        """The site with each run's part of its arrays, ``[N, …]``: an axis B of size 1 stays.

        What is declared ``common`` stays as it is.
        """

        def own(declared: Declared, array: Any) -> Array:
            if declared.common:
                return array
            gathered = self._gather(declared, array)
            return gathered[:, None] if declared.has("B") else gathered

        return self.of.map_arrays(own)

    def acting(self) -> Bool[Array, ""]:
        """Whether any of the runs is edited by the site."""
        return jnp.stack([self(d.name).any() for d in self.of.declared() if d.acts]).any()

    def _gather(self, declared: Declared, array: Any, *index: Array) -> Array:
        member = self.runs.stack == self.number
        which = jnp.minimum(self.runs.value, len(array) - 1)
        if declared.per_row:
            which = jnp.where(member, self.runs.row, 0)
        places = self._places(declared, array)
        rank = max([1, *(place.ndim for place in places)])
        gathered = array[(which.reshape(-1, *[1] * (rank - 1)), *places, *index)]
        asking = declared.query
        if asking is not None and not declared.has("B"):
            asking += 1  # behind the axis of runs
        if self.runs.position is not None and asking is not None and gathered.shape[asking] > 1:
            at = jnp.expand_dims(
                self.runs.position, [i for i in range(1, gathered.ndim) if i != asking]
            )
            gathered = jnp.take_along_axis(gathered, at, axis=asking)
        if not declared.acts:
            return gathered
        mine = member.reshape(-1, *[1] * (gathered.ndim - 1))
        return _whole(jnp.where(mine, gathered, jnp.zeros((), gathered.dtype)))

    def _places(self, declared: Declared, array: Any) -> list[Array]:
        """Prompt and position of each run, as indices of the axes ``B|1`` and ``S|1``."""
        if not declared.has("B"):
            return []
        prompt = self.runs.prompt if array.shape[1] > 1 else jnp.zeros_like(self.runs.prompt)
        if not declared.by_position:
            return [prompt]
        length = array.shape[2]
        position = self.runs.position
        if position is None:
            position = jnp.arange(length)[None]
        return [prompt[:, None], position if length > 1 else jnp.zeros((1, 1), int)]


def _whole(mask: Array) -> Array:
    """Replicates a mask over the mesh.

    Masks decide loop lengths, and devices with different loop lengths must not communicate inside
    the loop, which a mask sharded by heads would cause.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return mask
    return lax.with_sharding_constraint(mask, PartitionSpec())
