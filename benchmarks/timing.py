"""Seconds of a call, and the rate of matrix products that this machine reaches."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.record import device
from jaxalign.numerics import jit
from jaxalign.numerics.dot import dot

# Rows, inputs and outputs of the products among which the fastest is the machine's peak: those of
# Pythia-70M's blocks, and a large square one, which a GPU needs to be busy.
PRODUCTS = (
    *((rows, 512, 1536) for rows in (2048, 4096, 8192)),
    *((rows, 512, 2048) for rows in (2048, 4096, 8192)),
    *((rows, 2048, 512) for rows in (2048, 4096, 8192)),
    (4096, 4096, 4096),
)
REST = 0.05  # seconds between two packages' calls: the threads of one spin for a while after it


class Timing(NamedTuple):
    """Seconds of repeated calls; ``first`` is the one before them, compilation included."""

    first: float
    best: float
    median: float
    runs: int

    def record(self) -> dict[str, float]:
        """As a benchmark's JSON has it."""
        seconds = {
            name: float(f"{getattr(self, name):.4g}") for name in ("first", "best", "median")
        }
        return {**seconds, "runs": self.runs}


def once(call: Callable[[], Any]) -> tuple[Any, float]:
    """A call's result, computed to the end, and its seconds."""
    start = time.perf_counter()
    result = jax.block_until_ready(call())
    return result, time.perf_counter() - start


def repeated(call: Callable[[], Any], runs: int = 5) -> tuple[Any, Timing]:
    """The last call's result, and the times of the first and the repeated calls."""
    result, first = once(call)
    seconds = []
    for _ in range(runs):
        result, spent = once(call)
        seconds.append(spent)
    return result, Timing(first, min(seconds), statistics.median(seconds), runs)


def matrix_peak(products: tuple[tuple[int, int, int], ...] = PRODUCTS, runs: int = 7) -> float:
    """The best rate of f32 matrix products through JAX on the default device, FLOP a second.

    Random operands: on some processors zeros multiply faster.
    """
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape, np.float32))

    product = jit(dot)
    rates = []
    for rows, inputs, outputs in products:
        x, w = draw(rows, inputs), draw(inputs, outputs)
        _, timing = repeated(lambda x=x, w=w: product(x, w), runs)  # type: ignore[misc]
        rates.append(2 * rows * inputs * outputs / timing.best)
    return max(rates)


def peak_bytes() -> int:
    """The most memory that this process has held: on a GPU its allocator's, else the process's."""
    where = device()
    if where.platform == "gpu":
        return int(where.memory_stats()["peak_bytes_in_use"])
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss begins with what the parent held before exec
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def alternated(calls: Mapping[str, Callable[[], Any]], runs: int = 5) -> dict[str, Timing]:
    """The times of several calls, one of each in turn, so that a slow minute slows all of them.

    Args:
        calls: by name.
        runs: of each, after its first.
    """
    first = {name: once(call)[1] for name, call in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(runs):
        for name, call in calls.items():
            time.sleep(REST)
            seconds[name].append(once(call)[1])
    return {
        name: Timing(first[name], min(each), statistics.median(each), runs)
        for name, each in seconds.items()
    }
