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
from typing import Any

import numpy as np

from jaxalign.measures import stats
from jaxalign.measures.estimates import Estimate, number
from jaxalign.shapes import Bool, Float
from jaxalign.studies.features.moments import Moments

WORST = 0.05  # share of the features that "the worst" are
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
AT_ONCE = 1 << 22  # values of resamples at a time
SILENT = 1e-12  # share of its variance in f32 below which a feature counts as silent
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
        silent = (va > 0) & ~(vb > SILENT * va)
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
SUMMARIES = ("lost", "worst", "unlike")


def summaries(sums: Sums, kept: Bool[np.ndarray, " features"]) -> Float[np.ndarray, " 3"]:
    """The mean of ``1 − ρ²``, its mean over the worst features, the mean of ``1 − overlap``.

    Args:
        sums: of groups of documents, ``[groups, …]``.
        kept: features that are judged.
    """
    lost = unexplained(sums)[:, kept].sum(axis=0)
    lost = np.sort(np.where(np.isfinite(lost), lost, 1.0))
    few = max(1, round(WORST * len(lost)))
    overlap = survival({name: sums[name].sum(axis=0) for name in SUMS}).overlap[kept]
    return np.array([lost.mean(), lost[-few:].mean(), 1 - _mean(overlap)])


def _mean(values: Float[np.ndarray, "*rows features"]) -> Float[np.ndarray, "*rows"]:
    """The mean of what is defined; NaN where nothing is."""
    there = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(there, values, 0).sum(axis=-1) / there.sum(axis=-1)


