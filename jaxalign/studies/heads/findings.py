"""What a heads study says about groups of prompts: typed, each number beside its control."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

import numpy as np

from jaxalign.measures import screen
from jaxalign.measures.correlation import HeadEstimate
from jaxalign.measures.estimates import Estimate
from jaxalign.shapes import Bool, Float

Ranking = Literal["zero_importance", "drift", "importance_x_drift", "first_order"]
Replacement = Literal["zero", "mean", "resample"]
DriftMeasure = Literal["relative", "absolute", "first order", "restored"]
Control = Literal["random heads", "heads of the same layers", "random vectors"]
Verdict = Literal["beats it", "no better", "worse", "below noise"]
Head = tuple[int, int]  # (layer, head)

RANKINGS: tuple[Ranking, ...] = get_args(Ranking)
REPLACEMENTS: tuple[Replacement, ...] = get_args(Replacement)
DRIFT_MEASURES: tuple[DriftMeasure, ...] = get_args(DriftMeasure)
CONTROLS: tuple[Control, ...] = get_args(Control)
Row = TypeVar("Row")
TOP = 10  # heads that a screen is to find


def find(rows: Sequence[Row], **fields: str) -> Row | None:
    """The first row whose fields have these values, or None.

    Args:
        rows: of one kind of finding.
        fields: ``task="all", precision="nf4"``.
    """
    for row in rows:
        if all(getattr(row, name) == value for name, value in fields.items()):
            return row
    return None


@dataclass(frozen=True, kw_only=True)
class Correlation:
    """Importance against drift over heads, both averaged over a task's prompts.

    ``task`` "all" takes every prompt.

    Attributes:
        importance: by which replacement.
        drift: "relative" ``‖c_q − c‖ / ‖c‖``, "absolute" ``‖c_q − c‖``, or what the drift does to
            the answer: "first order" ``|∇m · (c − c_q)|``, "restored" the size of the true gain.
        pearson, spearman: inside layers, the headline: values centred (ranks taken) and heads
            exchanged inside their layer.
        all_pearson, all_spearman: over all heads: depth moves both sides, so these find something
            in random weights, too.
        given_size: Spearman inside layers with ``‖c‖`` held fixed; None in older files.
    """

    task: str
    precision: str
    importance: Replacement
    drift: DriftMeasure
    prompts: int
    heads: int
    pearson: HeadEstimate
    spearman: HeadEstimate
    all_pearson: HeadEstimate
    all_spearman: HeadEstimate
    given_size: HeadEstimate | None


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """One measure of how alike two importance profiles are, beside what noise leaves of it.

    Attributes:
        value: between f32 and the precision.
        over_prompts, over_heads: 95 % intervals, as in ``HeadEstimate``.
        chance_p: of "the heads of the two profiles do not correspond", heads exchanged.
        noise: the same between f32 and f32 with noise in the weights, one a draw.
        p: of "the precision is one more draw of the noise" (``stats.beyond_draws``); p_adjusted:
            corrected for all tasks, precisions and replacements.
        reordered: the same between the precision and itself with its roundings in another order.
        chance: what two profiles without any relation give.
    """

    value: float | None = None
    over_prompts: tuple[float, float] | None = None
    over_heads: tuple[float, float] | None = None
    chance_p: float | None = None
    noise: tuple[float, ...] = ()
    p: float | None = None
    p_adjusted: float | None = None
    reordered: float | None = None
    chance: float | None = None


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Whether the same heads matter: importance in f32 against importance in a precision.

    Attributes:
        replacement: what stands in for a head, in both.
        pearson, spearman: of the averages over prompts, over heads.
        prompt_pearson, prompt_spearman: of one prompt's heads, mean over prompts.
        relative_error: ``‖I_q − I‖ / ‖I‖`` of the averages over prompts.
        top5, top10: how many of the heads of largest ``|I|`` are the same.
        largest: the head whose average importance changes most, and by how much (logits).
    """

    task: str
    precision: str
    replacement: Replacement
    prompts: int
    heads: int
    pearson: Likeness
    spearman: Likeness
    prompt_pearson: Likeness
    prompt_spearman: Likeness
    relative_error: Likeness
    top5: Likeness
    top10: Likeness
    largest: Head | None
    largest_change: Estimate


