"""The phases of the heads study: batches through compiled calls, one entry a prompt back."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxalign.convert import Model
from jaxalign.distributed import fetch
from jaxalign.edits import head_ablation_masks
from jaxalign.engine.budget import plan_chunks
from jaxalign.experiments.heads import runs
from jaxalign.experiments.heads.donors import DRAWS, Donors
from jaxalign.experiments.heads.ledger import Ledger
from jaxalign.experiments.heads.options import Options
from jaxalign.experiments.heads.rankings import RANDOM_ORDERS, distinct, top_k_masks
from jaxalign.journal import Journal
from jaxalign.metrics import AnswerMetrics, Drift
from jaxalign.model.config import ModelConfig
from jaxalign.model.params import Params
from jaxalign.numerics.scheme import Scheme
from jaxalign.prompts import Batch, Prompt, batches, bucket_length
from jaxalign.results import RANKINGS
from jaxalign.shapes import Bool, Float, Int
from jaxalign.sharded_sweep import rounds
from jaxalign.sharding import EDITS, MODEL, part_bytes

KINDS = 2 + DRAWS
# The shape of what a clean run says about its answers.
ANSWERS = AnswerMetrics(*[0] * 4)


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


@dataclass
class Runner:
    """Runs one model's phases within a memory budget.

    Attributes:
        model: with f32 parameters.
        options: of the study.
        ledger: what was computed.
        journal: keeps finished calls, so that a study that was cut off goes on from there.
        mesh: devices that share the rows of a call, and the parameters; None for one device.
    """

    model: Model
    options: Options
    ledger: Ledger = field(default_factory=Ledger)
    journal: Journal = field(default_factory=lambda: Journal(None, {}))
    mesh: Mesh | None = None

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
        """Prompts and rows of one call whose rows share ``tables`` tables of replacement values.

        ``groups`` rows belong together (one head under each kind of replacement).
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
        """Batches that leave room for ``rows`` rows a prompt."""
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
        """The heads of each call, counted layer by layer, when every head is edited in turn."""
        _, rows = self.chunks(length, 1 + groups * self.num_heads, tables, groups)
        most = (rows - 1) // groups
        return [
            (start, min(start + most, self.num_heads)) for start in range(0, self.num_heads, most)
        ]

    def clean(self, prompts: Sequence[Prompt], work: list[Batch]) -> Clean:
        """Run the f32 model without edits."""
        places: list[Any] = [None] * len(prompts)
        for number, batch in enumerate(self.ledger.track(work, "clean runs, f32", len(work))):
            call = functools.partial(
                runs.clean_run,
                self.model.params,
                question(prompts, batch),
                config=self.config,
                head_mode=self.options.head_mode,
            )
            # A backward pass costs about two forward ones.
            self.ledger.record("clean", "f32", "scan", batch.shape, 1, 3 * self.copies(batch))
            metrics, state, gradient = self.keep(("clean", "f32", number), call, (ANSWERS, 0, 0))
            for row, i in enumerate(batch.index):
                own = (a[:, row, : batch.lengths[row]].copy() for a in (state, gradient))
                places[i] = (jax.tree.map(lambda m, row=row: m[row], metrics), *own)
        metrics = jax.tree.map(lambda *m: np.array(m), *(place[0] for place in places))
        return Clean(metrics, [place[1] for place in places], [place[2] for place in places])

    def keep(self, key: tuple[str | int, ...], call: Callable[[], Any], like: Any = 0) -> Any:
        """A call's result as numpy arrays, or the one that the journal has of it."""
        return self.journal.keep(key, lambda: fetch(call()), like)

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
        c = runs.contributions(self.model.params, jnp.asarray(rows), self.options.head_mode)
        return np.asarray(c).mean(axis=1)

    def importance(
        self,
        prompts: Sequence[Prompt],
        work: list[Batch],
        states: list[np.ndarray],
        means: np.ndarray,
        donors: Donors,
    ) -> tuple[Float[np.ndarray, "P 3 N"], Float[np.ndarray, "P 3 N"]]:
        """Importance of every head by zero, mean and resampling, for both metrics."""
        out = np.zeros((2, len(prompts), 3, self.num_heads))
        engine = self.options.engine
        bar = self.ledger.track(work, "importance of every head, f32", len(work))
        for number, batch in enumerate(bar):
            given = [
                pad([states[donors.draws[i, n]] for i in batch.index], batch) for n in range(DRAWS)
            ]
            for rows in self.row_ranges(batch.shape[1], KINDS, KINDS):
                call = functools.partial(
                    runs.importance_run,
                    self.model.params,
                    question(prompts, batch),
                    means,
                    np.stack(given),
                    config=self.config,
                    head_mode=self.options.head_mode,
                    rows=rows,
                    engine=engine,
                    mesh=self.mesh,
                )
                effects = self.keep(("importance", "f32", number, rows[0]), call, (0, 0))
                count = 1 + KINDS * (rows[1] - rows[0])
                births = 1 + np.arange(*rows) // self.config.num_heads
                passes = KINDS * runs.layer_rows(self.config, births, engine)
                passes = self.copies(batch) + batch.shape[0] * passes
                self.ledger.record("importance", "f32", engine, batch.shape, count, passes)
                for metric, effect in enumerate(effects):  # [3, M, B]
                    kept = effect[..., : len(batch.index)].transpose(2, 0, 1)
                    out[metric, list(batch.index), :, slice(*rows)] = kept
        return out[0], out[1]

    def low(
        self,
        prompts: Sequence[Prompt],
        work: list[Batch],
        clean: Clean,
        low_params: Params,
        scheme: Scheme,
    ) -> Comparison:
        """A low precision's clean runs, and how far each of its heads is from f32's."""
        places: list[Any] = [None] * len(prompts)
        bar = self.ledger.track(work, f"clean runs, {scheme.name}", len(work))
        for number, batch in enumerate(bar):
            call = functools.partial(
                runs.low_run,
                self.model.params,
                low_params,
                question(prompts, batch),
                pad([clean.states[i] for i in batch.index], batch),
                pad([clean.gradients[i] for i in batch.index], batch),
                config=self.config,
                scheme=scheme.run,
                head_mode=self.options.head_mode,
            )
            self.ledger.record("clean", scheme.name, "scan", batch.shape, 1, self.copies(batch))
            like = (ANSWERS, Drift(*[0] * 5), 0)
            metrics, *heads = self.keep(("clean", scheme.name, number), call, like)
            for row, i in enumerate(batch.index):
                own = jax.tree.map(lambda m, row=row: m[row], metrics)
                places[i] = (own, *jax.tree.map(lambda a, row=row: a[:, row], heads))
        return Comparison(*jax.tree.map(lambda *a: np.stack(a), *places))

    def repair(
        self,
        prompts: Sequence[Prompt],
        work: list[Batch],
        states: list[np.ndarray],
        low_params: Params,
        scheme: Scheme,
        orders: Int[np.ndarray, "O P N"],
        k: int,
    ) -> tuple[Float[np.ndarray, "P N"], Float[np.ndarray, "P R"]]:
        """The gain in ``m`` of restoring each head alone; and ``m`` clean and with the first
        1 … k heads of each order restored, ``R = 1 + O·k``."""
        alone = self.num_heads
        out = np.zeros((len(prompts), 1 + alone + len(orders) * k))
        engine = self.options.engine
        bar = self.ledger.track(work, f"heads restored, {scheme.name}", len(work))
        for number, batch in enumerate(bar):
            masks = self.repair_masks(batch, orders, k)
            _, most = self.chunks(batch.shape[1], 1 + len(masks), 1)
            for start in range(0, len(masks), most - 1):
                part, first = distinct(masks[start : start + most - 1])
                call = functools.partial(
                    runs.repair_run,
                    self.model.params,
                    low_params,
                    question(prompts, batch),
                    pad([states[i] for i in batch.index], batch),
                    part,
                    config=self.config,
                    scheme=scheme.run,
                    head_mode=self.options.head_mode,
                    engine=engine,
                    mesh=self.mesh,
                )
                values = self.keep(("repair", scheme.name, number, start), call)
                values = np.take_along_axis(values, np.pad(1 + first, ((1, 0), (0, 0))), axis=0)
                values = values[:, : len(batch.index)].astype(np.float64)
                touched = np.any(part, axis=(3, 4))  # [M, L, B]
                births = np.where(
                    touched.any(axis=1), 1 + touched.argmax(axis=1), self.config.num_layers
                )
                passes = self.copies(batch) + runs.layer_rows(self.config, births.ravel(), engine)
                self.ledger.record(
                    "repair", scheme.name, engine, batch.shape, 1 + len(part), passes
                )
                index = list(batch.index)
                if start == 0:
                    out[index, 0] = values[0]
                # Only rows of one call may be compared: later calls start at their clean row.
                moved = values[1:] if start == 0 else values[1:] - values[0] + out[index, 0]
                out[index, 1 + start : 1 + start + len(part)] = moved.T
        clean, restored, curves = np.split(out, (1, 1 + alone), axis=1)
        return restored - clean, np.concatenate([clean, curves], axis=1)

    def repair_masks(
        self, batch: Batch, orders: Int[np.ndarray, "O P N"], k: int
    ) -> Bool[np.ndarray, "M L B 1 H"]:
        """Every head alone, then the first 1 … k heads of each order."""
        config = self.config
        alone = head_ablation_masks(config.num_layers, config.num_heads)
        alone = np.broadcast_to(alone, (*alone.shape[:2], batch.shape[0], *alone.shape[3:]))
        if not len(orders):
            return alone
        chosen = batch.fill(list(orders.swapaxes(0, 1))).swapaxes(0, 1)
        return np.concatenate([alone, top_k_masks(chosen, k, config.num_layers)])


def question(prompts: Sequence[Prompt], batch: Batch) -> runs.Question:
    """A batch as the compiled calls take it."""
    target = batch.fill([np.int32(prompt.target) for prompt in prompts])
    other = batch.fill(
        [np.int32(p.target if p.distractor is None else p.distractor) for p in prompts]
    )
    return runs.Question(batch.tokens, batch.lengths, target, other)


def pad(arrays: Sequence[np.ndarray], batch: Batch) -> np.ndarray:
    """Arrays ``[L, S_p, …]`` of a batch's prompts as one ``[L, B, S, …]``, with its filler."""
    B, S = batch.shape
    first = arrays[0]
    out = np.zeros((first.shape[0], B, S, *first.shape[2:]), first.dtype)
    for row in range(B):
        own = arrays[row] if row < len(arrays) else first
        out[:, row, : own.shape[1]] = own
    return out
