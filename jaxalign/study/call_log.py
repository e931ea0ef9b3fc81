"""What a study really computed: its calls, their shapes and engines, and how long phases took."""

from __future__ import annotations

import contextlib
import functools
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.model.config import ModelConfig
from jaxalign.model.params import param_shapes
from jaxalign.runtime.messages import note
from jaxalign.runtime.progress import Progress, watched
from jaxalign.study.calls import Call

T = TypeVar("T")

# What two CPU cores took to compile a program (jax 0.10); programs scan over layers, so the
# model's depth does not matter.
COMPILE_SECONDS = 1.3
# Work that takes less is announced on a terminal only.
LONG = 60.0  # seconds


@dataclass(frozen=True, kw_only=True)
class CallCount:
    """Calls that were alike.

    Attributes:
        phase, precision: what they were for.
        engine: "wave", "vmap", or "scan" where no sweep was run.
        prompts, positions, rows: their shape; filler counts.
        times: how many there were.
    """

    phase: str
    precision: str
    engine: str
    prompts: int
    positions: int
    rows: int
    times: int


@dataclass
class CallLog:
    """Counts calls by what decides their numbers: phase, precision, engine and shape.

    Attributes:
        progress: whether anything is said while the study runs (``runtime.progress``).
        calls: ``(phase, precision, engine, prompts, positions, rows)`` to how often it was called.
        layer_rows: passes of one row of one prompt through one block, filler rows included.
        seconds: wall time by phase, compilation included.
    """

    progress: bool = True
    calls: Counter[tuple[str, str, str, int, int, int]] = field(default_factory=Counter)
    layer_rows: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    @functools.cached_property
    def _said(self) -> Progress:
        return Progress(self.progress)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase."""
        start = time.perf_counter()
        try:
            with self._said.phase(name):
                yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def track(self, items: Sequence[T], name: str) -> Iterator[T]:
        """Iterate and show how far it is; the first call of a new shape also compiles."""
        return self._said.track(items, name)

    def announce(self, name: str, calls: Sequence[Call[Any]], config: ModelConfig) -> None:
        """Say how long calls will take, before the first one runs.

        Args:
            name: of the work.
            calls: those that are to be computed.
            config: the architecture.
        """
        if not self.progress or not calls:
            return
        programs = set(map(program_key, calls))
        compiling = COMPILE_SECONDS * len(programs)
        computing = sum(operations(call, config) for call in calls) / machine_rate()
        if compiling + computing >= LONG or watched():
            note(
                f"{name}: {len(calls)} calls, about {compiling + computing:.0f} s, of which "
                f"{compiling:.0f} s compile {len(programs)} programs unless the cache has them"
            )

    def count(self, call: Call[Any]) -> None:
        """Count a call, computed now or read from the resume folder."""
        phase, precision = str(call.key[0]), str(call.key[1])
        passes = call.layer_rows() if callable(call.layer_rows) else call.layer_rows
        self.record(phase, precision, call.engine, call.batch.shape, call.rows, passes)

    def record(
        self,
        phase: str,
        precision: str,
        engine: str,
        shape: tuple[int, int],
        rows: int,
        layer_rows: int,
    ) -> None:
        """Count one call.

        Args:
            phase, precision: what the call was for.
            engine: "wave", "vmap", "rows" or "scan".
            shape: prompts and padded positions.
            rows: runs of a prompt.
            layer_rows: passes of one run of one prompt through one block.
        """
        self.calls[phase, precision, engine, *shape, rows] += 1
        self.layer_rows += layer_rows

    def counts(self) -> tuple[CallCount, ...]:
        """The calls as records, in the order they were first made."""
        return tuple(
            CallCount(
                phase=phase,
                precision=precision,
                engine=engine,
                prompts=prompts,
                positions=positions,
                rows=rows,
                times=times,
            )
            for (phase, precision, engine, prompts, positions, rows), times in self.calls.items()
        )


def operations(call: Call[Any], config: ModelConfig, *, known: bool = False) -> float:
    """Floating-point operations of a call: two for a weight that a position meets.

    Args:
        call: whose filler counts, too.
        config: the architecture.
        known: whether the call's arguments are there, which say what its rows share; without, they
            share nothing.
    """
    blocks = sum(leaf.size for leaf in jax.tree.leaves(param_shapes(config).blocks))
    prompts, positions = call.batch.shape
    upper = call.rows * prompts * config.num_layers
    passes = call.layer_rows
    if callable(passes):
        passes = passes() if known else upper
    readout = call.rows * prompts * config.vocab_size * config.hidden_size
    return 2.0 * (passes * positions * blocks / config.num_layers + readout)


LONG_ENOUGH = 0.01  # seconds of a product that says how fast the machine is


@functools.cache
def machine_rate() -> float:
    """Operations a second of f32 matrix products here, as measured in a fraction of a second."""
    product = jax.jit(lambda x: jnp.matmul(x, x, precision=jax.lax.Precision.HIGHEST))
    for size in (1024, 4096, 8192):  # a GPU is done with the small ones before it has begun
        a = jax.device_put(np.ones((size, size), np.float32))  # no program of its own
        product(a).block_until_ready()
        best = float("inf")
        for _ in range(3):
            start = time.perf_counter()
            product(a).block_until_ready()
            best = min(best, time.perf_counter() - start)
        if best >= LONG_ENOUGH:
            break
    return 2.0 * size**3 / best


def program_key(call: Call[Any]) -> Any:
    """What tells apart the programs of calls: function, shapes, static arguments."""
    return call.program, call.batch.shape, call.rows, frozenset(call.static.items())
