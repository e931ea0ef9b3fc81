"""What the study says about groups of prompts, each number with its interval and p-value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from jaxalign.measures import stats
from jaxalign.measures.correlation import HeadEstimate, correlate_means
from jaxalign.measures.estimates import ALL_TASKS, adjusted, estimate
from jaxalign.shapes import Float
from jaxalign.studies.heads.agreement import agreement
from jaxalign.studies.heads.average import comparable, flat
from jaxalign.studies.heads.drift_correlations import correlation
from jaxalign.studies.heads.findings import (
    DRIFT_MEASURES,
    REPLACEMENTS,
    DriftMeasure,
    FirstOrderTest,
    Replacement,
    Statistics,
    TaskMean,
)
from jaxalign.studies.heads.repair_tests import judged, repair_tests
from jaxalign.studies.heads.result import PrecisionResult, PromptResult, RepairResult

Row = TypeVar("Row", bound=Any)
# Each measure of drift is set beside zero-importance; the original's beside every other, too.
PAIRED: list[tuple[Replacement, DriftMeasure]] = [
    *((kind, DRIFT_MEASURES[0]) for kind in REPLACEMENTS),
    *((REPLACEMENTS[0], measure) for measure in DRIFT_MEASURES[1:]),
]


def summarize(
    prompts: Sequence[PromptResult],
    repairs: Sequence[RepairResult],
    precisions: Sequence[str],
    seed: int,
) -> Statistics:
    """Return every statistic of the study; a task named "all" takes the prompts of all tasks.

    p-values are corrected (Benjamini and Hochberg) over all tests of one kind of question.

    Args:
        prompts, repairs: of the result.
        precisions: names of the low precisions.
        seed: of bootstraps and permutations.
    """
    tasks = list(dict.fromkeys(prompt.task for prompt in prompts))
    groups = [*tasks, ALL_TASKS] if len(tasks) > 1 else [*tasks[:-1], ALL_TASKS]

    def within(task: str, items: Iterable[Any]) -> list[Any]:
        return [item for item in items if task in (ALL_TASKS, item.task)]

    pairs = [(task, precision) for task in groups for precision in precisions]
    agreements = [
        agreement(within(task, prompts), task, precision, kind, seed)
        for task, precision in pairs
        for kind in REPLACEMENTS
    ]
    correlations = [
        correlation(within(task, prompts), task, precision, kind, measure, seed)
        for task, precision in pairs
        for kind, measure in PAIRED
    ]
    tests = [
        test
        for task, precision in pairs
        for test in repair_tests(
            [r for r in within(task, repairs) if r.precision == precision],
            within(task, prompts),
            task,
            precision,
            seed,
        )
    ]
    return Statistics(
        agreement=_corrected(
            agreements, "pearson", "spearman", "prompt_pearson", "prompt_spearman", "relative_error"
        ),
        correlations=_corrected(
            correlations, "pearson", "spearman", "all_pearson", "all_spearman", "given_size"
        ),
        repair=tuple(judged(tests)),
        first_order=_corrected(
            [
                _first_order_test(within(task, prompts), task, precision, seed)
                for task, precision in pairs
            ],
            "spearman",
        ),
        task_means=_corrected(
            [
                _task_mean(within(task, prompts), task, precision, seed)
                for task in groups
                for precision in ("f32", *precisions)
            ],
            "change",
        ),
    )


def _corrected(rows: Sequence[Row | None], *fields: str) -> tuple[Row, ...]:
    """The rows there are, each field's p-values corrected: all rows of one field are a family."""
    found = [row for row in rows if row is not None]
    for name in fields:
        own = [i for i, row in enumerate(found) if getattr(row, name) is not None]
        family = adjusted([getattr(found[i], name) for i in own])
        for i, estimated in zip(own, family, strict=True):
            found[i] = replace(found[i], **{name: estimated})
    return tuple(found)


def _first_order_test(
    prompts: Sequence[PromptResult], task: str, precision: str, seed: int
) -> FirstOrderTest:
    accounts = [p.precisions[precision].first_order for p in prompts]
    predicted, restored = (
        flat([getattr(a, name) for a in accounts]) for name in ("predicted", "restored")
    )
    kept, heads = comparable(predicted, restored)
    rng = stats.generator(seed, "first order", task, precision)
    return FirstOrderTest(
        task=task,
        precision=precision,
        prompts=len(accounts),
        bound_held=sum(a.bound_held is True for a in accounts),
        spearman=correlate_means(
            predicted[kept][:, heads], restored[kept][:, heads], rng, rank=True
        )
        if kept.any()
        else HeadEstimate(),
    )


def _task_mean(prompts: Sequence[PromptResult], task: str, precision: str, seed: int) -> TaskMean:
    rng = stats.generator(seed, "task mean", task, precision)
    high = np.array([p.logit_diff for p in prompts])
    low, change, kl = high, None, None
    noise = np.zeros((0, len(prompts)))
    if precision != "f32":
        lows = [p.precisions[precision] for p in prompts]
        low = _numbers(lows, lambda one: one.logit_diff)
        change = estimate(low - high, rng, test=True)
        divergence = _numbers(lows, lambda one: one.kl)
        known = np.isfinite(divergence).any()
        kl = estimate(divergence, stats.generator(seed, "kl", task, precision)) if known else None
        noise = _noise(lows)
    return TaskMean(
        task=task,
        precision=precision,
        prompts=int(np.isfinite(low).sum()),
        logit_diff=estimate(low, rng),
        change=change,
        kept=int((low > 0).sum()),
        kl=kl,
        noise=tuple(float(change) for change in (noise - high).mean(axis=1)),
        noise_kept=tuple(int(count) for count in (noise > 0).sum(axis=1)),
    )


def _noise(lows: Sequence[PrecisionResult]) -> Float[np.ndarray, "draws P"]:
    """``m`` under each draw of noise that is finite; no draw where a prompt has none."""
    draws = [low.noise.logit_diff for low in lows if low.noise is not None]
    if not draws or len(draws) < len(lows):
        return np.zeros((0, len(lows)))
    found = np.array(draws).T
    return found[np.isfinite(found).all(axis=1)]


def _numbers(items: Sequence[Any], of: Callable[[Any], float | None]) -> np.ndarray:
    return np.array([np.nan if (value := of(item)) is None else value for item in items])
