"""What is left of features: correlations, overlaps and slopes of sums, with intervals.

``ρ`` is Pearson's correlation of a feature's activation in f32, ``a``, and in the other precision,
``â``, over tokens. ``1 − ρ`` is what is lost. With ``d = â − a``, variances ``V`` and covariance
``C`` of ``a`` and ``d``::

    1 − ρ² = (V_a V_d − C²) / (V_a (V_a + 2C + V_d))        1 − ρ = (1 − ρ²) / (1 + ρ)

which stays exact where ``ρ`` is near 1. A rescaling alone (``d`` in proportion to ``a``) has ``ρ =
1`` and is told by the slope ``1 + C / V_a``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxalign.measures import stats
from jaxalign.measures.estimates import NOTHING, Estimate, number
from jaxalign.shapes import Bool, Float
from jaxalign.studies.features.moments import Moments

WORST = 0.05  # share of the features that "the worst" are
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
AT_ONCE = 50  # resamples of all features at a time
SUMS = ("tokens", "a", "d", "aa", "dd", "ad", "fired", "low_fired", "both")

Sums = Mapping[str, Float[np.ndarray, "..."]]


@dataclass(frozen=True, kw_only=True)
class Survival:
    """Every feature; NaN where it is not defined.

    Attributes:
        lost: ``1 − ρ``.
        overlap: tokens on which it is active in both over those on which it is in either (Jaccard).
        slope: of ``â`` on ``a``.
        rate: of tokens on which it is active in the other precision to those in f32.
    """

    lost: Float[np.ndarray, "*rows features"]
    overlap: Float[np.ndarray, "*rows features"]
    slope: Float[np.ndarray, "*rows features"]
    rate: Float[np.ndarray, "*rows features"]


def sums_of(moments: Moments) -> dict[str, Float[np.ndarray, "groups ..."]]:
    """The sums that survival is made of.

    Args:
        moments: of groups of documents.
    """
    return {name: np.asarray(getattr(moments, name)) for name in SUMS}


def survival(sums: Sums) -> Survival:
    """What is left of every feature.

    Args:
        sums: over the tokens: ``tokens`` ``[*rows]``, the others ``[*rows, features]``.
    """
    n = np.asarray(sums["tokens"])[..., None]
    with np.errstate(divide="ignore", invalid="ignore"):
        va = sums["aa"] - sums["a"] ** 2 / n
        vd = np.maximum(sums["dd"] - sums["d"] ** 2 / n, 0)
        c = sums["ad"] - sums["a"] * sums["d"] / n
        vb = va + 2 * c + vd
        apart = np.maximum(va * vd - c**2, 0) / (va * vb)
        rho = (va + c) / np.sqrt(va * vb)
        # Of opposite signs ρ is far from 1 and nothing is small.
        lost = np.where(rho > 0, apart / (1 + rho), 1 - rho)
        either = sums["fired"] + sums["low_fired"] - sums["both"]
        # A feature that is silent in the other precision has no correlation: nothing of it is left.
        silent = (va > 0) & ~(vb > 1e-12 * va)
        return Survival(
            lost=np.where(silent, 1.0, np.where(va > 0, lost, np.nan)),
            overlap=np.where(either > 0, sums["both"] / either, np.nan),
            slope=np.where(va > 0, 1 + c / va, np.nan),
            rate=np.where(sums["fired"] > 0, sums["low_fired"] / sums["fired"], np.nan),
        )


def judged(sums: Sums, least: int) -> Bool[np.ndarray, " features"]:
    """Features that are active in f32 often enough to be judged.

    Args:
        sums: of groups of documents.
        least: tokens.
    """
    return np.asarray(np.sum(sums["fired"], axis=0) >= least)


# One number of all features that are judged: what a scheme did to them.
SUMMARIES = ("median", "worst", "unlike")


def summaries(sums: Sums, kept: Bool[np.ndarray, " features"]) -> Float[np.ndarray, "... 3"]:
    """The median of what is lost, its mean over the worst features, the mean of ``1 − overlap``.

    Args:
        sums: over the tokens, ``[*rows, features]``.
        kept: features that are judged.
    """
    found = survival({name: v if v.ndim < 1 or name == "tokens" else v[..., kept]
                      for name, v in sums.items()})  # fmt: skip
    lost = np.sort(np.where(np.isfinite(found.lost), found.lost, 1.0), axis=-1)
    few = max(1, round(WORST * lost.shape[-1]))
    return np.stack(
        [
            np.median(lost, axis=-1),
            lost[..., -few:].mean(axis=-1),
            1 - _mean(found.overlap),
        ],
        axis=-1,
    )


def _mean(values: Float[np.ndarray, "*rows features"]) -> Float[np.ndarray, "*rows"]:
    """The mean of what is defined; NaN where nothing is."""
    there = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(there, values, 0).sum(axis=-1) / there.sum(axis=-1)


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Summaries of the texts and of resamples of their documents.

    Attributes:
        value: ``[3]``.
        resamples: ``[samples, 3]``.
    """

    value: Float[np.ndarray, " 3"]
    resamples: Float[np.ndarray, "samples 3"]


