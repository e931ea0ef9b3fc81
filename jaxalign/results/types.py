"""The result of a heads study as typed objects."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

RANKINGS = ("zero_importance", "drift", "importance_x_drift", "first_order")


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval and p-value; None where it cannot be estimated."""

    value: float | None
    low: float | None
    high: float | None
    p: float | None


@dataclass(frozen=True)
class FirstOrder:
    """First-order account of one prompt's degradation under one precision (logits).

    Attributes:
        predicted: ``[L, H]`` ``∇m · (c_f32 − c_q)``, the predicted gain of restoring each head.
        restored: ``[L, H]`` the true gain of restoring that head alone.
        signed_sum, absolute_sum: of ``predicted``; the absolute sum is the bound.
        degradation: ``m_f32 − m_q``.
        bound_held: whether ``|degradation| ≤ absolute_sum``; None where not finite.
    """

    predicted: np.ndarray
    restored: np.ndarray
    signed_sum: float | None
    absolute_sum: float | None
    degradation: float | None
    bound_held: bool | None


@dataclass(frozen=True)
class PrecisionResult:
    """One prompt under one low precision. Arrays ``[L, H]``, NaN where not finite.

    Attributes:
        drift, cosine: of each head's last-position contribution against f32.
        drift_all, cosine_all: the same over all real positions.
        logit_diff: ``m`` of the clean run; ``logit_diff_rounded`` of f16-rounded logits.
        distractor_diff: ``logit(target) − logit(distractor)``, None without a distractor.
        nonfinite_heads: heads whose contribution overflowed, ``(layer, head)``.
        first_order: the first-order account.
    """

    drift: np.ndarray
    cosine: np.ndarray
    drift_all: np.ndarray
    cosine_all: np.ndarray
    logit_diff: float | None
    logit_diff_rounded: float | None
    distractor_diff: float | None
    nonfinite_heads: tuple[tuple[int, int], ...]
    first_order: FirstOrder


@dataclass(frozen=True)
class PromptResult:
    """One prompt. Importances ``[L, H]`` in logits, ``m(clean) − m(head replaced)``, f32.

    Attributes:
        resample_importance: None where no other prompt of the task has the same length.
        resample_partners: how many such prompts there are.
        validated: whether the target is the f32 model's top-1 next token.
        logit_diff: clean ``m`` in f32; ``logit_diff_rounded`` of f16-rounded logits.
        precisions: by name of the scheme ("f16", "int8-sim").
        distractor_importance: the same importances of ``logit(target) − logit(distractor)``, by
            "zero", "mean" and, where there are partners, "resample"; None without a distractor.
    """

    prompt: str
    target: str
    distractor: str | None
    task: str
    num_tokens: int
    validated: bool
    logit_diff: float
    logit_diff_rounded: float | None
    distractor_diff: float | None
    zero_importance: np.ndarray
    mean_importance: np.ndarray
    resample_importance: np.ndarray | None
    resample_partners: int
    precisions: dict[str, PrecisionResult]
    distractor_importance: dict[str, np.ndarray] | None = None


@dataclass(frozen=True)
class RepairResult:
    """Repair curves of one prompt: ``m`` with the top-k heads' f32 contributions, k = 1 … K.

    Attributes:
        precision: name of the scheme.
        curves: by ranking (``RANKINGS``), ``[K]``.
        heads: by ranking, the heads in the order they are restored, ``(layer, head)``.
        random: ``[orders, K]`` of seeded random orders, the control.
    """

    prompt: str
    task: str
    precision: str
    logit_diff_f32: float
    logit_diff_quantized: float | None
    curves: dict[str, np.ndarray]
    heads: dict[str, tuple[tuple[int, int], ...]]
    random: np.ndarray


@dataclass(frozen=True)
class Correlation:
    """Importance against drift over heads, both averaged over a task's prompts.

    ``task`` "all" takes every prompt. The interval is a bootstrap over prompts, the p-value a
    permutation of heads.
    """

    task: str
    precision: str
    importance: str
    prompts: int
    heads: int
    pearson: Estimate
    spearman: Estimate


@dataclass(frozen=True)
class RepairTest:
    """Whether a ranking closes more of the gap to f32 than random orders do (logits, mean over k).

    Attributes:
        gap: mean ``|m_f32 − m_q|``.
        closed, random_closed: mean of ``|m_f32 − m_q| − |m_f32 − m(k)|``.
        difference: ``closed − random_closed`` over prompts, with sign-flip p-value.
        verdict: "beats random", "no better than random" or "worse than random".
    """

    task: str
    precision: str
    ranking: str
    prompts: int
    gap: float | None
    closed: float | None
    random_closed: float | None
    difference: Estimate
    verdict: str


@dataclass(frozen=True)
class FirstOrderTest:
    """Rank correlation of predicted with true gain over heads, and how often the bound held."""

    task: str
    precision: str
    prompts: int
    bound_held: int
    spearman: Estimate


@dataclass(frozen=True)
class TaskMean:
    """Mean metric of a task under one precision ("f32" too); ``change`` is against f32, paired."""

    task: str
    precision: str
    prompts: int
    logit_diff: Estimate
    change: Estimate | None


@dataclass(frozen=True)
class Statistics:
    """Everything the study says about groups of prompts."""

    correlations: tuple[Correlation, ...]
    repair: tuple[RepairTest, ...]
    first_order: tuple[FirstOrderTest, ...]
    task_means: tuple[TaskMean, ...]


@dataclass(frozen=True)
class HeadsResult:
    """A whole study. ``metadata`` is the JSON object of that name (environment, plan, times)."""

    model: str
    num_layers: int
    num_heads: int
    reference_count: int
    head_mode: str
    prompts: tuple[PromptResult, ...]
    repairs: tuple[RepairResult, ...]
    statistics: Statistics
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def precisions(self) -> tuple[str, ...]:
        """The low precisions of this study, in the order they ran."""
        return tuple(self.metadata["precisions"])

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks in order of appearance."""
        return tuple(dict.fromkeys(prompt.task for prompt in self.prompts))
