"""Prompts of similar length side by side, padded to a few shapes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxalign.engine.compiled import bucket_length

# Fewer prompts than this are padded to the next length instead, if it is at most twice theirs:
# compiling a shape takes longer than computing their padding.
FEW = 64


@dataclass(frozen=True)
class Batch:
    """Prompts of similar length, padded on the right.

    Attributes:
        index: which prompts of the list these are; shorter than ``B`` where rows are filler.
        tokens: int32 ``[B, S]``.
        lengths: int32 ``[B]``, real tokens of each.
    """

    index: tuple[int, ...]
    tokens: np.ndarray
    lengths: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """``(B, S)``."""
        return self.tokens.shape

    def fill(self, values: Sequence[Any]) -> np.ndarray:
        """One array ``[B, …]`` from a list with an entry a prompt; filler repeats the first."""
        rows = [values[i] for i in self.index]
        return np.stack(rows + [rows[0]] * (len(self.lengths) - len(rows)))

    def widen(self, multiple: int) -> Batch:
        """The batch with as much more filler as makes ``B`` a multiple of ``multiple``."""
        filler = -len(self.lengths) % multiple
        if not filler:
            return self
        tokens = np.concatenate([self.tokens, np.repeat(self.tokens[:1], filler, axis=0)])
        lengths = np.concatenate([self.lengths, np.repeat(self.lengths[:1], filler)])
        return Batch(self.index, tokens, lengths)

    def scatter(self, out: np.ndarray, values: np.ndarray, axis: int = -1) -> None:
        """Write the batch's entries of ``values`` to their prompts' places in ``out``.

        Args:
            out: ``axis`` counts all prompts; changed in place.
            values: ``axis`` counts the rows of the batch; filler is left out.
            axis: from the front or, negative, from the end.
        """
        places, used = np.moveaxis(out, axis, 0), np.moveaxis(values, axis, 0)
        places[list(self.index)] = used[: len(self.index)]


def batches(
    tokens: Sequence[Sequence[int]],
    max_batch: dict[int, int] | int,
    limit: int,
    few: int = FEW,
) -> Iterator[Batch]:
    """Batches of equal shape within each length bucket, shortest first.

    Args:
        tokens: token ids of each prompt.
        max_batch: most prompts in one batch, for all or by bucket length.
        limit: the model's context.
        few: fewer prompts of a length than this are padded to the next one.
    """
    buckets: dict[int, list[int]] = {}
    for i, ids in enumerate(tokens):
        buckets.setdefault(bucket_length(len(ids), limit), []).append(i)
    sizes = sorted(buckets)
    for size, longer in itertools.pairwise(sizes):
        if len(buckets[size]) < few and longer <= 2 * size:
            buckets[longer] = sorted(buckets.pop(size) + buckets[longer])
    for size, members in sorted(buckets.items()):
        most = max_batch if isinstance(max_batch, int) else max_batch[size]
        # Even batches: 17 prompts at 16 a batch become 9 and 8, not 16 and 1.
        count = -(-len(members) // most)
        width = -(-len(members) // count)
        for start in range(0, len(members), width):
            chosen = tuple(members[start : start + width])
            yield _pad(chosen, [tokens[i] for i in chosen], width, size)


def _pad(index: tuple[int, ...], rows: list[Sequence[int]], width: int, size: int) -> Batch:
    rows = rows + [rows[0]] * (width - len(rows))
    padded = np.zeros((width, size), np.int32)
    for row, ids in zip(padded, rows, strict=True):
        row[: len(ids)] = ids
    return Batch(index, padded, np.array([len(ids) for ids in rows], np.int32))
