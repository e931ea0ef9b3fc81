"""What restoring heads buys: each alone, and the first 1 … k of several orders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from jaxalign.edits import head_ablation_masks
from jaxalign.numerics.scheme import Scheme
from jaxalign.prompts import Batch, Prompt
from jaxalign.shapes import Bool, Float, Int
from jaxalign.studies.heads import programs
from jaxalign.studies.heads.calls import Runner, padded, question
from jaxalign.studies.heads.rankings import distinct, top_k_masks
from jaxalign.study.calls import Call, Late


@dataclass
class Orders:
    """The orders of one precision; ``tried`` ``[O, P, L·H]`` once importance and drift are known.

    Attributes:
        count: how many there will be; 0 where nothing is repaired.
        last: the masks of the last call that asked for its own, and which call that was.
    """

    count: int
    tried: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0), int))
    last: tuple[Any, Any] | None = None


def repair_calls(
    runner: Runner,
    prompts: Sequence[Prompt],
    work: list[Batch],
    states: list[np.ndarray],
    low: Any,
    scheme: Scheme,
    orders: Orders,
) -> list[Call[Any]]:
    """Each head restored alone, and the first 1 … k of each order.

    Args:
        runner: the study's.
        prompts, work: the kept prompts and their batches.
        states: of their clean f32 runs.
        low: the scheme's parameters.
        scheme: the precision.
        orders: which the calls before these decide.
    """
    calls = []
    total = runner.num_heads + orders.count * runner.repaired_heads
    for number, batch in enumerate(work):
        _, most = runner.chunks(batch.shape[1], 1 + total, 1)
        for start in range(0, total, most - 1):
            part = slice(start, min(start + most - 1, total))
            calls.append(
                _repair_call(runner, prompts, batch, states, low, scheme, orders, part, number)
            )
    return calls


def _repair_call(
    runner: Runner,
    prompts: Sequence[Prompt],
    batch: Batch,
    states: list[np.ndarray],
    low: Any,
    scheme: Scheme,
    orders: Orders,
    part: slice,
    number: int,
) -> Call[Any]:
    config = runner.config

    def masks() -> np.ndarray:
        return repair_part(runner, batch, orders, part)[0]

    def passes() -> int:
        touched = np.any(masks(), axis=(3, 4))  # [M, L, B]
        births = np.where(touched.any(axis=1), 1 + touched.argmax(axis=1), config.num_layers)
        rows = programs.layer_rows(config, births.ravel(), runner.options.engine)
        return runner.copies(batch) + rows

    count = part.stop - part.start
    shape = (count, config.num_layers, batch.shape[0], 1, config.num_heads)
    return Call(
        key=("repair", scheme.name, number, part.start),
        program=programs.repair_run,
        arguments=(
            runner.model.params,
            low,
            question(prompts, batch),
            padded([states[i] for i in batch.index], batch),
            Late(make=masks, spec=jax.ShapeDtypeStruct(shape, np.bool_)),
        ),
        static=runner.swept(scheme=scheme.run),
        batch=batch,
        rows=1 + count,
        layer_rows=passes,
        engine=runner.options.engine,
    )


def repair(
    runner: Runner, calls: Sequence[Call[Any]], count: int, scheme: Scheme, orders: Orders
) -> tuple[Float[np.ndarray, "P N"], Float[np.ndarray, "P R"]]:
    """The gain in ``m`` of restoring each head alone; and ``m`` clean and with the first
    1 … k heads of each order restored, ``R = 1 + O·k``.

    Args:
        runner: the study's.
        calls: from ``repair_calls``.
        count: prompts.
        scheme: the precision.
        orders: of restoring.
    """
    total = runner.num_heads + orders.count * runner.repaired_heads
    out = np.zeros((count, 1 + total))
    for call, values in runner.run(f"heads restored, {scheme.name}", calls, needed=False):
        start = int(call.key[-1])
        part = slice(start, start + call.rows - 1)
        _, first = repair_part(runner, call.batch, orders, part)
        values = np.take_along_axis(values, np.pad(1 + first, ((1, 0), (0, 0))), axis=0)
        index = list(call.batch.index)
        values = values[:, : len(index)].astype(np.float64)
        if start == 0:
            out[index, 0] = values[0]
        # Only rows of one call may be compared: later calls start at their clean row.
        moved = values[1:] if start == 0 else values[1:] - values[0] + out[index, 0]
        out[index, 1 + part.start : 1 + part.stop] = moved.T
    clean, restored, curves = np.split(out, (1, 1 + runner.num_heads), axis=1)
    return restored - clean, np.concatenate([clean, curves], axis=1)


def repair_part(
    runner: Runner, batch: Batch, orders: Orders, part: slice
) -> tuple[Bool[np.ndarray, "M L B 1 H"], Int[np.ndarray, "M B"]]:
    """The masks of one call, and which row each would repeat (``rankings.distinct``).

    Args:
        runner: the study's.
        batch: prompts of the call.
        orders: of restoring.
        part: which rows of all.
    """
    key = batch.index, part.start
    if orders.last is None or orders.last[0] != key:
        masks = repair_masks(runner, batch, orders.tried, runner.repaired_heads)
        orders.last = key, distinct(masks[part])
    masks, first = orders.last[1]
    return masks, first


def repair_masks(
    runner: Runner, batch: Batch, orders: Int[np.ndarray, "O P N"], k: int
) -> Bool[np.ndarray, "M L B 1 H"]:
    """Every head alone, then the first 1 … k heads of each order.

    Args:
        runner: the study's.
        batch: prompts of the call.
        orders: heads of each prompt from the first to be restored to the last.
        k: how many are restored at most.
    """
    config = runner.config
    alone = head_ablation_masks(config.num_layers, config.num_heads)
    alone = np.broadcast_to(alone, (*alone.shape[:2], batch.shape[0], *alone.shape[3:]))
    if not len(orders):
        return alone
    chosen = batch.fill(list(orders.swapaxes(0, 1))).swapaxes(0, 1)
    return np.concatenate([alone, top_k_masks(chosen, k, config.num_layers)])
