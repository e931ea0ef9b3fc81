"""A value over prompts with its interval and p-value."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from jaxalign.measures import stats
from jaxalign.shapes import Float


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval and p-value; None where it cannot be estimated.

    Attributes:
        value, low, high: the value and the ends of its interval.
        p: raw p-value.
        p_adjusted: corrected for the family of tests that it belongs to (``adjusted``).
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_adjusted: float | None = None

    def __post_init__(self) -> None:
        """Check that p-values are some: a file may say anything."""
        for name in ("p", "p_adjusted"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}, expected 0 … 1")

    @property
    def told(self) -> bool:
        """Whether interval and test both tell the value from 0, the test after its correction."""
        p = self.p if self.p_adjusted is None else self.p_adjusted
        if self.low is None or self.high is None or p is None:
            return False
        return p < LEVEL and not self.low <= 0 <= self.high


NOTHING = Estimate()
LEVEL = 0.05  # of every verdict
ALL_TASKS = "all"  # what results call the prompts of all tasks together
Tested = TypeVar("Tested", bound=Any)


def adjusted(family: Sequence[Tested]) -> list[Tested]:
    """The same estimates with their p-values corrected for how many there are.

    Args:
        family: dataclasses with ``p`` and ``p_adjusted``, all tests of one kind of question.
    """
    raw = np.array([np.nan if one.p is None else one.p for one in family])
    corrected = stats.corrected(raw)
    pairs = zip(family, corrected, strict=True)
    return [dataclasses.replace(one, p_adjusted=number(p)) for one, p in pairs]


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
