"""What the study says about groups of prompts, each number with its interval and p-value."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from jaxalign import stats
from jaxalign.results import (
    RANKINGS,
    Correlation,
    Estimate,
    FirstOrderTest,
    PromptResult,
    RepairResult,
    RepairTest,
    Statistics,
    TaskMean,
    comparable,
    number,
)

ALL = "all"
SIGNIFICANT = 0.05
SAME = "no better than random"
NOTHING = Estimate(None, None, None, None)


def summarize(
    prompts: Sequence[PromptResult],
    repairs: Sequence[RepairResult],
    precisions: Sequence[str],
    seed: int,
) -> Statistics:
    """Every statistic of the study. A task named "all" takes the prompts of all tasks."""
    tasks = list(dict.fromkeys(prompt.task for prompt in prompts))
    groups = [*tasks, ALL] if len(tasks) > 1 else [*tasks[:-1], ALL]

    def within(task: str, items: Iterable[Any]) -> list[Any]:
        return [item for item in items if task in (ALL, item.task)]

    pairs = [(task, precision) for task in groups for precision in precisions]
    return Statistics(
        correlations=tuple(
            _correlation(within(task, prompts), task, precision, kind, seed)
            for task, precision in pairs
            for kind in ("zero", "mean", "resample")
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


def _estimate(*values: float) -> Estimate:
    return Estimate(*(number(value) for value in values))


def _correlate(x: np.ndarray, y: np.ndarray, seed: int, *names: str) -> tuple[Estimate, Estimate]:
    """Pearson and Spearman over the heads that can be compared."""
    prompts, heads = comparable(x, y)
    if not prompts.any():
        return NOTHING, NOTHING
    x, y = (a[prompts][:, heads] for a in (x, y))

    def estimate(kind: str) -> Estimate:
        rng = stats.generator(seed, *names, kind)
        return _estimate(*stats.correlation_of_means(x, y, rng, rank=kind == "spearman"))

    return estimate("pearson"), estimate("spearman")


def _flat(maps: Iterable[np.ndarray], like: int) -> np.ndarray:
    rows = [np.ravel(one) for one in maps]
    return np.array(rows, np.float64) if rows else np.zeros((0, like))


def _correlation(
    prompts: Sequence[PromptResult], task: str, precision: str, kind: str, seed: int
) -> Correlation:
    kept = [p for p in prompts if getattr(p, f"{kind}_importance") is not None]
    heads = prompts[0].zero_importance.size
    importance = _flat((getattr(p, f"{kind}_importance") for p in kept), heads)
    drift = _flat((p.precisions[precision].drift for p in kept), heads)
    used, finite = comparable(importance, drift)
    pearson, spearman = _correlate(importance, drift, seed, "correlation", task, precision, kind)
    counts = int(used.sum()), int(finite.sum())
    return Correlation(task, precision, kind, *counts, pearson, spearman)


def _repair_test(
    repairs: Sequence[RepairResult], task: str, precision: str, ranking: str, seed: int
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
    if not finite.any():
        return RepairTest(task, precision, ranking, 0, None, None, None, NOTHING, SAME)
    advantage = (closed - by_chance)[finite]
    mean, lowest, highest = stats.mean_interval(advantage, rng)
    p = stats.sign_flip_p(advantage, rng)
    verdict = SAME
    if p < SIGNIFICANT and lowest > 0:
        verdict = "beats random"
    elif p < SIGNIFICANT and highest < 0:
        verdict = "worse than random"
    gap_mean, closed_mean, chance_mean = (
        number(values[finite].mean()) for values in (gap, closed, by_chance)
    )
    return RepairTest(
        task,
        precision,
        ranking,
        int(finite.sum()),
        gap_mean,
        closed_mean,
        chance_mean,
        _estimate(mean, lowest, highest, p),
        verdict,
    )


def _first_order_test(
    prompts: Sequence[PromptResult], task: str, precision: str, seed: int
) -> FirstOrderTest:
    accounts = [p.precisions[precision].first_order for p in prompts]
    heads = prompts[0].zero_importance.size
    predicted = _flat((a.predicted for a in accounts), heads)
    restored = _flat((a.restored for a in accounts), heads)
    _, spearman = _correlate(predicted, restored, seed, "first order", task, precision)
    held = sum(a.bound_held is True for a in accounts)
    return FirstOrderTest(task, precision, len(accounts), held, spearman)


def _task_mean(prompts: Sequence[PromptResult], task: str, precision: str, seed: int) -> TaskMean:
    rng = stats.generator(seed, "task mean", task, precision)
    high = np.array([p.logit_diff for p in prompts])
    if precision == "f32":
        return TaskMean(task, precision, len(high), _mean_estimate(high, rng), None)
    values = [p.precisions[precision].logit_diff for p in prompts]
    low = np.array([np.nan if v is None else v for v in values])
    finite = np.isfinite(low)
    if not finite.any():
        return TaskMean(task, precision, 0, NOTHING, NOTHING)
    change = (low - high)[finite]
    value, lowest, highest = stats.mean_interval(change, rng)
    paired = _estimate(value, lowest, highest, stats.sign_flip_p(change, rng))
    return TaskMean(task, precision, int(finite.sum()), _mean_estimate(low[finite], rng), paired)


def _mean_estimate(values: np.ndarray, rng: np.random.Generator) -> Estimate:
    """A mean with its interval; no null is tested, so there is no p-value."""
    value, low, high = (number(v) for v in stats.mean_interval(values, rng))
    return Estimate(value, low, high, None)
