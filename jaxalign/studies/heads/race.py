"""The decisions of a screen, as pure functions of arrays: which heads race on which prompts.

All heads are set to zero on a few prompts; those that are clearly small drop out; the others race
on, on more prompts. A head's mean over all prompts is estimated from those that it ran on, with its
first-order estimates, which are known on every prompt, as a control variate:

    mean over all ≈ mean over run ones of (exact − β · first order)
                    + β · mean over all of first order

which is exact where first order is (β = 1 and nothing left over), and the plain mean where it says
nothing (β = 0). (Deutsch and Deng 2013's CUPED is the same estimator for experiments.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxalign.shapes import Float, Int

BUDGET = 1 / 5  # of the exact sweep's operations, and of its passes through blocks
RACED = 0.75  # of the budget, shared by the rounds in which heads drop out
THIRD = 3  # at most two of three heads drop out in a round
FEWEST_PROMPTS = 2  # of the first round: one has no spread
DEVIATIONS = 1.0  # standard errors by which a head is given the benefit of the doubt
PRIOR = 4.0  # prompts that the prior slope, 1, counts for
WORTH = 1 / 4  # of the budget: a dearer backward pass is not made use of


@dataclass(frozen=True, kw_only=True)
class MeanEstimate:
    """Estimates of heads' means over all prompts, ``[N]`` each.

    Attributes:
        mean: of the effect, logits.
        error: its standard error for prompts drawn from these; 0 where all ran.
        slope: ``β`` of the first-order estimates.
    """

    mean: Float[np.ndarray, " N"]
    error: Float[np.ndarray, " N"]
    slope: Float[np.ndarray, " N"]


def mean_estimate(
    exact: Float[np.ndarray, "P N"],
    ran: Int[np.ndarray, " k"],
    first_order: Float[np.ndarray, "P N"] | None,
) -> MeanEstimate:
    """Estimate means over all prompts from those that were run.

    Args:
        exact: effects, of which only rows ``ran`` are looked at.
        ran: at least two prompts.
        first_order: estimates of the same effects on every prompt; None without.
    """
    found, total = exact[ran], len(exact)
    if first_order is None:
        slope, along, shift = np.zeros(found.shape[1]), np.zeros_like(found), 0.0
    else:
        along = first_order[ran]
        slope = _slope(found, along, first_order)
        shift = slope * first_order.mean(axis=0)
    left = found - slope * along
    spread = left.std(axis=0, ddof=1)
    return MeanEstimate(
        mean=left.mean(axis=0) + shift,
        error=spread * np.sqrt((1 / len(ran)) * (1 - len(ran) / total)),
        slope=slope,
    )


def _slope(found: np.ndarray, along: np.ndarray, first_order: np.ndarray) -> np.ndarray:
    """Least squares' slope over run prompts, drawn to 1 as if ``PRIOR`` more prompts had it."""
    dx, dy = along - along.mean(axis=0), found - found.mean(axis=0)
    prior = PRIOR * first_order.var(axis=0)
    most = (dx**2).sum(axis=0) + prior
    return np.where(most > 0, ((dx * dy).sum(axis=0) + prior) / np.where(most > 0, most, 1), 0.0)


def survivors(heads: int, finalists: int) -> tuple[int, ...]:
    """How many heads are left after each round, the last time ``finalists``.

    Args:
        heads: at the start.
        finalists: fewer than those.

    Example:
        >>> survivors(270, 16)
        (105, 41, 16)
    """
    rounds = max(1, math.ceil(math.log(heads / finalists) / math.log(THIRD)))
    return tuple(round(heads * (finalists / heads) ** (n / rounds)) for n in range(1, rounds + 1))


def leading(found: MeanEstimate, count: int) -> Int[np.ndarray, " count"]:
    """Places of the heads that race on: the largest ``|mean| + error``, in ascending order.

    Args:
        found: of the heads that raced.
        count: how many are kept.
    """
    most = np.nan_to_num(np.abs(found.mean) + DEVIATIONS * found.error, nan=-np.inf)
    return np.sort(np.argsort(-most, kind="stable")[:count])


def interleaved(tasks: Sequence[str], rng: np.random.Generator) -> Int[np.ndarray, " P"]:
    """Prompts in a random order in which every beginning has its share of each task.

    Args:
        tasks: of each prompt.
        rng: draws the order inside tasks, and where each task begins.
    """
    place = np.empty(len(tasks))
    for task in dict.fromkeys(tasks):
        own = rng.permutation([i for i, other in enumerate(tasks) if other == task])
        place[own] = (np.arange(len(own)) + rng.random()) / len(own)
    return np.argsort(place, kind="stable")
