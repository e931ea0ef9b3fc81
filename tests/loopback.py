"""Real processes of one run over the loopback interface, with limits on how long they may take."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tiny_run import Ran, without_progress

ROOT = Path(__file__).parent.parent
PATIENCE = 3600.0  # seconds after which nothing is still expected, however busy the machine
# Gloo, which carries sums between CPU processes, greets on stdout.
GREETING = "[Gloo] "


def free_address() -> str:
    """HOST:PORT on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return f"127.0.0.1:{probe.getsockname()[1]}"


class Started:
    """A process whose output goes to files, so that nothing waits for a reader."""

    def __init__(self, command: Sequence[Any], folder: Path, environment: dict[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._files = folder / "out.txt", folder / "err.txt"
        with open(self._files[0], "w") as out, open(self._files[1], "w") as err:
            self.process = subprocess.Popen(
                [sys.executable, *map(str, command)],
                cwd=ROOT,
                stdout=out,
                stderr=err,
                env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
            )

    def end(self, seconds: float = PATIENCE) -> Ran:
        """Wait for its end; its exit code and output."""
        code = self.process.wait(seconds)
        out, err = (path.read_text() for path in self._files)
        lines = out.splitlines(keepends=True)
        return Ran(
            code, "".join(x for x in lines if not x.startswith(GREETING)), without_progress(err)
        )


@contextmanager
def run_of(
    commands: Sequence[Sequence[Any]],
    folder: Path,
    devices: int = 1,
    launcher: Callable[[int, int, str], dict[str, str]] | None = None,
) -> Iterator[list[Started]]:
    """Processes with ``devices`` virtual CPU devices each; whoever still runs at the end is killed.

    ``commands`` get the three options of a run of several processes, or the variables that
    ``launcher`` sets for process I of N whose coordinator has a certain port.
    """
    address = free_address()
    shared = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    started: list[Started] = []
    try:
        for index, command in enumerate(commands):
            own: tuple[Any, ...] = ()
            variables: dict[str, str] = {}
            if launcher is None:
                own = ("--coordinator", address, "--processes", len(commands))
                own += ("--process-id", index)
            else:
                variables = launcher(index, len(commands), address.rpartition(":")[2])
            started.append(Started([*command, *own], folder / str(index), shared | variables))
        yield started
    finally:
        for one in started:
            one.process.kill()
            one.process.wait()


def wait_until(ready: Callable[[], bool], started: Sequence[Started]) -> None:
    """Wait for something that the processes do while all of them run."""
    end = time.monotonic() + PATIENCE
    while not ready():
        ended = [one for one in started if one.process.poll() is not None]
        assert not ended, [one.end() for one in ended]
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)
