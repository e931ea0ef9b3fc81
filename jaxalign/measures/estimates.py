"""A value over prompts with its interval and p-value."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from jaxalign.measures import stats
from jaxalign.shapes import Float


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval and p-value; None where it cannot be estimated."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None


NOTHING = Estimate()


def number(x: float | np.floating) -> float | None:
    """Return a float, or None where it is not finite."""
    return float(x) if math.isfinite(x) else None


def estimate(
    values: Float[np.ndarray, " P"], rng: np.random.Generator, *, test: bool = False
) -> Estimate:
    """Return the mean of values over prompts with its bootstrap interval.

    Args:
        values: ``[P]``, one a prompt; what is not finite does not count.
        rng: of the bootstrap and of the test, in this order (``stats.generator``).
        test: whether the p-value of "the mean is 0" is computed, by flipping signs; else None.

    Returns:
        None throughout where no value is finite; no interval where only one is.
    """
    values = np.asarray(values)[np.isfinite(values)]
    if not values.size:
        return NOTHING
    value, low, high = map(number, stats.mean_interval(values, rng))
    return Estimate(value, low, high, stats.sign_flip_p(values, rng) if test else None)
