"""Which places of a prompt carry the answer: values of one run of a pair put into the other.

A pair is a clean and a corrupted prompt that differ in what the answer hangs on. ``m`` is the mean
logit of the answers less that of the wrong answers. An effect is ``(m_patched − m_corrupted) /
(m_clean − m_corrupted)``, of noising and of knock-outs ``(m_clean − m_patched) / (m_clean −
m_corrupted)``: 0 where an exchange does nothing, 1 where it makes up the whole difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from jaxalign.edits.points import POINTS
from jaxalign.engine.knockouts import check_window
from jaxalign.engine.paths import INPUTS
from jaxalign.errors import InputError, counted
from jaxalign.measures.estimates import number
from jaxalign.prompts import Pair
from jaxalign.shapes import Bool, Float
from jaxalign.studies.patch.bench import Bench
from jaxalign.studies.patch.calls import Work, score_calls
from jaxalign.studies.patch.findings import chosen, screened, too_few
from jaxalign.studies.patch.groups import (
    BEFORE,
    group,
    require_aligned,
    require_sources,
)
from jaxalign.studies.patch.options import PatchOptions
from jaxalign.studies.patch.programs import estimate, exchange, knock_out, send
from jaxalign.studies.patch.result import (
    KNOCKOUT,
    PATHS,
    ROLES,
    SWEEPS,
    PairScore,
    PatchMap,
    PatchResult,
    Sweep,
)
from jaxalign.study.session import Session
from jaxalign.study.tables import head_label

LOGITS = "logits"


def run(session: Session, options: PatchOptions) -> PatchResult:
    """Exchange places between the two runs of every pair.

    Args:
        session: model, pairs, devices.
        options: what is exchanged.

    Raises:
        InputError: pairs of unequal length where positions are exchanged, a window that does not
            fit the model, no pair that counts, or too little memory.
    """
    pairs = cast("tuple[Pair, ...]", session.prompts)
    for name in options.sweep:
        if name != KNOCKOUT:
            require_aligned(pairs, name)
    if KNOCKOUT in options.sweep:
        require_sources(pairs)
        check_window(options.layers_cut, session.config)
    scores = _scores(session, pairs)
    kept = _kept(scores, options)
    if not kept.any():
        raise _none_kept(scores, options)
    if not kept.all():
        session.notes.append(
            f"{int((~kept).sum())} of {counted(len(pairs), 'pair')} do not count: the model "
            "prefers a wrong answer to the clean prompt or a right one to the corrupted, or they "
            f"differ by less than {options.least_gap:g} logits"
        )
    chosen_pairs = tuple(pair for pair, own in zip(pairs, kept, strict=True) if own)
    bench = Bench(
        session,
        options,
        chosen_pairs,
        (scores[0] - scores[1])[kept],
        group(chosen_pairs, session.model.tokenizer),
    )
    maps = [each for name in options.sweep for each in _sweep(bench, name)]
    session.end_of_calls()
    session.notes += too_few(maps)
    return PatchResult(
        pairs=tuple(_pair_score(p, *own) for p, *own in zip(pairs, *scores, kept, strict=True)),
        maps=tuple(maps),
        least_gap=options.least_gap,
        window=options.layers_cut,
        provenance=session.provenance(int(kept.sum())),
    )


def _scores(session: Session, pairs: Sequence[Pair]) -> Float[np.ndarray, "2 P"]:
    """The metric of every pair's clean and corrupted run."""
    found = np.zeros((2, len(pairs)))
    for place, side in enumerate(("clean", "corrupted")):
        every = list(score_calls(session, pairs, side))
        for call, values in session.run(f"{side} prompts", every):
            call.scatter(found[place], values)
    return found


def _kept(scores: Float[np.ndarray, "2 P"], options: PatchOptions) -> Bool[np.ndarray, " P"]:
    clean, corrupted = scores
    apart = clean - corrupted >= options.least_gap
    return apart if options.use_all_prompts else apart & (clean > 0) & (corrupted < 0)


