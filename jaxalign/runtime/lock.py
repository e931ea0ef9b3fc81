"""A folder that one process writes to at a time."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from jaxalign.errors import InputError

NAME = ".lock"


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold a folder for this process, which ends with it, however it ends.

    The folder is made where it is missing. Where its file system has no locks, nothing is held. The
    file stays: another process could hold one of the same name that was removed.

    Args:
        folder: that files are written to.

    Raises:
        InputError: another process holds it, or it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / NAME, "ab+")  # noqa: SIM115 - closed below
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written to ({error.strerror})",
            "give a folder that you may write to and that has room",
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"{folder} is being written to by another run",
                "wait until that run has ended, or give another --output",
            ) from error
        except OSError:
            pass  # no locks here
        yield
