"""The finished calls of a study on disk, so that a run that was cut off resumes from there.

The folder beside a result has one folder a study, named by the hash of the study's facts. A
finished call is one file in it, written whole or not at all, which holds that hash and the call's
key, too. A file that does not fit is computed again, so a resumed study has the bits of one that
was never cut off, and studies cannot mix, whatever runs at the same time.

Several runs of one study may share the folder on a shared disk: each takes the calls that others
have finished. Only this is relied on: renaming a file within a folder is atomic, as it is on local
disks, NFS and Lustre. A run that does not yet see another's file computes that call itself.

A run holds a shared ``flock`` on its study's folder, which ends with the process, however that
ends. While a run of another study holds one, a second study with the same output is refused. On
NFS the lock is the server's; where a file system has no locks, the second study is not noticed,
the later result replaces the earlier one, and no call of either is lost or mixed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.errors import InputError
from jaxalign.processes.distributed import fetch, from_first, is_first
from jaxalign.runtime.files import read_bytes, read_json, replace_file
from jaxalign.runtime.messages import note

FACTS, LOCK, CALL = "facts.json", "lock", ".npz"
CALLS = (f"*{CALL}", f".*{CALL}.*")  # whole and half
NAME = 16  # hexadecimal digits of a study's hash
MOST_BYTES = 1 << 36  # of one call

T = TypeVar("T")


class Resume:
    """Keeps what the calls of one study returned.

    Args:
        folder: beside the study's result, for finished calls of any study with that result. None
            keeps nothing.
        facts: everything that decides the numbers (weights, token ids, options, seed, versions,
            device), as JSON.

    Attributes:
        folder: this study's own, in that folder.
        spent: seconds that the calls which were found took, in the runs that computed them.

    Raises:
        InputError: in every process, where a study with other facts is running with this folder;
            names the facts that differ.

    Example:
        >>> resume = Resume(Path("results/experiment.json.journal"), {"seed": 0})
        >>> for number, batch in enumerate(work):
        ...     run = functools.partial(clean_run, params, batch)
        ...     margins = resume.keep(("clean", "f32", number), run)
        >>> resume.remove()  # once the result is safe
    """

    def __init__(self, folder: Path | None, facts: Mapping[str, Any]) -> None:
        self._facts = json.loads(json.dumps(facts))
        text = json.dumps(self._facts, sort_keys=True).encode()
        self._study = hashlib.sha256(text).hexdigest()
        self.folder = folder and folder / self._study[:NAME]
        self.spent = 0.0
        self._used: set[str] = set()
        self._writable = True
        self._release: Callable[[], Any] = lambda: None
        refusal = None
        if self.folder and is_first():
            lock = _open(self.folder, text)
            self._release = weakref.finalize(self, _release, self.folder, lock)
            refusal = self._refusal(self.folder)
        refusal = json.loads(from_first(json.dumps(refusal).encode()))
        if refusal:
            self.close()
            raise InputError(*refusal)

    def keep(self, key: Sequence[str | int], compute: Callable[[], T], like: Any = 0) -> T:
        """Return what ``compute`` returns, or what it returned in a run of this study before.

        Args:
            key: which call, the same in every run: phase, precision, number.
            compute: returns arrays.
            like: a pytree with the structure of ``compute``'s result; its leaves are ignored. A
                single array by default.

        Raises:
            ValueError: a second call of this key, or a result unlike ``like``.
        """
        name = _file_name(key)
        if name in self._used:
            raise ValueError(f"there is a call {key} already")
        self._used.add(name)
        found = self.found(key, like)
        if found is not None:
            return found
        structure: Any = jax.tree.structure(like)
        start = time.perf_counter()
        out = compute()
        if jax.tree.structure(out) != structure:
            raise ValueError(f"call {key} gave {jax.tree.structure(out)}, not {structure}")
        if self.folder:
            arrays = fetch(jax.tree.leaves(out))  # by all processes, since it may take all of them
            if is_first():
                took = {"seconds": time.perf_counter() - start}
                self._write(self.folder, name, _encode(self._head(key) | took, arrays))
        return out

    def has(self, key: Sequence[str | int]) -> bool:
        """Whether there is a file of this call now, as far as this process can see.

        Args:
            key: which call.
        """
        return self.folder is not None and (self.folder / _file_name(key)).exists()

    def found(self, key: Sequence[str | int], like: Any = 0) -> Any:
        """What a finished call returned; None where there is no file of it that fits.

        Args:
            key: which call.
            like: as for ``keep``.
        """
        structure: Any = jax.tree.structure(like)
        leaves, seconds = self._read(_file_name(key), key)
        if leaves is None or len(leaves) != structure.num_leaves:
            return None
        self.spent += seconds
        return jax.tree.unflatten(structure, leaves)

    def forget(self, key: Sequence[str | int]) -> None:
        """Remove a finished call that no run needs any more: a later one has all that it had.

        Args:
            key: which call.
        """
        if self.folder and is_first():
            (self.folder / _file_name(key)).unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the study's folder: the result is safe, or of no interest."""
        if self.folder and is_first():
            for folder in _studies(self.folder.parent):
                if folder == self.folder:
                    # The lock stays while another run of this study holds it, too: ``close``.
                    _unlink(folder, CALLS)
                elif not (finished(folder) or _is_running(folder)):
                    _empty(folder)
        self.close()

    def close(self) -> None:
        """Release the folder to other studies; finished calls stay. The process's end does, too."""
        self._release()

    def _refusal(self, own: Path) -> tuple[str, str] | None:
        """The error where another study is running; a note where one was cut off."""
        for folder in _studies(own.parent):
            if folder == own:
                continue
            other = self._differences(folder)
            if _is_running(folder):
                return (
                    f"{own.parent} is in use by another study ({other})",
                    "wait until that run has ended, or give another --output",
                )
            if count := finished(folder):
                note(
                    f"{folder} keeps {count} finished calls of another study ({other}), which are "
                    "not used here; remove that folder if the other study is not to be resumed"
                )
        return None

    def _differences(self, folder: Path) -> str:
        """Which facts of another study differ, in words."""
        try:
            found = read_json(folder / FACTS)
        except InputError:
            found = None
        if not isinstance(found, dict):
            return "its facts cannot be read"
        names = sorted({*found, *self._facts})
        different = [name for name in names if found.get(name) != self._facts.get(name)]
        return f"{', '.join(different)} differ"

    def _head(self, key: Sequence[str | int]) -> dict[str, Any]:
        return {"study": self._study, "key": [*key]}

    def _read(self, name: str, key: Sequence[str | int]) -> tuple[list[np.ndarray] | None, float]:
        """A call's arrays and seconds; None where there is no file of it, or one that is unfit."""
        if self.folder is None:
            return None, 0.0
        content = b"none"
        if is_first():
            with contextlib.suppress(InputError):
                content = read_bytes(self.folder / name, most=MOST_BYTES)
        content = from_first(content)
        try:
            return _decode(self._head(key), content)
        except Exception:  # many kinds, for as many places where a file may be damaged
            return None, 0.0

    def _write(self, folder: Path, name: str, content: bytes) -> None:
        if not (self._writable and (folder / FACTS).exists()):
            return  # without its facts: another run has finished the study and removed its calls
        try:
            replace_file(folder / name, content)
        except InputError as error:
            note(f"{error.problem}, so a run that is cut off starts anew")
            self._writable = False


