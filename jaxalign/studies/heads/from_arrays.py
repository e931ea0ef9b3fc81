"""From arrays over prompts to the typed result, one prompt at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jaxalign.measures.estimates import number
from jaxalign.numerics.scheme import Scheme
from jaxalign.shapes import Float, Int
from jaxalign.studies.heads.calls import Runner
from jaxalign.studies.heads.findings import RANKINGS, Ranking, Replacement, Screen
from jaxalign.studies.heads.importance import Ablations, Importance
from jaxalign.studies.heads.programs import LowRun
from jaxalign.studies.heads.rankings import control_steps
from jaxalign.studies.heads.repair import Repaired
from jaxalign.studies.heads.result import (
    FirstOrder,
    NoiseDraws,
    PrecisionResult,
    PromptResult,
    Reordered,
    RepairResult,
)


@dataclass(frozen=True, kw_only=True)
class Base:
    """What f32 says about the kept prompts, and what low precisions are compared with.

    Attributes:
        asked: the prompts, their clean runs and donors.
        importance: of every head.
        ranked: ``[P, L·H]``, zero-importance that heads are ranked by: of a screened study with
            estimates where it is not exact.
        screen: of a screened study.
    """

    asked: Ablations
    importance: Importance
    ranked: Float[np.ndarray, "P N"]
    screen: Screen | None = None


@dataclass(frozen=True, kw_only=True)
class Low:
    """One low precision over all kept prompts.

    Attributes:
        scheme: the precision.
        clean: its runs without edits, of the prompts and the reference texts.
        importance: of every head, inside it.
        reordered: the same with its roundings in another order; None where activations are f32.
        noise: importance in f32 with noise of its size, one a draw.
        repaired: what restoring heads gave.
    """

    scheme: Scheme
    clean: LowRun
    importance: Importance
    reordered: Importance | None
    noise: list[Importance]
    repaired: Repaired


def _finite(a: np.ndarray, finite: np.ndarray) -> np.ndarray:
    return np.where(finite, a, np.nan).astype(np.float64)


def _by_kind(
    effects: dict[Replacement, np.ndarray], i: int, shape: tuple[int, int], partners: int
) -> dict[Replacement, np.ndarray]:
    """A prompt's maps; none of resampling where there is nobody to resample from."""
    return {
        kind: values[i].reshape(shape)
        for kind, values in effects.items()
        if kind != "resample" or partners
    }


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
    asked = base.asked
    prompt, metrics = asked.prompts[i], asked.clean.metrics
    shape = (runner.config.num_layers, runner.config.num_heads)
    partners = int(asked.donors.partners[i])
    found = _by_kind(base.importance.answer, i, shape, partners)
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
        zero_importance=found["zero"],
        mean_importance=found.get("mean"),
        resample_importance=found.get("resample"),
        resample_partners=partners,
        precisions=precisions,
        distractor_importance=(
            _by_kind(base.importance.distractor, i, shape, partners) if has_distractor else None
        ),
        size=asked.clean.sizes[i].astype(np.float64),
    )


def precision_result(runner: Runner, base: Base, low: Low, i: int) -> PrecisionResult:
    """Return prompt ``i`` under one low precision.

    Args:
        runner: the study's.
        base, low: what f32 and the low precision say about all prompts.
        i: which prompt of ``base``.
    """
    drift, metrics = low.clean.drift, low.clean.metrics
    finite, asked = drift.finite[i], base.asked
    shape, partners = finite.shape, int(asked.donors.partners[i])
    return PrecisionResult(
        drift=_finite(drift.last[i], finite),
        cosine=_finite(drift.cosine_last[i], finite),
        drift_all=_finite(drift.all[i], finite),
        cosine_all=_finite(drift.cosine_all[i], finite),
        logit_diff=number(metrics.logit_diff[i]),
        logit_diff_rounded=number(metrics.logit_diff_f16[i]),
        distractor_diff=(
            None if asked.prompts[i].distractor is None else number(metrics.distractor_diff[i])
        ),
        nonfinite_heads=tuple((int(a), int(b)) for a, b in np.argwhere(~finite)),
        first_order=_first_order(base, low, i),
        kl=number(low.clean.kl[i]),
        importance=_by_kind(low.importance.answer, i, shape, partners),
        noise=_noise(low, i, shape),
        reordered=None
        if low.reordered is None
        else Reordered(
            importance=low.reordered.answer["zero"][i].reshape(shape),
            logit_diff=number(
                low.clean.metrics.logit_diff[i] + low.reordered.clean[i] - low.importance.clean[i]
            ),
        ),
    )


def _noise(low: Low, i: int, shape: tuple[int, int]) -> NoiseDraws | None:
    if not low.noise:
        return None
    kinds = low.noise[0].answer
    return NoiseDraws(
        importance={
            kind: np.stack([draw.answer[kind][i].reshape(shape) for draw in low.noise])
            for kind in kinds
        },
        logit_diff=np.array([draw.clean[i] for draw in low.noise]),
    )


def _first_order(base: Base, low: Low, i: int) -> FirstOrder:
    finite = low.clean.drift.finite[i]
    predicted = _finite(low.clean.predicted[i], finite)
    margin = base.asked.clean.metrics.logit_diff[i]
    degradation = number(margin - low.clean.metrics.logit_diff[i])
    absolute = number(np.abs(predicted).sum())
    held = None if degradation is None or absolute is None else abs(degradation) <= absolute
    return FirstOrder(
        predicted=predicted,
        restored=low.repaired.restored[i].reshape(predicted.shape),
        signed_sum=number(predicted.sum()),
        absolute_sum=absolute,
        degradation=degradation,
        bound_held=held,
    )


def repair_result(
    runner: Runner,
    base: Base,
    low: Low,
    orders: dict[Ranking, Int[np.ndarray, "P N"]],
    k: int,
    i: int,
) -> RepairResult:
    """Return prompt ``i``'s repair curves.

    Args:
        runner: the study's.
        base, low: what f32 and the low precision say about all prompts.
        orders: by ranking, each prompt's heads in the order of repair.
        k: how many heads are restored.
        i: which prompt of ``base``.
    """
    prompt, found = base.asked.prompts[i], low.repaired
    H = runner.config.num_heads
    by_ranking = list(enumerate(RANKINGS))
    return RepairResult(
        prompt=prompt.text.prompt,
        task=prompt.task,
        precision=low.scheme.name,
        logit_diff_f32=float(base.asked.clean.metrics.logit_diff[i]),
        logit_diff_quantized=number(found.clean[i]),
        curves={name: found.curves[i, n] for n, name in by_ranking},
        heads={
            name: tuple((int(head) // H, int(head) % H) for head in orders[name][i][:k])
            for name in RANKINGS
        },
        steps=control_steps(k),
        random=found.random[i],
        same_layers={name: found.same_layers[i, n] for n, name in by_ranking},
        vectors={name: found.vectors[i, n] for n, name in by_ranking},
    )
