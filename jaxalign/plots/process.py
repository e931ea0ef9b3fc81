"""A second process that draws some of the figures, since matplotlib keeps only one core busy.

Importing matplotlib takes as long as drawing. So the process is started before a study computes
anything, imports meanwhile, and waits to be asked.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from jaxalign.results import HeadsResult

# The package without its ``__init__``, which imports JAX: a figure needs nothing of it.
PROGRAM = """
import sys, types
sys.modules["jaxalign"] = package = types.ModuleType("jaxalign")
package.__path__ = [sys.argv[1]]
from jaxalign.plots import serve
serve()
"""
PACKAGE = Path(__file__).parent.parent


@contextlib.contextmanager
def drawing_process() -> Iterator[subprocess.Popen[bytes] | None]:
    """A process for ``draw_all``, None where there is no second core; it ends with the context."""
    if (os.cpu_count() or 1) < 2:
        yield None
        return
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(PACKAGE)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,  # what fails there is drawn again, and then said, here
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Control-C is for the first process to answer
    ) as process:
        try:
            yield process
        finally:
            if process.stdin and not process.stdin.closed:
                process.kill()  # nothing was asked of it


def ask(
    process: subprocess.Popen[bytes], result: HeadsResult, folder: Path, names: Sequence[str]
) -> None:
    """Let the process draw these figures; it leaves with 0 once all of them are written."""
    assert process.stdin
    with contextlib.suppress(OSError), process.stdin as pipe:  # OSError: it is gone
        pickle.dump((result, folder, tuple(names)), pipe)


def asked() -> tuple[HeadsResult, Path, tuple[str, ...]]:
    """What ``ask`` sent, in the process."""
    result, folder, names = pickle.load(sys.stdin.buffer)
    return result, folder, names
