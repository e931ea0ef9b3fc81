"""What restoring heads buys: each alone, the first 1 … k of several orders, and the controls."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from jaxalign.edits import head_ablation_masks
from jaxalign.measures.stats import generator
from jaxalign.prompts import Batch, Prompt
from jaxalign.runtime.compile import Program
from jaxalign.shapes import Bool, Float, Int
from jaxalign.studies.heads import edited, programs
from jaxalign.studies.heads.calls import Clean, Runner, Variant, padded, padded_later, question
from jaxalign.studies.heads.findings import RANKINGS, Ranking
from jaxalign.studies.heads.rankings import (
    ORDERS_BESIDE,
    RANDOM_ORDERS,
    SAME_LAYERS,
    VECTORS,
    control_steps,
    distinct,
    random_orders,
    same_layer_orders,
    top_k_masks,
)
from jaxalign.study.calls import Call, Late


@dataclass
class Orders:
    """The orders of one precision, known once importance and drift are.

    Attributes:
        wanted: False where nothing is repaired but each head alone.
        rankings: ``[4, P, L·H]``.
        beside: ``[orders, P, L·H]``: random ones, then those of the same layers, by ranking.
        last: the masks of the last call that asked for its own, and which call that was.
    """

    wanted: bool
    rankings: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0), int))
    beside: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0), int))
    last: tuple[Any, Any] | None = None

    def decide(
        self,
        rankings: dict[Ranking, Int[np.ndarray, "P N"]],
        num_heads: int,
        seed: int,
        scheme: str,
    ) -> None:
        """Keep the rankings' orders, and draw the controls.

        Args:
            rankings: by name, in the order of ``RANKINGS``.
            num_heads: ``H``.
            seed: the study's.
            scheme: its name, which the draws depend on.
        """
        self.rankings = np.stack([rankings[name] for name in RANKINGS])
        _, prompts, heads = self.rankings.shape
        drawn = [random_orders(prompts, heads, generator(seed, "random orders", scheme))]
        for name, order in zip(RANKINGS, self.rankings, strict=True):
            rng = generator(seed, "same layers", scheme, name)
            drawn.append(same_layer_orders(order, num_heads, rng))
        self.beside = np.concatenate(drawn)


@dataclass(frozen=True, kw_only=True)
class Repaired:
    """What restoring heads gave, ``m`` in logits; curves are empty where there are no orders.

    Attributes:
        restored: ``[P, L·H]``, the gain in ``m`` of restoring each head alone.
        clean: ``[P]``.
        curves: ``[P, 4, K]`` of the rankings.
        random: ``[P, orders, steps]``.
        same_layers: ``[P, 4, orders, steps]``.
        vectors: ``[P, 4, draws, steps]``.
    """

    restored: np.ndarray
    clean: np.ndarray
    curves: np.ndarray
    random: np.ndarray
    same_layers: np.ndarray
    vectors: np.ndarray


def rows_of(runner: Runner, wanted: bool) -> tuple[int, int]:
    """How many rows the rankings' curves have, and those of the orders beside them."""
    k = runner.repaired_heads
    return (len(RANKINGS) * k, ORDERS_BESIDE * len(control_steps(k))) if wanted else (0, 0)