def _file_name(key: Sequence[str | int]) -> str:
    return "-".join(map(str, key)).replace("/", "-").replace(" ", "_") + CALL


def _studies(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("?" * NAME) if path.is_dir())


def finished(folder: Path) -> int:
    """Return how many finished calls are in a folder and in the folders of it."""
    return sum(1 for _ in folder.rglob(f"*{CALL}"))


def remove_calls(folder: Path) -> None:
    """Remove finished calls, of whatever studies, that no run needs; other files stay.

    Args:
        folder: whose folders have one folder a study.
    """
    for place in folder.glob("*") if folder.is_dir() else ():
        for own in _studies(place) if place.is_dir() else ():
            if (own / FACTS).exists() and not _is_running(own):
                _empty(own)
    with contextlib.suppress(OSError):
        folder.rmdir()


def _open(folder: Path, facts: bytes) -> io.BufferedRandom | None:
    """Make a study's folder; return the file that holds its lock, if there can be one."""
    try:
        replace_file(folder / FACTS, facts)
        lock = open(folder / LOCK, "ab+")  # noqa: SIM115 - held until the study is left
    except (InputError, OSError) as error:
        note(f"{getattr(error, 'problem', error)}, so a run that is cut off starts anew")
        return None
    for _ in range(20):  # another run that looks whether this one is there holds it for a moment
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            time.sleep(0.05)
        except OSError:
            break  # the file system has no locks
    return lock


def _is_running(folder: Path) -> bool:
    """Whether a run holds the lock of a study's folder, as far as the file system has locks."""
    try:
        with open(folder / LOCK, "rb+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _release(folder: Path, lock: io.BufferedRandom | None) -> None:
    """Release a study's lock, and remove its folder where no run needs it."""
    if lock is None:
        return
    with lock, contextlib.suppress(OSError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not finished(folder):
            _empty(folder)


def _unlink(folder: Path, patterns: Sequence[str]) -> None:
    for pattern in patterns:
        for path in folder.glob(pattern):
            with contextlib.suppress(OSError):
                path.unlink()


def _empty(folder: Path) -> None:
    """Remove a study's files, whole and half, and its folder if nothing else is in it."""
    _unlink(folder, (*CALLS, FACTS, f".{FACTS}.*", LOCK))
    with contextlib.suppress(OSError):
        folder.rmdir()
        folder.parent.rmdir()


def _encode(head: Mapping[str, Any], leaves: Sequence[Any]) -> bytes:
    """Arrays as an ``.npz``, bit for bit, behind ``head`` and the names of their dtypes."""
    arrays = [np.asarray(leaf) for leaf in leaves]
    text = json.dumps({**head, "dtypes": [array.dtype.name for array in arrays]})
    # NumPy's files know no bf16, only its bits.
    bits = [a.view(f"u{a.dtype.itemsize}") if a.dtype.kind == "V" else a for a in arrays]
    buffer = io.BytesIO()
    np.savez(buffer, np.array(text), *bits)
    return buffer.getvalue()


def _decode(head: Mapping[str, Any], content: bytes) -> tuple[list[np.ndarray] | None, float]:
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        text, *bits = (file[f"arr_{i}"] for i in range(len(file.files)))
    found = json.loads(str(text))
    dtypes, seconds = found.pop("dtypes"), found.pop("seconds")
    if found != head:
        return None, 0.0
    return [a.view(jnp.dtype(name)) for name, a in zip(dtypes, bits, strict=True)], float(seconds)
