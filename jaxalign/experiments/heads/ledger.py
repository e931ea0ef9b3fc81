"""What a study really computed: its calls, their shapes and plans, and how long each phase took."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")


@dataclass
class Ledger:
    """Counts calls by what decides their numbers: phase, precision, engine and shape.

    Attributes:
        progress: whether phases show a progress bar (never where the output is no terminal).
        calls: ``(phase, precision, engine, prompts, positions, rows)`` to how often it was called.
        layer_rows: passes of one row of one prompt through one block, filler rows included.
        seconds: wall time by phase, compilation included.
    """

    progress: bool = True
    calls: Counter[tuple[str, str, str, int, int, int]] = field(default_factory=Counter)
    layer_rows: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def track(self, items: Iterable[T], name: str, total: int) -> Iterator[T]:
        """Iterate with a progress bar; the first call of a new shape also compiles."""
        disable = None if self.progress else True
        return iter(tqdm(items, desc=name, total=total, disable=disable, leave=False, unit="call"))

    def announce_compilation(self, programs: int) -> None:
        """Say on a terminal how long the first calls will take: they compile.

        The seconds a program are what two CPU cores took (jax 0.10); programs scan over layers, so
        the model's depth does not matter.
        """
        if self.progress and sys.stderr.isatty():
            tqdm.write(
                f"compiling {programs} programs, about {1.3 * programs:.0f} s on two cores unless "
                "the compilation cache has them",
                file=sys.stderr,
            )

    def record(
        self,
        phase: str,
        precision: str,
        engine: str,
        shape: tuple[int, int],
        rows: int,
        layer_rows: int,
    ) -> None:
        """Count one call of ``rows`` rows a prompt and its ``layer_rows``."""
        self.calls[phase, precision, engine, *shape, rows] += 1
        self.layer_rows += layer_rows

    def table(self) -> list[dict[str, Any]]:
        """The calls as records, in the order they were first made."""
        names = ("phase", "precision", "plan", "prompts", "positions", "rows", "times")
        return [dict(zip(names, (*key, n), strict=True)) for key, n in self.calls.items()]
