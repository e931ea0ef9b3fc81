"""Where the command begins: it can be interrupted before JAX and everything else is imported."""

from __future__ import annotations

import os
import signal

LINE = b"jaxalign: error: interrupted; earlier results are unchanged. Run it again.\n"


def _stop(*_: object) -> None:
    """Leave at once: nothing has begun, and an exception could be lost in a half-read module."""
    os.write(2, LINE)
    os._exit(2)


def main() -> int:
    """Run the command; returns the exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)
    from jaxalign.commands.main import main as run  # takes seconds

    return run(alone=True)
