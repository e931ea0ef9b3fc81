"""Rows on all prompts: batches by length, chunks of rows by memory, the clean run in every call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxalign.engine.budget import bytes_per_call, bytes_per_row
from jaxalign.errors import InputError
from jaxalign.experiments.damage.components import Parts, Rows, no_changes
from jaxalign.experiments.damage.run import run_compiled
from jaxalign.model.config import ModelConfig
from jaxalign.model.params import Params
from jaxalign.numerics.scheme import Scheme
from jaxalign.prompts import Batch, Prompt, batches, bucket_length

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
        memory: bytes for activations and one layer's unpacked matrices.
    """

    params: Params
    config: ModelConfig
    scheme: Scheme
    parts: Parts
    prompts: Sequence[Prompt]
    memory: float

    def on(self, index: np.ndarray) -> Bench:
        """The same on some of the prompts."""
        return replace(self, prompts=[self.prompts[i] for i in index])

    def measure(self, low: Params, rows: Rows) -> Effect:
        """Run every row on every prompt.

        Args:
            low: the parameters whose matrices the rows take.
            rows: in any order, without the clean run, which is row 0 of every call.

        Raises:
            InputError: the clean run is not finite, or the memory does not hold one row.
        """
        shape = (len(rows), len(self.prompts))
        change, kl, clean = np.zeros(shape), np.zeros(shape), np.zeros(shape[1])
        order = np.argsort(rows.first(), kind="stable")
        for batch in self._batches():
            at, size = np.array(batch.index), self._size(len(rows), batch)
            for start in range(0, len(order), size - 1):
                chunk = order[start : start + size - 1]
                m, divergence = self._call(low, rows.take(chunk), batch, size)
                m, divergence = m[:, : len(at)], divergence[:, : len(at)]
                clean[at] = m[0]
                change[np.ix_(chunk, at)] = m[1:] - m[0]
                kl[np.ix_(chunk, at)] = divergence[1:]
        if not np.isfinite(clean).all():
            lost = self.prompts[int(np.flatnonzero(~np.isfinite(clean))[0])]
            raise InputError(
                f"the f32 model's own logits are not finite on {lost.text.prompt!r}",
                "its weights are too large for f32 activations; check the checkpoint",
            )
        return Effect(change, kl, clean)

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
        tokens = [prompt.tokens for prompt in self.prompts]
        lengths = {bucket_length(len(ids), self.config.max_positions) for ids in tokens}
        most = {
            length: max(1, min(POSITIONS // length, self._room(length) // LEAST_ROWS))
            for length in lengths
        }
        return list(batches(tokens, most, self.config.max_positions))

    def _size(self, rows: int, batch: Batch) -> int:
        """Rows of a call with the clean one: a power of two, so that few shapes are compiled."""
        width, length = batch.shape
        wanted = max(LEAST_ROWS, 1 << rows.bit_length())
        return min(wanted, max(2, self._room(length) // width))

    def _call(
        self, low: Params, rows: Rows, batch: Batch, size: int
    ) -> tuple[np.ndarray, np.ndarray]:
        filler = size - 1 - len(rows)
        first = np.concatenate([[0], rows.first(), np.full(filler, self.parts.layers + 3)])
        line = jax.tree.map(
            lambda *parts: np.concatenate(parts),
            no_changes(1, self.parts),
            rows,
            no_changes(filler, self.parts),
        )
        targets = batch.fill([np.int32(prompt.target) for prompt in self.prompts])
        m, kl = run_compiled(
            self.params,
            low,
            jnp.asarray(batch.tokens),
            jnp.asarray(batch.lengths),
            jnp.asarray(targets),
            jax.tree.map(jnp.asarray, line),
            jnp.asarray(first, jnp.int32),
            config=self.config,
            scheme=self.scheme,
            parts=self.parts,
        )
        used = 1 + len(rows)
        return np.asarray(m, np.float64)[:used], np.asarray(kl, np.float64)[:used]