def _none_kept(scores: Float[np.ndarray, "2 P"], options: PatchOptions) -> InputError:
    """What to say where no pair counts: how many fail each condition, and the likely remedy."""
    clean, corrupted = scores
    count = len(clean)
    wrong, right = int((clean <= 0).sum()), int((corrupted >= 0).sum())
    turned = int((clean - corrupted < 0).sum())
    near = int((clean - corrupted < options.least_gap).sum())
    if 2 * turned > count:
        remedy = "exchange answers and wrong_answers, if they are the wrong way round"
    elif options.use_all_prompts or near == count:
        remedy = "give pairs that the model tells apart, or a lower --least-gap"
    else:
        remedy = "give pairs that the model answers, or --use-all-prompts"
    return InputError(
        f"none of {counted(count, 'pair')} counts: after {wrong} clean prompts the model prefers "
        f"the wrong answers, after {right} corrupted ones the right answers; {near} differ by less "
        f"than {options.least_gap:g} logits the right way, {turned} of them the other way round",
        remedy,
    )


def _pair_score(pair: Pair, clean: float, corrupted: float, kept: bool) -> PairScore:
    return PairScore(
        task=pair.task,
        clean=pair.pair.clean,
        corrupted=pair.pair.corrupted,
        answers=pair.pair.answers,
        wrong_answers=pair.pair.wrong_answers,
        clean_metric=number(clean),
        corrupted_metric=number(corrupted),
        kept=bool(kept),
    )


def _sweep(bench: Bench, name: str) -> Iterator[PatchMap]:
    """The maps of one sweep."""
    if name == KNOCKOUT:
        yield from _knocked_out(bench)
        return
    for direction in bench.options.directions:
        if name == PATHS:
            yield from _paths(bench, direction)
        elif bench.options.screen:
            yield _screened(bench, name, direction)
        else:
            yield from _exchanged(bench, name, direction)


def _changed(direction: str) -> str:
    return "corrupted" if direction == "denoising" else "clean"


@dataclass(frozen=True, kw_only=True)
class Places:
    """What a sweep exchanges one by one.

    Attributes:
        rows: int ``[M, 3]``: step, group and head of each, as ``programs.exchange`` reads them.
        names: of the map's rows.
        heads: names of the columns where they are heads; None where they are groups.
    """

    rows: Any
    names: tuple[str, ...]
    heads: tuple[str, ...] | None


def _places(bench: Bench, sweep: Sweep, groups: int) -> Places:
    """The places of a sweep.

    Args:
        bench: of the study.
        sweep: which.
        groups: how many groups of positions; the first role is left out, since what is equal in
            both prompts is equal in both runs.
    """
    config, axes = bench.session.config, POINTS[sweep.point].axes
    steps = config.num_layers + (axes[0] == "L+1")
    heads = config.num_kv_heads if "K" in axes else config.num_heads
    layers = ("embed", *(f"L{i}" for i in range(config.num_layers)))[-steps:]
    over_heads = range(heads if "H" in sweep.apart else 1)
    over_groups = range(1, groups) if "S" in sweep.apart else range(1)
    rows = [(a, c, b) for a in range(steps) for b in over_heads for c in over_groups]
    by_head = tuple(f"H{i}" for i in range(heads))
    both = tuple(f"{layer}{head}" for layer in layers for head in by_head)
    return Places(
        rows=np.array(rows, np.int32),
        names=both if sweep.apart == "SH" else layers,
        heads=None if "S" in sweep.apart else by_head,
    )


def _exchange(name: str, direction: str, places: Places) -> Work:
    sweep = SWEEPS[name]
    return Work(
        name=f"{name} {direction}",
        program=exchange,
        rows=places.rows,
        starts=places.rows[:, 0],
        changed=_changed(direction),
        kinds=2,
        values=4,
        static={"point": sweep.point, "apart": sweep.apart},
        takes=("source", "groups", "keys"),
        by_group="S" in sweep.apart,
    )


def _exchanged(bench: Bench, name: str, direction: str) -> Iterator[PatchMap]:
    """Every place of one point, exactly."""
    places = _places(bench, SWEEPS[name], bench.groups.count)
    found = bench.effects(_exchange(name, direction, places))
    effects = found[:, 0], found[:, 1]
    if places.heads is None:
        yield from bench.by_position((name, direction), places.names, effects, first=BEFORE + 1)
    else:
        yield from bench.by_task((name, direction), (places.names, places.heads), effects)


