"""What a long run says while it runs: a bar where people look, lines where a file is written.

On a terminal and in a notebook, work that comes in parts has a bar. Anywhere else (Slurm, nohup, a
pipe) there is a line for each phase that takes a while, and within a phase a line a minute, so that
whoever reads the file knows how far the run is and how long it still takes.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")

# A phase that took less than this has no line of its own.
SHORT = 10.0  # seconds
# A phase that goes on has its first line after this time, and then one a minute.
FIRST, AGAIN = 20.0, 60.0  # seconds


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook, whose output is no terminal."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and "IPKernelApp" in getattr(shell, "config", {})


def watched() -> bool:
    """Whether people look at the output while it is written: a terminal, or a notebook."""
    return sys.stderr.isatty() or in_notebook()


def bar(items: Sequence[T], name: str, unit: str = "call") -> Any:
    """A progress bar over ``items``, as the terminal or the notebook draws one.

    Args:
        items: what is iterated over.
        name: of the work.
        unit: what one of the items is called.
    """
    draw: Any = tqdm
    if in_notebook():
        from tqdm.auto import tqdm as of_notebooks

        draw = of_notebooks
    return draw(items, desc=name, leave=False, unit=unit)


def span(seconds: float) -> str:
    """A time for people: ``"40 s"``, ``"3 min 20 s"``, ``"2 h 05 min"``."""
    whole = max(0, round(seconds))
    minutes, rest = divmod(whole, 60)
    hours, part = divmod(minutes, 60)
    if hours:
        return f"{hours} h {part:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


@dataclass(eq=False)
class _Work:
    """A phase or a loop that runs now. ``total`` is 0 where nobody knows how much there is."""

    name: str
    total: int = 0
    done: int = 0
    started: float = field(default_factory=time.monotonic)
    last_done: float = 0.0
    said: bool = False  # whether a part of it had a line of its own

    def line(self, now: float) -> str:
        """How far it is, and how long what is left takes if it goes on like this."""
        elapsed = now - self.started
        if not self.total:
            return f"{self.name}: {span(elapsed)} so far"
        text = f"{self.name}: {self.done} of {self.total}, {span(elapsed)} so far"
        if not self.done:
            return text
        left = (self.last_done - self.started) / self.done * (self.total - self.done)
        return f"{text}, about {span(left - (now - self.last_done))} left"


class _Running:
    """What runs now in this process, the innermost work last, and the thread that speaks of it."""

    def __init__(self) -> None:
        self.works: list[_Work] = []
        self._stop: threading.Event | None = None

    def begin(self, work: _Work) -> None:
        self.works.append(work)
        if self._stop is None:
            self._stop = threading.Event()
            speaker = threading.Thread(target=self._speak, args=(self._stop,), daemon=True)
            speaker.start()

    def end(self, work: _Work, whole: bool) -> None:
        self.works.remove(work)
        took = time.monotonic() - work.started
        if whole and took >= SHORT and not work.said and not watched():
            counted = f"{work.done} of {work.total} in " if work.total else ""
            _say(f"{work.name}: done, {counted}{span(took)}")
            for outer in self.works:
                outer.said = True
        if not self.works and self._stop is not None:
            self._stop.set()
            self._stop = None

    def _speak(self, stop: threading.Event) -> None:
        """While the main thread computes: a single call may take minutes."""
        wait = FIRST
        while not stop.wait(wait):
            wait = AGAIN
            works = [*self.works]
            # A bar that people look at says it already.
            if works and not (watched() and works[-1].total):
                _say(works[-1].line(time.monotonic()))


_RUNNING = _Running()


class Progress:
    """The progress of one run. Bars are drawn where people look, lines are written elsewhere.

    Args:
        shown: whether anything is said at all.
    """

    def __init__(self, shown: bool = True) -> None:
        self.shown = shown

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Say every minute that a phase still runs, and where output is a file that it ended.

        Args:
            name: of the phase.
        """
        with self._working(_Work(name)):
            yield

    def track(self, items: Sequence[T], name: str, unit: str = "call") -> Iterator[T]:
        """Iterate and show how far it is.

        Args:
            items: the parts of the work.
            name: of the work.
            unit: what a part is called.
        """
        if not self.shown:
            yield from items
            return
        work = _Work(name, len(items))
        with self._working(work):
            for item in bar(items, name, unit) if watched() else items:
                yield item
                work.done, work.last_done = work.done + 1, time.monotonic()

    @contextlib.contextmanager
    def _working(self, work: _Work) -> Iterator[None]:
        if not self.shown:
            yield
            return
        _RUNNING.begin(work)
        whole = False
        try:
            yield
            whole = True
        finally:
            _RUNNING.end(work, whole)


def _say(text: str) -> None:
    tqdm.write(f"jaxalign: {text}", file=sys.stderr)
