"""The calls of a patching study: which rows of which pairs, in batches and chunks that fit."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxalign.engine.budget import MOST_OPERATIONS, plan_chunks
from jaxalign.engine.suffix import worth_it
from jaxalign.measures.metrics import answer_weights
from jaxalign.numerics.scheme import F32
from jaxalign.prompts import Batch, Pair
from jaxalign.runtime.compile import default_platform
from jaxalign.shapes import Float, Int
from jaxalign.studies.patch.groups import NOWHERE
from jaxalign.studies.patch.programs import Prompts, score
from jaxalign.study.calls import Call
from jaxalign.study.session import Session


@dataclass(frozen=True, kw_only=True)
class Work:
    """Rows of one kind on all pairs: what their calls have in common.

    Attributes:
        name: of the phase, which begins the calls' keys.
        program: of ``programs``.
        rows: int ``[M, …]``, what each row does.
        starts: int ``[M]``, the first layer that each row computes anew.
        changed: which run of a pair is changed, "clean" or "corrupted".
        kinds: results that the program makes of a row.
        values: tables ``[L, B, S, …]`` that rows share.
        static: the program's static arguments beside ``config`` and ``mesh``.
        more: arguments between the rows and the prompts.
        takes: what it takes behind the prompts, of ``source``, ``groups`` and ``keys``.
        by_group: whether each row acts at one group of positions alone, its second number.
    """

    name: str
    program: Any
    rows: Int[np.ndarray, "M _"]
    starts: Int[np.ndarray, " M"]
    changed: str
    kinds: int = 1
    values: int = 0
    static: dict[str, Any]
    more: tuple[Any, ...] = ()
    takes: tuple[str, ...] = ()
    by_group: bool = False


def calls(
    session: Session, pairs: Sequence[Pair], groups: Sequence[Int[np.ndarray, "2 S"]], work: Work
) -> Iterator[tuple[Call[Any], Int[np.ndarray, " rows"]]]:
    """The calls of some work, each with the rows that it computes.

    Args:
        session: of the study.
        pairs: of the study.
        groups: of each pair's positions.
        work: what is asked.
    """
    config = session.config
    plan = functools.partial(_plan, session, work)
    keys = _keys(session.options.seed, pairs)
    turned = [_turned(pair) for pair in pairs]
    sides = (list(pairs), turned) if work.changed == "clean" else (turned, list(pairs))
    for number, batch in enumerate(
        session.batches(lambda size: plan(size)[0], sides[0], dealt=True)
    ):
        size = batch.shape[1]
        parts = {
            "source": batch.fill([_padded(pair.tokens, size, 0) for pair in sides[1]]),
            "groups": batch.fill([_padded(own, size, NOWHERE) for own in groups]),
            "keys": batch.fill(list(keys)),
        }
        each, begun = plan(size)[1], 0
        for suffix, alike in _by_suffix(session, work, batch, parts["groups"]):
            held = {} if suffix is None else {"suffix": suffix}
            for chosen in np.split(alike, range(each, len(alike), each)):
                passes = int((config.num_layers - work.starts[chosen]).sum()) * work.kinds
                call: Call[Any] = Call(
                    key=(work.name, F32.name, number, begun),
                    program=work.program,
                    arguments=(
                        session.model.params, work.rows[chosen], *work.more,
                        _prompts(pairs, batch), *(parts[name] for name in work.takes),
                    ),
                    static={"config": config, "mesh": session.mesh, **work.static, **held},
                    batch=batch,
                    rows=1 + work.kinds * len(chosen),
                    layer_rows=batch.shape[0] * (passes + 3 * config.num_layers),
                    engine="wave",
                )  # fmt: skip
                yield call, chosen
                begun += len(chosen)


def _by_suffix(
    session: Session, work: Work, batch: Batch, groups: Int[np.ndarray, "B 2 S"]
) -> Iterator[tuple[int | None, Int[np.ndarray, " rows"]]]:
    """Rows by how many of the prompts' last positions they compute; None for all positions."""
    every = np.arange(len(work.rows))
    if not work.by_group:
        yield None, every
        return
    count, size = batch.shape
    here = (np.asarray(groups)[:, None] == work.rows[:, 1][None, :, None, None]).any(axis=2)
    first = np.where(here.any(axis=-1), here.argmax(axis=-1), size)  # [B, M]
    wanted = np.clip(np.asarray(batch.lengths)[:, None] - first, 1, size).max(axis=0)
    through = session.config.num_layers - work.starts
    held = worth_it(wanted, through, work.kinds * count, size, session.config, alone=True)
    for suffix in np.unique(held):
        yield int(suffix) if suffix < size else None, every[held == suffix]


