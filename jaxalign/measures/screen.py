"""How well the estimates of a screen agree with exact values, on items drawn at random.

A *screen* estimates the effect of many items (heads, pairs of a layer and a position) cheaply, and
computes few of them exactly: those that it puts first, and a random sample of those that it drops.
Only the sample says how far the estimates of the dropped ones can be trusted: those in front were
chosen by their estimate, so they agree better or worse than the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats as scipy_stats

from jaxalign.errors import InputError
from jaxalign.measures import stats
from jaxalign.measures.correlation import FEWEST, rank_correlation
from jaxalign.measures.estimates import NOTHING, Estimate, number
from jaxalign.shapes import Float

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Estimates beside exact values of the same items.

    Attributes:
        items: how many items were compared.
        spearman: rank correlation over items; its interval is over other items (bootstrap), its
            p-value of exchanging them. None throughout for fewer than five, or where one side
            does not vary.
        slope: of the line ``exact ≈ intercept + slope · estimate`` by least squares: 1 is
            calibrated, below 1 the estimates are too large. Interval as above, no p-value.
        worst_miss: the largest ``|exact − estimate|``, in the effects' unit; None without items.
        worst: which item that is, a place in the arrays; None without items.
        largest: the largest ``|exact|`` of the items; None without items.
    """

    items: int
    spearman: Estimate = NOTHING
    slope: Estimate = NOTHING
    worst_miss: float | None = None
    worst: int | None = None
    largest: float | None = None


def agreement(
    estimated: Float[np.ndarray, " items"],
    exact: Float[np.ndarray, " items"],
    rng: np.random.Generator,
) -> Agreement:
    """Compare the estimates of a screen with exact values.

    Args:
        estimated: of each item, finite.
        exact: of the same items, in the same unit, finite.
        rng: draws resamples and permutations (``stats.generator``).

    Raises:
        InputError: a value that is not finite.

    Example:
        >>> agreement(np.arange(5.0), 2 * np.arange(5.0), generator(0)).slope.value
        2.0
    """
    estimated, exact = (np.asarray(values, np.float64) for values in (estimated, exact))
    if not (np.isfinite(estimated).all() and np.isfinite(exact).all()):
        raise InputError("an estimate or an exact value is not finite", "leave its item out")
    if not len(exact):
        return Agreement(items=0)
    miss = np.abs(exact - estimated)
    return Agreement(
        items=len(exact),
        spearman=rank_correlation(estimated, exact, rng),
        slope=_slope(estimated, exact, rng),
        worst_miss=float(miss.max()),
        worst=int(miss.argmax()),
        largest=float(np.abs(exact).max()),
    )


def missed_at_most(sampled: int, missed: int, dropped: int) -> int:
    """How many of the dropped items may be as those ``missed`` in the sample, at 95 % confidence.

    The largest number ``K`` among ``dropped`` for which a sample without replacement still has as
    few as ``missed`` of them with a probability above 5 % (hypergeometric, one-sided).

    Args:
        sampled: items of the random sample.
        missed: those of them that the screen should not have dropped.
        dropped: all items that were dropped, the sampled ones included.

    Example:
        >>> missed_at_most(sampled=20, missed=0, dropped=200)
        26
    """
    counts = np.arange(missed, dropped - (sampled - missed) + 1)
    likely = scipy_stats.hypergeom.cdf(missed, dropped, counts, sampled) > 1 - CONFIDENCE
    return int(counts[likely].max())


def _slope(estimated: np.ndarray, exact: np.ndarray, rng: np.random.Generator) -> Estimate:
    count = len(exact)
    value = number(float(_slopes(estimated, exact)))
    if count < FEWEST or value is None:
        return NOTHING
    drawn = rng.integers(0, count, (stats.BOOTSTRAP_SAMPLES, count))
    low, high = map(number, stats.interval(_slopes(estimated[drawn], exact[drawn])))
    return Estimate(value, low, high)


def _slopes(
    estimated: Float[np.ndarray, "*rows items"], exact: Float[np.ndarray, "*rows items"]
) -> Float[np.ndarray, "*rows"]:
    """Least squares' slope of each row; NaN where the estimates do not vary."""
    x = estimated - estimated.mean(axis=-1, keepdims=True)
    y = exact - exact.mean(axis=-1, keepdims=True)
    spread = (x**2).sum(axis=-1)
    flat = spread <= (stats.TIE * np.abs(estimated).max(initial=0)) ** 2
    return np.where(flat, np.nan, (x * y).sum(axis=-1) / np.where(flat, 1, spread))
