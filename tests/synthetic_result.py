"""A made-up result of the heads study with the shape of a real one, for tests that need no model.

A few heads matter, drift spreads over decades, first-order predictions are right but for noise,
and rankings by importance repair faster than random orders do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from jaxalign.measures.estimates import Estimate
from jaxalign.studies.heads.result import (
    RANKINGS,
    Correlation,
    FirstOrder,
    FirstOrderTest,
    HeadsResult,
    PrecisionResult,
    PromptResult,
    RepairResult,
    RepairTest,
    Statistics,
    TaskMean,
)
from jaxalign.study.provenance import Environment, ModelOrigin, PromptsOrigin, Provenance

DRIFT = {"f16": 2e-3, "int8-sim": 8e-2}  # typical drift of a head
LOSS = {"f16": 0.01, "int8-sim": 0.7}  # typical loss of m, logits
ORDERS, STEPS, DRAWS = 8, 10, 40


def make_result(
    *,
    num_layers: int = 6,
    num_heads: int = 8,
    prompts_per_task: int = 5,
    tasks: tuple[str, ...] = ("FactualRecall", "IOI"),
    precisions: tuple[str, ...] = ("f16", "int8-sim"),
    seed: int = 0,
    repair: bool = True,
    nonfinite: bool = False,
    note: str = "",
) -> HeadsResult:
    """A plausible result that fits the schema and survives a round trip through JSON.

    ``tasks`` and ``precisions`` (the low ones) are names in order; without ``repair`` there are no
    curves; with ``nonfinite`` the first prompt overflows under the first precision; ``note`` is
    ``provenance.model.note``.
    """
    rng = np.random.default_rng(seed)
    shape = (num_layers, num_heads)
    drift = {name: DRIFT.get(name, 1e-2) * rng.lognormal(0, 0.9, shape) for name in precisions}
    prompts: list[PromptResult] = []
    for task in tasks:
        base = rng.normal(0, 0.08, shape) + rng.gamma(0.35, 1.2, shape) * rng.choice(
            [1, 1, 1, -0.4], shape
        )
        prompts += [_prompt(rng, task, i, base, drift) for i in range(prompts_per_task)]
    if nonfinite and precisions:
        prompts[0] = _overflowed(prompts[0], precisions[0])
    repairs = [_repair(rng, prompt, name) for name in precisions for prompt in prompts if repair]
    return HeadsResult(
        num_layers=num_layers,
        num_heads=num_heads,
        reference_count=30,
        resample_draws=4,
        head_mode="true",
        prompts=tuple(prompts),
        repairs=tuple(repairs),
        statistics=_statistics(rng, prompts, repairs, tasks, precisions),
        provenance=_provenance(len(prompts), precisions, seed, note),
    )


def number(value: float) -> float | None:
    """With the digits that a file keeps, so that what is read equals what was written."""
    return float(f"{value:.7g}") if np.isfinite(value) else None


def _round(value: float) -> float:
    return number(value) or 0.0


_round_array = np.vectorize(_round, otypes=[float])


def _prompt(
    rng: np.random.Generator,
    task: str,
    index: int,
    base: np.ndarray,
    drift: dict[str, np.ndarray],
) -> PromptResult:
    zero = _round_array(base * rng.normal(1, 0.2) + rng.normal(0, 0.08, base.shape))
    m = _round(rng.normal(3.0, 1.0))
    return PromptResult(
        prompt=f"Prompt {index} of {task}:",
        target=" Paris",
        distractor=" Rome" if index % 2 else None,
        task=task,
        num_tokens=12 + index % 3,
        validated=True,
        logit_diff=m,
        logit_diff_rounded=float(round(m)),
        distractor_diff=_round(m + 0.8) if index % 2 else None,
        zero_importance=zero,
        mean_importance=_round_array(0.75 * zero + rng.normal(0, 0.06, base.shape)),
        resample_importance=_round_array(0.6 * zero + rng.normal(0, 0.1, base.shape)),
        resample_partners=4,
        precisions={name: _precision(rng, m, zero, name, drift[name]) for name in drift},
    )


def _precision(
    rng: np.random.Generator, m: float, importance: np.ndarray, name: str, mean_drift: np.ndarray
) -> PrecisionResult:
    drift = _round_array(mean_drift * rng.lognormal(0, 0.25, mean_drift.shape))
    raw = importance * drift * rng.normal(0.5, 0.5, drift.shape)
    loss = LOSS.get(name, 0.1) * rng.normal(1, 0.4)
    predicted = _round_array(raw * abs(loss) / (np.abs(raw).sum() + 1e-12) * 1.6)
    noise = rng.normal(0, 0.3 * predicted.std() + 1e-9, drift.shape)
    total = _round(np.abs(predicted).sum())
    return PrecisionResult(
        drift=drift,
        cosine=_round_array(1 - drift**2 / 2),
        drift_all=_round_array(drift * 1.1),
        cosine_all=_round_array(1 - drift**2 / 1.8),
        logit_diff=_round(m - loss),
        logit_diff_rounded=float(round(m - loss)),
        distractor_diff=None,
        nonfinite_heads=(),
        first_order=FirstOrder(
            predicted=predicted,
            restored=_round_array(0.8 * predicted + noise),
            signed_sum=_round(predicted.sum()),
            absolute_sum=total,
            degradation=_round(loss),
            bound_held=abs(loss) <= total,
        ),
    )


def _overflowed(prompt: PromptResult, precision: str) -> PromptResult:
    """The prompt with the first and last head, and all that follows from them, not finite."""
    low = prompt.precisions[precision]
    last = (low.drift.shape[0] - 1, low.drift.shape[1] - 1)
    names = ("drift", "cosine", "drift_all", "cosine_all")
    maps = {name: getattr(low, name).copy() for name in names}
    for values in maps.values():
        values[0, 0] = values[last] = np.nan
    nan = np.full_like(low.drift, np.nan)
    spoiled = replace(
        low,
        **maps,
        logit_diff=None,
        logit_diff_rounded=None,
        nonfinite_heads=((0, 0), last),
        first_order=FirstOrder(
            predicted=nan,
            restored=nan,
            signed_sum=None,
            absolute_sum=None,
            degradation=None,
            bound_held=None,
        ),
    )
    return replace(prompt, precisions=prompt.precisions | {precision: spoiled})


def _repair(rng: np.random.Generator, prompt: PromptResult, precision: str) -> RepairResult:
    low, shape = prompt.precisions[precision], prompt.zero_importance.shape
    steps = min(STEPS, shape[0] * shape[1])
    q = np.nan if low.logit_diff is None else low.logit_diff
    gap = prompt.logit_diff - q

    def curve(share: float) -> np.ndarray:
        rise = share * (1 - np.exp(-np.arange(1, steps + 1) / 3))
        values = q + gap * (rise + rng.normal(0, 0.03, steps))
        return np.full(steps, np.nan) if np.isnan(q) else _round_array(values)

    def order() -> tuple[tuple[int, int], ...]:
        chosen = rng.permutation(shape[0] * shape[1])[:steps]
        return tuple((int(i) // shape[1], int(i) % shape[1]) for i in chosen)

    shares = dict(zip(RANKINGS, (0.45, 0.3, 0.6, 0.7), strict=True))
    return RepairResult(
        prompt=prompt.prompt,
        task=prompt.task,
        precision=precision,
        logit_diff_f32=prompt.logit_diff,
        logit_diff_quantized=low.logit_diff,
        curves={name: curve(shares[name]) for name in RANKINGS},
        heads={name: order() for name in RANKINGS},
        random=np.stack([curve(rng.normal(0.2, 0.06)) for _ in range(ORDERS)]),
    )


def _statistics(
    rng: np.random.Generator,
    prompts: Sequence[PromptResult],
    repairs: Sequence[RepairResult],
    tasks: Sequence[str],
    precisions: Sequence[str],
) -> Statistics:
    groups = {"all": tuple(tasks)} | {t: (t,) for t in tasks if len(tasks) > 1}

    def within(items: Sequence[Any], task: str) -> list[Any]:
        return [item for item in items if item.task in groups[task]]

    pairs = [(within(prompts, task), task, name) for task in groups for name in precisions]
    return Statistics(
        correlations=tuple(
            _correlation(rng, *pair, kind)
            for pair in pairs
            for kind in ("zero", "mean", "resample")
        ),
        repair=tuple(
            _repair_test(rng, within(repairs, task), task, name, ranking)
            for _, task, name in pairs
            if repairs
            for ranking in RANKINGS
        ),
        first_order=tuple(_first_order_test(rng, *pair) for pair in pairs),
        task_means=tuple(
            _task_mean(rng, within(prompts, task), task, name)
            for task in groups
            for name in ("f32", *precisions)
        ),
    )


def _correlate(x: np.ndarray, y: np.ndarray, ranked: bool) -> float:
    if ranked:
        x, y = x.argsort().argsort(), y.argsort().argsort()
    return float(np.corrcoef(x, y)[0, 1]) if x.size > 1 and x.std() and y.std() else np.nan


def _over_heads(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, ranked: bool) -> Estimate:
    """Correlation over heads of prompt means of ``[P, L, H]``, with a bootstrap over prompts."""
    x, y = x.reshape(len(x), -1), y.reshape(len(y), -1)
    keep = np.isfinite(x.sum(0) + y.sum(0))
    x, y = x[:, keep], y[:, keep]
    value = _correlate(x.mean(0), y.mean(0), ranked)
    if len(x) < 2 or not np.isfinite(value):
        return Estimate()
    picks = rng.integers(0, len(x), (DRAWS, len(x)))
    draws = [_correlate(x[i].mean(0), y[i].mean(0), ranked) for i in picks]
    low, high = np.quantile(draws, [0.025, 0.975])
    null = [_correlate(x.mean(0), rng.permutation(y.mean(0)), ranked) for _ in range(DRAWS)]
    p = (1 + sum(abs(v) >= abs(value) for v in null)) / (DRAWS + 1)
    return Estimate(number(value), number(low), number(high), number(p))


def _over_prompts(rng: np.random.Generator, values: np.ndarray) -> Estimate:
    """Mean over prompts with bootstrap interval and sign-flip p-value."""
    values = values[np.isfinite(values)]
    if values.size < 2:
        return Estimate(number(values.mean()) if values.size else None, None, None, None)
    means = values[rng.integers(0, values.size, (DRAWS, values.size))].mean(1)
    flips = (values * rng.choice([-1, 1], (DRAWS, values.size))).mean(1)
    p = (1 + (np.abs(flips) >= abs(values.mean())).sum()) / (DRAWS + 1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(number(values.mean()), number(low), number(high), number(p))


def _correlation(
    rng: np.random.Generator, prompts: Sequence[PromptResult], task: str, name: str, kind: str
) -> Correlation:
    x = np.stack([getattr(p, f"{kind}_importance") for p in prompts])
    y = np.stack([p.precisions[name].drift for p in prompts])
    pearson, spearman = (_over_heads(rng, x, y, ranked) for ranked in (False, True))
    heads = int(np.isfinite(y.sum(0)).sum())
    return Correlation(
        task=task,
        precision=name,
        importance=kind,
        prompts=len(prompts),
        heads=heads,
        pearson=pearson,
        spearman=spearman,
    )


def _repair_test(
    rng: np.random.Generator, repairs: Sequence[RepairResult], task: str, name: str, ranking: str
) -> RepairTest:
    finite = [r for r in repairs if r.precision == name and r.logit_diff_quantized is not None]
    gap = np.array([abs(r.logit_diff_f32 - (r.logit_diff_quantized or 0)) for r in finite])

    def closed(curves: list[np.ndarray]) -> np.ndarray:
        left = [abs(r.logit_diff_f32 - c).mean() for r, c in zip(finite, curves, strict=True)]
        return gap - np.array(left)

    ours = closed([r.curves[ranking] for r in finite])
    random = closed([r.random for r in finite])
    difference = _over_prompts(rng, ours - random)
    sure = difference.p is not None and difference.p < 0.05
    better = "beats random" if (difference.value or 0) > 0 else "worse than random"
    verdict = better if sure else "no better than random"
    gap_mean, ours_mean, random_mean = (
        number(v.mean()) if v.size else None for v in (gap, ours, random)
    )
    return RepairTest(
        task=task,
        precision=name,
        ranking=ranking,
        prompts=len(finite),
        gap=gap_mean,
        closed=ours_mean,
        random_closed=random_mean,
        difference=difference,
        verdict=verdict,
    )


def _first_order_test(
    rng: np.random.Generator, prompts: Sequence[PromptResult], task: str, name: str
) -> FirstOrderTest:
    accounts = [p.precisions[name].first_order for p in prompts]
    predicted, restored = (
        np.stack([getattr(a, field) for a in accounts]) for field in ("predicted", "restored")
    )
    held = sum(bool(a.bound_held) for a in accounts)
    spearman = _over_heads(rng, predicted, restored, True)
    return FirstOrderTest(
        task=task, precision=name, prompts=len(accounts), bound_held=held, spearman=spearman
    )


def _task_mean(
    rng: np.random.Generator, prompts: Sequence[PromptResult], task: str, name: str
) -> TaskMean:
    reference = np.array([p.logit_diff for p in prompts])
    if name == "f32":
        mean = _plain_mean(rng, reference)
        return TaskMean(
            task=task, precision=name, prompts=len(prompts), logit_diff=mean, change=None
        )
    lows = [p.precisions[name].logit_diff for p in prompts]
    values = np.array([np.nan if v is None else v for v in lows])
    change = _over_prompts(rng, values - reference)
    kept = int(np.isfinite(values).sum())
    mean = _plain_mean(rng, values)
    return TaskMean(task=task, precision=name, prompts=kept, logit_diff=mean, change=change)


def _plain_mean(rng: np.random.Generator, values: np.ndarray) -> Estimate:
    return replace(_over_prompts(rng, values), p=None)  # no null is tested


def _provenance(count: int, precisions: Sequence[str], seed: int, note: str) -> Provenance:
    return Provenance(
        model=ModelOrigin(
            name="EleutherAI/pythia-70m",
            revision="a39f36b100fe8a5377810d56c3f4789b9c53ac42",
            note=note,
            weights_sha256="1" * 64,
        ),
        prompts=PromptsOrigin(file="prompts.json", sha256="0" * 64, given=count, kept=count),
        environment=Environment(platform="Linux x86_64", device="cpu", device_kind="cpu"),
        options={"schemes": list(precisions), "max_repair_k": STEPS, "seed": seed},
        timestamp="2025-01-01T00:00:00Z",
        total_seconds=12.5,
        seconds={"importance": 6.0, "drift": 6.5},
        layer_rows=85,
        bootstrap_samples=DRAWS,
        permutations=DRAWS,
    )
