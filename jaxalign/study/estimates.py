"""Values over prompts as estimates."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from jaxalign import stats
from jaxalign.results import Estimate


def over_prompts(
    values: Float[np.ndarray, " P"], rng: np.random.Generator, test: bool = False
) -> Estimate:
    """Mean and 95 % bootstrap interval; None where they are not finite.

    Args:
        values: one a prompt.
        rng: for resampling (``stats.generator``).
        test: with the p-value of "the mean is 0", by flipping signs.
    """
    value, low, high = stats.mean_interval(values, rng)
    p = stats.sign_flip_p(values, rng) if test else None
    finite = np.isfinite([low, high]).all()
    return Estimate(
        value if np.isfinite(value) else None, low if finite else None, high if finite else None, p
    )
