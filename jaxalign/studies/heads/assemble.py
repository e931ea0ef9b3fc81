"""From arrays over prompts to the typed result, one prompt at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast, get_args

import jax
import numpy as np

from jaxalign.measures import stats
from jaxalign.measures.estimates import number
from jaxalign.measures.metrics import AnswerMetrics
from jaxalign.numerics.scheme import INT8_SIM, Scheme
from jaxalign.prompts import Batch, Prompt
from jaxalign.runtime.environment import describe
from jaxalign.shapes import Float, Int
from jaxalign.studies.heads.calls import Clean, Comparison, Runner
from jaxalign.studies.heads.metadata import CallsOfOneShape, Environment, Mesh, Metadata
from jaxalign.studies.heads.rankings import DRAWS, RANDOM_ORDERS, Donors
from jaxalign.studies.heads.result import (
    RANKINGS,
    FirstOrder,
    PrecisionResult,
    PromptResult,
    RepairResult,
    Replacement,
)
from jaxalign.study.session import Session

KIND_NAMES: tuple[Replacement, ...] = get_args(Replacement)


@dataclass(frozen=True)
class Base:
    """What f32 says about the kept prompts, and what low precisions are compared with.

    Attributes:
        prompts, work: the kept prompts and their batches.
        clean: their clean f32 runs.
        donors: their resampling partners.
        importance, distractor_importance: ``[P, 3, L·H]`` by zero, mean, resampling.
    """

    prompts: list[Prompt]
    work: list[Batch]
    clean: Clean
    donors: Donors
    importance: np.ndarray
    distractor_importance: np.ndarray


@dataclass(frozen=True)
class Low:
    """One low precision over all kept prompts.

    Attributes:
        metrics: of its clean runs, ``[P]``.
        comparison: drift and first-order effects against f32.
        restored: ``[P, L·H]``, the gain of restoring each head alone.
    """

    scheme: Scheme
    metrics: AnswerMetrics
    comparison: Comparison
    restored: np.ndarray


def _finite(a: np.ndarray, finite: np.ndarray) -> np.ndarray:
    return np.where(finite, a, np.nan).astype(np.float64)


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
    prompt, metrics = base.prompts[i], base.clean.metrics
    shape = (runner.config.num_layers, runner.config.num_heads)
    partners = int(base.donors.partners[i])

    def by_kind(effects: np.ndarray) -> dict[Replacement, np.ndarray]:
        kinds = dict(zip(KIND_NAMES, effects[i].reshape(3, *shape), strict=True))
        if not partners:
            del kinds["resample"]
        return kinds

    importance = by_kind(base.importance)
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
        zero_importance=importance["zero"],
        mean_importance=importance["mean"],
        resample_importance=importance.get("resample"),
        resample_partners=partners,
        precisions=precisions,
        distractor_importance=by_kind(base.distractor_importance) if has_distractor else None,
    )


def precision_result(runner: Runner, base: Base, low: Low, i: int) -> PrecisionResult:
    """Return prompt ``i`` under one low precision.

    Args:
        runner: the study's.
        base, low: what f32 and the low precision say about all prompts.
        i: which prompt of ``base``.
    """
    drift, metrics = low.comparison.drift, low.metrics
    finite = drift.finite[i]
    predicted = _finite(low.comparison.predicted[i], finite)
    restored = low.restored[i].reshape(predicted.shape)
    degradation = number(base.clean.metrics.logit_diff[i] - metrics.logit_diff[i])
    absolute = number(np.abs(predicted).sum())
    held = None if degradation is None or absolute is None else abs(degradation) <= absolute
    return PrecisionResult(
        drift=_finite(drift.last[i], finite),
        cosine=_finite(drift.cosine_last[i], finite),
        drift_all=_finite(drift.all[i], finite),
        cosine_all=_finite(drift.cosine_all[i], finite),
        logit_diff=number(metrics.logit_diff[i]),
        logit_diff_rounded=number(metrics.logit_diff_f16[i]),
        distractor_diff=(
            None if base.prompts[i].distractor is None else number(metrics.distractor_diff[i])
        ),
        nonfinite_heads=tuple((int(a), int(b)) for a, b in np.argwhere(~finite)),
        first_order=FirstOrder(
            predicted=predicted,
            restored=restored,
            signed_sum=number(predicted.sum()),
            absolute_sum=absolute,
            degradation=degradation,
            bound_held=held,
        ),
    )


def repair_result(
    runner: Runner,
    base: Base,
    low: Low,
    orders: dict[str, Int[np.ndarray, "P N"]],
    values: Float[np.ndarray, " M"],
    k: int,
    i: int,
) -> RepairResult:
    """Return prompt ``i``'s repair curves.

    Args:
        runner: the study's.
        base, low: what f32 and the low precision say about all prompts.
        orders: by ranking, int ``[P, L·H]``, each prompt's heads in the order of repair.
        values: ``[1 + orders · k]`` logits: the clean ``m``, then the curves of the rankings and
            of the random orders, one after the other.
        k: how many heads are restored.
        i: which prompt of ``base``.
    """
    curves = values[1:].reshape(-1, k)
    prompt = base.prompts[i]
    H = runner.config.num_heads
    return RepairResult(
        prompt=prompt.text.prompt,
        task=prompt.task,
        precision=low.scheme.name,
        logit_diff_f32=float(base.clean.metrics.logit_diff[i]),
        logit_diff_quantized=number(values[0]),
        curves={name: curves[n] for n, name in enumerate(RANKINGS)},
        heads={
            name: tuple((int(head) // H, int(head) % H) for head in orders[name][i][:k])
            for name in RANKINGS
        },
        random=curves[len(RANKINGS) :],
    )


def forward_passes(runner: Runner, given: int, kept: int, reference: int) -> int:
    """Return how many model evaluations the result stands for, counted as the original did.

    Args:
        runner: the study's.
        given, kept, reference: numbers of prompts given and kept, and of reference texts.
    """
    options, heads = runner.options, runner.num_heads
    repaired = sum(scheme.name in options.repaired for scheme in options.schemes)
    each = 1 + heads * (len(KIND_NAMES) - 1 + DRAWS)
    each += (
        len(options.schemes) * (1 + heads)
        + repaired * (len(RANKINGS) + RANDOM_ORDERS) * runner.repaired_heads
    )
    return given + reference + kept * each


def metadata(session: Session, runner: Runner, kept: int) -> Metadata:
    """Return the study's metadata.

    Args:
        session: after the study's last call.
        runner: the study's.
        kept: number of prompts kept.
    """
    options, where = runner.options, session.provenance(kept)
    model, prompts = where.model, where.prompts
    device, *_ = jax.tree.leaves(runner.model.params)[0].devices()  # all are of one kind
    passes = forward_passes(runner, prompts.given, kept, len(session.reference))
    return {
        "timestamp": where.timestamp,
        "device": device.platform,
        "int8_mode": "simulated" if INT8_SIM in options.schemes else "disabled",
        "total_forward_passes": passes,
        "total_runtime_seconds": round(where.total_seconds, 3),
        "seconds": {name: round(value, 3) for name, value in where.seconds.items()},
        "precisions": [scheme.name for scheme in options.schemes],
        "mean_positions": cast(Literal["last", "all"], options.mean_positions),
        "resample_draws": DRAWS,
        "max_repair_k": runner.repaired_heads,
        "random_orders": RANDOM_ORDERS,
        "bootstrap_samples": stats.BOOTSTRAP_SAMPLES,
        "permutations": stats.PERMUTATIONS,
        "use_all_prompts": options.use_all_prompts,
        "seed": options.seed,
        "notes": list(where.notes),
        "prompts": {
            "file": prompts.file,
            "sha256": prompts.sha256,
            "given": prompts.given,
            "kept": prompts.kept,
        },
        "model": {
            "name": model.name,
            "revision": model.revision,
            "note": model.note,
            "weights_sha256": model.weights_sha256,
        },
        "computed": {
            "calls": sum(call.times for call in where.calls),
            "layer_rows": where.layer_rows,
            "layer_rows_without_wave": passes * runner.config.num_layers,
            "description": "layer_rows: passes of one edited copy of one prompt through one block; "
            "without the wave each of total_forward_passes would make num_layers of them",
        },
        "plan": {
            "engine": options.engine,
            "memory_gb": options.memory_gb,
            "processes": where.processes,
            "mesh": cast(Mesh | None, where.devices),
            "calls": cast(list[CallsOfOneShape], session.log.table()),
        },
        "environment": cast(Environment, describe(device)),
    }
