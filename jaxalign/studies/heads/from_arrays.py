"""From arrays over prompts to the typed result, one prompt at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jaxalign.measures.estimates import number
from jaxalign.measures.metrics import AnswerMetrics
from jaxalign.numerics.scheme import Scheme
from jaxalign.prompts import Batch, Prompt
from jaxalign.shapes import Float, Int
from jaxalign.studies.heads.calls import Clean, Comparison, Runner
from jaxalign.studies.heads.rankings import Donors
from jaxalign.studies.heads.result import (
    RANKINGS,
    REPLACEMENTS,
    FirstOrder,
    PrecisionResult,
    PromptResult,
    RepairResult,
    Replacement,
)


@dataclass(frozen=True, kw_only=True)
class Base:
    """What f32 says about the kept prompts, and what low precisions are compared with.

    Attributes:
        prompts, work: the kept prompts and their batches.
        clean: their clean f32 runs.
        donors: their resampling partners.
        importance, distractor_importance: ``[P, 3, L·H]`` by zero, mean, resampling.
    """

    prompts: list[Prompt]
    work: list[Batch]
    clean: Clean
    donors: Donors
    importance: np.ndarray
    distractor_importance: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Low:
    """One low precision over all kept prompts.

    Attributes:
        scheme: the precision.
        metrics: of its clean runs, ``[P]``.
        comparison: drift and first-order effects against f32.
        restored: ``[P, L·H]``, the gain of restoring each head alone.
    """

    scheme: Scheme
    metrics: AnswerMetrics
    comparison: Comparison
    restored: np.ndarray


def _finite(a: np.ndarray, finite: np.ndarray) -> np.ndarray:
    return np.where(finite, a, np.nan).astype(np.float64)


def prompt_result(
    runner: Runner, base: Base, i: int, precisions: dict[str, PrecisionResult]
) -> PromptResult:
    """Return prompt ``i`` with what f32 says about it.

    Args:
        runner: the study's.
        base: what f32 says about all prompts.
        i: which prompt of ``base``.
        precisions: the same prompt under the low precisions, by name.
    """
    prompt, metrics = base.prompts[i], base.clean.metrics
    shape = (runner.config.num_layers, runner.config.num_heads)
    partners = int(base.donors.partners[i])

    def by_kind(effects: np.ndarray) -> dict[Replacement, np.ndarray]:
        kinds = dict(zip(REPLACEMENTS, effects[i].reshape(3, *shape), strict=True))
        if not partners:
            del kinds["resample"]
        return kinds

    importance = by_kind(base.importance)
    has_distractor = prompt.distractor is not None
    return PromptResult(
        prompt=prompt.text.prompt,
        target=prompt.text.target,
        distractor=prompt.text.distractor,
        task=prompt.task,
        num_tokens=len(prompt.tokens),
        validated=bool(metrics.correct[i]),
        logit_diff=float(metrics.logit_diff[i]),
        logit_diff_rounded=number(metrics.logit_diff_f16[i]),
        distractor_diff=number(metrics.distractor_diff[i]) if has_distractor else None,
        zero_importance=importance["zero"],
        mean_importance=importance["mean"],
        resample_importance=importance.get("resample"),
        resample_partners=partners,
        precisions=precisions,
        distractor_importance=by_kind(base.distractor_importance) if has_distractor else None,
    )


def precision_result(base: Base, low: Low, i: int) -> PrecisionResult:
    """Return prompt ``i`` under one low precision.

    Args:
        base, low: what f32 and the low precision say about all prompts.
        i: which prompt of ``base``.
    """
    drift, metrics = low.comparison.drift, low.metrics
    finite = drift.finite[i]
    predicted = _finite(low.comparison.predicted[i], finite)
    restored = low.restored[i].reshape(predicted.shape)
    degradation = number(base.clean.metrics.logit_diff[i] - metrics.logit_diff[i])
    absolute = number(np.abs(predicted).sum())
    held = None if degradation is None or absolute is None else abs(degradation) <= absolute
    return PrecisionResult(
        drift=_finite(drift.last[i], finite),
        cosine=_finite(drift.cosine_last[i], finite),
        drift_all=_finite(drift.all[i], finite),
        cosine_all=_finite(drift.cosine_all[i], finite),
        logit_diff=number(metrics.logit_diff[i]),
        logit_diff_rounded=number(metrics.logit_diff_f16[i]),
        distractor_diff=(
            None if base.prompts[i].distractor is None else number(metrics.distractor_diff[i])
        ),
        nonfinite_heads=tuple((int(a), int(b)) for a, b in np.argwhere(~finite)),
        first_order=FirstOrder(
            predicted=predicted,
            restored=restored,
            signed_sum=number(predicted.sum()),
            absolute_sum=absolute,
            degradation=degradation,
            bound_held=held,
        ),
    )


def repair_result(
    runner: Runner,
    base: Base,
    low: Low,
    orders: dict[str, Int[np.ndarray, "P N"]],
    values: Float[np.ndarray, " M"],
    k: int,
    i: int,
) -> RepairResult:
    """Return prompt ``i``'s repair curves.

    Args:
        runner: the study's.
        base, low: what f32 and the low precision say about all prompts.
        orders: by ranking, int ``[P, L·H]``, each prompt's heads in the order of repair.
        values: ``[1 + orders · k]`` logits: the clean ``m``, then the curves of the rankings and
            of the random orders, one after the other.
        k: how many heads are restored.
        i: which prompt of ``base``.
    """
    curves = values[1:].reshape(-1, k)
    prompt = base.prompts[i]
    H = runner.config.num_heads
    return RepairResult(
        prompt=prompt.text.prompt,
        task=prompt.task,
        precision=low.scheme.name,
        logit_diff_f32=float(base.clean.metrics.logit_diff[i]),
        logit_diff_quantized=number(values[0]),
        curves={name: curves[n] for n, name in enumerate(RANKINGS)},
        heads={
            name: tuple((int(head) // H, int(head) % H) for head in orders[name][i][:k])
            for name in RANKINGS
        },
        random=curves[len(RANKINGS) :],
    )
