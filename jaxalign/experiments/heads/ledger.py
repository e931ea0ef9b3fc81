"""What a study really computed: its calls, their shapes and plans, and how long each phase took."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")


@dataclass
class Ledger:
    """Counts calls by what decides their numbers: phase, precision, plan and shape.

    Attributes:
        progress: whether phases show a progress bar (never where the output is no terminal).
        calls: ``(phase, precision, plan, prompts, positions, rows)`` to how often it was called.
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

    def record(
        self,
        phase: str,
        precision: str,
        plan: str,
        shape: tuple[int, int],
        rows: int,
        layer_rows: int,
    ) -> None:
        """Count one call of ``rows`` rows; ``layer_rows`` are those of one prompt."""
        self.calls[phase, precision, plan, *shape, rows] += 1
        self.layer_rows += layer_rows * shape[0]

    def table(self) -> list[dict[str, Any]]:
        """The calls as records, in the order they were first made."""
        names = ("phase", "precision", "plan", "prompts", "positions", "rows", "times")
        return [dict(zip(names, (*key, n), strict=True)) for key, n in self.calls.items()]
