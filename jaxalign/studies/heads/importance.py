"""Importance of every head, in f32 and inside every other model of the study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from jaxalign.engine import Engine
from jaxalign.prompts import Batch, Prompt
from jaxalign.shapes import Float, Int
from jaxalign.studies.heads import edited, programs
from jaxalign.studies.heads.calls import (
    Clean,
    Runner,
    Variant,
    padded_later,
    question,
    runs_of,
    stacked,
)
from jaxalign.studies.heads.findings import REPLACEMENTS, Replacement
from jaxalign.studies.heads.rankings import Donors
from jaxalign.study.calls import Call, Late


@dataclass(frozen=True, kw_only=True)
class Importance:
    """Importance of every head of one model, ``[P, L·H]`` by replacement.

    Attributes:
        answer: for ``logit_diff``; NaN where a head was not ablated.
        distractor: for ``distractor_diff``.
        clean: ``[P]``, ``m`` of the clean row of the same calls, or of the clean run where there
            are none.
    """

    answer: dict[Replacement, Float[np.ndarray, "P N"]]
    distractor: dict[Replacement, Float[np.ndarray, "P N"]]
    clean: Float[np.ndarray, " P"]


@dataclass(frozen=True, kw_only=True)
class Ablations:
    """What all models of the study are asked: the prompts, and what f32 says of them.

    Attributes:
        prompts: the kept ones.
        work: their batches.
        clean: their clean f32 runs, and after them those of the reference texts.
        donors: each prompt's resampling partners.
        heads: those that are ablated, head ``l·H + h`` in ascending order; None for all.
    """

    prompts: list[Prompt]
    work: list[Batch]
    clean: Clean
    donors: Donors
    heads: tuple[int, ...] | None = None

    def of_heads(
        self,
        runner: Runner,
        index: Sequence[int] | Int[np.ndarray, " k"],
        heads: Sequence[int] | Int[np.ndarray, " n"],
        kinds: Sequence[Replacement],
    ) -> Ablations:
        """The same question of some heads, on some of the prompts.

        Args:
            runner: the study's.
            index: places of the prompts.
            heads: in ascending order.
            kinds: what will stand in for a head.
        """
        runs = runs_of(kinds)
        tokens = [self.prompts[i].tokens for i in index]
        work = runner.batches(tokens, 1 + runs * len(heads), runs)
        placed = [replace(one, index=tuple(int(index[i]) for i in one.index)) for one in work]
        return replace(self, work=placed, heads=tuple(map(int, heads)))


def importance_calls(
    runner: Runner,
    asked: Ablations,
    variant: Variant,
    kinds: tuple[Replacement, ...],
    engine: Engine,
    phase: str = "importance",
) -> list[Call[Any]]:
    """Every head that is asked for replaced in turn, with the model's own means and donors.

    Args:
        runner: the study's.
        asked: the prompts.
        variant: the model that is ablated.
        kinds: what stands in for a head.
        engine: of the sweep.
        phase: of the calls' keys.
    """
    config, groups = runner.config, runs_of(kinds)
    heads = np.arange(runner.num_heads) if asked.heads is None else np.array(asked.heads)
    chosen = {} if asked.heads is None else {"heads": asked.heads}
    runner = replace(runner, options=replace(runner.options, engine=engine))
    calls: list[Call[Any]] = []
    for number, batch in enumerate(asked.work):
        means = _means(runner, asked, variant) if "mean" in kinds else None
        donors = _donors(asked, variant, batch) if "resample" in kinds else None
        for rows in runner.row_ranges(batch.shape[1], groups, groups, len(heads)):
            births = 1 + heads[slice(*rows)] // config.num_heads
            passes = groups * programs.layer_rows(config, births, engine)
            calls.append(
                Call(
                    key=(phase, variant.name, engine, "+".join(kinds), number, rows[0]),
                    program=edited.importance_run,
                    arguments=(variant.params, question(asked.prompts, batch), means, donors),
                    static=runner.swept(
                        rows=rows, kinds=kinds, scheme=variant.scheme.run, **chosen
                    ),
                    batch=batch,
                    rows=1 + groups * (rows[1] - rows[0]),
                    layer_rows=runner.copies(batch) + batch.shape[0] * passes,
                    engine=engine,
                )
            )
    return calls


def _means(runner: Runner, asked: Ablations, variant: Variant) -> Late:
    config, count = runner.config, len(asked.prompts)
    true = runner.options.head_mode == "true"
    width = config.hidden_size if true else config.edge_size

    def make() -> np.ndarray:
        params = variant.params.make() if isinstance(variant.params, Late) else variant.params
        return runner.reference_means(params, variant.states[count:], variant.scheme)

    shape = (config.num_layers, config.num_heads, width)
    return Late(make=make, spec=jax.ShapeDtypeStruct(shape, np.float32))


def _donors(asked: Ablations, variant: Variant, batch: Batch) -> Late:
    like = asked.clean.states[0]

    def of(draw: np.ndarray) -> Late:
        index = [draw[i] for i in batch.index]
        return padded_later(lambda: [variant.states[i] for i in index], like, batch)

    return stacked([of(draw) for draw in asked.donors.draws.T])


def importance(
    runner: Runner,
    name: str,
    calls: Sequence[Call[Any]],
    clean: Float[np.ndarray, " P"],
    *,
    needed: bool,
) -> Importance:
    """Importance of every head, from ``importance_calls``.

    Args:
        runner: the study's.
        name: of the work, for people.
        calls: of one model.
        clean: ``m`` of the model's clean runs, where no call has the prompt.
        needed: whether later calls depend on it.
    """
    kinds: tuple[Replacement, ...] = calls[0].static["kinds"]  # type: ignore[assignment]
    heads: Any = calls[0].static.get("heads") or range(runner.num_heads)
    out = np.full((2, len(kinds), len(heads), len(clean)), np.nan)
    clean = np.array(clean, np.float64)
    for call, effects in runner.run(name, calls, needed=needed):
        rows: Any = call.static["rows"]
        for metric, effect in enumerate((effects.answer, effects.distractor)):  # [K, M, B]
            call.scatter(out[metric, :, slice(*rows)], effect)
        if rows[0] == 0:
            call.scatter(clean, effects.clean)
    whole = np.full((2, len(kinds), len(clean), runner.num_heads), np.nan)
    whole[..., list(heads)] = out.swapaxes(2, 3)
    answer, distractor = whole
    ordered = [kind for kind in REPLACEMENTS if kind in kinds]
    return Importance(
        answer={kind: answer[kinds.index(kind)] for kind in ordered},
        distractor={kind: distractor[kinds.index(kind)] for kind in ordered},
        clean=clean,
    )
