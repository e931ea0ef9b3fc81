"""The heads study: which heads matter, in every precision; which ones precision moves; repair.

Redoes, as a few compiled batches, what "Edge Align" did one forward pass at a time, asks the same
of the low-precision models themselves, and sets each effect beside its control: the clean row of
the same call, noise of the same size, random heads, random vectors, permutations.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from jaxalign.errors import InputError
from jaxalign.measures.metrics import AnswerMetrics
from jaxalign.model.size import deployed_bytes, mean_bits
from jaxalign.numerics.scheme import F32, Scheme
from jaxalign.prompts import Prompt
from jaxalign.runtime.messages import note
from jaxalign.studies.heads.analysis import summarize
from jaxalign.studies.heads.calls import Runner, Variant
from jaxalign.studies.heads.from_arrays import (
    Base,
    Low,
    precision_result,
    prompt_result,
    repair_result,
)
from jaxalign.studies.heads.importance import Ablations, Importance, importance, importance_calls
from jaxalign.studies.heads.options import HeadsOptions
from jaxalign.studies.heads.precisions import Calls, PrecisionCalls, precision_calls
from jaxalign.studies.heads.rankings import DRAWS, choose_donors, repair_orders
from jaxalign.studies.heads.repair import repair
from jaxalign.studies.heads.result import HeadsResult, RepairResult
from jaxalign.studies.heads.screening import (
    Screened,
    others,
    refuse_all,
    refuse_few,
    screen_heads,
    suggestion,
    with_kinds,
)
from jaxalign.study.session import Session
from jaxalign.study.tables import head_label

FEW = 3


def run(session: Session, options: HeadsOptions) -> HeadsResult:
    """Run the heads study.

    Args:
        session: model, prompts, devices.
        options: precisions, ablations, head mode, repairs.

    Raises:
        InputError: the model's logits are not finite, the memory budget is too small, or there are
            no texts that mean ablation could average over.
    """
    means = "mean" in options.ablations
    if means and not session.reference:
        raise InputError(
            "the prompts come without reference texts, which mean ablation averages over",
            'add "reference": ["…", …] to the prompts file, or leave mean out of --ablations',
        )
    heads = session.model.config.num_layers * session.model.config.num_heads
    refuse_all(options.screen, heads)
    refuse_few(options.screen, len(session.prompts))
    if options.repaired and options.max_repair_k > heads:
        session.notes.append(f"--max-repair-k {options.max_repair_k}: the model has {heads} heads")
    for scheme in options.schemes:
        mean_bits(session.config, scheme)  # refuses groups that do not divide, before any work
    runner = Runner(session.model, options, session.mesh, session.run)
    given, log = session.prompts, session.log
    reference = session.reference if means else ()
    texts = [Prompt(given[0].text, "reference", ids, 0) for ids in reference]
    with log.phase("clean f32"):
        every = runner.clean([*given, *texts], runner.study_batches([*given, *texts]))
    kept = _validate(given, every.metrics, options.use_all_prompts, session.notes)
    prompts = [given[i] for i in kept]
    asked = Ablations(
        prompts=prompts,
        work=runner.study_batches(prompts),
        clean=every.take([*kept, *range(len(given), len(given) + len(texts))]),
        donors=choose_donors(prompts, options.seed),
    )
    f32 = Variant("f32", session.model.params, F32)
    f32.clean = runner.as_low(asked.clean)
    screened = None
    if options.screen is not None:
        with log.phase("screen f32"):
            screened = screen_heads(runner, asked, f32)
    ablated = asked if screened is None else screened.asked
    kinds = options.ablations if screened is None else others(options.ablations)
    important = importance_calls(runner, ablated, f32, kinds, options.engine) if kinds else []
    everything = [*prompts, *texts]
    work = runner.study_batches(everything)
    precisions = [
        precision_calls(session, runner, scheme, asked, ablated, everything, work)
        for scheme in options.schemes
    ]
    if options.noise_draws and precisions and not any(one.noise for one in precisions):
        session.notes.append("no precision moves a weight, so none stands beside weight noise")
    if screened is None:
        sweeps = [*important, *(call for one in precisions for call in one.sweeps)]
        if advice := suggestion(runner, sweeps, session.devices):
            note(advice)
    session.ahead([*important, *(call for one in precisions for call in one.first_calls)])
    session.ahead([call for one in precisions for call in one.later_calls])
    with log.phase("importance f32"):
        base = _base(runner, asked, important, screened)
    lows = [_low_precision(session, runner, base, one) for one in precisions]
    session.end_of_calls()
    return _result(session, runner, base, lows)


def _base(runner: Runner, asked: Ablations, calls: Calls, screened: Screened | None) -> Base:
    """What f32 says of the prompts; of a screened study zero-importance is there already."""
    clean = asked.clean.metrics.logit_diff[: len(asked.prompts)]
    found = None
    if calls:
        found = importance(runner, "importance of every head, f32", calls, clean, needed=True)
    if screened is None:
        assert found is not None
        return Base(asked=asked, importance=found, ranked=found.answer["zero"])
    whole = screened.importance if found is None else with_kinds(screened.importance, found)
    return Base(asked=asked, importance=whole, ranked=screened.ranked, screen=screened.screen)


def _low_precision(
    session: Session, runner: Runner, base: Base, one: PrecisionCalls
) -> tuple[Low, list[RepairResult]]:
    """Everything the study asks of one low precision."""
    scheme, count, log = one.scheme, len(base.asked.prompts), session.log
    with log.phase(f"clean {scheme.name}"):
        runner.low(one.variant, one.clean, len(base.asked.clean.states))
    clean = one.variant.clean
    assert clean is not None
    orders = repair_orders(
        base.ranked,
        clean.drift.last[:count].reshape(count, -1),
        clean.predicted[:count].reshape(count, -1),
    )
    if one.repair.orders.wanted:
        one.repair.orders.decide(orders, runner.config.num_heads, runner.options.seed, scheme.name)

    def ablated(name: str, calls: Calls, variant: Variant) -> Importance | None:
        assert variant.clean is not None
        clean = variant.clean.metrics.logit_diff[:count]
        title = f"importance of every head, {name}"
        return importance(runner, title, calls, clean, needed=False) if calls else None

    with log.phase(f"importance {scheme.name}"):
        own = ablated(scheme.name, one.importance, one.variant)
        reordered = ablated(f"{scheme.name}, roundings reordered", one.reordered, one.variant)
    with log.phase(f"repair {scheme.name}"):
        repaired = repair(one.repair, one.restoring, one.moving)
    with log.phase(f"noise {scheme.name}"):
        noise = []
        for draw in one.noise:
            runner.low(draw.variant, draw.clean, len(base.asked.clean.states))
            noise.append(ablated(draw.variant.name, draw.importance, draw.variant))
            draw.variant.clean = None  # its states are many
    assert own is not None
    low = Low(
        scheme=scheme,
        clean=clean,
        importance=own,
        reordered=reordered,
        noise=[draw for draw in noise if draw is not None],
        repaired=repaired,
    )
    one.variant.clean = None
    session.observed(_overflow_notes(scheme, low, count))
    if not one.repair.orders.wanted:
        return low, []
    k = runner.repaired_heads
    return low, [repair_result(runner, base, low, orders, k, i) for i in range(count)]


def _result(
    session: Session, runner: Runner, base: Base, found: list[tuple[Low, list[RepairResult]]]
) -> HeadsResult:
    lows = {low.scheme.name: low for low, _ in found}
    repairs = [repair for _, rows in found for repair in rows]
    count = len(base.asked.prompts)
    results = [
        prompt_result(
            runner, base, i, {s: precision_result(runner, base, lows[s], i) for s in lows}
        )
        for i in range(count)
    ]
    with session.log.phase("statistics"):
        statistics = summarize(results, repairs, list(lows), runner.options.seed)
    return HeadsResult(
        num_layers=session.config.num_layers,
        num_heads=session.config.num_heads,
        reference_count=len(base.asked.clean.states) - count,
        resample_draws=DRAWS,
        head_mode=runner.options.head_mode,
        prompts=tuple(results),
        repairs=tuple(repairs),
        statistics=statistics,
        provenance=session.provenance(count),
        screen=base.screen,
        bits={one.name: mean_bits(session.config, one) for one in (F32, *runner.options.schemes)},
        megabytes={
            one.name: deployed_bytes(session.config, one) / 1e6
            for one in (F32, *runner.options.schemes)
        },
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


def _overflow_notes(scheme: Scheme, low: Low, count: int) -> list[str]:
    """One line where activations left the precision's range, naming the heads."""
    broken = ~low.clean.drift.finite[:count]
    answers = ~np.isfinite(low.clean.metrics.logit_diff[:count])
    if not broken.any():
        late = f"{scheme.name}: activations overflow after the last head on {answers.sum()} of "
        return [f"{late}{len(answers)} prompts; their values are null"] if answers.any() else []
    heads = [head_label(layer, head) for layer, head in np.argwhere(broken.any(axis=0))]
    shown = ", ".join(heads[:4]) + (", …" if len(heads) > 4 else "")
    return [
        f"{scheme.name}: activations overflow in {len(heads)} heads ({shown}) on "
        f"{int(broken.any(axis=(1, 2)).sum())} of {len(broken)} prompts; their values are null"
    ]
