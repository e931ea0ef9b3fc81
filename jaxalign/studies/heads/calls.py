"""The heads study's runs without edits, and how much of it one call holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxalign.checkpoints import Model
from jaxalign.devices.deal import rounds
from jaxalign.devices.mesh import EDITS, MODEL, part_bytes
from jaxalign.engine.budget import MOST_OPERATIONS, operations_per_row, plan_chunks
from jaxalign.engine.compiled import BUCKET
from jaxalign.measures.metrics import AnswerMetrics
from jaxalign.model.config import ModelConfig
from jaxalign.numerics.scheme import Scheme
from jaxalign.prompts import Batch, Prompt, batches, bucket_length
from jaxalign.prompts.batches import FEW
from jaxalign.runtime.compile import default_platform
from jaxalign.shapes import Float
from jaxalign.studies.heads import programs
from jaxalign.studies.heads.findings import RANKINGS, Replacement
from jaxalign.studies.heads.options import HeadsOptions
from jaxalign.studies.heads.rankings import DRAWS, ORDERS_BESIDE, VECTORS, control_steps
from jaxalign.study.calls import Call, Late, Run, compute_all

# What two CPU cores compute while they compile the study's programs for one shape.
SHAPE_OPERATIONS = 1e12


@dataclass(frozen=True)
class Clean:
    """Clean f32 runs of some prompts.

    Attributes:
        metrics: ``AnswerMetrics`` of numpy arrays ``[P]``.
        sizes: ``‖c‖`` of each head at the last position, ``[P, L, H]``.
        states: each prompt's head states, ``[L, S_p, H, h]``.
        gradients: ``∂m / ∂c``, ``[L, S_p, …]`` a prompt.
    """

    metrics: AnswerMetrics
    sizes: np.ndarray
    states: list[np.ndarray]
    gradients: list[np.ndarray]

    def take(self, index: Sequence[int]) -> Clean:
        """The runs of some of the prompts."""
        chosen = list(index)
        return Clean(
            jax.tree.map(lambda values: values[chosen], self.metrics),
            self.sizes[chosen],
            [self.states[i] for i in chosen],
            [self.gradients[i] for i in chosen],
        )


@dataclass
class Variant:
    """A model of the study: its weights, the precision that they run in, and its clean runs.

    Attributes:
        name: of its calls: "nf4", "nf4, noise 0".
        params: its parameters, or ``Late`` ones.
        scheme: the precision that runs them.
        clean: its runs without edits, once they are there: ``LowRun`` with ``[P, …]`` first in each
            array and a list of ``[L, S_p, H, h]`` states.
    """

    name: str
    params: Any
    scheme: Scheme
    clean: programs.LowRun | None = None

    @property
    def states(self) -> list[np.ndarray]:
        """Each prompt's head states, ``[L, S_p, H, h]``."""
        assert self.clean is not None, f"{self.name} has not run yet"
        found: list[np.ndarray] = self.clean.state
        return found


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
            most_operations=MOST_OPERATIONS.get(default_platform(), MOST_OPERATIONS["gpu"]),
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
        return list(batches(tokens, most, limit, self.few(rows)))

    def few(self, rows: int) -> int:
        """Fewer prompts of a length than this are padded to the next: that costs less than to
        compile the study's programs for one more shape.

        Args:
            rows: runs of each prompt.
        """
        padding = rows * operations_per_row(self.config, BUCKET)
        return min(FEW, math.ceil(SHAPE_OPERATIONS / padding))

    def study_batches(self, prompts: Sequence[Prompt]) -> list[Batch]:
        """The batches of the study, small enough for its widest call."""
        kinds, steps = runs_of(self.options.ablations), len(control_steps(self.repaired_heads))
        curves = len(RANKINGS) * self.repaired_heads + ORDERS_BESIDE * steps
        vectors = VECTORS * len(RANKINGS) * steps
        widest = 1 + max(kinds * self.num_heads, self.num_heads + curves, vectors)
        return self.batches([prompt.tokens for prompt in prompts], widest, max(kinds, 1 + VECTORS))

    def row_ranges(
        self, length: int, tables: int, groups: int, heads: int | None = None
    ) -> list[tuple[int, int]]:
        """The heads of each call, counted layer by layer, when every head is edited in turn.

        Args:
            length: padded positions of the prompts.
            tables: of replacement values a prompt.
            groups: rows a head.
            heads: how many are edited, all by default.
        """
        count = self.num_heads if heads is None else heads
        _, rows = self.chunks(length, 1 + groups * count, tables, groups)
        most = (rows - 1) // groups
        return [(start, min(start + most, count)) for start in range(0, count, most)]

    def clean_calls(self, prompts: Sequence[Prompt], work: list[Batch]) -> list[Call[Any]]:
        """The f32 model without edits, forward and backward."""
        return [
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

    def clean(self, prompts: Sequence[Prompt], work: list[Batch]) -> Clean:
        """Run the f32 model without edits."""
        calls = self.clean_calls(prompts, work)
        places: list[Any] = [None] * len(prompts)
        for call, (metrics, size, state, gradient) in self.run("clean runs, f32", calls):
            for row, i in enumerate(call.batch.index):
                own = (a[:, row, : call.batch.lengths[row]].copy() for a in (state, gradient))
                places[i] = (jax.tree.map(lambda m, row=row: m[row], metrics), size[row], *own)
        metrics = jax.tree.map(lambda *m: np.array(m), *(place[0] for place in places))
        sizes, states, gradients = ([place[n] for place in places] for n in (1, 2, 3))
        return Clean(metrics, np.stack(sizes), states, gradients)

    def copies(self, batch: Batch) -> int:
        """Passes through one block that a run of all a batch's prompts makes."""
        return self.config.num_layers * batch.shape[0]

    def reference_means(
        self, params: Any, states: Sequence[np.ndarray], scheme: Scheme
    ) -> Float[np.ndarray, "L H C"]:
        """Each head's mean contribution over the reference texts.

        The mean is over last positions, or over all real positions with ``mean_positions`` "all".

        Args:
            params: of the model that has the states.
            states: of the reference texts in that model.
            scheme: its precision.
        """
        if self.options.mean_positions == "last":
            rows = np.stack([state[:, -1] for state in states], axis=1)
        else:
            rows = np.concatenate(states, axis=1)
        return np.asarray(
            programs.mean_contributions(
                params,
                rows.astype(jnp.dtype(scheme.compute_dtype)),
                head_mode=self.options.head_mode,
            )
        )

    def as_low(self, clean: Clean) -> programs.LowRun:
        """f32's clean runs in the place of a variant's: only its states are asked for."""
        nothing: Any = None
        return programs.LowRun(clean.metrics, nothing, nothing, nothing, clean.states)

    def low_calls(
        self, variant: Variant, prompts: Sequence[Prompt], work: list[Batch], clean: Clean
    ) -> list[Call[Any]]:
        """A variant's clean runs beside f32's states and gradients.

        Args:
            variant: another model than f32's.
            prompts, work: the kept prompts, the reference texts after them, and their batches.
            clean: their f32 runs.
        """
        return [
            Call(
                key=("clean", variant.name, number),
                program=programs.low_run,
                arguments=(
                    self.model.params,
                    variant.params,
                    question(prompts, batch),
                    padded([clean.states[i] for i in batch.index], batch),
                    padded([clean.gradients[i] for i in batch.index], batch),
                ),
                static={
                    "config": self.config,
                    "scheme": variant.scheme.run,
                    "head_mode": self.options.head_mode,
                },
                batch=batch,
                layer_rows=2 * self.copies(batch),
            )
            for number, batch in enumerate(work)
        ]

    def low(self, variant: Variant, calls: Sequence[Call[Any]], count: int) -> None:
        """Run a variant without edits; the variant keeps what is found.

        Args:
            variant: gets ``clean``.
            calls: from ``low_calls``.
            count: prompts and reference texts.
        """
        places: list[Any] = [None] * count
        for call, found in self.run(f"clean runs, {variant.name}", calls):
            for row, i in enumerate(call.batch.index):
                state = found.state[:, row, : call.batch.lengths[row]].copy()
                by_prompt = jax.tree.map(lambda m, row=row: m[row], (found.metrics, found.kl))
                heads = jax.tree.map(lambda a, row=row: a[:, row], (found.drift, found.predicted))
                places[i] = (*by_prompt, *heads, state)
        parts = [[place[n] for place in places] for n in range(5)]
        metrics, kl, drift, predicted = (
            jax.tree.map(lambda *a: np.stack(a), *part) for part in parts[:4]
        )
        variant.clean = programs.LowRun(metrics, kl, drift, predicted, parts[4])

    def swept(self, **more: Any) -> dict[str, Any]:
        """The static arguments of a program that sweeps."""
        options = self.options
        common = {"config": self.config, "head_mode": options.head_mode}
        return {**common, "engine": options.engine, "mesh": self.mesh, **more}


def runs_of(kinds: Sequence[Replacement]) -> int:
    """How many runs each head has under some kinds of replacement."""
    return sum(DRAWS if kind == "resample" else 1 for kind in kinds)


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
    return padded_later(lambda: arrays, arrays[0], batch)


def padded_later(
    arrays: Callable[[], Sequence[np.ndarray]], like: np.ndarray, batch: Batch
) -> Late:
    """As ``padded``, of arrays that are not there yet.

    Args:
        arrays: returns them when the call runs.
        like: an array of their shape, but for the positions.
        batch: whose prompts they are of.
    """
    shape = (like.shape[0], *batch.shape, *like.shape[2:])
    return Late(make=lambda: pad(arrays(), batch), spec=jax.ShapeDtypeStruct(shape, like.dtype))


def stacked(parts: Sequence[Late]) -> Late:
    """Late arrays of one shape as one with an axis more."""
    [spec, *_] = (part.spec for part in parts)
    return Late(
        make=lambda: np.stack([part.make() for part in parts]),
        spec=jax.ShapeDtypeStruct((len(parts), *spec.shape), spec.dtype),
    )
