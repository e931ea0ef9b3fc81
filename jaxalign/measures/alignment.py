"""Alignment of two dictionaries or two sets of activations, every value beside its null.

A value alone says nothing: independent Gaussian dictionaries of width 2048 and 8192 features have
a mean cosine of 0.41 after Procrustes. ``align`` gives each value beside what chance gives at the
same sizes, and beside the *seed floor*: what two dictionaries give that were trained at one
precision and differ in their seed. Two precisions are alike only where they are as alike as that.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np

from jaxalign.errors import InputError, counted, require_type
from jaxalign.measures import stats
from jaxalign.measures.cka import ACTIVATION_MEASURES, Centred, centred, cka_of_orders
from jaxalign.measures.cosines import (
    DICTIONARY_MEASURES,
    dictionary_values,
    directions,
    unavailable,
)
from jaxalign.measures.estimates import NOTHING, adjusted, number
from jaxalign.shapes import Float, Leaf

Kind = Literal["dictionaries", "activations"]
MEASURES = {"dictionaries": DICTIONARY_MEASURES, "activations": ACTIVATION_MEASURES}
# By measure, the values of every pair of seeds; none of a measure that sizes rule out.
SeedFloor = Mapping[str, tuple[float, ...]]
# What computes the parts of a work, by its name and their number: see ``one_after_another``.
Each = Callable[[str, int, Callable[[int], np.ndarray]], list[np.ndarray]]

FEWEST_SEEDS = 2
DRAWS = 100
SEED = 42
# Draws of a null that are computed together; those of activations share their Gram matrices.
TOGETHER = {"dictionaries": 1, "activations": 25}


@dataclass(frozen=True, kw_only=True)
class Aligned:
    """One measure of alignment beside its null and its seed floor.

    Attributes:
        value: the measure, without unit; None where it cannot be had.
        null_mean, null_sd: mean and standard deviation (over n − 1) of the null's draws; None
            without a value or draws, and the deviation of a single draw.
        z: ``(value − null_mean) / null_sd``; None where the null does not vary.
        p: ``(1 + hits) / (1 + n)`` of "the null gives this much or more", one-sided: only more
            alignment than chance counts. Never 0; None without draws.
        p_adjusted: corrected for the measures that ``align`` took (Benjamini–Hochberg).
        floor_mean, floor_sd: of the seed floor's pairs; None without one, and the deviation of a
            single pair.
        floor_p: of "the value is one more pair of seeds", two-sided (``stats.beyond_pairs``). None
            for fewer than three seeds.
        floor_p_adjusted: corrected as ``p_adjusted``.
        missing: why there is no value; None where there is one.
        null, floor: the measure of every draw of the null and of every pair of seeds.

    Source:
        The p-value: Phipson and Smyth 2010.
    """

    value: float | None = None
    null_mean: float | None = None
    null_sd: float | None = None
    z: float | None = None
    p: float | None = None
    p_adjusted: float | None = None
    floor_mean: float | None = None
    floor_sd: float | None = None
    floor_p: float | None = None
    floor_p_adjusted: float | None = None
    missing: str | None = None
    null: tuple[float, ...] = ()
    floor: tuple[float, ...] = ()


def one_after_another(
    work: str, count: int, compute: Callable[[int], np.ndarray]
) -> list[np.ndarray]:
    """The parts of a work, in order: what ``align`` uses unless a caller keeps or shows them.

    Args:
        work: "value", "floor" or "null".
        count: how many parts it has.
        compute: a part by its number, from 0; the same for the same number, in any order.
    """
    return [compute(number) for number in range(count)]


def align(
    first: Leaf,
    second: Leaf,
    *,
    kind: Kind = "dictionaries",
    draws: int = DRAWS,
    seed: int = SEED,
    floor: Sequence[Leaf] | SeedFloor = (),
    each: Each = one_after_another,
) -> dict[str, Aligned]:
    """Every measure of alignment by name, each beside its null.

    *Dictionaries*: ``raw``, ``mutual``, ``procrustes``, ``mutual_procrustes`` and ``held_out``
    (``cosines.dictionary_values``). The null keeps the first and draws the second anew: independent
    Gaussian features, as many, of the second's width and norms. Such a dictionary knows nothing of
    the first, so what it still reaches comes of the sizes and of the first's own geometry (features
    that crowd together), which a null that drew both would lose. Directions of Gaussian features do
    not depend on their norms and no measure sees a norm, so they are drawn with norm 1. The null is
    isotropic: two dictionaries that fill the same part of the width beat it without a feature in
    common, which is what the seed floor is for.

    *Activations*: ``cka`` and ``debiased_cka`` (``measures.cka``). The null permutes the second's
    tokens, which keeps both sets and breaks which token is which; tokens count as exchangeable.

    A draw costs what the value costs: at 2048 × 8192 a Procrustes takes seconds and a matching
    longer, so large sizes want fewer ``draws``.

    Args:
        first, second: real ``[features, width]`` (a decoder, or an encoder transposed), or
            ``[tokens, width]`` of the same tokens; widths of activations may differ.
        kind: "dictionaries" or "activations".
        draws: of the null, 0 for none.
        seed: of the draws and of the split of ``held_out``.
        floor: dictionaries (activations) of one precision and different seeds, or what
            ``seed_floor`` gave for them.
        each: computes the parts of the work "value" (one), then of "floor" (a pair each), then of
            "null" (``parts_of`` many), so that a caller can show and keep them.

    Returns:
        The measures in the order above; without a value where sizes rule one out.

    Raises:
        InputError: an argument of the wrong type; values that are not finite; dictionaries of
            different widths, with fewer than 2 features or features of norm 0; activations of
            different numbers of tokens, of fewer than 4, or that do not vary; a floor of one seed
            or of other sizes than the first.

    Example:
        >>> align(decoder, decoder_int4, draws=20, floor=[decoder, other_seed])["raw"].p
        0.047619047619047616
    """
    require_type("draws", draws, int, "a number of draws, 0 or more")
    require_type("seed", seed, int, "an integer, 0 or more")
    if draws < 0 or seed < 0:
        raise InputError(f"draws is {draws} and seed is {seed}", "give 0 or more of both")
    kind = _known(kind)
    ours, theirs = _prepared((first, second), ("the first", "the second"), kind)
    missing = _missing(ours, theirs, kind)
    if not isinstance(floor, Mapping):
        _refuse_other_sizes(first, floor)
    [found] = each("value", 1, lambda _: _values(ours, theirs, kind, seed))
    if not isinstance(floor, Mapping):
        floor = seed_floor(floor, kind=kind, seed=seed, each=each) if len(floor) else {}
    at_once = TOGETHER[kind]
    null = each(
        "null",
        parts_of(kind, draws),
        lambda part: _null(
            ours, theirs, kind, seed, range(part * at_once, min(draws, (part + 1) * at_once))
        ),
    )
    drawn = np.concatenate([np.empty((0, len(found))), *null])
    return _corrected(
        {
            name: Aligned(missing=missing[name])
            if name in missing
            else _beside(float(found[i]), drawn[:, i].tolist(), floor.get(name, ()))
            for i, name in enumerate(MEASURES[kind])
        }
    )


def parts_of(kind: Kind, draws: int) -> int:
    """How many parts the draws of a null are computed in.

    Args:
        kind: "dictionaries" or "activations".
        draws: of the null.
    """
    return -(-draws // TOGETHER[kind])


def seed_floor(
    sets: Sequence[Leaf],
    *,
    kind: Kind = "dictionaries",
    seed: int = SEED,
    each: Each = one_after_another,
) -> dict[str, tuple[float, ...]]:
    """Every measure of every pair of seeds: what a difference in seed alone leaves of alignment.

    Args:
        sets: dictionaries (activations of the same tokens) of one precision, one for each seed,
            as ``align`` takes them; 2 or more, of the sizes that are compared.
        kind: "dictionaries" or "activations".
        seed: of the split of ``held_out``.
        each: computes the parts of the work "floor", one a pair.

    Returns:
        By measure a value a pair, in the order (0, 1), (0, 2), …; the former is the one that is
        rotated. Empty where sizes rule the measure out.

    Raises:
        InputError: fewer than 2 seeds, or as ``align``.

    Example:
        >>> seed_floor([decoder, other_seed])["mutual"]
        (0.03125,)
    """
    kind = _known(kind)
    if len(sets) < FEWEST_SEEDS:
        raise InputError(
            f"a seed floor of {counted(len(sets), 'seed')} has no pair",
            f"give {FEWEST_SEEDS} or more, or none for no floor",
        )
    names = [f"seed {i} of the floor" for i in range(len(sets))]
    ready = _prepared(sets, names, kind)
    pairs = list(itertools.combinations(ready, 2))
    found = each("floor", len(pairs), lambda number: _values(*pairs[number], kind, seed))
    columns = np.stack(found, axis=-1)
    return {
        name: tuple(float(value) for value in column if not np.isnan(value))
        for name, column in zip(MEASURES[kind], columns, strict=True)
    }


def _known(kind: str) -> Kind:
    if kind not in MEASURES:
        raise InputError(f"kind {kind!r} is unknown", f"use {' or '.join(MEASURES)}")
    return cast(Kind, kind)


def _refuse_other_sizes(first: Leaf, floor: Sequence[Leaf]) -> None:
    for i, one in enumerate(floor):
        if np.shape(one) != np.shape(first):
            raise InputError(
                f"seed {i} of the floor is {list(np.shape(one))} and the first "
                f"{list(np.shape(first))}, and every measure depends on sizes",
                "give a floor of the same sizes",
            )


def _prepared(sets: Sequence[Leaf], names: Sequence[str], kind: Kind) -> list[Any]:
    """The sets as the measures take them: directions of one width, or centred activations."""
    if kind == "activations":
        return [centred(one, name) for one, name in zip(sets, names, strict=True)]
    ready = [directions(one, name) for one, name in zip(sets, names, strict=True)]
    width = ready[0].shape[1]
    for one, name in zip(ready, names, strict=True):
        if one.shape[1] != width:
            raise InputError(
                f"{names[0]} has width {width} and {name} {one.shape[1]}",
                "compare dictionaries of one site",
            )
    return ready


def _missing(first: Any, second: Any, kind: Kind) -> dict[str, str]:
    """Why some measures have no value."""
    if kind == "activations":
        return {}
    return unavailable(len(first), len(second), first.shape[1])


def _values(first: Any, second: Any, kind: Kind, seed: int) -> Float[np.ndarray, " measures"]:
    """Every measure of a pair, NaN where sizes rule it out."""
    if kind == "activations":
        return _orders(first, second, [np.arange(len(second.x))])[0]
    found = dictionary_values(first, second, seed)
    return np.array([found.get(name, np.nan) for name in DICTIONARY_MEASURES])


def _null(
    first: Any, second: Any, kind: Kind, seed: int, draws: Sequence[int]
) -> Float[np.ndarray, "draws measures"]:
    """Every measure of some draws of the null, each by its own number."""
    generators = [stats.generator(seed, "alignment", "null", str(draw)) for draw in draws]
    if kind == "activations":
        return _orders(first, second, [rng.permutation(len(second.x)) for rng in generators])
    drawn = [
        directions(rng.standard_normal(second.shape, np.float32), "a draw of the null")
        for rng in generators
    ]
    return np.stack([_values(first, one, kind, seed) for one in drawn])


def _orders(
    first: Centred, second: Centred, orders: Sequence[np.ndarray]
) -> Float[np.ndarray, "orders measures"]:
    return cka_of_orders(first, second, np.stack(orders))


def _beside(value: float, null: Sequence[float], floor: Sequence[float]) -> Aligned:
    null_mean, null_sd = _spread(null)
    floor_mean, floor_sd = _spread(floor)
    z = p = None
    if null_mean is not None:
        hits = sum(draw >= value - stats.TIE for draw in null)
        p = (1 + hits) / (1 + len(null))
    if null_mean is not None and null_sd is not None and null_sd > stats.TIE:
        z = (value - null_mean) / null_sd
    return Aligned(
        value=value,
        null_mean=null_mean,
        null_sd=null_sd,
        z=z,
        p=p,
        floor_mean=floor_mean,
        floor_sd=floor_sd,
        floor_p=number(stats.beyond_pairs(value, np.array(floor, np.float64))),
        null=tuple(null),
        floor=tuple(floor),
    )


def _corrected(found: dict[str, Aligned]) -> dict[str, Aligned]:
    """The measures with both p-values corrected for how many measures there are."""
    beside_null = adjusted(list(found.values()))
    beside_floor = adjusted([replace(NOTHING, p=one.floor_p) for one in found.values()])
    return {
        name: replace(one, floor_p_adjusted=other.p_adjusted)
        for name, one, other in zip(found, beside_null, beside_floor, strict=True)
    }


def _spread(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and standard deviation over n − 1; None where there are too few values."""
    mean = float(np.mean(values)) if len(values) else None
    return mean, float(np.std(values, ddof=1)) if len(values) > 1 else None
