"""Does restoring the heads of a ranking win back more than its controls do?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from jaxalign.measures import stats
from jaxalign.measures.estimates import Estimate, adjusted, estimate, number
from jaxalign.shapes import Float
from jaxalign.studies.heads.findings import (
    CONTROLS,
    RANKINGS,
    Control,
    Ranking,
    RepairTest,
    Verdict,
)
from jaxalign.studies.heads.result import PromptResult, RepairResult


def repair_tests(
    repairs: Sequence[RepairResult],
    prompts: Sequence[PromptResult],
    task: str,
    precision: str,
    seed: int,
) -> list[RepairTest]:
    """Every ranking against every control that was run, verdicts not yet corrected.

    Args:
        repairs: of the task, or all, in this precision, one a prompt.
        prompts: the same prompts.
        task: their name.
        precision: the low one.
        seed: of bootstraps and sign flips.
    """
    noise = _rounding_noise(prompts, precision)
    return [
        _test(repairs, task, precision, ranking, control, noise, seed)
        for ranking in RANKINGS
        for control in CONTROLS
        if repairs and repairs[0].control(control, ranking) is not None
    ]


def judged(tests: Sequence[RepairTest]) -> list[RepairTest]:
    """The tests with their p-values corrected for how many there are, and their verdicts.

    Args:
        tests: all of a study.
    """
    corrected = adjusted([test.difference for test in tests])
    return [
        replace(test, difference=own, verdict=verdict(own, test.closed, test.noise))
        for test, own in zip(tests, corrected, strict=True)
    ]


def verdict(difference: Estimate, closed: float | None, noise: float) -> Verdict:
    """What can be said of a difference between a ranking and a control.

    Args:
        difference: with corrected p-value.
        closed: what the ranking closes of the gap, logits.
        noise: what another order of roundings changes, logits.
    """
    if closed is not None and abs(closed) <= noise:
        return "below noise"
    if not difference.told:
        return "no better"
    return "beats it" if (difference.value or 0) > 0 else "worse"


def _rounding_noise(prompts: Sequence[PromptResult], precision: str) -> float:
    """Mean ``|m_q − m_q'|`` between two orders of the same roundings; 0 where they have none."""
    lows = [p.precisions[precision] for p in prompts]
    pairs = [(low.logit_diff, low.reordered.logit_diff) for low in lows if low.reordered]
    moved = [abs(a - b) for a, b in pairs if a is not None and b is not None]
    return float(np.mean(moved)) if moved else 0.0


def _test(
    repairs: Sequence[RepairResult],
    task: str,
    precision: str,
    ranking: Ranking,
    control: Control,
    noise: float,
    seed: int,
) -> RepairTest:
    rng = stats.generator(seed, "repair", task, precision, ranking, control)
    high = np.array([r.logit_diff_f32 for r in repairs])
    low = np.array(
        [np.nan if r.logit_diff_quantized is None else r.logit_diff_quantized for r in repairs]
    )
    gap = np.abs(high - low)
    steps = np.array(repairs[0].steps) - 1
    curves = np.array([r.curves[ranking][steps] for r in repairs])  # [P, steps]
    beside = np.array([r.control(control, ranking) for r in repairs])  # [P, orders, steps]
    closed = _closed(gap, high, curves[:, None])
    by_control = _closed(gap, high, beside)
    finite = np.isfinite(closed) & np.isfinite(by_control)
    gap_mean, closed_mean, control_mean = (
        number(values[finite].mean()) if finite.any() else None
        for values in (gap, closed, by_control)
    )
    return RepairTest(
        task=task,
        precision=precision,
        ranking=ranking,
        control=control,
        prompts=int(finite.sum()),
        gap=gap_mean,
        noise=noise,
        closed=closed_mean,
        control_closed=control_mean,
        difference=estimate((closed - by_control)[finite], rng, test=True),
        verdict="no better",
    )


def _closed(
    gap: Float[np.ndarray, " P"], high: Float[np.ndarray, " P"], m: Float[np.ndarray, "P N steps"]
) -> Float[np.ndarray, " P"]:
    """How much nearer to f32 each prompt ends up, mean over orders and k."""
    return (gap[:, None, None] - np.abs(high[:, None, None] - m)).mean(axis=(1, 2))
