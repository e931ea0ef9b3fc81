"""Correlations over heads of averages over prompts: inside strata, with intervals and a p-value.

*Strata* are groups of items that may be compared with each other: the heads of one layer, since
drift and importance both change with depth, or all heads. Values are centred (ranks are taken)
inside each stratum, and the permutation exchanges items of one stratum only. So a correlation
inside layers says nothing about depth.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from jaxalign.measures import stats
from jaxalign.measures.estimates import NOTHING, Estimate, number

FEWEST = 5  # items: a few in a line by chance have a correlation of ±1, and an interval of no width
AT_ONCE = 1 << 24  # values of resamples and permutations at a time
Strata = tuple[Int[np.ndarray, "_ _"], ...]


@dataclass(frozen=True, kw_only=True)
class HeadEstimate:
    """A correlation over heads; None where it cannot be estimated.

    Attributes:
        value: the correlation of the averages over prompts.
        over_prompts: its 95 % interval for other prompts and these heads.
        over_heads: its 95 % interval for other prompts and other heads of such layers: the one
            that generalises to other heads.
        p: how often heads exchanged at random (inside their layer, where the correlation is) are
            as far from 0.
        p_adjusted: ``p`` corrected for the family of tests that it belongs to.
    """

    value: float | None = None
    over_prompts: tuple[float, float] | None = None
    over_heads: tuple[float, float] | None = None
    p: float | None = None
    p_adjusted: float | None = None

    @property
    def estimate(self) -> Estimate:
        """The value with the interval over heads and prompts, the one that generalises."""
        low, high = self.over_heads or (None, None)
        return Estimate(self.value, low, high, self.p, self.p_adjusted)


def strata_of(groups: Int[np.ndarray, " items"]) -> Strata:
    """Items by group, groups of one size together: ``[strata, size]`` of places, one for each size.

    Args:
        groups: of each item; all 0 where any two items may be compared.
    """
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    sizes = sorted({len(own) for own in members})
    return tuple(np.stack([own for own in members if len(own) == size]) for size in sizes)


def prepared(
    x: Float[np.ndarray, "*rows items"], strata: Strata, *, rank: bool
) -> Float[np.ndarray, "*rows items"]:
    """Values, or ranks inside strata, less the stratum's mean.

    Args:
        x: rows of values.
        strata: from ``strata_of``.
        rank: whether ranks take the values' place (Spearman's correlation).
    """
    out = np.empty(x.shape)
    for places in strata:
        own = x[..., places]
        own = stats.ranks(own) if rank else own
        out[..., places] = own - own.mean(axis=-1, keepdims=True)
    return out


def cosine(
    x: Float[np.ndarray, "*rows items"], y: Float[np.ndarray, "*rows items"]
) -> Float[np.ndarray, "*rows"]:
    """``x·y / (‖x‖ ‖y‖)`` of prepared values, which is their correlation; NaN where one is 0."""
    scale = np.sqrt((x**2).sum(axis=-1) * (y**2).sum(axis=-1))
    none = scale <= stats.TIE * np.abs(x).max(initial=0) * np.abs(y).max(initial=0)
    return np.where(none, np.nan, (x * y).sum(axis=-1) / np.where(none, 1, scale))


def without(
    x: Float[np.ndarray, "*rows items"], z: Float[np.ndarray, "*rows items"]
) -> Float[np.ndarray, "*rows items"]:
    """What is left of prepared ``x`` after its regression on prepared ``z``."""
    size = (z**2).sum(axis=-1, keepdims=True)
    slope = (x * z).sum(axis=-1, keepdims=True) / np.where(size == 0, 1, size)
    return x - slope * z


def correlate_means(
    x: Float[np.ndarray, "P items"],
    y: Float[np.ndarray, "P items"],
    rng: np.random.Generator,
    *,
    groups: Int[np.ndarray, " items"] | None = None,
    given: Float[np.ndarray, "P items"] | None = None,
    rank: bool = False,
    test: bool = True,
) -> HeadEstimate:
    """Correlation over items (heads) of two averages over prompts.

    Args:
        x, y: one value a prompt and item, all finite.
        rng: draws resamples and permutations.
        groups: the layer of each item, to compare inside layers; None compares all items.
        given: a third value that is held fixed: the partial correlation, of what a regression on it
            (inside strata) leaves.
        rank: Spearman's correlation instead of Pearson's.
        test: whether the p-value is computed. Where all permutations are fewer than
            ``stats.PERMUTATIONS``, each is made once and the p-value is exact.
    """
    values = [x, y] if given is None else [x, y, given]
    groups = np.zeros(x.shape[1], int) if groups is None else groups
    strata = strata_of(groups)

    def sides(means: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        a, b, *held = (prepared(each, strata, rank=rank) for each in means)
        return (without(a, held[0]), without(b, held[0])) if held else (a, b)

    a, b = sides([each.mean(axis=0) for each in values])
    value = float(cosine(a, b)) if x.shape[1] > 2 else math.nan
    # One prompt has no spread to resample, so there is no interval and nothing to report.
    if not math.isfinite(value) or len(x) < 2:
        return HeadEstimate()
    weights = stats.bootstrap_weights(len(x), rng)
    means = [weights @ each for each in values]
    drawn = _resampled(strata, len(weights), rng)
    other_heads = [np.take_along_axis(each, drawn, axis=-1) for each in means]
    return HeadEstimate(
        value=value,
        over_prompts=_interval(cosine(*sides(means))),
        over_heads=_interval(cosine(*sides(other_heads))),
        p=permutation_p(a, b, strata, rng) if test else None,
    )


def _interval(samples: np.ndarray) -> tuple[float, float] | None:
    low, high = stats.interval(samples)
    return (low, high) if math.isfinite(low) else None


def _resampled(
    strata: Strata, samples: int, rng: np.random.Generator
) -> Int[np.ndarray, "samples items"]:
    """Items drawn with replacement from the stratum of each."""
    out = np.empty((samples, sum(places.size for places in strata)), int)
    for places in strata:
        chosen = rng.integers(0, places.shape[1], (samples, *places.shape))
        out[:, places] = np.take_along_axis(np.broadcast_to(places, chosen.shape), chosen, axis=-1)
    return out


def permutation_p(
    a: Float[np.ndarray, " items"],
    b: Float[np.ndarray, " items"],
    strata: Strata,
    rng: np.random.Generator,
) -> float:
    """p-value, two-sided, of "inside strata, items of the two sides do not correspond".

    Args:
        a, b: prepared values.
        strata: inside which items are exchanged.
        rng: draws the permutations where there are too many to make them all.
    """
    # Exchanging items moves neither the mean nor the spread of a side, only the product.
    found = abs(float(a @ b))
    tie = stats.TIE * float(np.sqrt((a @ a) * (b @ b)))
    ways = math.prod(math.factorial(places.shape[1]) ** len(places) for places in strata)
    if ways <= stats.PERMUTATIONS:
        null = np.array([a @ b[order] for order in _every_order(strata, len(a))])
        return float((np.abs(null) >= found - tie).mean())
    null = np.zeros(stats.PERMUTATIONS)
    for places in strata:
        for rows in _parts(stats.PERMUTATIONS, places.size):
            shape = (len(null[rows]), *places.shape)
            mixed = rng.permuted(np.broadcast_to(b[places], shape), axis=-1)
            null[rows] += np.einsum("pgs,gs->p", mixed, a[places])
    return (1 + int((np.abs(null) >= found - tie).sum())) / (1 + stats.PERMUTATIONS)


def rank_correlation(
    x: Float[np.ndarray, " items"], y: Float[np.ndarray, " items"], rng: np.random.Generator
) -> Estimate:
    """Spearman's correlation, its interval over items (bootstrap) and its p by permutation.

    Args:
        x, y: paired values, all finite.
        rng: resamples items, then permutes them.

    Returns:
        None throughout for fewer than ``FEWEST`` items, or where one side does not vary.
    """
    count = len(x)
    value = float(stats.pearson(stats.ranks(x), stats.ranks(y))) if count >= FEWEST else math.nan
    if not math.isfinite(value):
        return NOTHING
    resampled = []
    for rows in _parts(stats.BOOTSTRAP_SAMPLES, count):
        drawn = rng.integers(0, count, (len(range(stats.BOOTSTRAP_SAMPLES)[rows]), count))
        resampled.append(stats.pearson(stats.ranks(x[drawn]), stats.ranks(y[drawn])))
    low, high = map(number, stats.interval(np.concatenate(resampled)))
    strata = strata_of(np.zeros(count, int))
    a, b = (prepared(each, strata, rank=True) for each in (x, y))
    return Estimate(value, low, high, permutation_p(a, b, strata, rng))


def _parts(rows: int, items: int) -> Iterator[slice]:
    """Rows of ``items`` values each, ``AT_ONCE`` values at a time."""
    size = max(1, AT_ONCE // max(1, items))
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def _every_order(strata: Strata, count: int) -> Iterator[np.ndarray]:
    rows = [list(row) for places in strata for row in places]
    for orders in itertools.product(*(itertools.permutations(row) for row in rows)):
        order = np.empty(count, int)
        for row, mixed in zip(rows, orders, strict=True):
            order[row] = mixed
        yield order