@dataclass(frozen=True, kw_only=True)
class RepairTest:
    """Whether a ranking closes more of the gap to f32 than a control does (logits, mean over k).

    Attributes:
        control: what it is set against.
        gap: mean ``|m_f32 − m_q|``.
        noise: mean ``|m_q − m_q'|`` where ``m_q'`` has its roundings in another order; 0 in f32.
        closed, control_closed: mean of ``|m_f32 − m_q| − |m_f32 − m(k)|`` over the control's k.
        difference: ``closed − control_closed`` over prompts, with sign-flip p-value, corrected for
            all repair tests of the study.
        verdict: "beats it", "no better", "worse"; "below noise" where ``|closed|`` is not above
            ``noise``.
    """

    task: str
    precision: str
    ranking: Ranking
    control: Control
    prompts: int
    gap: float | None
    noise: float
    closed: float | None
    control_closed: float | None
    difference: Estimate
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class FirstOrderTest:
    """Rank correlation of predicted with true gain over heads, and how often the bound held."""

    task: str
    precision: str
    prompts: int
    bound_held: int
    spearman: HeadEstimate


@dataclass(frozen=True, kw_only=True)
class TaskMean:
    """Mean metric of a task under one precision ("f32" too).

    Attributes:
        kept: prompts whose target is the top-1 next token.
        logit_diff: mean ``m``.
        change: against f32, paired, corrected for all tasks and precisions; None for f32.
        kl: mean ``KL(f32 ‖ precision)`` of the next token; None where not known.
        noise: the mean change under weight noise of the precision's size, one a draw;
            noise_kept: prompts that are answered under it.
    """

    task: str
    precision: str
    prompts: int
    logit_diff: Estimate
    change: Estimate | None
    kept: int = 0
    kl: Estimate | None = None
    noise: tuple[float, ...] = ()
    noise_kept: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Everything the study says about groups of prompts."""

    agreement: tuple[Agreement, ...]
    correlations: tuple[Correlation, ...]
    repair: tuple[RepairTest, ...]
    first_order: tuple[FirstOrderTest, ...]
    task_means: tuple[TaskMean, ...]


@dataclass(frozen=True, kw_only=True)
class Screen:
    """A screen of zero-importance in f32: few heads exact, all others estimated.

    Maps are ``[L, H]``, averages over prompts, logits.

    Attributes:
        top: the heads that the race left, the largest ``|importance|`` first: exact.
        sampled: heads drawn at random before the race that dropped out of it: exact, too. They are
            a random sample of all that dropped out, and say how good the estimates are.
        prompts: on which these heads are exact, places in ``HeadsResult.prompts``: all of them, or
            as many as a fifth of the exact sweep's cost allows.
        estimate: of every head, over all prompts, from the rounds before it dropped out or came to
            the top; never from the prompts after.
        error: the standard error of ``estimate``, over the choice of prompts.
        ran: on how many prompts a head had been ablated when it was estimated.
        first_order: mean of ``∇m · c``, the estimate of one backward pass alone; None where that
            pass would have cost more than a quarter of the budget, and was not made use of.
        agreement: of ``estimate`` with the exact values, over ``sampled``.
        missed: how many of ``sampled`` are larger than the last of the best ten of ``top``.
        missed_at_most: how many of all dropped heads may be, at 95 % confidence.
        layer_rows, exact_layer_rows: passes of one run of one prompt through one block: of the
            screen, the backward pass included where it was used, and of zeroing every head.
        operations, exact_operations: the same in floating point, logits included.
    """

    top: tuple[Head, ...]
    sampled: tuple[Head, ...]
    prompts: tuple[int, ...]
    estimate: Float[np.ndarray, "L H"]
    error: Float[np.ndarray, "L H"]
    ran: Float[np.ndarray, "L H"]
    first_order: Float[np.ndarray, "L H"] | None
    agreement: screen.Agreement
    missed: int
    missed_at_most: int
    layer_rows: int
    exact_layer_rows: int
    operations: float
    exact_operations: float

    @property
    def exact(self) -> Bool[np.ndarray, "L H"]:
        """Which heads are exact; the others are estimated."""
        found = np.zeros(self.estimate.shape, bool)
        found[tuple(np.array([*self.top, *self.sampled], int).reshape(-1, 2).T)] = True
        return found

    @property
    def cost(self) -> float:
        """The screen's operations as a share of the exact sweep's; or its passes, if more."""
        passes = self.layer_rows / self.exact_layer_rows
        return max(passes, self.operations / self.exact_operations)
