"""Is a component's damage that of noise of its size? A test against draws of that noise."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

from jaxalign.measures.stats import corrected, one_more_draw_p
from jaxalign.studies.plan.result import AgainstNoise

# Raw p, p corrected for the number of components, and the verdict.
Tested = tuple[float, float, AgainstNoise]
UNTESTED: Tested = (math.nan, math.nan, "")
LEVEL = 0.05


def verdicts(own: Float[np.ndarray, " N"], draws: Float[np.ndarray, "N R"]) -> list[Tested]:
    """Raw p, p corrected for the number of components, and the verdict of each.

    Args:
        own: mean KL of each component in the scheme, nats.
        draws: mean KL under each draw of noise.

    Returns:
        A triple a component; p-values are NaN and the verdict is "" where there is no test.
    """
    raw = one_more_draw_p(own, draws)
    each = corrected(raw)

    def verdict(i: int) -> AgainstNoise:
        if not np.isfinite(each[i]):
            return ""
        if each[i] > LEVEL:
            return "like noise"
        return "more than noise" if own[i] > draws[i].mean() else "less than noise"

    return [(float(raw[i]), float(each[i]), verdict(i)) for i in range(len(own))]
