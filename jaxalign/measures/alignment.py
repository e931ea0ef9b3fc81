"""Alignment of two dictionaries or two sets of activations, every value beside its null.

A value alone says nothing: independent Gaussian dictionaries of width 2048 and 8192 features have
a mean cosine of 0.41 after Procrustes. ``align`` gives each value beside what chance gives at the
same sizes, and beside the *seed floor*: what two dictionaries give that were trained at one
precision and differ in their seed. Two precisions are alike only where they are as alike as that.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np

from jaxalign.errors import InputError, counted, require_type
from jaxalign.measures import stats
from jaxalign.measures.cka import ACTIVATION_MEASURES, centred, cka_of_orders
from jaxalign.measures.cosines import (
    DICTIONARY_MEASURES,
    dictionary_values,
    directions,
    unavailable,
)
from jaxalign.shapes import Leaf

Kind = Literal["dictionaries", "activations"]
MEASURES = {"dictionaries": DICTIONARY_MEASURES, "activations": ACTIVATION_MEASURES}
# By measure, the values of every pair of seeds; none of a measure that sizes rule out.
SeedFloor = Mapping[str, tuple[float, ...]]
# What one pair gives, by measure; without those that sizes rule out.
Values = dict[str, float]

FEWEST_SEEDS = 2
DRAWS = 100
SEED = 42


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
        floor_mean, floor_sd: of the seed floor's pairs; None without one, and the deviation of a
            single pair.
        missing: why there is no value; None where there is one.

    Source:
        The p-value: Phipson and Smyth 2010.
    """

    value: float | None = None
    null_mean: float | None = None
    null_sd: float | None = None
    z: float | None = None
    p: float | None = None
    floor_mean: float | None = None
    floor_sd: float | None = None
    missing: str | None = None


def align(
    first: Leaf,
    second: Leaf,
    *,
    kind: Kind = "dictionaries",
    draws: int = DRAWS,
    seed: int = SEED,
    floor: Sequence[Leaf] | SeedFloor = (),
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
    if not isinstance(floor, Mapping):
        _refuse_other_sizes(first, floor)
        floor = seed_floor(floor, kind=kind, seed=seed) if len(floor) else {}
    names = "the first", "the second"
    found, null, missing = _compared((first, second), names, kind, draws, seed)
    return {
        name: Aligned(missing=missing[name])
        if name in missing
        else _beside(found[name], [draw[name] for draw in null], floor.get(name, ()))
        for name in MEASURES[kind]
    }


def seed_floor(
    sets: Sequence[Leaf], *, kind: Kind = "dictionaries", seed: int = SEED
) -> dict[str, tuple[float, ...]]:
    """Every measure of every pair of seeds: what a difference in seed alone leaves of alignment.

    Args:
        sets: dictionaries (activations of the same tokens) of one precision, one for each seed,
            as ``align`` takes them; 2 or more, of the sizes that are compared.
        kind: "dictionaries" or "activations".
        seed: of the split of ``held_out``.

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
    pairs = []
    for i, j in itertools.combinations(range(len(sets)), 2):
        names = f"seed {i} of the floor", f"seed {j} of the floor"
        pairs.append(_compared((sets[i], sets[j]), names, kind, 0, seed)[0])
    return {name: tuple(one[name] for one in pairs if name in one) for name in MEASURES[kind]}


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


def _compared(
    pair: tuple[Leaf, Leaf], names: tuple[str, str], kind: Kind, draws: int, seed: int
) -> tuple[Values, list[Values], dict[str, str]]:
    """The measures of a pair, those of each draw of its null, and why some have no value."""
    compare = _dictionaries if kind == "dictionaries" else _activations
    return compare(pair, names, draws, seed)


def _dictionaries(
    pair: tuple[Leaf, Leaf], names: tuple[str, str], draws: int, seed: int
) -> tuple[Values, list[Values], dict[str, str]]:
    first, second = (directions(one, name) for one, name in zip(pair, names, strict=True))
    if first.shape[1] != second.shape[1]:
        raise InputError(
            f"{names[0]} has width {first.shape[1]} and {names[1]} {second.shape[1]}",
            "compare dictionaries of one site",
        )
    rng = stats.generator(seed, "alignment", "null")
    null = []
    for _ in range(draws):
        drawn = directions(rng.standard_normal(second.shape, np.float32), "a draw of the null")
        null.append(dictionary_values(first, drawn, seed))
    found = dictionary_values(first, second, seed)
    return found, null, unavailable(len(first), len(second), first.shape[1])


def _activations(
    pair: tuple[Leaf, Leaf], names: tuple[str, str], draws: int, seed: int
) -> tuple[Values, list[Values], dict[str, str]]:
    first, second = (centred(one, name) for one, name in zip(pair, names, strict=True))
    tokens = np.arange(len(second.x))
    rng = stats.generator(seed, "alignment", "null")
    orders = np.stack([tokens, *(rng.permutation(tokens) for _ in range(draws))])
    found, *null = (
        dict(zip(ACTIVATION_MEASURES, map(float, one), strict=True))
        for one in cka_of_orders(first, second, orders)
    )
    return found, null, {}


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
    )


def _spread(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and standard deviation over n − 1; None where there are too few values."""
    mean = float(np.mean(values)) if len(values) else None
    return mean, float(np.std(values, ddof=1)) if len(values) > 1 else None
