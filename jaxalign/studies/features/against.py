"""A scheme against a floor: how much more it takes from features, and whether from the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxalign.measures import stats
from jaxalign.measures.correlation import rank_correlation
from jaxalign.measures.estimates import Estimate, number
from jaxalign.shapes import Float
from jaxalign.studies.features.survival import WORST, mean_of


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
        here = mean_of(own[:, features])
        there = np.stack([mean_of(floor[:, features]) for floor in floors])
        drawn = np.take_along_axis(there @ weights.T, chosen, axis=0).mean(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            low, high = stats.interval(weights @ here / drawn)
            return float(here.sum() / there.mean(axis=0).sum()), low, high

    difference = mean_of(own) - mean_of(mean)
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
    return Alike(order=rank_correlation(own[there], floor[there], rng), shared=shared)