def score_calls(session: Session, pairs: Sequence[Pair], side: str) -> Iterator[Call[Any]]:
    """Runs without edits of one side of all pairs.

    Args:
        session: of the study.
        pairs: of the study.
        side: "clean" or "corrupted".
    """
    config, free = session.config, session.free(session.model.params)
    own = list(pairs) if side == "clean" else [_turned(pair) for pair in pairs]

    def most(size: int) -> int:
        return plan_chunks(config, 1, size, free, least_rows=1)[0]

    for number, batch in enumerate(session.batches(most, own, dealt=True)):
        yield Call(
            key=("clean", F32.name, side, number),
            program=score,
            arguments=(session.model.params, _prompts(pairs, batch)),
            static={"config": config, "mesh": session.mesh},
            batch=batch,
            layer_rows=batch.shape[0] * config.num_layers,
        )


def _plan(session: Session, work: Work, size: int) -> tuple[int, int]:
    """How many prompts, and how many of the rows, go into a call."""
    config = session.config
    wide = max(config.hidden_size, config.attention_width)
    if work.static.get("point") == "pattern":
        wide = max(wide, config.num_heads * size)
    prompts, rows = plan_chunks(
        config,
        1 + work.kinds * len(work.rows),
        size,
        session.free(session.model.params),
        values=work.values * 4 * (config.num_layers + 1) * size * wide,
        least_rows=1 + work.kinds,
        most_operations=MOST_OPERATIONS.get(default_platform(), MOST_OPERATIONS["gpu"]),
    )
    return prompts, max(1, (rows - 1) // work.kinds)


def _turned(pair: Pair) -> Pair:
    """The pair by its corrupted prompt's tokens."""
    return replace(pair, tokens=pair.corrupted)


def _prompts(pairs: Sequence[Pair], batch: Batch) -> Prompts:
    answers, weights = answer_weights(
        [pair.answers for pair in pairs], [pair.wrong_answers for pair in pairs]
    )
    return Prompts(batch.tokens, batch.lengths, batch.fill([*answers]), batch.fill([*weights]))


def _keys(seed: int, pairs: Sequence[Pair]) -> Int[np.ndarray, "P 2"]:
    """A key of each pair's random directions, by its tokens: the same whatever stands beside."""
    words = ([seed, *pair.tokens, *pair.corrupted] for pair in pairs)
    return np.stack([np.random.SeedSequence(each).generate_state(2) for each in words])


def _padded(own: Any, size: int, filler: int) -> Int[np.ndarray, "*kinds S"]:
    """Tokens or groups of a prompt up to a batch's length; of a longer prompt its start."""
    own = np.asarray(own, np.int32)[..., :size]
    ends = [(0, 0)] * (own.ndim - 1) + [(0, size - own.shape[-1])]
    return np.pad(own, ends, constant_values=filler)


def gathered(
    count: int, work: Work, parts: Iterator[tuple[Call[Any], Int[np.ndarray, " rows"], Any]]
) -> Float[np.ndarray, "P kinds M"]:
    """How far each row moves the metric of each pair, against row 0 of its own call.

    Args:
        count: pairs of the study.
        work: whose calls they are.
        parts: calls with their rows and results.
    """
    moved = np.zeros((count, work.kinds, len(work.rows)))
    for call, chosen, values in parts:
        own = moved[:, :, chosen]
        call.batch.scatter(own, values[..., 1:] - values[..., :1], axis=0)
        moved[:, :, chosen] = own
    return moved
