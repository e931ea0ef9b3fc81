"""The phases of the heads study: batches through compiled calls, one entry a prompt back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxalign.checkpoints import Model
from jaxalign.devices.deal import rounds
from jaxalign.devices.mesh import EDITS, MODEL, part_bytes
from jaxalign.engine.budget import plan_chunks
from jaxalign.measures.metrics import AnswerMetrics, Drift
from jaxalign.model.config import ModelConfig
from jaxalign.numerics.scheme import Scheme
from jaxalign.prompts import Batch, Prompt, batches, bucket_length
from jaxalign.shapes import Float
from jaxalign.studies.heads import programs
from jaxalign.studies.heads.options import HeadsOptions
from jaxalign.studies.heads.rankings import (
    DRAWS,
    RANDOM_ORDERS,
    Donors,
)
from jaxalign.studies.heads.result import RANKINGS
from jaxalign.study.calls import Call, Late, Run, compute_all

KINDS = 2 + DRAWS


@dataclass(frozen=True)
class Clean:
    """Clean f32 runs of some prompts.

    Attributes:
        metrics: ``AnswerMetrics`` of numpy arrays ``[P]``.
        states: each prompt's head states, ``[L, S_p, H, h]``.
        gradients: ``∂m / ∂c``, ``[L, S_p, …]`` a prompt.
    """

    metrics: AnswerMetrics
    states: list[np.ndarray]
    gradients: list[np.ndarray]

    def take(self, index: Sequence[int]) -> Clean:
        """The runs of some of the prompts."""
        chosen = list(index)
        return Clean(
            jax.tree.map(lambda values: values[chosen], self.metrics),
            [self.states[i] for i in chosen],
            [self.gradients[i] for i in chosen],
        )


@dataclass(frozen=True)
class Comparison:
    """Clean low-precision answers ``[P]``, drift and first-order effects ``[P, L, H]``."""

    metrics: AnswerMetrics
    drift: Drift
    predicted: np.ndarray


@dataclass(frozen=True)
class Runner:
    """The calls of a study within a memory budget.

    Attributes:
        model: with f32 parameters.
        options: of the study.
        mesh: devices that share the rows of a call, and the parameters; None for one device.
        run: runs calls, ``Session.run``.
    """

    model: Model
    options: HeadsOptions
    mesh: Mesh | None = None
    run: Run = compute_all

    @property
    def config(self) -> ModelConfig:
        """The architecture."""
        return self.model.config

    @property
    def num_heads(self) -> int:
        """``L·H``, all heads of the model."""
        return self.config.num_layers * self.config.num_heads

    @property
    def repaired_heads(self) -> int:
        """The longest repair: ``max_repair_k``, or all heads of a smaller model."""
        return min(self.options.max_repair_k, self.num_heads)

    def chunks(self, length: int, rows: int, tables: int, groups: int = 1) -> tuple[int, int]:
        """Prompts and rows of one call that the memory budget holds.

        Args:
            length: padded positions of the prompts.
            rows: runs of each prompt, the clean one included.
            tables: of replacement values ``[L, S, H, C]`` a prompt.
            groups: rows that belong together (one head under each kind of replacement).
        """
        config = self.config
        devices, spread = (self.mesh.shape[EDITS], self.mesh.shape[MODEL]) if self.mesh else (1, 1)
        # The low-precision copy stands beside the f32 one while the two are compared.
        budget = self.options.memory_gb * 1e9 - 2 * part_bytes(config, spread)
        width = config.hidden_size if self.options.head_mode == "true" else config.edge_size
        values = 4 * tables * self.num_heads * length * width
        prompts, each = plan_chunks(
            config,
            1 + rounds(rows - 1, devices),
            length,
            budget,
            values,
            1 + rounds(groups, devices),
            engine=self.options.engine,
        )
        return prompts, min(rows, 1 + devices * (each - 1))

    def batches(self, tokens: Sequence[Sequence[int]], rows: int, tables: int) -> list[Batch]:
        """Batches that leave room for ``rows`` rows a prompt.

        Args:
            tokens: ids of each prompt.
            rows: runs of each prompt, the clean one included.
            tables: of replacement values a prompt.
        """
        limit = self.config.max_positions
        sizes = {bucket_length(len(ids), limit) for ids in tokens}
        most = {size: self.chunks(size, rows, tables)[0] for size in sizes}
        return list(batches(tokens, most, limit))

    def study_batches(self, prompts: Sequence[Prompt]) -> list[Batch]:
        """The batches of the study, small enough for its widest call."""
        orders = len(RANKINGS) + RANDOM_ORDERS
        widest = 1 + max(KINDS * self.num_heads, self.num_heads + orders * self.repaired_heads)
        return self.batches([prompt.tokens for prompt in prompts], widest, KINDS)

    def row_ranges(self, length: int, tables: int, groups: int) -> list[tuple[int, int]]:
        """The heads of each call, counted layer by layer, when every head is edited in turn.

        Args:
            length: padded positions of the prompts.
            tables: of replacement values a prompt.
            groups: rows a head.
        """
        _, rows = self.chunks(length, 1 + groups * self.num_heads, tables, groups)
        most = (rows - 1) // groups
        return [
            (start, min(start + most, self.num_heads)) for start in range(0, self.num_heads, most)
        ]

    def clean(self, prompts: Sequence[Prompt], work: list[Batch]) -> Clean:
        """Run the f32 model without edits."""
        calls: list[Call[Any]] = [
            Call(
                key=("clean", "f32", number),
                program=programs.clean_run,
                arguments=(self.model.params, question(prompts, batch)),
                static={"config": self.config, "head_mode": self.options.head_mode},
                batch=batch,
                layer_rows=3 * self.copies(batch),  # a backward pass costs about two forward ones
            )
            for number, batch in enumerate(work)
        ]
        places: list[Any] = [None] * len(prompts)
        for call, (metrics, state, gradient) in self.run("clean runs, f32", calls):
            for row, i in enumerate(call.batch.index):
                own = (a[:, row, : call.batch.lengths[row]].copy() for a in (state, gradient))
                places[i] = (jax.tree.map(lambda m, row=row: m[row], metrics), *own)
        metrics = jax.tree.map(lambda *m: np.array(m), *(place[0] for place in places))
        return Clean(metrics, [place[1] for place in places], [place[2] for place in places])

    def copies(self, batch: Batch) -> int:
        """Passes through one block that a run of all a batch's prompts makes."""
        return self.config.num_layers * batch.shape[0]

    def reference_means(self, states: Sequence[np.ndarray]) -> np.ndarray:
        """Each head's mean contribution over the reference texts, ``[L, H, C]``.

        The mean is over last positions, or over all real positions with ``mean_positions`` "all".
        """
        if self.options.mean_positions == "last":
            rows = np.stack([state[:, -1] for state in states], axis=1)
        else:
            rows = np.concatenate(states, axis=1)
        c = programs.added(self.model.params, rows, head_mode=self.options.head_mode)
        return np.asarray(c).mean(axis=1)

    def importance_calls(
        self,
        prompts: Sequence[Prompt],
        work: list[Batch],
        states: list[np.ndarray],
        means: np.ndarray,
        donors: Donors,
    ) -> list[Call[Any]]:
        """Every head replaced by zero, mean and resampling, in f32.

        Args:
            prompts, work: the kept prompts and their batches.
            states: of their clean f32 runs, ``[L, S_p, H, h]`` each.
            means: of the reference texts, ``[L, H, C]``.
            donors: each prompt's resampling partners.
        """
        calls: list[Call[Any]] = []
        for number, batch in enumerate(work):
            given = [
                padded([states[draw[i]] for i in batch.index], batch) for draw in donors.draws.T
            ]
            for rows in self.row_ranges(batch.shape[1], KINDS, KINDS):
                births = 1 + np.arange(*rows) // self.config.num_heads
                passes = KINDS * programs.layer_rows(self.config, births, self.options.engine)
                calls.append(
                    Call(
                        key=("importance", "f32", number, rows[0]),
                        program=programs.importance_run,
                        arguments=(
                            self.model.params,
                            question(prompts, batch),
                            means,
                            stacked(given),
                        ),
                        static=self.swept(rows=rows),
                        batch=batch,
                        rows=1 + KINDS * (rows[1] - rows[0]),
                        layer_rows=self.copies(batch) + batch.shape[0] * passes,
                        engine=self.options.engine,
                    )
                )
        return calls

    def importance(
        self, calls: Sequence[Call[Any]], count: int
    ) -> tuple[Float[np.ndarray, "P 3 N"], Float[np.ndarray, "P 3 N"]]:
        """Importance of every head by zero, mean and resampling, for both metrics.

        Args:
            calls: from ``importance_calls``.
            count: prompts.
        """
        out = np.zeros((2, 3, self.num_heads, count))
        for call, effects in self.run("importance of every head, f32", calls):
            rows: Any = call.static["rows"]
            for metric, effect in enumerate(effects):  # [3, M, B]
                call.scatter(out[metric, :, slice(*rows)], effect)
        first, second = np.moveaxis(out, -1, 1)
        return first, second

    def low_calls(
        self,
        prompts: Sequence[Prompt],
        work: list[Batch],
        clean: Clean,
        low: Any,
        scheme: Scheme,
    ) -> list[Call[Any]]:
        """A low precision's clean runs beside f32's states and gradients.

        Args:
            prompts, work: the kept prompts and their batches.
            clean: their f32 runs.
            low: the scheme's parameters.
            scheme: the precision.
        """
        return [
            Call(
                key=("clean", scheme.name, number),
                program=programs.low_run,
                arguments=(
                    self.model.params,
                    low,
                    question(prompts, batch),
                    padded([clean.states[i] for i in batch.index], batch),
                    padded([clean.gradients[i] for i in batch.index], batch),
                ),
                static={
                    "config": self.config,
                    "scheme": scheme.run,
                    "head_mode": self.options.head_mode,
                },
                batch=batch,
                layer_rows=self.copies(batch),
            )
            for number, batch in enumerate(work)
        ]

    def low(self, calls: Sequence[Call[Any]], count: int, scheme: Scheme) -> Comparison:
        """A low precision's clean runs, and how far each of its heads is from f32's.

        Args:
            calls: from ``low_calls``.
            count: prompts.
            scheme: the precision.
        """
        places: list[Any] = [None] * count
        for call, (metrics, *heads) in self.run(f"clean runs, {scheme.name}", calls):
            for row, i in enumerate(call.batch.index):
                own = jax.tree.map(lambda m, row=row: m[row], metrics)
                places[i] = (own, *jax.tree.map(lambda a, row=row: a[:, row], heads))
        return Comparison(*jax.tree.map(lambda *a: np.stack(a), *places))

    def swept(self, **more: Any) -> dict[str, Any]:
        """The static arguments of a program that sweeps."""
        options = self.options
        common = {"config": self.config, "head_mode": options.head_mode}
        return {**common, "engine": options.engine, "mesh": self.mesh, **more}


