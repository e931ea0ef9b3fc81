"""Rows on all prompts: batches by length, chunks of rows by memory, the clean run in every call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from jaxalign.devices.mesh import EDITS
from jaxalign.engine.budget import bytes_per_call, bytes_per_row
from jaxalign.errors import InputError
from jaxalign.model.config import ModelConfig
from jaxalign.model.params import Params
from jaxalign.numerics.scheme import Scheme
from jaxalign.prompts import Batch, Prompt
from jaxalign.studies.plan.components import Parts, Rows, no_changes
from jaxalign.studies.plan.rows import run_compiled
from jaxalign.study.batching import dealt_batches
from jaxalign.study.calls import Call, Late, Run, compute_all

# Positions of a row that go through a layer together: enough work for each choice of matrices.
POSITIONS = 2048
# The fewest rows of a call; it is filled up with rows that never run.
LEAST_ROWS = 32


@dataclass(frozen=True)
class Effect:
    """What rows change on each prompt.

    Attributes:
        change: ``m(row) − m(clean)``, ``[R, P]``, logits.
        kl: ``KL(clean ‖ row)`` at the last position, ``[R, P]``, nats.
        clean: ``m`` of the clean run, ``[P]``.
    """

    change: Float[np.ndarray, "*rows P"]
    kl: Float[np.ndarray, "*rows P"]
    clean: Float[np.ndarray, " P"]

    @property
    def moved(self) -> Float[np.ndarray, "*rows P"]:
        """``|m(row) − m(clean)|``."""
        return np.abs(self.change)

    def take(self, rows: slice | np.ndarray) -> Effect:
        """Some of the rows."""
        return replace(self, change=self.change[rows], kl=self.kl[rows])


@dataclass(frozen=True)
class Bench:
    """A model and prompts on which rows are measured.

    Attributes:
        params: f32.
        config: the architecture.
        scheme: of the rows' matrices and sites.
        parts: what a row may change.
        prompts: to measure on.
        memory: bytes of a device for activations and one layer's unpacked matrices.
        mesh: whose devices share the prompts.
        run: runs calls, ``Session.run``.
    """

    params: Params
    config: ModelConfig
    scheme: Scheme
    parts: Parts
    prompts: Sequence[Prompt]
    memory: float
    mesh: Mesh | None = None
    run: Run = compute_all

    def on(self, index: np.ndarray) -> Bench:
        """The same on some of the prompts."""
        return replace(self, prompts=[self.prompts[i] for i in index])

    def measure(
        self,
        low: Params | Late,
        rows: Rows,
        name: str = "rows",
        *,
        needed: bool = True,
        least: int = 0,
    ) -> Effect:
        """Run every row on every prompt.

        Args:
            low: the parameters whose matrices the rows take.
            rows: in any order, without the clean run, which is row 0 of every call.
            name: of this measurement, another one for each of a study.
            needed: whether later calls depend on the effects.
            least: rows that a call has room for at least, so that it shares another's program.

        Raises:
            InputError: the clean run is not finite, or the memory does not hold one row.
        """
        shape = (len(rows), len(self.prompts))
        change, kl, clean = np.zeros(shape), np.zeros(shape), np.zeros(shape[1])
        order = np.argsort(rows.first(), kind="stable")
        calls: list[Call[Any]] = []
        chunks: dict[tuple[str | int, ...], np.ndarray] = {}
        for number, batch in enumerate(self._batches()):
            size = self._size(max(len(rows), least), batch)
            for start in range(0, len(order), size - 1):
                chunk = order[start : start + size - 1]
                key = (name, self.scheme.name, number, start)
                calls.append(self._call(low, rows.take(chunk), batch, size, key))
                chunks[key] = chunk
        for call, (m, divergence) in self.run(name, calls, needed=needed):
            chunk, at = chunks[call.key], np.array(call.batch.index)
            m, divergence = (np.asarray(a, np.float64)[:, : len(at)] for a in (m, divergence))
            clean[at] = m[0]
            change[np.ix_(chunk, at)] = (m - m[0])[1 : 1 + len(chunk)]
            kl[np.ix_(chunk, at)] = divergence[1 : 1 + len(chunk)]
        if not np.isfinite(clean).all():
            lost = self.prompts[int(np.flatnonzero(~np.isfinite(clean))[0])]
            raise InputError(
                f"the f32 model's own logits are not finite on {lost.text.prompt!r}",
                "its weights are too large for f32 activations; check the checkpoint",
            )
        return Effect(change, kl, clean)

    @property
    def _devices(self) -> int:
        return self.mesh.shape[EDITS] if self.mesh else 1

    def _room(self, length: int) -> int:
        """How many rows of one prompt a call holds."""
        free = self.memory - bytes_per_call(self.config, length)
        room = int(free // bytes_per_row(self.config, length))
        if room < 2:
            raise InputError(
                f"two rows of one prompt of {length} positions do not fit into "
                f"{self.memory / 1e9:.3g} GB beside the weights",
                "raise --memory-gb or shorten the prompts",
            )
        return room

    def _batches(self) -> list[Batch]:
        def most(length: int) -> int:
            return max(1, min(POSITIONS // length, self._room(length) // LEAST_ROWS))

        return dealt_batches(self.prompts, most, self.config.max_positions, self._devices)

    def _size(self, rows: int, batch: Batch) -> int:
        """Rows of a call with the clean one: a power of two, so that few shapes are compiled."""
        width, length = batch.shape
        wanted = max(LEAST_ROWS, 1 << rows.bit_length())
        return min(wanted, max(2, self._room(length) // (width // self._devices)))

    def _call(
        self,
        low: Params | Late,
        rows: Rows,
        batch: Batch,
        size: int,
        key: tuple[str | int, ...],
    ) -> Call[tuple[np.ndarray, np.ndarray]]:
        filler, layers = size - 1 - len(rows), self.parts.layers
        births = rows.first()
        first = np.concatenate([[0], births, np.full(filler, layers + 3)])
        line = jax.tree.map(
            lambda *parts: np.concatenate(parts),
            no_changes(1, self.parts),
            rows,
            no_changes(filler, self.parts),
        )
        targets = batch.fill([np.int32(prompt.target) for prompt in self.prompts])
        passes = layers + int(np.clip(layers + 1 - births, 0, layers).sum())
        return Call(
            key=key,
            program=run_compiled,
            arguments=(
                self.params,
                low,
                batch.tokens,
                batch.lengths,
                targets,
                line,
                first.astype(np.int32),
            ),
            static={
                "config": self.config,
                "scheme": self.scheme,
                "parts": self.parts,
                "mesh": self.mesh,
            },
            batch=batch,
            rows=size,
            layer_rows=batch.shape[0] * passes,
            engine="rows",
        )
