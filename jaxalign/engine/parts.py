"""The lines that a wave's rows stand in: that of the clean runs, and bins of rows edited late."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.edits import batch as batches
from jaxalign.edits.runs import Runs
from jaxalign.edits.site import Edit
from jaxalign.engine.blocks import block_size
from jaxalign.engine.inputs import Inputs
from jaxalign.engine.line import births, columns, line_up
from jaxalign.engine.packing import pack
from jaxalign.engine.suffix import Suffixes
from jaxalign.engine.walk import BEGIN, PREFIX, Line
from jaxalign.model.decoder import num_layers
from jaxalign.shapes import Array

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Part:
    """The rows of a wave whose runs stand in one line.

    Attributes:
        line: their runs, or bins of them.
        stacks: their edits.
        place: int ``[rows, B]``, where the run of each row and prompt stands among those that leave
            the line; negative for one that is never born, of which there are none in the line of
            the clean runs.
        order: which rows of the wave they are.
        reads: ``[rows, B, P]``, whether a row's run has the position that is read; None for all.
    """

    line: Line
    stacks: list[Edit]
    place: Array
    order: np.ndarray
    reads: Array | None = None


def _ended(runs: T, size: int) -> T:
    """Runs with a block more behind them, since the last block may reach past the last run."""
    return jax.tree.map(lambda a: jnp.pad(a, [(0, size)] + [(0, 0)] * (a.ndim - 1)), runs)


def _whole(
    inputs: Inputs, edits: list[Edit], rows: np.ndarray, single_step: bool, kept: tuple[str, ...]
) -> Part:
    """The clean runs and the rows whose runs hold all positions.

    Args:
        inputs: model, prompts, and what is read.
        edits: batches of edits of these rows.
        rows: which rows of the wave they are.
        single_step: promises that no row edits a step after the first one it touches.
        kept: what is kept of the clean runs.
    """
    batch, length = inputs.tokens.shape
    stacks, places = batches.stack(edits)
    runs, alive, place = line_up(edits, places, batch, num_layers(inputs.params))
    # No block is larger than the line: all beyond it would be filler.
    size = min(block_size(batch, length, inputs.config), len(runs.prompt))
    line = Line(
        runs=_ended(runs, size),
        alive=alive,
        size=size,
        read=inputs.read,
        run=inputs.run,
        single_step=single_step,
        kept=kept,
    )
    return Part(line=line, stacks=stacks, place=place, order=np.concatenate([[0], rows]))


def _binned(
    inputs: Inputs,
    edits: list[Edit],
    rows: np.ndarray,
    single_step: bool,
    sizes: np.ndarray,
    known: Sequence[int] | None,
) -> Part:
    """The rows whose runs hold the last positions of their prompts.

    Args:
        inputs, edits, rows, single_step: as for ``_whole``.
        sizes: how many positions each row holds.
        known: the step that each row begins at, where it is known while the program is made.
    """
    batch, layers, config = len(inputs.tokens), num_layers(inputs.params), inputs.config
    stacks, places = batches.stack(edits)
    birth = jnp.concatenate([births(edit, batch, layers) for edit in edits])
    read, capacity = inputs.read, int(sizes.max())
    packed = pack(columns(edits, places), sizes, known, birth, inputs.lengths, read, layers)
    shared = known is None and len(packed.runs.row) < len(rows) * batch
    begin = jnp.maximum(inputs.lengths - capacity, 0)

    def line(runs: Runs, alive: Array, positions: int, **settings: Any) -> Line:
        size = min(block_size(batch, positions, config, whole_rows=True), len(runs.prompt))
        # A row begins with its bin, and where others decide when, it may be edited later.
        once = single_step and not shared
        return Line(
            runs=_ended(runs, size), alive=alive, size=size, read=read, run=inputs.run,
            single_step=once, kept=(), **settings,
        )  # fmt: skip

    leaving = line(packed.leaving, packed.leaving_alive, read.shape[1])
    bins = line(
        packed.runs,
        packed.alive,
        capacity,
        held=begin[:, None] + jnp.arange(capacity)[None],
        taken=_ended(packed.taken, leaving.size),
        leaving=leaving,
    )
    return Part(line=bins, stacks=stacks, place=packed.place, order=rows, reads=packed.reads)


def parts_of(inputs: Inputs, single_step: bool, suffixes: Suffixes) -> list[Part]:
    """The rows of a wave by the line that they stand in; that of the clean runs first.

    Args:
        inputs: model, prompts, batches of edits, and what is read.
        single_step: promises that no row edits a step after the first one it touches.
        suffixes: how many of the prompts' last positions each row's runs hold.
    """
    length = inputs.tokens.shape[1]
    counts = [batches.rows(edit) for edit in inputs.edits]
    sizes = np.array([n for each in suffixes.sizes for n in each] or [length] * sum(counts), int)
    begins = np.cumsum([0, *counts])

    def of(chosen: np.ndarray) -> tuple[list[Edit], np.ndarray]:
        """Batches of edits of the chosen rows, and which rows of the wave they are."""
        found = []
        for edit, start, count in zip(inputs.edits, begins, counts, strict=False):
            mine = np.flatnonzero(chosen[start : start + count])
            if len(mine):
                all_of = len(mine) == count
                found.append(edit if all_of else batches.take_rows(edit, jnp.asarray(mine)))
        return found, 1 + np.flatnonzero(chosen)

    late = sizes < length
    if not late.any():
        return [_whole(inputs, *of(~late), single_step, BEGIN)]
    known = None if suffixes.births is None else np.array(suffixes.births)[late].tolist()
    return [
        _whole(inputs, *of(~late), single_step, BEGIN + PREFIX),
        _binned(inputs, *of(late), single_step, sizes[late], known),
    ]