def drawn(
    sums: Sums, kept: Bool[np.ndarray, " features"], weights: Float[np.ndarray, "samples groups"]
) -> Drawn:
    """The summaries, and those of every resample of the documents.

    Args:
        sums: of groups of documents, ``[groups, …]``.
        kept: features that are judged.
        weights: how often each group is drawn in each resample, as a share.
    """
    flat = {name: v if name == "tokens" else v[:, kept] for name, v in sums.items()}
    every = np.ones(int(kept.sum()), bool)
    whole = summaries({name: v.sum(axis=0) for name, v in flat.items()}, every)
    parts = [
        summaries({n: w @ v for n, v in flat.items()}, every)
        for w in (weights[i : i + AT_ONCE] for i in range(0, len(weights), AT_ONCE))
    ]
    return Drawn(value=whole, resamples=np.concatenate(parts))


def estimate_of(found: Drawn, which: str) -> Estimate:
    """A summary with its interval over documents.

    Args:
        found: from ``drawn``.
        which: a name of ``SUMMARIES``.
    """
    at = SUMMARIES.index(which)
    low, high = stats.interval(found.resamples[:, at])
    return Estimate(number(found.value[at]), number(low), number(high))


def ratio(
    own: Drawn, floors: Sequence[Drawn], which: str, p: float | None, rng: np.random.Generator
) -> Estimate:
    """A summary over the mean of those of its floors, with an interval over documents and draws.

    Where features lose on few tokens alone, resamples that lack these lose less, of a scheme and of
    its floor unequally; the interval is then stretched to the value.

    Args:
        own: of the scheme.
        floors: one a draw of the floor, of the same resamples.
        which: a name of ``SUMMARIES``.
        p: of "the scheme does what the floor does".
        rng: resamples the draws.
    """
    at = SUMMARIES.index(which)
    if not floors:
        return NOTHING
    values = np.array([floor.value[at] for floor in floors])
    resamples = np.stack([floor.resamples[:, at] for floor in floors])  # [draws, samples]
    chosen = rng.integers(0, len(floors), (len(floors), resamples.shape[1]))
    mean = np.take_along_axis(resamples, chosen, axis=0).mean(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = own.value[at] / values.mean()
        low, high = stats.interval(own.resamples[:, at] / mean)
        low, high = np.fmin(low, value), np.fmax(high, value)
    return Estimate(number(value), number(low), number(high), None if p is None else number(p))


def change_by_group(
    sums: Sums, kept: Bool[np.ndarray, " features"]
) -> Float[np.ndarray, " groups"]:
    """How much features change in each group of documents: the mean over features of ``Σ d² / n``
    over the feature's variance, which is ``2 (1 − ρ)`` of small changes.

    Args:
        sums: of groups of documents.
        kept: features that are judged.
    """
    total = {name: sums[name].sum(axis=0) for name in ("tokens", "a", "aa")}
    variance = total["aa"] / total["tokens"] - (total["a"] / total["tokens"]) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        each = sums["dd"] / sums["tokens"][:, None] / variance[None]
    return _mean(each[:, kept])


def kendalls_w(shares: Float[np.ndarray, "thresholds schemes"]) -> float:
    """Kendall's W of the rankings of schemes by share at each threshold: 1 where all agree, 0 where
    they have nothing in common. Ties are corrected for.

    Args:
        shares: of features above each threshold.

    Returns:
        NaN for fewer than two schemes, or where no threshold tells them apart.

    Source:
        Kendall and Smith 1939; ties: Siegel and Castellan 1988, 9.6.
    """
    raters, items = shares.shape
    if items < 2:
        return float("nan")
    ranks = stats.ranks(shares)
    spread = ((ranks.sum(axis=0) - raters * (items + 1) / 2) ** 2).sum()
    ties = 0.0
    for row in shares:
        _, counts = np.unique(row, return_counts=True)
        ties += float((counts**3 - counts).sum())
    most = raters**2 * (items**3 - items) - raters * ties
    return float(12 * spread / most) if most > 0 else float("nan")
