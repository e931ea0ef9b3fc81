"""The heads study: which heads matter, which ones precision moves, what restoring them buys.

Redoes, as a few compiled batches, what "Edge Align" did one forward pass at a time, and sets each
effect beside its control: the clean row of the same call, random orders, permutations.
"""

from __future__ import annotations

import time
import typing
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxalign.convert import Model
from jaxalign.devices.mesh import shard_packed, shard_params
from jaxalign.environment import describe
from jaxalign.errors import InputError
from jaxalign.experiments.heads.ahead import compile_ahead
from jaxalign.experiments.heads.assemble import (
    Base,
    Low,
    metadata,
    precision_result,
    prompt_result,
    repair_result,
)
from jaxalign.experiments.heads.donors import choose_donors
from jaxalign.experiments.heads.options import Options, Prepare
from jaxalign.experiments.heads.rankings import repair_orders
from jaxalign.experiments.heads.runner import Clean, Runner
from jaxalign.experiments.heads.statistics import summarize
from jaxalign.metrics import AnswerMetrics
from jaxalign.model.params import cast
from jaxalign.numerics.compile import require_exact_compilation
from jaxalign.numerics.scheme import Scheme
from jaxalign.prompts import Batch, Prompt, PromptSet, tokenize
from jaxalign.results import RANKINGS, HeadsResult
from jaxalign.runtime.resume import Resume
from jaxalign.study.call_log import CallLog
from jaxalign.study.tables import head_label

FEW = 3
# One thread compiles while the programs before run: two at once only delay the one waited for.
COMPILERS = 1


def heads_study(
    model: Model,
    prompts: PromptSet,
    options: Options = Options(),  # noqa: B008 - a frozen value
    *,
    progress: bool = False,
    resume: Resume | None = None,
    mesh: Mesh | None = None,
    prepare: Prepare = cast,
) -> HeadsResult:
    """Run the heads study.

    Args:
        model: from ``jaxalign.load``, in f32.
        prompts: from ``jaxalign.read_prompts``.
        options: precisions, head mode, budget, seed.
        progress: show progress bars on a terminal.
        resume: keeps finished calls of a long study (``Resume(folder, facts(…))``); remove it
            when the result is safe.
        mesh: devices to share the work (``mesh.choose_mesh``); one device by default.
        prepare: makes a scheme's parameters from the f32 ones; rounding to nearest by default,
            ``calibration.preparer`` for schemes that are chosen by activations.

    Returns:
        The result; ``metadata["notes"]`` says what a reader has to know (prompts that were
        dropped, targets of several tokens, overflows).

    Raises:
        InputError: prompts or model cannot be used, or the memory budget is too small.
        PrecisionError: this installation does not keep 16-bit roundings.

    Example:
        >>> result = heads_study(jaxalign.load("demo"), jaxalign.read_prompts())
        >>> result.prompts[0].zero_importance.shape
        (6, 8)
    """
    start = time.perf_counter()
    if model.params.dtype != jnp.float32:
        raise InputError(f"the model was loaded in {model.params.dtype}", "load it in float32")
    require_exact_compilation()
    model = replace(model, params=shard_params(model.params, mesh, model.config))
    runner = Runner(model, options, CallLog(progress), resume or Resume(None, {}), mesh)
    tokenized, reference, notes = tokenize(prompts, model.tokenizer, model.config)
    with runner.ledger.phase("clean f32"):
        texts = [Prompt(tokenized[0].text, "reference", ids, 0) for ids in reference]
        every = runner.clean([*tokenized, *texts], runner.study_batches([*tokenized, *texts]))
    kept = _validate(runner, tokenized, every.metrics, notes)
    means = runner.reference_means(every.states[len(tokenized) :])
    work = runner.study_batches([tokenized[i] for i in kept])
    with ThreadPoolExecutor(COMPILERS) as pool:
        compile_ahead(runner, work, pool)
        base = _base(runner, [tokenized[i] for i in kept], work, every.take(kept), means)
        lows: dict[str, Low] = {}
        repairs = []
        for scheme in options.schemes:
            low, rows = _low_precision(runner, base, scheme, prepare)
            lows[scheme.name] = low
            repairs += rows
            notes += _overflow_notes(scheme, low)
    results = [
        prompt_result(
            runner, base, i, {s: precision_result(runner, base, lows[s], i) for s in lows}
        )
        for i in range(len(base.prompts))
    ]
    with runner.ledger.phase("statistics"):
        statistics = summarize(results, repairs, list(lows), options.seed)
    return HeadsResult(
        model=model.source.model,
        num_layers=model.config.num_layers,
        num_heads=model.config.num_heads,
        reference_count=len(reference),
        head_mode=typing.cast(Literal["true", "edge-align"], options.head_mode),
        prompts=tuple(results),
        repairs=tuple(repairs),
        statistics=statistics,
        metadata=metadata(
            runner, len(tokenized), len(kept), len(reference), notes, time.perf_counter() - start
        ),
    )


