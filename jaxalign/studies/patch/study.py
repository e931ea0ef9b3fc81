"""Which places of a prompt carry the answer: values of one run of a pair put into the other.

A pair is a clean and a corrupted prompt that differ in what the answer hangs on. ``m`` is the mean
logit of the answers less that of the wrong answers. An effect is ``(m_patched − m_corrupted) /
(m_clean − m_corrupted)``, of noising and of knock-outs ``(m_clean − m_patched) / (m_clean −
m_corrupted)``: 0 where an exchange does nothing, 1 where it makes up the whole difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from jaxalign.edits.points import POINTS
from jaxalign.engine.knockouts import check_window
from jaxalign.errors import InputError, counted
from jaxalign.measures.estimates import ALL_TASKS, number
from jaxalign.prompts import Pair
from jaxalign.shapes import Bool, Float
from jaxalign.studies.patch.calls import Work, calls, gathered, score_calls
from jaxalign.studies.patch.findings import chosen, mapped, screened
from jaxalign.studies.patch.groups import (
    BEFORE,
    Grouping,
    by_role,
    by_word,
    require_aligned,
    require_sources,
)
from jaxalign.studies.patch.options import KNOCKOUT, PATHS, SWEEPS, PatchOptions
from jaxalign.studies.patch.programs import estimate, exchange, knock_out, send
from jaxalign.studies.patch.result import PairScore, PatchMap, PatchResult
from jaxalign.study.session import Session
from jaxalign.study.tables import head_label

LOGITS = "logits"


@dataclass(frozen=True)
class Bench:
    """What every sweep of a study works on.

    Attributes:
        session: of the study.
        options: of the study.
        pairs: that count.
        gap: ``[P]``, ``m_clean − m_corrupted`` of each.
        roles: all pairs, positions by role.
        words: tasks of one template, positions by their words.
    """

    session: Session
    options: PatchOptions
    pairs: tuple[Pair, ...]
    gap: Float[np.ndarray, " P"]
    roles: Grouping
    words: tuple[Grouping, ...]

    def moved(self, work: Work, needed: bool = False) -> Float[np.ndarray, "P kinds M"]:
        """Effects of the rows of some work on the pairs of its grouping.

        Args:
            work: whose calls are made.
            needed: whether later calls depend on them.
        """
        made = list(calls(self.session, self.pairs, work))
        rows = {id(call): chosen for call, chosen in made}

        def parts() -> Iterator[tuple[Any, slice, Any]]:
            every = [call for call, _ in made]
            for call, values in self.session.run(work.name, every, needed=needed):
                yield call, rows[id(call)], values

        own = list(work.grouping.pairs)
        found = gathered(len(own), work, parts())
        sign = 1 if work.changed == "corrupted" else -1
        return sign * found / self.gap[own][:, None, None]

    def maps(
        self,
        names: tuple[str, str],
        labels: tuple[tuple[str, ...], tuple[str, ...]],
        grouping: Grouping,
        effects: tuple[Float[np.ndarray, "P M"], Float[np.ndarray, "P M"]],
        tasks: bool,
    ) -> list[PatchMap]:
        """The map of a grouping's pairs and, where asked for, of each of their tasks.

        Args:
            names: sweep and direction.
            labels: of rows and columns.
            grouping: of the pairs.
            effects: of the exchange, and of its control.
            tasks: whether each task has a map, too.
        """
        own = np.array([self.pairs[i].task for i in grouping.pairs])
        every = [grouping.task, *(dict.fromkeys(own.tolist()) if tasks else ())]
        if len(every) == 2 and tasks:
            every = every[:1]
        return [
            mapped(
                (*names, task),
                labels,
                *(each[own == task] if at else each for each in effects),
                self.options.seed,
            )
            for at, task in enumerate(every)
        ]


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
        check_window(options.window, session.config)
    scores = _scores(session, pairs)
    kept = _kept(scores, options)
    if not kept.any():
        raise InputError(
            f"the model tells clean from corrupted in none of {counted(len(pairs), 'pair')} by "
            f"{options.least_gap:g} logits",
            "give other pairs, or --use-all-prompts and a lower --least-gap",
        )
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
        by_role(chosen_pairs),
        tuple(by_word(chosen_pairs, session.model.tokenizer)),
    )
    maps = [each for name in options.sweep for each in _sweep(bench, name)]
    session.end_of_calls()
    return PatchResult(
        pairs=tuple(_pair_score(p, *own) for p, *own in zip(pairs, *scores, kept, strict=True)),
        maps=tuple(maps),
        least_gap=options.least_gap,
        window=options.window,
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
        for grouping in (bench.roles, *bench.words):
            yield from _knocked_out(bench, grouping)
        return
    for direction in bench.options.direction:
        if name == PATHS:
            yield from _paths(bench, direction)
            continue
        by_position = "S" in SWEEPS[name].apart
        for grouping in (bench.roles, *(bench.words if by_position else ())):
            yield from _exchanged(bench, name, direction, grouping)


def _changed(direction: str) -> str:
    return "corrupted" if direction == "denoising" else "clean"


def _exchanged(bench: Bench, name: str, direction: str, grouping: Grouping) -> Iterator[PatchMap]:
    """Places of one point, exactly, or by estimates and some of them exactly."""
    sweep, config, options = SWEEPS[name], bench.session.config, bench.options
    axes = POINTS[sweep.point].axes
    steps = config.num_layers + (axes[0] == "L+1")
    heads = config.num_kv_heads if "K" in axes else config.num_heads
    # What is equal in both prompts is equal in both runs, so nothing is exchanged there.
    groups = [i for i in range(len(grouping.names)) if grouping is not bench.roles or i != BEFORE]
    layered = ["embed", *(f"L{i}" for i in range(config.num_layers))][-steps:]
    over = {"S": groups, "H": list(range(heads))}
    shape = [range(steps), *(over.get(c, [0]) if c in sweep.apart else [0] for c in "SH")]
    rows = np.array([(a, b, c) for a in shape[0] for c in shape[2] for b in shape[1]], np.int32)
    in_words = [grouping.names[i] for i in groups]
    by_head = [f"H{i}" for i in range(heads)]
    labels = {
        "S": (layered, in_words),
        "H": (layered, by_head),
        "SH": ([f"{a}{b}" for a in layered for b in by_head], in_words),
    }[sweep.apart]
    work = Work(
        name=f"{name} {direction}",
        program=exchange,
        rows=rows,
        starts=rows[:, 0],
        grouping=grouping,
        changed=_changed(direction),
        kinds=2,
        values=4,
        static={"point": sweep.point, "apart": sweep.apart},
        takes=("source", "groups", "keys"),
    )
    has = np.ones((len(grouping.pairs), len(rows)), bool)
    if "S" in sweep.apart:
        has = grouping.has()[:, rows[:, 1]]
    sheet = tuple(labels[0]), tuple(labels[1])

    def maps(effects: np.ndarray) -> list[PatchMap]:
        pair = np.where(has, effects[:, 0], np.nan), np.where(has, effects[:, 1], np.nan)
        by_task = grouping is bench.roles and "S" not in sweep.apart
        return bench.maps((name, direction), sheet, grouping, pair, by_task)

    if not options.screen:
        yield from maps(bench.moved(work))
        return
    yield _screened(bench, work, has, maps)


def _screened(bench: Bench, work: Work, has: np.ndarray, maps: Any) -> PatchMap:
    """Estimates of all rows of some work, and exact effects of those that they put first and of
    others drawn at random."""
    options = bench.options
    screen = Work(
        name=f"screen {work.name}",
        program=estimate,
        rows=work.rows,
        starts=np.zeros_like(work.starts),
        grouping=work.grouping,
        changed=work.changed,
        values=8,
        static=work.static,
        takes=("source", "groups"),
    )
    estimates = np.where(has, bench.moved(screen, needed=True)[:, 0], np.nan)
    names = work.name, work.grouping.task
    places = chosen(estimates, options.screen, options.seed, *names)
    some = np.union1d(*places)
    part = Work(**{**vars(work), "rows": work.rows[some], "starts": work.starts[some]})
    effects = np.full((len(has), work.kinds, len(work.rows)), np.nan)
    effects[:, :, some] = bench.moved(part)
    exact = maps(effects)[0]
    kept = np.where(has, effects[:, 0], np.nan)
    return screened(exact, estimates, kept, places, options.seed)


def _knocked_out(bench: Bench, grouping: Grouping) -> Iterator[PatchMap]:
    """Attention of the last position to each group of positions, cut in each window of layers."""
    window = bench.options.window
    starts = range(bench.session.config.num_layers - window + 1)
    rows = np.array([(a, b) for a in starts for b in range(len(grouping.names))], np.int32)
    work = Work(
        name=KNOCKOUT,
        program=knock_out,
        rows=rows,
        starts=rows[:, 0],
        grouping=grouping,
        changed="clean",
        static={"window": window},
        takes=("groups",),
    )
    found = bench.moved(work)[:, 0].reshape(len(grouping.pairs), len(starts), -1)
    found = np.where(grouping.has()[:, None], found, np.nan)
    there = np.isfinite(found)
    others = np.nansum(found, axis=-1, keepdims=True) - np.where(there, found, 0)
    count = there.sum(axis=-1, keepdims=True) - there
    control = np.where(there & (count > 0), others / np.maximum(count, 1), np.nan)
    names = tuple(f"L{a}" + (f"–{a + window - 1}" if window > 1 else "") for a in starts)
    flat = found.reshape(len(found), -1), control.reshape(len(found), -1)
    yield from bench.maps((KNOCKOUT, "clean run"), (names, grouping.names), grouping, flat, False)


def _paths(bench: Bench, direction: str) -> Iterator[PatchMap]:
    """Every head's direct effect on the logits, and on what the heads with the largest read."""
    config, grouping = bench.session.config, bench.roles
    senders = np.argwhere(np.ones((config.num_layers, config.num_heads), bool)).astype(np.int32)
    layers = tuple(f"L{i}" for i in range(config.num_layers))
    heads = tuple(f"H{i}" for i in range(config.num_heads))

    def sent(to: tuple[int, int] | None, needed: bool) -> Float[np.ndarray, "P kinds M"]:
        rows = senders if to is None else senders[senders[:, 0] < to[0]]
        work = Work(
            name=f"paths to {head_label(*to) if to else LOGITS} {direction}",
            program=send,
            rows=rows,
            starts=np.zeros(len(rows), np.int32) if to is None else np.full(len(rows), to[0]),
            grouping=grouping,
            changed=_changed(direction),
            kinds=2 if to is None else 6,
            # What a receiver reads is kept for every sender, three points of it twice.
            values=4 if to is None else 4 + 6 * max(1, len(rows) // config.num_layers),
            static={"to_logits": to is None},
            more=(np.array(to or (0, 0), np.int32),),
            takes=("source", "keys"),
        )
        return bench.moved(work, needed)

    direct = sent(None, bool(bench.options.receivers))
    named = f"paths to {LOGITS}", direction
    yield from bench.maps(named, (layers, heads), grouping, (direct[:, 0], direct[:, 1]), False)
    size = np.where(senders[:, 0] > 0, np.abs(direct[:, 0].mean(axis=0)), -1)
    for place in np.argsort(-size, kind="stable")[: bench.options.receivers]:
        layer, head = map(int, senders[place])
        if not layer:
            continue
        found = sent((layer, head), False)
        for at, letter in enumerate("qkv"):
            named = f"paths to {head_label(layer, head)} {letter}", direction
            pair = found[:, at], found[:, 3 + at]
            yield from bench.maps(named, (layers[:layer], heads), grouping, pair, False)


__all__ = ["ALL_TASKS", "run"]
