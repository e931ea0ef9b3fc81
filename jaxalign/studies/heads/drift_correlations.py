"""Do important heads drift more? Importance against drift, inside layers and over all heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxalign.measures import stats
from jaxalign.measures.correlation import HeadEstimate, correlate_means
from jaxalign.shapes import Float
from jaxalign.studies.heads.average import comparable, flat
from jaxalign.studies.heads.findings import Correlation, DriftMeasure, Replacement
from jaxalign.studies.heads.result import PrecisionResult, PromptResult

NONE = HeadEstimate()


def correlation(
    prompts: Sequence[PromptResult],
    task: str,
    precision: str,
    kind: Replacement,
    measure: DriftMeasure,
    seed: int,
) -> Correlation | None:
    """Correlate a kind of importance with a measure of drift; None where one is not known.

    Args:
        prompts: of the task, or all.
        task: their name.
        precision: the low one.
        kind: what stands in for a head.
        measure: of its drift.
        seed: of bootstraps and permutations.
    """
    prompts = [p for p in prompts if p.importance(kind) is not None]
    if not prompts or (measure == "absolute" and any(p.size is None for p in prompts)):
        return None
    layers, heads = prompts[0].zero_importance.shape
    x = flat([p.importance(kind) for p in prompts])
    y = flat([drift(p, p.precisions[precision], measure) for p in prompts])
    sized = all(p.size is not None for p in prompts)
    z = flat([p.size for p in prompts]) if sized else None
    kept, finite = comparable(x, y)
    x, y = x[kept][:, finite], y[kept][:, finite]
    z = None if z is None else z[kept][:, finite]
    own_layer = np.repeat(np.arange(layers), heads)[finite]

    def found(name: str, **how: Any) -> HeadEstimate:
        if not x.size:
            return NONE
        rng = stats.generator(seed, "correlation", task, precision, kind, measure, name)
        return correlate_means(x, y, rng, **how)

    return Correlation(
        task=task,
        precision=precision,
        importance=kind,
        drift=measure,
        prompts=int(kept.sum()),
        heads=int(finite.sum()),
        pearson=found("pearson", groups=own_layer),
        spearman=found("spearman", groups=own_layer, rank=True),
        all_pearson=found("all pearson"),
        all_spearman=found("all spearman", rank=True),
        given_size=None if z is None else found("size", groups=own_layer, given=z, rank=True),
    )


def drift(
    prompt: PromptResult, low: PrecisionResult, measure: DriftMeasure
) -> Float[np.ndarray, "L H"]:
    """A measure of how far each head is from f32.

    Args:
        prompt: with the sizes of its heads' contributions.
        low: the same prompt in a precision.
        measure: which.
    """
    if measure == "relative":
        return low.drift
    if measure == "absolute":
        assert prompt.size is not None
        return low.drift * prompt.size
    account = low.first_order
    return np.abs(account.predicted if measure == "first order" else account.restored)
