"""Files, read within bounds and written whole or not at all."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

from jaxalign.errors import InputError

# Far above any prompts file, tokenizer or result that exists; far below the memory of a laptop.
MOST_BYTES = 1 << 30
AGAIN = "give a file that is whole"


def read_bytes(path: Path, remedy: str = AGAIN, most: int = MOST_BYTES) -> bytes:
    """The content of a regular file of at most ``most`` bytes.

    Args:
        path: the file; links are followed.
        remedy: what the reader of the error can do, as an imperative.
        most: bytes; a larger file is refused before it is read.

    Raises:
        InputError: missing, not to be read, no regular file (a folder, pipe or device, which may
            never end), or too large.
    """
    try:
        # Not blocking, so that a pipe that nobody writes to can be opened and refused.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(handle, "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise InputError(f"{path} is no regular file", remedy)
            # Room is taken for as much as is asked for, so no more than the file says is.
            content = file.read(min(most, max(found.st_size, 1 << 20)) + 1)
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing", remedy) from error
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL byte
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read ({why})", remedy) from error
    if len(content) > most:
        raise InputError(f"{path} has more than {most} bytes", remedy)
    return content


def read_text(path: Path, remedy: str = AGAIN, most: int = MOST_BYTES) -> str:
    """The text of a UTF-8 file, whatever the locale; a byte order mark at its start is dropped.

    Args:
        path: the file.
        remedy: what the reader of the error can do, as an imperative.
        most: bytes that the file may have.

    Raises:
        InputError: as ``read_bytes``, or it is not UTF-8.
    """
    try:
        return read_bytes(path, remedy, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error})", remedy) from error


def read_json(path: Path, remedy: str = AGAIN, most: int = MOST_BYTES) -> Any:
    """The content of a JSON file.

    Args:
        path: the file.
        remedy: what the reader of the error can do, as an imperative.
        most: bytes that the file may have.

    Raises:
        InputError: as ``read_text``, or it is not JSON, or nested too deeply.
    """
    try:
        return json.loads(read_text(path, remedy, most), object_pairs_hook=_once)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error})", remedy) from error


def read_json_lines(
    path: Path, remedy: str = AGAIN, most: int = MOST_BYTES
) -> list[tuple[int, Any]]:
    """The values of a file of JSON lines, each with the number of its line from 1.

    Args:
        path: the file; blank lines in it do not count.
        remedy: what the reader of the error can do, as an imperative.
        most: bytes that the file may have.

    Raises:
        InputError: as ``read_text``, or a line is not JSON, or nested too deeply.
    """
    values = []
    # JSON strings may have line separators of Unicode in them, which ``splitlines`` splits at.
    for number, line in enumerate(read_text(path, remedy, most).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            values.append((number, json.loads(line, object_pairs_hook=_once)))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: line {number} is not JSON ({error})", remedy) from error
    return values


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of a JSON file; of a key given twice, a parser would keep the last in silence."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has {twice[:80]!r} twice")
    return found


def replace_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: to a temporary file beside it, then renamed.

    Its folder is made where it is missing. A link stays, and the file that it leads to is replaced.

    Raises:
        InputError: the file cannot be written.
    """
    check_writable(path)
    path = Path(os.path.realpath(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(temporary, 0o666 & ~umask)  # mkstemp lets nobody else read
            os.replace(temporary, path)
        except BaseException:  # an interruption, too, leaves nothing behind
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise _unwritable(path, error) from error


def check_writable(path: Path) -> None:
    """Raise ``InputError`` where ``path`` could not be written; nothing is made.

    What exists there must be a regular file: a device or a pipe would be replaced by one.
    """
    try:
        path = Path(os.path.realpath(path))
        folder = next(folder for folder in path.parents if os.path.lexists(folder))
        # Named as ``replace_file`` will name its own, which is longer than the file's name.
        with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{path.name}."):
            pass
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder")
        if os.path.lexists(path) and not path.is_file():
            raise OSError(f"{path} is no regular file")
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL character
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError | ValueError) -> InputError:
    why = getattr(error, "strerror", None) or error
    return InputError(
        f"{path} cannot be written ({why})",
        "give a file in a folder that you may write to and that has room",
    )