def facts(
    model: Model, prompts: PromptSet, options: Options, mesh: Mesh | None = None
) -> dict[str, Any]:
    """Return everything that decides the numbers and calls of a study, by which it is resumed.

    Args:
        model: from ``jaxalign.load``.
        prompts: the study's.
        options: the study's.
        mesh: devices that share the work, or None.

    Raises:
        InputError: prompts that the model cannot read.
    """
    described = describe(jax.local_devices()[0])
    tokenized, reference, _ = tokenize(prompts, model.tokenizer, model.config)
    return {
        "weights": model.weights_sha256,
        "config": asdict(model.config),
        "prompts": asdict(prompts),
        # What the tokenizer makes of them, which no other fact says.
        "token ids": [[p.tokens, p.target, p.distractor] for p in tokenized] + [reference],
        "options": asdict(options),
        "device": described["device_kind"],
        # How many prompts and rows make a call depends on it.
        "devices": dict(mesh.shape) if mesh else None,
        "versions": described["versions"],
        "compiler options": described["compiler_options"],
    }


def _validate(
    runner: Runner, prompts: list[Prompt], metrics: AnswerMetrics, notes: list[str]
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
    if runner.options.use_all_prompts:
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
                notes.append(f"{task}: the model answers only {count} of {own.sum()} prompts")
    return np.flatnonzero(chosen).tolist()


def _base(
    runner: Runner, prompts: list[Prompt], work: list[Batch], clean: Clean, means: np.ndarray
) -> Base:
    ledger, options = runner.ledger, runner.options
    shapes = len({batch.shape for batch in work})
    ledger.announce_compilation(shapes * (1 + 2 * len(options.schemes)))
    donors = choose_donors(prompts, options.seed)
    with ledger.phase("importance"):
        importance, other = runner.importance(prompts, work, clean.states, means, donors)
    return Base(prompts, work, clean, donors, importance, other)


def _low_precision(
    runner: Runner, base: Base, scheme: Scheme, prepare: Prepare
) -> tuple[Low, list[Any]]:
    """Everything the study asks of one low precision."""
    options, ledger, params = runner.options, runner.ledger, runner.model.params
    with ledger.phase(f"parameters {scheme.name}"):
        low_params = shard_packed(prepare(params, scheme), runner.mesh)
    with ledger.phase(f"clean {scheme.name}"):
        found = runner.low(base.prompts, base.work, base.clean, low_params, scheme)
    count, k = len(base.prompts), runner.repaired_heads
    repaired = scheme.name in options.repaired
    orders, random = repair_orders(
        base.importance[:, 0],
        found.drift.last.reshape(count, -1),
        found.predicted.reshape(count, -1),
        options.seed,
        scheme.name,
    )
    tried = np.concatenate([np.stack([orders[name] for name in RANKINGS]), random])
    with ledger.phase(f"repair {scheme.name}"):
        restored, curves = runner.repair(
            base.prompts,
            base.work,
            base.clean.states,
            low_params,
            scheme,
            tried if repaired else tried[:0],
            k,
        )
    low = Low(scheme, found.metrics, found, restored)
    if not repaired:
        return low, []
    return low, [repair_result(runner, base, low, orders, curves[i], k, i) for i in range(count)]


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
