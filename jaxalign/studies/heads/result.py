"""The result of a heads study as typed objects."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from jaxalign.edits import HeadMode
from jaxalign.measures.estimates import Estimate
from jaxalign.shapes import Float
from jaxalign.study.provenance import Provenance
from jaxalign.study.records import Result

Ranking = Literal["zero_importance", "drift", "importance_x_drift", "first_order"]
Replacement = Literal["zero", "mean", "resample"]
Verdict = Literal["beats random", "no better than random", "worse than random"]
Head = tuple[int, int]  # (layer, head)

RANKINGS: tuple[Ranking, ...] = get_args(Ranking)
REPLACEMENTS: tuple[Replacement, ...] = get_args(Replacement)


@dataclass(frozen=True, kw_only=True)
class FirstOrder:
    """First-order account of one prompt's degradation under one precision (logits).

    Attributes:
        predicted: ``[L, H]`` ``∇m · (c_f32 − c_q)``, the predicted gain of restoring each head.
        restored: ``[L, H]`` the true gain of restoring that head alone.
        signed_sum, absolute_sum: of ``predicted``; the absolute sum is the bound.
        degradation: ``m_f32 − m_q``.
        bound_held: whether ``|degradation| ≤ absolute_sum``; None where not finite.
    """

    predicted: Float[np.ndarray, "L H"]
    restored: Float[np.ndarray, "L H"]
    signed_sum: float | None
    absolute_sum: float | None
    degradation: float | None
    bound_held: bool | None


@dataclass(frozen=True, kw_only=True)
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

    drift: Float[np.ndarray, "L H"]
    cosine: Float[np.ndarray, "L H"]
    drift_all: Float[np.ndarray, "L H"]
    cosine_all: Float[np.ndarray, "L H"]
    logit_diff: float | None
    logit_diff_rounded: float | None
    distractor_diff: float | None
    nonfinite_heads: tuple[Head, ...]
    first_order: FirstOrder


@dataclass(frozen=True, kw_only=True)
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
    zero_importance: Float[np.ndarray, "L H"]
    mean_importance: Float[np.ndarray, "L H"]
    resample_importance: Float[np.ndarray, "L H"] | None
    resample_partners: int
    precisions: dict[str, PrecisionResult]
    distractor_importance: dict[Replacement, Float[np.ndarray, "L H"]] | None = None


@dataclass(frozen=True, kw_only=True)
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
    curves: dict[Ranking, Float[np.ndarray, " K"]]
    heads: dict[Ranking, tuple[Head, ...]]
    random: Float[np.ndarray, "orders K"]

    def __post_init__(self) -> None:
        for name in ("curves", "heads"):
            if {*getattr(self, name)} != {*RANKINGS}:
                raise ValueError(f"{name} are not of each of {', '.join(RANKINGS)}")
        if any(len(heads) != self.random.shape[-1] for heads in self.heads.values()):
            raise ValueError("there are not as many heads as steps of a curve")


@dataclass(frozen=True, kw_only=True)
class Correlation:
    """Importance against drift over heads, both averaged over a task's prompts.

    ``task`` "all" takes every prompt. The interval is a bootstrap over prompts, the p-value a
    permutation of heads.
    """

    task: str
    precision: str
    importance: Replacement
    prompts: int
    heads: int
    pearson: Estimate
    spearman: Estimate


@dataclass(frozen=True, kw_only=True)
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
    ranking: Ranking
    prompts: int
    gap: float | None
    closed: float | None
    random_closed: float | None
    difference: Estimate
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class FirstOrderTest:
    """Rank correlation of predicted with true gain over heads, and how often the bound held."""

    task: str
    precision: str
    prompts: int
    bound_held: int
    spearman: Estimate


@dataclass(frozen=True, kw_only=True)
class TaskMean:
    """Mean metric of a task under one precision ("f32" too); ``change`` is against f32, paired."""

    task: str
    precision: str
    prompts: int
    logit_diff: Estimate
    change: Estimate | None


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Everything the study says about groups of prompts."""

    correlations: tuple[Correlation, ...]
    repair: tuple[RepairTest, ...]
    first_order: tuple[FirstOrderTest, ...]
    task_means: tuple[TaskMean, ...]


@dataclass(frozen=True, kw_only=True)
class HeadsResult(Result, rows="prompts", headline=("statistics",)):
    """A whole study.

    Attributes:
        num_layers, num_heads: ``L`` and ``H``.
        reference_count: texts behind the means of mean ablation.
        resample_draws: donors drawn for each prompt.
        head_mode: what a head is.
        prompts: those that were kept.
        repairs: none of a precision, or one a prompt, in the prompts' order.
        statistics: of groups of prompts.
        provenance: what ran, on what, with which options; notes on dropped prompts, on targets of
            several tokens, on overflows.
    """

    num_layers: int
    num_heads: int
    reference_count: int
    resample_draws: int
    head_mode: HeadMode
    prompts: tuple[PromptResult, ...]
    repairs: tuple[RepairResult, ...]
    statistics: Statistics
    provenance: Provenance

    def __post_init__(self) -> None:
        """Check what no type can say: every part is of the same prompts, precisions and heads."""
        if not self.prompts:
            raise ValueError("there are no prompts")
        shape = (self.num_layers, self.num_heads)
        if self.prompts[0].zero_importance.shape != shape:
            raise ValueError(f"maps are not of {shape[0]} layers of {shape[1]} heads")
        names, own = self.precisions, [(prompt.prompt, prompt.task) for prompt in self.prompts]
        for i, prompt in enumerate(self.prompts):
            if {*prompt.precisions} != {*names}:
                raise ValueError(f"prompts/{i} is not of every precision of {', '.join(names)}")
            for low in prompt.precisions.values():
                self._check_heads(low.nonfinite_heads, f"prompts/{i}")
        for name in dict.fromkeys(repair.precision for repair in self.repairs):
            found = [(r.prompt, r.task) for r in self.repairs if r.precision == name]
            if found != own or name not in names:
                raise ValueError(f"repairs of {name} are not of each prompt once")
        for i, repair in enumerate(self.repairs):
            for heads in repair.heads.values():
                self._check_heads(heads, f"repairs/{i}")
        for kind, rows in vars(self.statistics).items():
            for i, row in enumerate(rows):
                if row.precision not in ("f32", *names):
                    raise ValueError(f"statistics/{kind}/{i} is of {row.precision}, which is none")

    def _check_heads(self, heads: Collection[Head], place: str) -> None:
        for layer, head in heads:
            if not (0 <= layer < self.num_layers and 0 <= head < self.num_heads):
                raise ValueError(f"{place} names head ({layer}, {head}), which is none")

    @property
    def precisions(self) -> tuple[str, ...]:
        """The low precisions of this study, in the order they ran."""
        return tuple(self.prompts[0].precisions)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks in order of appearance."""
        return tuple(dict.fromkeys(prompt.task for prompt in self.prompts))