def lost_over_documents(
    sums: Sums, kept: Bool[np.ndarray, " features"], weights: Float[np.ndarray, "samples groups"]
) -> Estimate:
    """The mean over features of ``1 − ρ²`` with its interval over documents.

    Args:
        sums: of groups of documents, ``[groups, …]``.
        kept: features that are judged.
        weights: how often each group is drawn in each resample, as a share.
    """
    own, spread = unexplained(sums)[:, kept], _spread(sums)[:, kept]
    size = max(1, AT_ONCE // own.shape[1])
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = [
            _mean((w @ own) / (w @ spread))
            for w in (weights[i : i + size] for i in range(0, len(weights), size))
        ]
    low, high = stats.interval(np.concatenate(drawn))
    return Estimate(number(float(_mean(own.sum(axis=0)))), number(low), number(high))


def unlike_over_documents(
    sums: Sums, kept: Bool[np.ndarray, " features"], weights: Float[np.ndarray, "samples groups"]
) -> Estimate:
    """The mean over features of one less the overlap of firings, with its interval over documents.

    Args:
        sums: of groups of documents, ``[groups, …]``.
        kept: features that are judged.
        weights: how often each group is drawn in each resample, as a share.
    """
    both, fired, low_fired = (sums[n][:, kept] for n in ("both", "fired", "low_fired"))
    either = fired + low_fired - both

    def unlike(both: np.ndarray, either: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return 1 - _mean(both / either)

    low, high = stats.interval(unlike(weights @ both, weights @ either))
    value = float(unlike(both.sum(axis=0), either.sum(axis=0)))
    return Estimate(number(value), number(low), number(high))


def unexplained(sums: Sums) -> Float[np.ndarray, "groups features"]:
    """What each group of documents adds to ``1 − ρ²``, the share of the variance of ``â`` that no
    line through ``a`` explains. The groups add up to it, and a rescaling adds nothing.

    Args:
        sums: of groups of documents, ``[groups, …]``.

    Returns:
        NaN where ``a`` does not vary; of a feature that is silent in the other precision the groups
        add up to 1.
    """
    total = {name: sums[name].sum(axis=0) for name in SUMS}
    n, each = total["tokens"], sums["tokens"][:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        va = total["aa"] - total["a"] ** 2 / n
        c = total["ad"] - total["a"] * total["d"] / n
        vb = va + 2 * c + total["dd"] - total["d"] ** 2 / n
        slope = c / va  # of d on a, through the means
        ground = (total["d"] - slope * total["a"]) / n
        residual = (
            sums["dd"] + slope**2 * sums["aa"] + ground**2 * each
            - 2 * slope * sums["ad"] - 2 * ground * sums["d"] + 2 * slope * ground * sums["a"]
        )  # fmt: skip
        share = np.maximum(residual, 0) / vb
        silent = (va > 0) & ~(vb > SILENT * va)
        found: Float[np.ndarray, "groups features"] = np.where(
            silent, each / n, np.where(va > 0, share, np.nan)
        )
    return found


def _spread(sums: Sums) -> Float[np.ndarray, "groups features"]:
    """Each group's share of the variance of ``â``."""
    tokens = sums["tokens"][:, None]
    low = sums["a"] + sums["d"]
    mean = low.sum(axis=0) / tokens.sum()
    square = sums["aa"] + 2 * sums["ad"] + sums["dd"] - 2 * mean * low + mean**2 * tokens
    total = square.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        silent = total <= SILENT * sums["aa"].sum(axis=0)
        share: Float[np.ndarray, "groups features"] = np.where(
            silent, tokens / tokens.sum(), square / total
        )
    return share


@dataclass(frozen=True, kw_only=True)
class Against:
    """A scheme over a floor.

    Attributes:
        ratio: of the means over features of ``1 − ρ²``, with an interval over documents and draws,
            and the p of "both are the same", by flipping the signs of the difference in each group
            of documents.
        worst: the same over the features that lose most in scheme and floor together; without p.
    """

    ratio: Estimate
    worst: Estimate


def against(
    own: Float[np.ndarray, "groups features"],
    floors: Sequence[Float[np.ndarray, "groups features"]],
    weights: Float[np.ndarray, "samples groups"],
    rng: np.random.Generator,
) -> Against:
    """Hold what a scheme takes from features against what a floor takes.

    Args:
        own: ``unexplained`` of the scheme, of the features that are judged.
        floors: of each draw of the floor.
        weights: how often each group is drawn in each resample, as a share.
        rng: resamples the draws, then flips the signs.
    """
    mean = np.mean(floors, axis=0)
    # Chosen by all draws alike, the scheme's one among them, so that chance favours neither side.
    lost = np.sum([own, *floors], axis=(0, 1))
    few = max(1, round(WORST * len(lost)))
    worst = np.argsort(-np.where(np.isfinite(lost), lost, 0), kind="stable")[:few]
    chosen = rng.integers(0, len(floors), (len(floors), len(weights)))

    def over(features: Any) -> tuple[float, float, float]:
        here = _mean(own[:, features])
        there = np.stack([_mean(floor[:, features]) for floor in floors])
        drawn = np.take_along_axis(there @ weights.T, chosen, axis=0).mean(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            low, high = stats.interval(weights @ here / drawn)
            return float(here.sum() / there.mean(axis=0).sum()), low, high

    difference = _mean(own) - _mean(mean)
    p = stats.sign_flip_p(difference, rng) if len(difference) > 1 else np.nan
    every, most = over(slice(None)), over(worst)
    value, low, high = map(number, every)
    return Against(ratio=Estimate(value, low, high, number(p)), worst=Estimate(*map(number, most)))


@dataclass(frozen=True, kw_only=True)
class Alike:
    """Whether a scheme and a floor damage the same features.

    Attributes:
        order: Spearman's correlation over features of what both take, with its interval over
            features and its p.
        shared: features that survive neither over those that do not survive one of them (Jaccard);
            NaN where all survive both.
    """

    order: Estimate
    shared: float


def alike(
    own: Float[np.ndarray, " features"],
    floor: Float[np.ndarray, " features"],
    survives: float,
    rng: np.random.Generator,
) -> Alike:
    """Hold which features a scheme damages against which a floor does.

    Args:
        own: ``1 − ρ²`` of the scheme, of the features that are judged.
        floor: of the floor, a mean over draws.
        survives: the correlation from which a feature survives.
        rng: resamples features and permutes them.
    """
    there = np.isfinite(own) & np.isfinite(floor)
    end = 1 - survives * abs(survives)
    damaged = np.array([own[there] > end, floor[there] > end])
    some = damaged.any(axis=0).sum()
    shared = float(damaged.all(axis=0).sum() / some) if some else float("nan")
    return Alike(order=spearman(own[there], floor[there], rng), shared=shared)


def spearman(
    x: Float[np.ndarray, " items"], y: Float[np.ndarray, " items"], rng: np.random.Generator
) -> Estimate:
    """Spearman's correlation with its interval over items, and its p by permutation.

    Args:
        x, y: paired values, all finite.
        rng: resamples items, then permutes them.
    """
    ranks = np.array([stats.ranks(x), stats.ranks(y)])
    value = float(stats.pearson(*ranks)) if len(x) > 2 else float("nan")
    if not np.isfinite(value):
        return Estimate()
    centred = ranks - ranks.mean(axis=1, keepdims=True)
    resampled, null = [], []
    size = max(1, AT_ONCE // len(x))
    for start in range(0, stats.BOOTSTRAP_SAMPLES, size):
        rows = min(size, stats.BOOTSTRAP_SAMPLES - start)
        drawn = rng.integers(0, len(x), (rows, len(x)))
        resampled.append(stats.pearson(stats.ranks(x[drawn]), stats.ranks(y[drawn])))
        mixed = rng.permuted(np.broadcast_to(centred[1], (rows, len(x))), axis=1)
        null.append(mixed @ centred[0])
    low, high = stats.interval(np.concatenate(resampled))
    found = abs(centred[0] @ centred[1])
    hits = int((np.abs(np.concatenate(null)) >= found * (1 - stats.TIE)).sum())
    p = (1 + hits) / (1 + stats.BOOTSTRAP_SAMPLES)
    return Estimate(value, number(low), number(high), p)


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