def _screened(bench: Bench, name: str, direction: str) -> PatchMap:
    """Estimates of every place of one point, and exact effects of those that they put first and of
    others drawn at random; positions by role."""
    options, roles = bench.options, len(ROLES)
    places = _places(bench, SWEEPS[name], roles)
    work = _exchange(name, direction, places)
    screen = replace(
        work,
        name=f"screen {work.name}",
        program=estimate,
        starts=np.zeros_like(work.starts),
        kinds=1,
        values=8,
        takes=("source", "groups"),
        by_group=False,
    )
    there = np.ones((len(bench.pairs), len(places.rows)), bool)
    if places.heads is None:
        there = bench.groups.has()[:, places.rows[:, 1]]
    estimates = np.where(there, bench.effects(screen, needed=True)[:, 0], np.nan)
    selected = chosen(estimates, options.screen, options.seed, work.name)
    some = np.union1d(*selected)
    part = replace(work, rows=work.rows[some], starts=work.starts[some])
    exact = np.full((2, *there.shape), np.nan)
    exact[:, :, some] = np.moveaxis(bench.effects(part), 1, 0)
    exact = np.where(there, exact, np.nan)
    labels = places.names, places.heads or ROLES[BEFORE + 1 :]
    found = bench.mapped((name, direction), labels, (exact[0], exact[1]))
    return screened(found, estimates, selected, options.seed)


def _knocked_out(bench: Bench) -> Iterator[PatchMap]:
    """Attention of the last position to each group of positions, cut in each window of layers."""
    window, count = bench.options.layers_cut, bench.groups.count
    starts = range(bench.session.config.num_layers - window + 1)
    rows = np.array([(a, b) for a in starts for b in range(count)], np.int32)
    work = Work(
        name=KNOCKOUT,
        program=knock_out,
        rows=rows,
        starts=rows[:, 0],
        changed="clean",
        static={"window": window},
        takes=("groups",),
    )
    found = bench.effects(work)[:, 0].reshape(len(bench.pairs), len(starts), count)
    there = bench.groups.has()[:, None]
    kinds = np.split(np.where(there, found, np.nan), [len(ROLES)], axis=2)
    control = np.concatenate([_others(kind) for kind in kinds], axis=2)
    names = tuple(f"L{a}" + (f"–{a + window - 1}" if window > 1 else "") for a in starts)
    effects = found.reshape(len(found), -1), control.reshape(len(found), -1)
    yield from bench.by_position((KNOCKOUT, "clean run"), names, effects)


def _others(found: Float[np.ndarray, "P windows groups"]) -> Float[np.ndarray, "P windows groups"]:
    """For each group the mean of the other groups of the pair, in the same window."""
    there = np.isfinite(found)
    kept = np.where(there, found, 0)
    count = there.sum(axis=-1, keepdims=True) - there
    mean = (kept.sum(axis=-1, keepdims=True) - kept) / np.maximum(count, 1)
    return np.where(there & (count > 0), mean, np.nan)


def _paths(bench: Bench, direction: str) -> Iterator[PatchMap]:
    """Every head's direct effect on the logits, and on what the heads with the largest read."""
    config, receivers = bench.session.config, bench.options.most_receivers
    senders = np.argwhere(np.ones((config.num_layers, config.num_heads), bool)).astype(np.int32)
    layers = tuple(f"L{i}" for i in range(config.num_layers))
    heads = tuple(f"H{i}" for i in range(config.num_heads))

    def sent(to: tuple[int, int] | None) -> Float[np.ndarray, "P kinds M"]:
        # Nothing is below the first layer and nothing reads behind the last: one shape for all.
        rows = senders if to is None else senders[senders[:, 0] < config.num_layers - 1]
        work = Work(
            name=f"paths to {head_label(*to) if to else LOGITS} {direction}",
            program=send,
            rows=rows,
            starts=np.zeros(len(rows), np.int32),
            changed=_changed(direction),
            kinds=2 if to is None else 6,
            # What a receiver reads is kept for every sender, three points of it twice.
            values=4 if to is None else 4 + 6 * max(1, len(rows) // config.num_layers),
            static={"to_logits": to is None},
            more=(np.array(to or (0, 0), np.int32),),
            takes=("source", "keys"),
        )
        return bench.effects(work, needed=to is None and receivers > 0)

    direct = sent(None)
    named = f"paths to {LOGITS}", direction
    yield from bench.by_task(named, (layers, heads), (direct[:, 0], direct[:, 1]))
    size = np.where(senders[:, 0] > 0, np.abs(direct[:, 0].mean(axis=0)), -1)
    for place in np.argsort(-size, kind="stable")[:receivers]:
        layer, head = map(int, senders[place])
        if not layer:
            continue
        found = sent((layer, head))[:, :, : layer * config.num_heads]
        for at, letter in enumerate(INPUTS):
            named = f"paths to {head_label(layer, head)} {letter}", direction
            effects = found[:, at], found[:, len(INPUTS) + at]
            yield bench.mapped(named, (layers[:layer], heads), effects)
