"""How many of its prompts' last positions each row of a sweep has to compute.

A position of a causal model never sees those after it. So an edit that acts from position ``p`` on
changes nothing before it, in any layer, and its row needs the positions from ``p`` to the last real
one only. Rows that hold equally many positions share a line of the wave, which is a program of its
own: lengths are few, and none is worth its compilation where that takes longer than it saves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxalign.edits import batch as batches
from jaxalign.edits.site import Edit
from jaxalign.model.config import ModelConfig
from jaxalign.model.size import matrix_sizes
from jaxalign.numerics.scheme import Scheme
from jaxalign.runtime.compile import default_platform
from jaxalign.shapes import Int, Lengths

# For each batch of edits, for each row how many of the last positions are computed; nothing: all.
Suffixes = tuple[tuple[int, ...], ...]

# Floating-point operations that take about as long as compiling one more line (two to three
# seconds of two CPU cores, benchmarks/LOG.md).
COMPILATION = {"cpu": 5e11, "gpu": 5e13}
MOST_LINES = 3


def needed(edit: Edit, lengths: Int[np.ndarray, " B"], length: int) -> Int[np.ndarray, " M"]:
    """How many positions each row of a batch of edits changes, its longest prompt's; at least 1.

    Args:
        edit: a batch of edits, its arrays known.
        lengths: real tokens of each prompt.
        length: ``S``, positions.
    """
    first = batches.first_positions(edit, len(lengths), length)
    return np.clip(lengths[None] - first, 1, length).max(axis=1)


def few_lengths(wanted: Int[np.ndarray, " M"], length: int, line: float) -> Int[np.ndarray, " M"]:
    """Round how many positions rows need up to few lengths, at the least cost of all.

    A row costs its positions, and each length but that of all positions costs ``line`` more.

    Args:
        wanted: by row.
        length: ``S``, which costs no line, since the clean runs have it.
        line: cost of a line, in positions of rows.
    """
    sizes, counts = np.unique(wanted, return_counts=True)
    below = np.concatenate([[0], np.cumsum(counts)])  # rows that need at most the size before
    # best[n][i]: the least cost of the rows of the first i sizes in n lines, and the last cut.
    best: list[dict[int, tuple[float, tuple[int, ...]]]] = [{0: (0.0, ())}]
    for _ in range(MOST_LINES):
        step: dict[int, tuple[float, tuple[int, ...]]] = {}
        for i, size in enumerate(sizes, 1):
            ways = [
                (cost + line + float(size) * (below[i] - below[j]), (*cuts, int(size)))
                for j, (cost, cuts) in best[-1].items()
                if j < i
            ]
            if ways:
                step[i] = min(ways)
        best.append(step)
    rest = lambda i: float(length) * (below[-1] - below[i])  # noqa: E731
    _, cuts = min((cost + rest(i), cuts) for each in best for i, (cost, cuts) in each.items())
    ends = np.array([*cuts, length])
    return ends[np.searchsorted(ends, wanted)]


def worth_it(
    wanted: Int[np.ndarray, " M"], prompts: int, length: int, config: ModelConfig
) -> Int[np.ndarray, " M"]:
    """``few_lengths`` of a model: none that takes longer to compile than it saves.

    Args:
        wanted: how many positions each row needs.
        prompts: ``B``.
        length: ``S``, positions.
        config: the architecture.
    """
    weights = sum(inputs * outputs for inputs, outputs in matrix_sizes(config).values())
    # Of one position of one row, born half way up, of all prompts.
    operations = 2.0 * weights * config.num_layers / 2 * prompts
    line = COMPILATION["gpu" if default_platform() == "gpu" else "cpu"] / operations
    return few_lengths(wanted, length, line)


def misfit(suffixes: Suffixes, edits: Sequence[Edit], length: int, scheme: Scheme) -> str | None:
    """Why given suffixes cannot be used; None where they can.

    Args:
        suffixes: given.
        edits: batches of edits.
        length: ``S``, positions.
        scheme: the precision.
    """
    if not _counts(suffixes):
        return (
            f"suffixes are {suffixes!r:.60}, expected for each batch of edits a tuple of how many "
            "positions each row computes: ((3, 3, 5),)"
        )
    if not suffixes:
        return None
    if scheme.rounds_activations:
        return f"suffixes are given, but scheme {scheme.name!r} rounds over all positions"
    if scheme.compute_dtype != "float32":
        return (
            f"suffixes are given, but scheme {scheme.name!r} computes in {scheme.compute_dtype}, "
            "where products of another shape move bits: they are for f32"
        )
    wanted = [batches.rows(edit) for edit in edits]
    if [len(each) for each in suffixes] != wanted:
        return f"suffixes are {[len(each) for each in suffixes]} rows, expected {wanted}"
    if strange := [size for each in suffixes for size in each if not 1 <= size <= length]:
        return f"a suffix of {strange[0]} positions, expected 1 … {length}"
    return None


def _counts(suffixes: Any) -> bool:
    """Whether it is a sequence of sequences of ints."""
    if not isinstance(suffixes, tuple | list):
        return False
    if not all(isinstance(each, tuple | list) for each in suffixes):
        return False
    sizes = [size for each in suffixes for size in each]
    return all(isinstance(n, int | np.integer) and not isinstance(n, bool) for n in sizes)


def suffixes_of(
    edits: Sequence[Edit], lengths: Lengths, length: int, config: ModelConfig, scheme: Scheme
) -> Suffixes:
    """How many of the last positions to compute for each row; nothing where all it is.

    All where arrays are traced, so that nobody knows where they act, and where the scheme does not
    compute in unrounded f32: int8-sim's scale sees every position of an example, and in 16 bits
    products of another shape move bits by as much as the effects under study.

    Args:
        edits: batches of edits.
        lengths: real tokens of each prompt.
        length: ``S``, positions.
        config: the architecture.
        scheme: the precision.
    """
    arrays = [a for edit in edits for _, declared, a in edit.arrays() if declared.acts]
    if scheme.rounds_activations or scheme.compute_dtype != "float32" or length == 1:
        return ()
    if not arrays or any(isinstance(a, jax.core.Tracer) for a in arrays):
        return ()
    known = not isinstance(lengths, jax.core.Tracer)
    real = np.asarray(lengths) if known else np.full(np.shape(lengths), length)
    each = [needed(edit, real, length) for edit in edits]
    few = worth_it(np.concatenate(each), len(real), length, config)
    if (few == length).all():
        return ()
    ends = np.cumsum([len(rows) for rows in each])[:-1]
    return tuple(tuple(int(size) for size in rows) for rows in np.split(few, ends))
