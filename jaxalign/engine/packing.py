"""Runs of different lengths in bins of one.

A bin holds ``capacity`` positions, of one run or of several, one behind the other. The rows of a
bin begin together, so rows that begin at one step share bins where steps are known. All bins of all
layers have one shape: one program, whatever the rows' lengths are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from jaxalign.edits.runs import Runs
from jaxalign.engine.line import alive_before
from jaxalign.shapes import Array, Bool, Int, Lengths

EMPTY = -1


def bins(
    sizes: Sequence[int], births: Sequence[int] | None, capacity: int
) -> list[tuple[int, ...]]:
    """Which rows share each bin: the longest first, each into the fullest bin that has room.

    Args:
        sizes: positions of each row, none more than ``capacity``.
        births: the step that each row begins at, where it is known; rows of one bin then share it.
        capacity: positions of a bin.

    Example:
        >>> bins([1, 5, 4, 2], None, 6)
        [(1, 0), (2, 3)]
    """
    found: list[list[int]] = []
    room: dict[tuple[int, int], list[int]] = defaultdict(list)  # by birth and positions left
    for row in sorted(range(len(sizes)), key=lambda row: -sizes[row]):
        size, birth = sizes[row], births[row] if births else 0
        fits = (left for left in range(size, capacity + 1) if room[birth, left])
        left = next(fits, None)
        if left is None:
            left, place = capacity, len(found)
            found.append([])
        else:
            place = room[birth, left].pop()
        found[place].append(row)
        room[birth, left - size].append(place)
    return [tuple(rows) for rows in found]


@dataclass(frozen=True)
class Packed:
    """Rows in bins, bins in the order in which they begin.

    Attributes:
        runs: of each bin and prompt ``[bins · B, Q]``.
        alive: int ``[L + 2]``, how many of these begin before each step.
        leaving: the runs of each row and prompt ``[rows · B]``, in an order in which they begin.
        leaving_alive: int ``[L + 2]``, how many of these begin before each step.
        taken: int ``[rows · B, P]``, where the positions that are read stand, of all positions of
            all bins.
        place: int ``[rows, B]``, where each row's run stands among those leaving; negative for one
            that never begins.
        reads: ``[rows, B, P]``, whether a row has the position that is read.
    """

    runs: Runs
    alive: Array
    leaving: Runs
    leaving_alive: Array
    taken: Int[Array, "runs P"]
    place: Int[Array, "rows B"]
    reads: Bool[Array, "rows B P"]


def pack(
    columns: Int[np.ndarray, "rows 3"],
    sizes: Int[np.ndarray, " rows"],
    known: Sequence[int] | None,
    births: Int[Array, "rows B"],
    lengths: Lengths,
    read: Int[Array, "B P"],
    layers: int,
) -> Packed:
    """Rows that hold their prompts' last positions, in bins as large as the longest of them.

    Args:
        columns: stack, row and place of shared arrays of each row (``line.columns``).
        sizes: how many of the last positions each row holds.
        known: the step that each row begins at, where it is known while the program is made.
        births: the same on each prompt; ``L + 1`` for one that never begins.
        lengths: real tokens of each prompt.
        read: the positions of each prompt that are read in the end.
        layers: ``L``.
    """
    batch, capacity = len(lengths), int(sizes.max())
    shared = bins(sizes.tolist(), known, capacity)
    # What stands at each position of each bin: a row, and which of its positions.
    row = np.full((len(shared), capacity), EMPTY)
    ahead, bin_of, start = np.zeros_like(row), np.empty_like(sizes), np.empty_like(sizes)
    for number, rows in enumerate(shared):
        ends = np.cumsum(sizes[list(rows)])
        for each, end in zip(rows, ends, strict=True):
            bin_of[each], start[each] = number, end - sizes[each]
            row[number, start[each] : end] = each
            ahead[number, start[each] : end] = np.arange(sizes[each])
    begins = births.min(axis=1)
    birth = jnp.where(row == EMPTY, layers + 1, begins[row]).min(axis=1)
    order = jnp.argsort(birth, stable=True)

    first = jnp.maximum(lengths[None] - sizes[:, None], 0)  # [rows, B]
    begin = jnp.maximum(lengths - capacity, 0)[:, None]  # of each prompt, in any bin
    sorted_row = jnp.asarray(row)[order]
    empty = (sorted_row == EMPTY)[:, None]
    firsts = jnp.where(empty, begin[None], first[sorted_row].swapaxes(1, 2))
    position = firsts + jnp.asarray(ahead)[order][:, None]
    of_row = [
        jnp.where(empty, nothing, jnp.asarray(column, jnp.int32)[sorted_row][:, None])
        for column, nothing in zip(columns.T, (-1, 0, 0), strict=True)
    ]
    prompts = jnp.arange(batch, dtype=jnp.int32)
    parts = *of_row, prompts[None, :, None], position, position - begin[None], firsts
    wide = (jnp.broadcast_to(a, position.shape).reshape(-1, capacity) for a in parts)

    begins = birth[bin_of]
    leave = jnp.argsort(begins, stable=True)
    rank = jnp.argsort(order)[bin_of]  # of each row's bin
    unit = rank[:, None] * batch + prompts[None]
    ahead_of = read[None] - first[..., None]
    at = jnp.clip(ahead_of, 0, sizes[:, None, None] - 1) + start[:, None, None]
    taken = (unit[..., None] * capacity + at)[leave].reshape(-1, read.shape[1])
    of_run = jnp.asarray(columns.T, jnp.int32)[:, leave].repeat(batch, axis=1)
    prompt = jnp.tile(prompts, len(sizes))
    leaving = Runs(of_run[0], of_run[1], of_run[2], prompt, position=read[prompt])
    place = jnp.argsort(leave)[:, None] * batch + prompts[None]
    return Packed(
        runs=Runs(*wide),
        alive=alive_before(birth, layers) * batch,
        leaving=leaving,
        leaving_alive=alive_before(begins, layers) * batch,
        taken=taken,
        place=jnp.where(births <= layers, place, -1),
        reads=ahead_of >= 0,
    )
