"""The phases of the heads study: batches through compiled calls, one entry a prompt back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.convert import Model
from jaxalign.experiments.heads import runs
from jaxalign.experiments.heads.donors import DRAWS, Donors
from jaxalign.experiments.heads.ledger import Ledger
from jaxalign.experiments.heads.options import Options
from jaxalign.experiments.heads.rankings import RANDOM_ORDERS, top_k_masks
from jaxalign.memory import plan_chunks
from jaxalign.metrics import AnswerMetrics, Drift
from jaxalign.model.config import ModelConfig
from jaxalign.model.params import Params, param_shapes
from jaxalign.numerics.scheme import Scheme
from jaxalign.prompts import Batch, Prompt, batches, bucket_length
from jaxalign.results import RANKINGS
from jaxalign.shapes import Float, Int

KINDS = 2 + DRAWS


@dataclass(frozen=True)
class Clean:
    """Clean runs of some prompts.

    Attributes:
        metrics: ``AnswerMetrics`` of numpy arrays ``[P]``.
        states: each prompt's head states, ``[L, S_p, H, h]``.
    """

    metrics: AnswerMetrics
    states: list[np.ndarray]


@dataclass(frozen=True)
class Comparison:
    """Drift (fields ``[P, L, H]``) and first-order effects ``[P, L, H]``."""

    drift: Drift
    predicted: np.ndarray


@dataclass
class Runner:
    """Runs one model's phases within a memory budget.

    Attributes:
        model: with f32 parameters.
        options: of the study.
        ledger: what was computed.
    """

    model: Model
    options: Options
    ledger: Ledger = field(default_factory=Ledger)

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
        weights = sum(leaf.size * 4 for leaf in jax.tree.leaves(param_shapes(config)))
        # The low-precision copy stands beside the f32 one while the two are compared.
        budget = self.options.memory_gb * 1e9 - 2 * weights
        width = config.hidden_size if self.options.head_mode == "true" else config.head_size
        values = 4 * tables * self.num_heads * length * width
        return plan_chunks(config, rows, length, budget, values, 1 + groups)

    def batches(self, tokens: Sequence[Sequence[int]], rows: int, tables: int) -> list[Batch]:
        """Batches that leave room for ``rows`` rows a prompt."""
        limit = self.config.max_positions
        sizes = {bucket_length(len(ids), limit) for ids in tokens}
        most = {size: self.chunks(size, rows, tables)[0] for size in sizes}
        return list(batches(tokens, most, limit))

    def study_batches(self, prompts: Sequence[Prompt]) -> list[Batch]:
        """The batches of the study, small enough for its widest call."""
        orders = len(RANKINGS) + RANDOM_ORDERS
        widest = 1 + max(KINDS * self.num_heads, orders * self.repaired_heads)
        return self.batches([prompt.tokens for prompt in prompts], widest, KINDS)

    def row_ranges(self, length: int, tables: int, groups: int) -> list[tuple[int, int]]:
        """The heads of each call, counted layer by layer, when every head is edited in turn."""
        _, rows = self.chunks(length, 1 + groups * self.num_heads, tables, groups)
        most = (rows - 1) // groups
        return [
            (start, min(start + most, self.num_heads)) for start in range(0, self.num_heads, most)
        ]

    def clean(
        self, prompts: Sequence[Prompt], work: list[Batch], params: Params, scheme: Scheme
    ) -> Clean:
        """Run the model without edits."""
        name = f"clean runs, {scheme.name}"
        places: list[Any] = [None] * len(prompts)
        for batch in self.ledger.track(work, name, len(work)):
            out = runs.clean_run(
                params,
                question(prompts, batch),
                config=self.config,
                scheme=scheme,
                head_mode=self.options.head_mode,
            )
            self.ledger.record("clean", scheme.name, "scan", batch.shape, 1, self.config.num_layers)
            metrics, state = jax.device_get(out)
            for row, i in enumerate(batch.index):
                own = state[:, row, : batch.lengths[row]].copy()
                places[i] = (jax.tree.map(lambda m, row=row: m[row], metrics), own)
        metrics = jax.tree.map(lambda *m: np.array(m), *(place[0] for place in places))
        return Clean(metrics, [place[1] for place in places])

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
        for batch in self.ledger.track(work, "importance of every head, f32", len(work)):
            given = [
                pad([states[donors.draws[i, n]] for i in batch.index], batch) for n in range(DRAWS)
            ]
            for rows in self.row_ranges(batch.shape[1], KINDS, KINDS):
                effects = runs.importance_run(
                    self.model.params,
                    question(prompts, batch),
                    means,
                    np.stack(given),
                    config=self.config,
                    head_mode=self.options.head_mode,
                    rows=rows,
                )
                count = 1 + KINDS * (rows[1] - rows[0])
                passes = runs.wave_layer_rows(self.config, KINDS, rows)
                self.ledger.record("importance", "f32", "wave", batch.shape, count, passes)
                for metric, effect in enumerate(jax.device_get(effects)):  # [3, M, B]
                    kept = effect[..., : len(batch.index)].transpose(2, 0, 1)
                    out[metric, list(batch.index), :, slice(*rows)] = kept
        return out[0], out[1]

    def gradients(self, prompts: Sequence[Prompt], work: list[Batch]) -> list[np.ndarray]:
        """``∂m / ∂c`` of every head in f32, ``[L, S_p, …]`` a prompt."""
        places: list[Any] = [None] * len(prompts)
        for batch in self.ledger.track(work, "gradients, f32", len(work)):
            gradient = runs.gradient_run(
                self.model.params,
                question(prompts, batch),
                config=self.config,
                head_mode=self.options.head_mode,
            )
            # A backward pass costs about two forward ones.
            passes = 3 * self.config.num_layers
            self.ledger.record("gradient", "f32", "scan", batch.shape, 1, passes)
            for row, i in enumerate(batch.index):
                places[i] = np.asarray(gradient[:, row, : batch.lengths[row]])
        return places

    def compare(
        self,
        work: list[Batch],
        states: list[np.ndarray],
        low_states: list[np.ndarray],
        gradients: list[np.ndarray],
        low_params: Params,
    ) -> Comparison:
        """Drift of every head between f32 and a low precision, and its first-order effect."""
        places: list[Any] = [None] * len(states)
        for batch in work:
            arrays = (
                pad([a[i] for i in batch.index], batch) for a in (states, low_states, gradients)
            )
            out = runs.compare_run(
                self.model.params,
                low_params,
                *arrays,
                batch.lengths,
                head_mode=self.options.head_mode,
            )
            out = jax.device_get(out)
            for row, i in enumerate(batch.index):
                places[i] = jax.tree.map(lambda a, row=row: a[:, row], out)
        drift, predicted = jax.tree.map(lambda *a: np.stack(a), *places)
        return Comparison(drift, predicted)

    def repair(
        self,
        prompts: Sequence[Prompt],
        work: list[Batch],
        states: list[np.ndarray],
        low_params: Params,
        scheme: Scheme,
        orders: Int[np.ndarray, "O P N"],
        k: int,
    ) -> Float[np.ndarray, "P R"]:
        """``m`` clean and with the first 1 … k heads of each order restored, ``M = O·k``."""
        out = np.zeros((len(prompts), 1 + len(orders) * k))
        for batch in self.ledger.track(work, f"repairs, {scheme.name}", len(work)):
            chosen = batch.fill(list(orders.swapaxes(0, 1))).swapaxes(0, 1)
            masks = top_k_masks(chosen, k, self.config.num_layers)
            _, most = self.chunks(batch.shape[1], 1 + len(masks), 1)
            for start in range(0, len(masks), most - 1):
                part = masks[start : start + most - 1]
                values = np.asarray(
                    runs.repair_run(
                        self.model.params,
                        low_params,
                        question(prompts, batch),
                        pad([states[i] for i in batch.index], batch),
                        part,
                        config=self.config,
                        scheme=scheme,
                        head_mode=self.options.head_mode,
                    )
                )[:, : len(batch.index)].astype(np.float64)
                rows = 1 + len(part)
                passes = rows * self.config.num_layers
                self.ledger.record("repair", scheme.name, "vmap", batch.shape, rows, passes)
                index = list(batch.index)
                if start == 0:
                    out[index, 0] = values[0]
                # Only rows of one call may be compared: later calls start at their clean row.
                moved = values[1:] if start == 0 else values[1:] - values[0] + out[index, 0]
                out[index, 1 + start : 1 + start + len(part)] = moved.T
        return out

    def restore(
        self,
        prompts: Sequence[Prompt],
        work: list[Batch],
        states: list[np.ndarray],
        low_params: Params,
        scheme: Scheme,
    ) -> Float[np.ndarray, "P N"]:
        """Gain in ``m`` of restoring each head alone."""
        out = np.zeros((len(prompts), self.num_heads))
        for batch in self.ledger.track(work, f"each head restored, {scheme.name}", len(work)):
            for rows in self.row_ranges(batch.shape[1], 1, 1):
                gain = runs.restore_run(
                    self.model.params,
                    low_params,
                    question(prompts, batch),
                    pad([states[i] for i in batch.index], batch),
                    config=self.config,
                    scheme=scheme,
                    head_mode=self.options.head_mode,
                    rows=rows,
                )
                passes = runs.wave_layer_rows(self.config, 1, rows)
                count = 1 + rows[1] - rows[0]
                self.ledger.record("restore", scheme.name, "wave", batch.shape, count, passes)
                kept = np.asarray(gain)[:, : len(batch.index)]
                out[list(batch.index), slice(*rows)] = kept.T
        return out


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
