"""A made-up result of the heads study with the shape of a real one, for tests that need no model.

A few heads matter, drift spreads over decades, first-order predictions are right but for noise,
and rankings by importance repair faster than random orders do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from unittest import mock

import numpy as np

from jaxalign.measures import stats
from jaxalign.studies.heads.analysis import summarize
from jaxalign.studies.heads.findings import RANKINGS, REPLACEMENTS, Statistics
from jaxalign.studies.heads.rankings import VECTORS, control_steps
from jaxalign.studies.heads.result import (
    FirstOrder,
    HeadsResult,
    NoiseDraws,
    PrecisionResult,
    PromptResult,
    Reordered,
    RepairResult,
)
from jaxalign.study import codec
from jaxalign.study.provenance import Environment, ModelOrigin, PromptsOrigin, Provenance

DRIFT = {"f16": 2e-3, "int8-sim": 8e-2}  # typical drift of a head
NO_NOISE = ("int8-sim",)  # moves no weight
LOSS = {"f16": 0.01, "int8-sim": 0.7}  # typical loss of m, logits
ORDERS, SAME_LAYERS, STEPS, NOISE_DRAWS = 8, 4, 10, 5
SAMPLES = 100  # behind intervals and p-values, few for speed


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
    result = HeadsResult(
        num_layers=num_layers,
        num_heads=num_heads,
        reference_count=30,
        resample_draws=4,
        head_mode="true",
        prompts=tuple(prompts),
        repairs=tuple(repairs),
        statistics=made_up_statistics(prompts, repairs, precisions, seed),
        bits=dict.fromkeys(("f32", *precisions), 16.0),
        megabytes=dict.fromkeys(("f32", *precisions), 141.0),
        provenance=_provenance(len(prompts), precisions, seed, note),
    )
    return codec.decode(HeadsResult, codec.encode(result), "a result")  # with the digits of a file


def made_up_statistics(
    prompts: Sequence[PromptResult],
    repairs: Sequence[RepairResult],
    precisions: Sequence[str],
    seed: int,
) -> Statistics:
    """What the study says of these prompts and repairs, of few samples."""
    with mock.patch.multiple(stats, PERMUTATIONS=SAMPLES, BOOTSTRAP_SAMPLES=SAMPLES):
        return summarize(prompts, repairs, precisions, seed)


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
        size=_round_array(1 + np.abs(zero)),
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
    typical = DRIFT.get(name, 1e-2)

    def moved() -> np.ndarray:
        """Importance inside the precision."""
        return _round_array(importance + rng.normal(0, typical, importance.shape))

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
        kl=_round(abs(loss) / 10),
        importance={kind: moved() for kind in REPLACEMENTS},
        noise=None if name in NO_NOISE else _noise(rng, m, importance, typical),
        reordered=Reordered(importance=moved(), logit_diff=_round(m - 1.01 * loss))
        if name == "f16"
        else None,
    )


def _noise(rng: np.random.Generator, m: float, importance: np.ndarray, size: float) -> NoiseDraws:
    shape = (NOISE_DRAWS, *importance.shape)
    return NoiseDraws(
        importance={
            kind: _round_array(importance + rng.normal(0, size, shape)) for kind in ("zero", "mean")
        },
        logit_diff=_round_array(m + rng.normal(0, size, NOISE_DRAWS)),
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

    def curve(share: float, k: Sequence[int]) -> np.ndarray:
        rise = share * (1 - np.exp(-np.array(k) / 3))
        values = q + gap * (rise + rng.normal(0, 0.03, len(k)))
        return np.full(len(k), np.nan) if np.isnan(q) else _round_array(values)

    def controls(count: int) -> np.ndarray:
        k = control_steps(steps)
        return np.stack([curve(rng.normal(0.2, 0.06), k) for _ in range(count)])

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
        curves={name: curve(shares[name], range(1, steps + 1)) for name in RANKINGS},
        heads={name: order() for name in RANKINGS},
        steps=control_steps(steps),
        random=controls(ORDERS),
        same_layers={name: controls(SAME_LAYERS) for name in RANKINGS},
        vectors={name: controls(VECTORS) for name in RANKINGS},
    )


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
        bootstrap_samples=SAMPLES,
        permutations=SAMPLES,
    )
