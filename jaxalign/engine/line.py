"""The line of runs: rows of every batch of edits on every prompt, sorted by where they start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxalign.edits import batch as batches
from jaxalign.edits.points import POINTS
from jaxalign.edits.runs import Pick, Runs
from jaxalign.edits.site import Edit
from jaxalign.model.decoder import attention_output
from jaxalign.model.layers import Pass
from jaxalign.model.params import Block
from jaxalign.shapes import Array, Float, Int


@dataclass(frozen=True)
class EditedRuns:
    """The edits of ``N`` runs, or of the runs in ``N`` bins, at one layer.

    Attributes:
        stacks: arrays by row ``[R, …]``, shared ones ``[G, …]``.
        runs: those.
    """

    stacks: Sequence[Edit]
    runs: Runs

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
        picks = self._picks(point)
        if not picks:
            return x
        asking = 2 if "Q" in POINTS[point].axes else 1  # the axis of the runs' own positions
        value = self._apart(x, asking)
        read = None if inputs is None else self._apart(inputs)
        beside = None if others is None else {k: self._apart(a) for k, a in others.items()}
        for pick in picks:
            value = pick.of.apply_runs(value, pick, pick.of.given(read, beside), weights)
        return self._together(value, x.shape, asking)

    def fork(
        self,
        attn_out: Float[Array, "B S D"],
        z: Float[Array, "B S H h"],
        weights: Block,
        run: Pass,
        contributions: Float[Array, "H B S D"] | None,
    ) -> Float[Array, "N Q D"]:
        """The attention output of runs that start here: the clean run's, after their edits.

        Args:
            attn_out, z: of the clean run of each prompt, at all positions or at those that any run
                of the line has.
            weights: of the block.
            run: the pass.
            contributions: what each head of the clean runs adds there, in f32, where some site
                reads it.
        """
        x, inputs = self.runs.of_clean(attn_out), self.runs.of_clean(z)
        w_out = weights.attention.out
        if self._picks("z"):  # other heads' states than the clean run's are written
            inputs = self.apply_at("z", inputs)
            return self.apply_at("attn_out", attention_output(inputs, weights, run), inputs, w_out)
        value, inputs = self._apart(x), self._apart(inputs)
        for pick in self._picks("attn_out"):
            value = pick.of.fork_runs(value, pick, inputs, w_out, contributions)
        return self._together(value, x.shape)

    def _picks(self, point: str) -> list[Pick]:
        runs = self.runs.apart() if self.runs.binned else self.runs
        return [
            Pick(site, number, runs)
            for number, stack in enumerate(self.stacks)
            for site in stack.sites
            if site.point == point
        ]

    def _apart(self, x: Array, asking: int = 1) -> Array:
        """Values of bins as those of runs of one position each."""
        if not self.runs.binned:
            return x
        x = jnp.moveaxis(x, asking, 1)
        return jnp.expand_dims(x.reshape(-1, *x.shape[2:]), asking)

    def _together(self, x: Array, shape: tuple[int, ...], asking: int = 1) -> Array:
        """The reverse of ``_apart``, to values of this shape."""
        if not self.runs.binned:
            return x
        x = x.squeeze(asking)
        return jnp.moveaxis(x.reshape(*self.runs.row.shape, *x.shape[1:]), 1, asking).reshape(shape)


def births(
    edit: Edit, batch: int, layers: int, by: Any = jnp
) -> Int[Array, "M B"] | Int[np.ndarray, "M B"]:
    """The step that each row first touches; one past the last for a row that edits nothing.

    Args:
        edit: a batch of edits.
        batch: ``B``, how many prompts there are.
        layers: ``L``.
        by: the module that computes it, ``jax.numpy`` or, of arrays that are there, ``numpy``.
    """
    touched = by.asarray(batches.touched(edit, batch, by))  # [M, B, L + 1]
    # What acts behind the last block alone goes through that block as the clean run does.
    late = by.where(batches.touched_at_end(edit, batch, by), layers, layers + 1)
    return by.where(touched.any(axis=-1), touched.argmax(axis=-1), late)


def columns(
    edits: Sequence[Edit], places: Sequence[tuple[int, int, int]]
) -> Int[np.ndarray, "rows 3"]:
    """Stack, row of that stack, and place of its shared arrays, of each row of batches of edits.

    Args:
        edits: batches of edits.
        places: of each in the stacks, from ``edits.batch.stack``.
    """
    found = [np.zeros((0, 3), int)]
    for edit, (stack, first, value) in zip(edits, places, strict=True):
        rows = first + np.arange(batches.rows(edit))
        found.append(np.stack(np.broadcast_arrays(stack, rows, value), axis=1))
    return np.concatenate(found)


def line_up(
    edits: Sequence[Edit], places: Sequence[tuple[int, int, int]], batch: int, layers: int
) -> tuple[Runs, Array, Array]:
    """Sort the runs of some batches of edits by the first step that they touch.

    Args:
        edits: batches of edits.
        places: of each in the stacks, from ``edits.batch.stack``.
        batch: ``B``, how many prompts there are.
        layers: ``L``.

    Returns:
        The runs, the clean ones first; ``alive`` ``[L + 2]``, how many are born before each step
        (step 0 is the embedding, ``l + 1`` block ``l``; a run that edits nothing is never born);
        and ``place`` ``[1 + ΣM, B]``, where the run of each row and prompt stands, clean row first
        (the clean run's place for one that is never born).
    """
    birth = jnp.concatenate(
        [jnp.full((1, batch), -1)] + [births(edit, batch, layers) for edit in edits]
    )
    order = jnp.argsort(birth.reshape(-1), stable=True)
    place = jnp.argsort(order).reshape(birth.shape)
    each = np.concatenate([[[-1, 0, 0]], columns(edits, places)]).repeat(batch, axis=0)
    stack, row, value = jnp.asarray(each.T, jnp.int32)[:, order]
    runs = Runs(stack, row, value, (order % batch).astype(jnp.int32))
    alive = alive_before(birth, layers)
    return runs, alive, jnp.where(birth <= layers, place, place[:1])


def alive_before(birth: Int[Array, "rows *B"], layers: int) -> Int[Array, " steps"]:
    """``[L + 2]``: how many begin before each step.

    Args:
        birth: the step that each begins at.
        layers: ``L``.
    """
    steps = jnp.arange(layers + 2).reshape(-1, *[1] * birth.ndim)
    return (birth[None] < steps).sum(axis=tuple(range(1, birth.ndim + 1)))
