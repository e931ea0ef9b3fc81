"""How many of its prompts' last positions each row of a sweep has to compute.

A position of a causal model never sees those after it. So an edit that acts from position ``p`` on
changes nothing before it, in any layer, and its row needs the positions from ``p`` to the last real
one only. Such rows share bins of one size (``engine.packing``) in a line of their own, which is not
worth its compilation where that takes longer than it saves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxalign.edits import batch as batches
from jaxalign.edits.site import Edit
from jaxalign.engine.line import births
from jaxalign.model.config import ModelConfig
from jaxalign.model.size import matrix_sizes
from jaxalign.numerics.scheme import Scheme
from jaxalign.runtime.compile import default_platform
from jaxalign.shapes import Int, Lengths


@dataclass(frozen=True)
class Suffixes:
    """How many of the prompts' last positions each row of a sweep computes.

    Attributes:
        sizes: for each batch of edits, for each row; nothing for all positions of all rows.
        births: of all rows one behind the other, the first step that each touches on any prompt
            (``edits.batch.touched``), one past the last for none; None where that is not known.
    """

    sizes: tuple[tuple[int, ...], ...] = ()
    births: tuple[int, ...] | None = None


WHOLE = Suffixes()

# Floating-point operations that take about as long as compiling one more line (two to six
# seconds of two CPU cores, benchmarks/LOG.md).
COMPILATION = {"cpu": 5e11, "gpu": 5e13}


def needed(edit: Edit, lengths: Int[np.ndarray, " B"], length: int) -> Int[np.ndarray, " M"]:
    """How many positions each row of a batch of edits changes, its longest prompt's; at least 1.

    Args:
        edit: a batch of edits, its arrays known.
        lengths: real tokens of each prompt.
        length: ``S``, positions.
    """
    first = batches.first_positions(edit, len(lengths), length)
    return np.clip(lengths[None] - first, 1, length).max(axis=1)


def worth_it(
    wanted: Int[np.ndarray, " M"],
    through: Int[np.ndarray, " M"],
    prompts: int,
    length: int,
    config: ModelConfig,
    *,
    alone: bool = False,
) -> Int[np.ndarray, " M"]:
    """How many positions each row computes at the least cost of all: what it needs, or all.

    Rows that need no more than a bin holds are packed into bins, by the step they begin at; the
    others compute all positions. None is packed where that saves less than compiling takes.

    Args:
        wanted: how many positions each row needs.
        through: how many layers each row passes.
        prompts: ``B``.
        length: ``S``, positions.
        config: the architecture.
        alone: whether each row has a bin of its own, and computes all that this holds.
    """
    whole = float(length * through.sum())

    def cost(capacity: int) -> float:
        small = wanted <= capacity
        bins = np.bincount(through[small], np.ones(small.sum()) if alone else wanted[small])
        count = bins if alone else np.ceil(bins / capacity)
        held = capacity * (count * np.arange(len(count))).sum()
        return float(held + length * through[~small].sum())

    ways = [(cost(size), size) for size in np.unique(wanted[wanted < length]).tolist()]
    least, capacity = min(ways, default=(whole, length))
    weights = sum(inputs * outputs for inputs, outputs in matrix_sizes(config).values())
    saved = 2.0 * weights * prompts * (whole - least)
    if saved <= COMPILATION["gpu" if default_platform() == "gpu" else "cpu"]:
        return np.full_like(wanted, length)
    return np.where(wanted <= capacity, capacity if alone else wanted, length)


def given(
    suffixes: Any,
    edits: Sequence[Edit],
    lengths: Lengths,
    length: int,
    config: ModelConfig,
    scheme: Scheme,
) -> Suffixes:
    """Suffixes that a caller gives, checked as far as it is known where edits act.

    Args:
        suffixes: ``Suffixes``, or their sizes.
        edits: batches of edits.
        lengths: real tokens of each prompt.
        length: ``S``, positions.
        config: the architecture.
        scheme: the precision.

    Raises:
        ValueError: they are of another form, of other rows or positions, for another precision than
            f32, or an edit breaks what they promise.
    """
    sizes, begin = suffixes, None
    if isinstance(suffixes, Suffixes):
        sizes, begin = suffixes.sizes, suffixes.births
    if not _counts(sizes):
        raise ValueError(
            f"suffixes are {sizes!r:.60}, expected for each batch of edits a tuple of how many "
            "positions each row computes: ((3, 3, 5),)"
        )
    if not sizes:
        return WHOLE
    found = Suffixes(tuple(tuple(int(n) for n in each) for each in sizes), begin)
    if problem := _misfit(found, edits, length, scheme):
        raise ValueError(problem)
    if problem := _broken(found, edits, lengths, length, config):
        raise ValueError(problem)
    return found


def _misfit(suffixes: Suffixes, edits: Sequence[Edit], length: int, scheme: Scheme) -> str | None:
    """Why suffixes do not fit rows, positions or the scheme."""
    if scheme.rounds_activations:
        return f"suffixes are given, but scheme {scheme.name!r} rounds over all positions"
    if scheme.compute_dtype != "float32":
        return (
            f"suffixes are given, but scheme {scheme.name!r} computes in {scheme.compute_dtype}, "
            "where products of another shape move bits: they are for f32"
        )
    rows, wanted = [len(each) for each in suffixes.sizes], [batches.rows(edit) for edit in edits]
    if rows != wanted:
        return f"suffixes are {rows} rows, expected {wanted}"
    if strange := [n for each in suffixes.sizes for n in each if not 1 <= n <= length]:
        return f"a suffix of {strange[0]} positions, expected 1 … {length}"
    begin, total = suffixes.births, sum(rows)
    if begin is not None and not (_counts((begin,)) and len(begin) == total):
        return f"births are {begin!r:.60}, expected a step for each of {total} rows, or None"
    return None


def _broken(
    suffixes: Suffixes, edits: Sequence[Edit], lengths: Lengths, length: int, config: ModelConfig
) -> str | None:
    """Which promise of suffixes is not kept, as far as it is known where edits act."""
    begins = iter(suffixes.births or ())
    for number, (edit, sizes) in enumerate(zip(edits, suffixes.sizes, strict=True)):
        begin = [next(begins, None) for _ in sizes]
        if not known(edit) or isinstance(lengths, jax.core.Tracer):
            continue
        wanted = needed(edit, np.asarray(lengths), length)
        for row in np.flatnonzero(wanted > np.array(sizes)).tolist()[:1]:
            return (
                f"row {row} of edit {number} acts {wanted[row]} positions before the end of a "
                f"prompt, expected at most {sizes[row]}, its suffix"
            )
        first = _begins(edit, len(lengths), config.num_layers).tolist()
        if suffixes.births is not None and begin != first:
            return f"births of edit {number} are {begin!r:.60}, expected {first!r:.60}"
    return None


def known(edit: Edit) -> bool:
    """Whether it is known where a batch of edits acts: none of its arrays there is traced.

    Args:
        edit: a batch of edits.
    """
    places = [array for _, declared, array in edit.arrays() if declared.acts]
    return bool(places) and not any(isinstance(array, jax.core.Tracer) for array in places)


def _begins(edit: Edit, batch: int, layers: int) -> Int[np.ndarray, " M"]:
    """The first step that each row of a batch of edits touches on any prompt."""
    return np.asarray(births(edit, batch, layers, np)).min(axis=1)


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
    if scheme.rounds_activations or scheme.compute_dtype != "float32" or length == 1:
        return WHOLE
    if not edits or not all(map(known, edits)):
        return WHOLE
    traced = isinstance(lengths, jax.core.Tracer)
    real = np.asarray(lengths) if not traced else np.full(np.shape(lengths), length)
    each = [needed(edit, real, length) for edit in edits]
    batch, layers = len(real), config.num_layers
    begin = np.concatenate([_begins(edit, batch, layers) for edit in edits])
    through = np.clip(layers + 1 - begin, 0, layers)
    sizes = worth_it(np.concatenate(each), through, batch, length, config)
    if (sizes == length).all():
        return WHOLE
    ends = np.cumsum([len(rows) for rows in each])[:-1]
    rows = tuple(tuple(part.tolist()) for part in np.split(sizes, ends))
    return Suffixes(rows, tuple(begin.tolist()))
