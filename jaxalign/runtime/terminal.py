"""Streams that never end a run, and interruptions that are never lost.

A run of hours must not die of what it prints: of characters that the terminal's encoding lacks, of
a pipe that nobody reads any more, of a full disk behind ``> log.txt``.
"""

from __future__ import annotations

import _thread
import codecs
import contextlib
import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

from jaxalign.runtime.messages import note

SIGNALS = (signal.SIGINT, signal.SIGTERM)
AGAIN = 0.05  # seconds after which an interruption that a callback lost is delivered again


class Nowhere(io.TextIOBase):
    """A text stream that keeps nothing."""

    def write(self, text: str) -> int:
        """Forget ``text``; returns how many characters that were."""
        return len(text)


# What stands for the signs of screens where a stream's encoding lacks them.
STAND_INS = {
    **dict(zip("█▓▒░·│", "#%+-.|", strict=True)),
    **{"−": "-", "…": "...", "±": "+-", "÷": "/", "ρ": "rho", "Δ": "d", "‖": "||", "°": "o"},
}


def _stand_in(error: UnicodeError) -> tuple[str, int]:
    """An error handler of ``str.encode``: a sign's stand-in, or its escape."""
    assert isinstance(error, UnicodeEncodeError)
    sign = error.object[error.start]
    escape = sign.encode("ascii", "backslashreplace").decode()
    return STAND_INS.get(sign, escape), error.start + 1


codecs.register_error("jaxalign.stand_in", _stand_in)


class Lasting:
    """A text stream whose writes never fail.

    What its encoding lacks is written as a stand-in (``-`` for a minus sign) or an escape. Once it
    cannot be written to at all, everything goes to the null device instead, after one line on
    stderr unless its reader has simply left (``| head``).

    Args:
        stream: where the text goes; None for a process that was started without.

    Attributes:
        lost: whether something was not written that a reader still waits for.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = Nowhere() if stream is None else stream
        self.lost = False

    def write(self, text: str) -> int:
        """Write ``text``; returns how many characters that were."""
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding
            self.write(text.encode(encoding, "jaxalign.stand_in").decode(encoding))
        except (OSError, ValueError) as error:  # ValueError: it was closed
            self._give_up(error)
        return len(text)

    def flush(self) -> None:
        """Write what is held."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._give_up(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _give_up(self, error: Exception) -> None:
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            # The stream itself stays open, and what it holds is flushed when the process ends.
            os.dup2(null, self._stream.fileno())
        except (OSError, ValueError):
            self._stream = Nowhere()
        os.close(null)
        if self is not sys.stderr and getattr(error, "errno", None) != errno.EPIPE:
            self.lost = True
            note(f"the output cannot be written ({getattr(error, 'strerror', None) or error})")


@contextlib.contextmanager
def lasting_streams() -> Iterator[Lasting]:
    """Make stdout and stderr ``Lasting`` for as long as the context lasts; yields stdout."""
    out = Lasting(sys.stdout)
    with (
        contextlib.redirect_stderr(Lasting(sys.stderr)),
        contextlib.redirect_stdout(out),
    ):
        try:
            yield out
        finally:
            out.flush()


class Interruption:
    """Whether the process was asked to stop."""

    def __init__(self) -> None:
        self.asked = False
        self.answered = False

    def __call__(self, number: int, frame: Any) -> None:
        """Raise ``KeyboardInterrupt``: the handler of a signal."""
        self.asked = True
        if not self.answered:
            raise KeyboardInterrupt


def _interrupt_main() -> None:
    """Send SIGINT to the main thread, so that a call that it waits in ends, too."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    else:
        _thread.interrupt_main()


@contextlib.contextmanager
def interruptible() -> Iterator[Interruption]:
    """Let SIGINT and SIGTERM raise ``KeyboardInterrupt`` in the main thread, whatever runs there.

    Python drops an exception that a callback of C code raises (of the garbage collector, a weak
    reference, a library); such an interruption is delivered again. Signals that the process was
    started to ignore (``nohup``, ``&``) stay ignored. Elsewhere than in the main thread nothing
    changes.

    Yields:
        What was asked so far; with ``answered`` set, further signals do nothing.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    show_others = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if unraisable.exc_type is KeyboardInterrupt:
            again = threading.Timer(AGAIN, _interrupt_main)
            again.daemon = True
            again.start()
        else:
            show_others(unraisable)

    for number, handler in handlers.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, interruption)
    sys.unraisablehook = hook
    try:
        yield interruption
    finally:
        sys.unraisablehook = show_others
        for number, handler in handlers.items():
            signal.signal(number, handler)
