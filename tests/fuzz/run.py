"""Damage a file by seed, read it, and say what came of it."""

from __future__ import annotations

import contextlib
import io
import shutil
import signal
import tempfile
import traceback
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fuzz.targets import TARGETS
from jaxalign import InputError

SECONDS = 20  # a reader that takes longer does not end


class TooLong(BaseException):
    """Not an ``Exception``, so that no reader takes it for a fault of the file."""


@contextlib.contextmanager
def limit(seconds: int) -> Iterator[None]:
    """Raise ``TooLong`` in the block after some seconds."""

    def stop(number: int, frame: object) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def honest(target: str, folder: Path) -> Path:
    """An undamaged input in ``folder``, which its reader must read."""
    TARGETS[target].write(folder)
    TARGETS[target].read(folder)
    return folder


def case(target: str, seed: int, source: Path) -> tuple[str, str]:
    """One damaged copy of ``source``: "read", "refused" or "fault", and what was said of it."""
    kind = TARGETS[target]
    rng = np.random.default_rng([seed, *target.encode()])
    place_of = sorted(kind.damages)[int(rng.integers(len(kind.damages)))]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "case"
        shutil.copytree(source, folder)
        paths = sorted(folder.glob(place_of))
        path = paths[int(rng.integers(len(paths)))]
        path.write_bytes(kind.damages[place_of](rng, path.read_bytes()))
        with contextlib.redirect_stderr(io.StringIO()) as said:
            try:
                with limit(SECONDS):
                    kind.read(folder)
                verdict, text = "read", said.getvalue()
            except InputError as error:
                verdict, text = "refused", str(error)
            except KeyboardInterrupt:
                raise
            except BaseException:  # a panic of a library is no Exception
                return "fault", traceback.format_exc()
    return _shown(verdict, text)


def _shown(verdict: str, text: str) -> tuple[str, str]:
    """A message must be printable, a refusal one line of bounded length."""
    odd = {c for c in text if unicodedata.category(c)[0] == "C"} - {"\n", "\r"}
    if odd:
        return "fault", f"control characters {odd} in {text[:500]!r}"
    if verdict == "refused" and ("\n" in text or len(text) > 3000):
        return "fault", f"a refusal of {len(text)} characters: {text[:500]!r}"
    return verdict, text


def sweep(target: str, first: int, count: int) -> tuple[Counter[str], dict[int, str]]:
    """Cases ``first`` to ``first + count``: how many of each verdict, and every fault by seed."""
    verdicts: Counter[str] = Counter()
    faults = {}
    with tempfile.TemporaryDirectory() as place:
        source = honest(target, Path(place))
        for seed in range(first, first + count):
            verdict, text = case(target, seed, source)
            verdicts[verdict] += 1
            if verdict == "fault":
                faults[seed] = text
    return verdicts, faults