@dataclass(frozen=True, kw_only=True)
class Repair:
    """The repair of one low-precision model.

    Attributes:
        runner: the study's.
        prompts, work: the kept prompts and their batches.
        clean: their clean f32 runs.
        variant: the low-precision model.
        orders: which the calls before these decide.
        alone: heads that are restored each alone, head ``l·H + h``; None for all.
    """

    runner: Runner
    prompts: Sequence[Prompt]
    work: list[Batch]
    clean: Clean
    variant: Variant
    orders: Orders
    alone: tuple[int, ...] | None = None

    @property
    def single(self) -> list[int]:
        """The heads that are restored each alone."""
        return [*(range(self.runner.num_heads) if self.alone is None else self.alone)]

    def restoring(self) -> list[Call[Any]]:
        """The calls of each head restored alone, and of the first heads of each order."""
        total = len(self.single) + sum(rows_of(self.runner, self.orders.wanted))
        return self._calls(
            "repair",
            edited.repair_run,
            total,
            1,
            lambda batch, part: repair_part(self, batch, part)[0],
            lambda batch: (),
        )

    def moving(self) -> list[Call[Any]]:
        """The calls of each ranking's heads moved by random vectors as long as the repair."""

        def more(batch: Batch) -> tuple[Any, ...]:
            chosen, like = list(batch.index), self.clean.states[0]
            states = padded_later(lambda: [self.variant.states[i] for i in chosen], like, batch)
            seed = self.runner.options.seed
            places = [np.array([seed, i], np.uint32) for i in range(len(self.prompts))]
            return states, batch.fill(places)

        steps = len(control_steps(self.runner.repaired_heads))
        return self._calls(
            "vectors",
            edited.vector_run,
            len(RANKINGS) * steps if self.orders.wanted else 0,
            VECTORS,
            lambda batch, part: vector_masks(self.runner, batch, self.orders)[part],
            more,
            draws=VECTORS,
        )

    def _calls(
        self,
        phase: str,
        program: Program,
        total: int,
        times: int,
        masks: Callable[[Batch, slice], np.ndarray],
        more: Callable[[Batch], tuple[Any, ...]],
        **static: Any,
    ) -> list[Call[Any]]:
        """Calls over all masks, as many at a time as memory holds.

        Args:
            phase: of the key.
            program: runs them.
            total: masks a prompt.
            times: runs of each mask, each with values of its own.
            masks: of a part of all, ``[M, L, B, 1, H]``.
            more: what else the program takes.
            static: its other static arguments.
        """
        runner, config = self.runner, self.runner.config
        calls: list[Call[Any]] = []
        tables = 1 if times == 1 else 1 + times
        for number, batch in enumerate(self.work if total else ()):
            _, rows = runner.chunks(batch.shape[1], 1 + times * total, tables, times)
            each = (rows - 1) // times
            for start in range(0, total, each):
                part = slice(start, min(start + each, total))
                count = part.stop - part.start
                shape = (count, config.num_layers, batch.shape[0], 1, config.num_heads)
                own = functools.partial(masks, batch, part)
                calls.append(
                    Call(
                        key=(phase, self.variant.name, number, start),
                        program=program,
                        arguments=(
                            runner.model.params,
                            self.variant.params,
                            question(self.prompts, batch),
                            padded([self.clean.states[i] for i in batch.index], batch),
                            Late(make=own, spec=jax.ShapeDtypeStruct(shape, np.bool_)),
                            *more(batch),
                        ),
                        static=runner.swept(scheme=self.variant.scheme.run, **static),
                        batch=batch,
                        rows=1 + times * count,
                        layer_rows=functools.partial(_passes, runner, batch, own, times),
                        engine=runner.options.engine,
                    )
                )
        return calls


def _passes(runner: Runner, batch: Batch, masks: Callable[[], np.ndarray], times: int) -> int:
    """Passes of runs through blocks, each run from the block where its mask begins."""
    layers = runner.config.num_layers
    touched = np.any(masks(), axis=(3, 4))  # [M, L, B]
    births = np.where(touched.any(axis=1), 1 + touched.argmax(axis=1), layers)
    rows = programs.layer_rows(runner.config, births.ravel(), runner.options.engine)
    return runner.copies(batch) + times * rows


