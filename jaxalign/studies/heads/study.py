"""The heads study: which heads matter, which ones precision moves, what restoring them buys.

Redoes, as a few compiled batches, what "Edge Align" did one forward pass at a time, and sets each
effect beside its control: the clean row of the same call, random orders, permutations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxalign.errors import InputError
from jaxalign.measures.metrics import AnswerMetrics
from jaxalign.numerics.scheme import Scheme
from jaxalign.prompts import Batch, Prompt
from jaxalign.studies.heads.analysis import summarize
from jaxalign.studies.heads.calls import Clean, Runner
from jaxalign.studies.heads.from_arrays import (
    Base,
    Low,
    precision_result,
    prompt_result,
    repair_result,
)
from jaxalign.studies.heads.options import HeadsOptions
from jaxalign.studies.heads.rankings import (
    DRAWS,
    RANDOM_ORDERS,
    choose_donors,
    repair_orders,
)
from jaxalign.studies.heads.repair import Orders, repair, repair_calls
from jaxalign.studies.heads.result import RANKINGS, HeadsResult, RepairResult
from jaxalign.study.calls import Call
from jaxalign.study.session import Session
from jaxalign.study.tables import head_label

FEW = 3
Calls = Sequence[Call[Any]]


def run(session: Session, options: HeadsOptions) -> HeadsResult:
    """Run the heads study.

    Args:
        session: model, prompts, devices.
        options: precisions, head mode, repairs.

    Raises:
        InputError: the model's logits are not finite, or the memory budget is too small.
    """
    heads = session.model.config.num_layers * session.model.config.num_heads
    if options.repaired and options.max_repair_k > heads:
        session.notes.append(f"--max-repair-k {options.max_repair_k}: the model has {heads} heads")
    runner = Runner(session.model, options, session.mesh, session.run)
    given, log = session.prompts, session.log
    with log.phase("clean f32"):
        texts = [Prompt(given[0].text, "reference", ids, 0) for ids in session.reference]
        every = runner.clean([*given, *texts], runner.study_batches([*given, *texts]))
    kept = _validate(given, every.metrics, options.use_all_prompts, session.notes)
    means = runner.reference_means(every.states[len(given) :])
    prompts, clean = [given[i] for i in kept], every.take(kept)
    work = runner.study_batches(prompts)
    donors = choose_donors(prompts, options.seed)
    important = runner.importance_calls(prompts, work, clean.states, means, donors)
    precisions = [
        _precision(session, runner, scheme, prompts, work, clean) for scheme in options.schemes
    ]
    session.ahead([*important, *(call for one in precisions for call in one.clean)])
    session.ahead([call for one in precisions for call in one.repair])
    with log.phase("importance"):
        importance = runner.importance(important, len(prompts))
    base = Base(
        prompts=prompts,
        work=work,
        clean=clean,
        donors=donors,
        importance=importance[0],
        distractor_importance=importance[1],
    )
    found = [_low_precision(session, runner, base, one) for one in precisions]
    session.end_of_calls()
    return _result(session, runner, base, found)


@dataclass(frozen=True, kw_only=True)
class _Precision:
    """The calls of one low precision, made before any of them runs."""

    scheme: Scheme
    clean: Calls
    repair: Calls
    orders: Orders


def _precision(
    session: Session,
    runner: Runner,
    scheme: Scheme,
    prompts: list[Prompt],
    work: list[Batch],
    clean: Clean,
) -> _Precision:
    low = session.late_low(scheme)
    repaired = scheme.name in runner.options.repaired
    orders = Orders(len(RANKINGS) + RANDOM_ORDERS if repaired else 0)
    return _Precision(
        scheme=scheme,
        clean=runner.low_calls(prompts, work, clean, low, scheme),
        repair=repair_calls(runner, prompts, work, clean.states, low, scheme, orders),
        orders=orders,
    )


def _low_precision(
    session: Session, runner: Runner, base: Base, one: _Precision
) -> tuple[Low, list[RepairResult]]:
    """Everything the study asks of one low precision."""
    scheme, count, log = one.scheme, len(base.prompts), session.log
    with log.phase(f"clean {scheme.name}"):
        found = runner.low(one.clean, count, scheme)
    orders, random = repair_orders(
        base.importance[:, 0],
        found.drift.last.reshape(count, -1),
        found.predicted.reshape(count, -1),
        runner.options.seed,
        scheme.name,
    )
    if one.orders.count:
        one.orders.tried = np.concatenate([np.stack([orders[n] for n in RANKINGS]), random])
    with log.phase(f"repair {scheme.name}"):
        restored, curves = repair(runner, one.repair, count, scheme, one.orders)
    low = Low(scheme=scheme, metrics=found.metrics, comparison=found, restored=restored)
    session.notes += _overflow_notes(scheme, low)
    if not one.orders.count:
        return low, []
    k = runner.repaired_heads
    return low, [repair_result(runner, base, low, orders, curves[i], k, i) for i in range(count)]


def _result(
    session: Session, runner: Runner, base: Base, found: list[tuple[Low, list[RepairResult]]]
) -> HeadsResult:
    lows = {low.scheme.name: low for low, _ in found}
    repairs = [repair for _, rows in found for repair in rows]
    results = [
        prompt_result(runner, base, i, {s: precision_result(base, lows[s], i) for s in lows})
        for i in range(len(base.prompts))
    ]
    with session.log.phase("statistics"):
        statistics = summarize(results, repairs, list(lows), runner.options.seed)
    return HeadsResult(
        num_layers=session.config.num_layers,
        num_heads=session.config.num_heads,
        reference_count=len(session.reference),
        resample_draws=DRAWS,
        head_mode=runner.options.head_mode,
        prompts=tuple(results),
        repairs=tuple(repairs),
        statistics=statistics,
        provenance=session.provenance(len(base.prompts)),
    )


def _validate(
    prompts: Sequence[Prompt], metrics: AnswerMetrics, use_all: bool, notes: list[str]
) -> list[int]:
    """Which prompts to keep: where the target is f32's top-1 next token, task by task.

    ``metrics`` are those of the prompts and, after them, of the reference texts.
    """
    count = len(prompts)
    metrics = jax.tree.map(lambda values: values[:count], metrics)
    lost = np.flatnonzero(~np.isfinite(metrics.logit_diff))
    if lost.size:
        raise InputError(
            f"the model's own f32 logits are not finite on {lost.size} of {len(prompts)} prompts, "
            f"first on {prompts[lost[0]].text.prompt!r}",
            "its weights are too large for f32 activations; check the checkpoint",
        )
    correct = metrics.correct
    if use_all:
        chosen = np.ones(len(prompts), bool)
    else:
        chosen = correct.copy()
        for task in dict.fromkeys(prompt.task for prompt in prompts):
            own = np.array([prompt.task == task for prompt in prompts])
            count = int((correct & own).sum())
            if not count:
                chosen |= own
                notes.append(
                    f"{task}: the model answers none of {own.sum()} prompts, so all are kept"
                )
            elif count < FEW:
                notes.append(f"{task}: few prompts, {count} of {own.sum()} answered by the model")
    return np.flatnonzero(chosen).tolist()


def _overflow_notes(scheme: Scheme, low: Low) -> list[str]:
    """One line where activations left the precision's range, naming the heads."""
    broken = ~low.comparison.drift.finite
    answers = ~np.isfinite(low.metrics.logit_diff)
    if not broken.any():
        late = f"{scheme.name}: activations overflow after the last head on {answers.sum()} of "
        return [f"{late}{len(answers)} prompts; their values are null"] if answers.any() else []
    heads = [head_label(layer, head) for layer, head in np.argwhere(broken.any(axis=0))]
    shown = ", ".join(heads[:4]) + (", …" if len(heads) > 4 else "")
    return [
        f"{scheme.name}: activations overflow in {len(heads)} heads ({shown}) on "
        f"{int(broken.any(axis=(1, 2)).sum())} of {len(broken)} prompts; their values are null"
    ]