def question(prompts: Sequence[Prompt], batch: Batch) -> programs.Question:
    """A batch as the compiled calls take it."""
    target = batch.fill([np.int32(prompt.target) for prompt in prompts])
    other = batch.fill(
        [np.int32(p.target if p.distractor is None else p.distractor) for p in prompts]
    )
    return programs.Question(batch.tokens, batch.lengths, target, other)


def pad(arrays: Sequence[np.ndarray], batch: Batch) -> np.ndarray:
    """Arrays ``[L, S_p, …]`` of a batch's prompts as one ``[L, B, S, …]``, with its filler."""
    B, S = batch.shape
    first = arrays[0]
    out = np.zeros((first.shape[0], B, S, *first.shape[2:]), first.dtype)
    for row in range(B):
        own = arrays[row] if row < len(arrays) else first
        out[:, row, : own.shape[1]] = own
    return out


def padded(arrays: Sequence[np.ndarray], batch: Batch) -> Late:
    """``pad`` as the argument of a call: padded arrays are large, so they are made when it runs."""
    first = arrays[0]
    shape = (first.shape[0], *batch.shape, *first.shape[2:])
    return Late(make=lambda: pad(arrays, batch), spec=jax.ShapeDtypeStruct(shape, first.dtype))


def stacked(parts: Sequence[Late]) -> Late:
    """Late arrays of one shape as one with an axis more."""
    [spec, *_] = (part.spec for part in parts)
    return Late(
        make=lambda: np.stack([part.make() for part in parts]),
        spec=jax.ShapeDtypeStruct((len(parts), *spec.shape), spec.dtype),
    )
