"""What the study says about groups of prompts, each number with its interval and p-value."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from jaxalign.measures import stats
from jaxalign.measures.estimates import NOTHING, Estimate, estimate, number
from jaxalign.studies.heads.average import comparable
from jaxalign.studies.heads.result import (
    RANKINGS,
    REPLACEMENTS,
    Correlation,
    FirstOrderTest,
    PromptResult,
    Ranking,
    RepairResult,
    RepairTest,
    Replacement,
    Statistics,
    TaskMean,
    Verdict,
)

ALL = "all"
SIGNIFICANT = 0.05


def summarize(
    prompts: Sequence[PromptResult],
    repairs: Sequence[RepairResult],
    precisions: Sequence[str],
    seed: int,
) -> Statistics:
    """Return every statistic of the study; a task named "all" takes the prompts of all tasks.

    Args:
        prompts, repairs: of the result.
        precisions: names of the low precisions.
        seed: of bootstraps and permutations.
    """
    tasks = list(dict.fromkeys(prompt.task for prompt in prompts))
    groups = [*tasks, ALL] if len(tasks) > 1 else [*tasks[:-1], ALL]

    def within(task: str, items: Iterable[Any]) -> list[Any]:
        return [item for item in items if task in (ALL, item.task)]

    pairs = [(task, precision) for task in groups for precision in precisions]
    return Statistics(
        correlations=tuple(
            _correlation(within(task, prompts), task, precision, kind, seed)
            for task, precision in pairs
            for kind in REPLACEMENTS
        ),
        repair=tuple(
            _repair_test(chosen, task, precision, ranking, seed)
            for task, precision in pairs
            if (chosen := [r for r in within(task, repairs) if r.precision == precision])
            for ranking in RANKINGS
        ),
        first_order=tuple(
            _first_order_test(within(task, prompts), task, precision, seed)
            for task, precision in pairs
        ),
        task_means=tuple(
            _task_mean(within(task, prompts), task, precision, seed)
            for task in groups
            for precision in ("f32", *precisions)
        ),
    )


def _correlate(x: np.ndarray, y: np.ndarray, seed: int, *names: str) -> tuple[Estimate, Estimate]:
    """Pearson and Spearman over the heads that can be compared."""
    prompts, heads = comparable(x, y)
    if not prompts.any():
        return NOTHING, NOTHING
    x, y = (a[prompts][:, heads] for a in (x, y))

    def correlation(kind: str) -> Estimate:
        rng = stats.generator(seed, *names, kind)
        found = stats.correlation_of_means(x, y, rng, rank=kind == "spearman")
        return Estimate(*map(number, found))

    return correlation("pearson"), correlation("spearman")


def _flat(maps: Iterable[np.ndarray], like: int) -> np.ndarray:
    rows = [np.ravel(one) for one in maps]
    return np.array(rows, np.float64) if rows else np.zeros((0, like))


def _correlation(
    prompts: Sequence[PromptResult], task: str, precision: str, kind: Replacement, seed: int
) -> Correlation:
    kept = [p for p in prompts if getattr(p, f"{kind}_importance") is not None]
    heads = prompts[0].zero_importance.size
    importance = _flat((getattr(p, f"{kind}_importance") for p in kept), heads)
    drift = _flat((p.precisions[precision].drift for p in kept), heads)
    used, finite = comparable(importance, drift)
    pearson, spearman = _correlate(importance, drift, seed, "correlation", task, precision, kind)
    return Correlation(
        task=task,
        precision=precision,
        importance=kind,
        prompts=int(used.sum()),
        heads=int(finite.sum()),
        pearson=pearson,
        spearman=spearman,
    )


def _repair_test(
    repairs: Sequence[RepairResult], task: str, precision: str, ranking: Ranking, seed: int
) -> RepairTest:
    rng = stats.generator(seed, "repair", task, precision, ranking)
    high = np.array([r.logit_diff_f32 for r in repairs])
    low = np.array(
        [np.nan if r.logit_diff_quantized is None else r.logit_diff_quantized for r in repairs]
    )
    gap = np.abs(high - low)
    curves = np.array([r.curves[ranking] for r in repairs])  # [P, K]
    random = np.array([r.random for r in repairs])  # [P, orders, K]
    closed = (gap[:, None] - np.abs(high[:, None] - curves)).mean(axis=1)
    by_chance = (gap[:, None, None] - np.abs(high[:, None, None] - random)).mean(axis=(1, 2))
    finite = np.isfinite(closed) & np.isfinite(by_chance)
    difference = estimate((closed - by_chance)[finite], rng, test=True)
    gap_mean, closed_mean, chance_mean = (
        number(values[finite].mean()) if finite.any() else None
        for values in (gap, closed, by_chance)
    )
    return RepairTest(
        task=task,
        precision=precision,
        ranking=ranking,
        prompts=int(finite.sum()),
        gap=gap_mean,
        closed=closed_mean,
        random_closed=chance_mean,
        difference=difference,
        verdict=_verdict(difference),
    )


def _verdict(difference: Estimate) -> Verdict:
    """Whether both the test and the interval tell a difference from 0."""
    low, high, p = difference.low, difference.high, difference.p
    if low is None or high is None or p is None or p >= SIGNIFICANT or low <= 0 <= high:
        return "no better than random"
    return "beats random" if low > 0 else "worse than random"


def _first_order_test(
    prompts: Sequence[PromptResult], task: str, precision: str, seed: int
) -> FirstOrderTest:
    accounts = [p.precisions[precision].first_order for p in prompts]
    heads = prompts[0].zero_importance.size
    predicted = _flat((a.predicted for a in accounts), heads)
    restored = _flat((a.restored for a in accounts), heads)
    _, spearman = _correlate(predicted, restored, seed, "first order", task, precision)
    held = sum(a.bound_held is True for a in accounts)
    return FirstOrderTest(
        task=task, precision=precision, prompts=len(accounts), bound_held=held, spearman=spearman
    )


def _task_mean(prompts: Sequence[PromptResult], task: str, precision: str, seed: int) -> TaskMean:
    rng = stats.generator(seed, "task mean", task, precision)
    high = np.array([p.logit_diff for p in prompts])
    low, change = high, None
    if precision != "f32":
        values = [p.precisions[precision].logit_diff for p in prompts]
        low = np.array([np.nan if v is None else v for v in values])
        change = estimate(low - high, rng, test=True)
    return TaskMean(
        task=task,
        precision=precision,
        prompts=int(np.isfinite(low).sum()),
        logit_diff=estimate(low, rng),
        change=change,
    )
