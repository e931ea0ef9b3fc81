"""The line of runs: rows of every batch of edits on every prompt, sorted by where they start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxalign.edits import batch as batches
from jaxalign.edits.runs import Pick, Runs
from jaxalign.edits.site import Edit
from jaxalign.shapes import Array, Float, Int


@dataclass(frozen=True)
class EditedRuns:
    """The edits of ``N`` runs at one layer.

    Attributes:
        stacks: arrays by row ``[R, …]``, shared ones ``[G, …]``.
        runs: ``N`` of them.
        positions: int ``[N, Q]``, those of each run that are computed; None for all.
    """

    stacks: Sequence[Edit]
    runs: Runs
    positions: Int[Array, "N Q"] | None = None

    def apply_at(
        self,
        point: str,
        x: Array,
        inputs: Array | None = None,
        weights: Any = None,
        others: Mapping[str, Array] | None = None,
    ) -> Array:
        """The runs' values at a point after the edits there (``Site.apply_runs``).

        Args:
            point: a name of ``edits.points.POINTS``.
            x: the value of each run, ``[N, S, …]``.
            inputs: what the matrix product that made ``x`` has read, ``[N, S, …]``.
            weights: the matrix of that product.
            others: by name, the values at other points of the block that sites here may read.
        """
        for pick in self._picks(point):
            x = pick.of.apply_runs(x, pick, pick.of.given(inputs, others), weights)
        return x

    def fork(
        self,
        attn_out: Float[Array, "B S D"],
        z: Float[Array, "B S H h"],
        weights: Any,
        contributions: Float[Array, "H B S D"] | None,
    ) -> Float[Array, "N S D"]:
        """The attention output of runs that start here: the clean run's, after their edits.

        Args:
            attn_out, z: of the clean run of each prompt.
            weights: ``W_O``.
            contributions: what each head of the clean runs adds, in f32, where some site reads it.
        """
        x, inputs = attn_out[self.runs.prompt], z[self.runs.prompt]
        for pick in self._picks("attn_out"):
            x = pick.of.fork_runs(x, pick, inputs, weights, contributions)
        return x

    def _picks(self, point: str) -> list[Pick]:
        return [
            Pick(site, number, self.runs, self.positions)
            for number, stack in enumerate(self.stacks)
            for site in stack.sites
            if site.point == point
        ]


def births(edit: Edit, batch: int, layers: int) -> Int[Array, "M B"]:
    """The step that each row first touches; one past the last for a row that edits nothing.

    Args:
        edit: a batch of edits.
        batch: ``B``, how many prompts there are.
        layers: ``L``.
    """
    touched = batches.touched(edit, batch)  # [M, B, L + 1]
    # What acts behind the last block alone goes through that block as the clean run does.
    late = jnp.where(batches.touched_at_end(edit, batch), layers, layers + 1)
    return jnp.where(touched.any(axis=-1), touched.argmax(axis=-1), late)


def line_up(
    edits: Sequence[Edit],
    places: Sequence[tuple[int, int, int]],
    batch: int,
    layers: int,
    *,
    whole_rows: bool = False,
) -> tuple[Runs, Array, Array]:
    """Sort the runs of some batches of edits by the first step that they touch.

    Args:
        edits: batches of edits.
        places: of each in the stacks, from ``edits.batch.stack``.
        batch: ``B``, how many prompts there are.
        layers: ``L``.
        whole_rows: a row is born on all prompts at once, so that its runs stand together.

    Returns:
        The runs, the clean ones first; ``alive`` ``[L + 2]``, how many are born before each step
        (step 0 is the embedding, ``l + 1`` block ``l``; a run that edits nothing is never born);
        and ``place`` ``[1 + ΣM, B]``, where the run of each row and prompt stands, clean row first
        (the clean run's place for one that is never born).
    """
    born = [jnp.full((1, batch), -1)] + [births(edit, batch, layers) for edit in edits]
    columns = [np.zeros((batch, 3), int) - [1, 0, 0]]
    for edit, (stack, first, value) in zip(edits, places, strict=True):
        rows = np.repeat(first + np.arange(batches.rows(edit)), batch)
        columns.append(np.stack(np.broadcast_arrays(stack, rows, value), axis=1))
    birth = jnp.concatenate(born)
    begin = jnp.broadcast_to(birth.min(axis=1, keepdims=True), birth.shape) if whole_rows else birth
    order = jnp.argsort(begin.reshape(-1), stable=True)
    place = jnp.argsort(order).reshape(birth.shape)
    stack, row, value = jnp.asarray(np.concatenate(columns).T, jnp.int32)[:, order]
    runs = Runs(stack, row, value, (order % batch).astype(jnp.int32))
    alive = (begin[None] < jnp.arange(layers + 2)[:, None, None]).sum(axis=(1, 2))
    return runs, alive, jnp.where(birth <= layers, place, place[:1])
