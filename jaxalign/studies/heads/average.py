"""Means over prompts of what each head did, with one rule for what is not finite.

A prompt without any finite head overflowed as a whole and drops out; of the others, only heads
that are finite for every prompt count, so that an overflow is never averaged away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxalign.shapes import Float


def flat(maps: Sequence[Any]) -> Float[np.ndarray, "P N"]:
    """Maps ``[L, H]`` of prompts as rows, float64.

    Args:
        maps: one a prompt.
    """
    return np.array([np.ravel(one) for one in maps], np.float64)


def comparable(*maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which prompts and heads can be compared in all of these maps ``[P, …]``.

    Returns:
        bool ``[P]`` and bool ``[…]``; no head where no prompt is left.
    """
    finite = np.logical_and.reduce([np.isfinite(a) for a in maps])
    prompts = finite.any(axis=tuple(range(1, finite.ndim)))
    return prompts, finite[prompts].all(axis=0) & prompts.any()


def mean_maps(*maps: Sequence[np.ndarray] | np.ndarray) -> list[np.ndarray]:
    """Means over the comparable prompts, NaN for heads that are not comparable.

    Args:
        maps: for each quantity one map ``[L, H]`` a prompt, the same prompts in all.
    """
    stacked = [np.asarray(a, np.float64) for a in maps]
    prompts, heads = comparable(*stacked)
    if not prompts.any():
        return [np.full(a.shape[1:], np.nan) for a in stacked]
    return [np.where(heads, a[prompts].mean(axis=0), np.nan) for a in stacked]
