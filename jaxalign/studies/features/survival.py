"""What is left of features: correlations, overlaps and slopes of sums, with intervals.

``ρ`` is Pearson's correlation of a feature's activation in f32, ``a``, and in the other precision,
``â``, over tokens. ``1 − ρ`` is what is lost. With ``d = â − a``, variances ``V`` and covariance
``C`` of ``a`` and ``d``::

    1 − ρ² = (V_a V_d − C²) / (V_a (V_a + 2C + V_d))        1 − ρ = (1 − ρ²) / (1 + ρ)

which stays exact where ``ρ`` is near 1. A rescaling alone (``d`` in proportion to ``a``) has ``ρ =
1`` and is told by the slope ``1 + C / V_a``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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
    return np.array([lost.mean(), lost[-few:].mean(), 1 - mean_of(overlap)])


def mean_of(values: Float[np.ndarray, "*rows features"]) -> Float[np.ndarray, "*rows"]:
    """The mean over features of what is defined; NaN where nothing is.

    Args:
        values: NaN where they are not.
    """
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
            mean_of((w @ own) / (w @ spread))
            for w in (weights[i : i + size] for i in range(0, len(weights), size))
        ]
    value, resampled = float(mean_of(own.sum(axis=0))), np.concatenate(drawn)
    # A mean of ratios of resamples lies too high where features lose on few documents.
    low, high = stats.interval(resampled - (np.nanmean(resampled) - value))
    return Estimate(number(value), number(low), number(high))


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
            return 1 - mean_of(both / either)

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