def repair(wanted: Repair, restoring: Sequence[Call[Any]], moving: Sequence[Call[Any]]) -> Repaired:
    """Everything that restoring heads in a low-precision model gives.

    Args:
        wanted: the repair.
        restoring, moving: its calls.
    """
    runner, orders, name = wanted.runner, wanted.orders, wanted.variant.name
    count, single = len(wanted.prompts), wanted.single
    own, beside = rows_of(runner, orders.wanted)
    total, steps = len(single) + own + beside, len(control_steps(runner.repaired_heads))
    out = np.zeros((count, 1 + total))
    for call, values in runner.run(f"heads restored, {name}", restoring, needed=False):
        start = int(call.key[-1])
        part = slice(start, start + call.rows - 1)
        _, first = repair_part(wanted, call.batch, part)
        _place(out, values, call, first, part)
    parts = np.split(out, np.cumsum([1, len(single), own]), axis=1)
    clean, alone, curves, controls = parts
    restored = np.full((count, runner.num_heads), np.nan)
    restored[:, single] = alone - clean
    moved = np.zeros((VECTORS, count, 1 + len(RANKINGS) * steps if orders.wanted else 1))
    for call, found in runner.run(f"random vectors, {name}", moving, needed=False):
        start = int(call.key[-1])
        part = slice(start, start + (call.rows - 1) // VECTORS)
        own_row = np.arange(part.stop - start)
        first = np.repeat(own_row[:, None], found.shape[-1], axis=1)
        for out_of, values in zip(moved, found, strict=True):
            _place(out_of, values, call, first, part)
    # The clean run of another call: only differences inside a call are compared.
    by_vectors = moved[:, :, 1:] - moved[:, :, :1] + clean
    number = len(RANKINGS) if orders.wanted else 0
    controls = controls.reshape(count, -1, steps)
    cut = RANDOM_ORDERS if orders.wanted else 0
    return Repaired(
        restored=restored,
        clean=clean[:, 0],
        curves=curves.reshape(count, number, -1) if number else np.zeros((count, 0, 0)),
        random=controls[:, :cut],
        same_layers=controls[:, cut:].reshape(count, number, SAME_LAYERS, steps),
        vectors=by_vectors.reshape(VECTORS, count, number, steps).transpose(1, 2, 0, 3),
    )


def _place(
    out: Float[np.ndarray, "P R"],
    values: Float[np.ndarray, "1+M B"],
    call: Call[Any],
    first: Int[np.ndarray, "M B"],
    part: slice,
) -> None:
    """Write a call's rows to ``out``, whose column 0 is the clean run of the first call.

    Only rows of one call may be compared, so rows of later calls start at their clean row.

    Args:
        out: of all prompts; changed in place.
        values: of the call, the clean row first.
        call: which.
        first: which row each row repeats.
        part: which rows of all these are.
    """
    values = np.take_along_axis(values, np.pad(1 + first, ((1, 0), (0, 0))), axis=0)
    index = list(call.batch.index)
    values = values[:, : len(index)].astype(np.float64)
    if part.start == 0:
        out[index, 0] = values[0]
    moved = values[1:] if part.start == 0 else values[1:] - values[0] + out[index, 0]
    out[index, 1 + part.start : 1 + part.stop] = moved.T


def repair_part(
    wanted: Repair, batch: Batch, part: slice
) -> tuple[Bool[np.ndarray, "M L B 1 H"], Int[np.ndarray, "M B"]]:
    """The masks of one call, and which row each would repeat (``rankings.distinct``).

    Args:
        wanted: the repair.
        batch: prompts of the call.
        part: which rows of all.
    """
    key, orders = (batch.index, part.start), wanted.orders
    if orders.last is None or orders.last[0] != key:
        masks = repair_masks(wanted, batch)
        orders.last = key, distinct(masks[part])
    masks, first = orders.last[1]
    return masks, first


def repair_masks(wanted: Repair, batch: Batch) -> Bool[np.ndarray, "M L B 1 H"]:
    """Each head alone, the first 1 … K of each ranking, the first k of each order beside them.

    Args:
        wanted: the repair.
        batch: prompts of the call.
    """
    runner, orders = wanted.runner, wanted.orders
    config, k = runner.config, runner.repaired_heads
    alone = head_ablation_masks(config.num_layers, config.num_heads)[wanted.single]
    alone = np.broadcast_to(alone, (*alone.shape[:2], batch.shape[0], *alone.shape[3:]))
    if not len(orders.rankings):
        return alone
    curves = _first(runner, batch, orders.rankings, range(1, k + 1))
    return np.concatenate([alone, curves, _first(runner, batch, orders.beside, control_steps(k))])


def vector_masks(runner: Runner, batch: Batch, orders: Orders) -> Bool[np.ndarray, "M L B 1 H"]:
    """The first heads of each ranking, at the controls' values of k."""
    return _first(runner, batch, orders.rankings, control_steps(runner.repaired_heads))


def _first(
    runner: Runner, batch: Batch, orders: Int[np.ndarray, "O P N"], steps: Sequence[int]
) -> Bool[np.ndarray, "M L B 1 H"]:
    chosen = batch.fill(list(orders.swapaxes(0, 1))).swapaxes(0, 1)
    return top_k_masks(chosen, steps, runner.config.num_layers)
