"""The finished chunks of a long study on disk, so that a run that was cut off goes on from there.

A journal is a folder: ``facts.json`` says which study it is of, and every finished chunk is one
file, written whole or not at all. A chunk is taken from it only where all facts are the same, so a
resumed study has the bits of one that was never cut off.
"""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.devices.processes import fetch, from_first, is_first
from jaxalign.errors import InputError
from jaxalign.notes import note
from jaxalign.runtime.files import replace_file

FACTS = "facts.json"
CHUNK = ".npz"
# A study that ends within these leaves nothing on disk: it is sooner repeated than resumed.
PATIENCE = 30.0  # seconds
HELD = 1 << 28  # bytes of finished chunks

T = TypeVar("T")


class Journal:
    """Keeps what the chunks of one study returned.

    Args:
        folder: its own, beside the study's result; made when the first chunk is written. None
            keeps nothing.
        facts: everything that decides the numbers (weights, prompts, options, seed, versions,
            device), as JSON. A journal with other facts is emptied, with one line on stderr.
        patience: seconds before which nothing is written.

    Example:
        >>> journal = Journal(Path("results/experiment.json.journal"), {"seed": 0})
        >>> for number, batch in enumerate(work):
        ...     run = functools.partial(clean_run, params, batch)
        ...     margins = journal.keep(("clean", "f32", number), run)
        >>> journal.remove()  # once the result is safe
    """

    def __init__(
        self, folder: Path | None, facts: Mapping[str, Any], patience: float = PATIENCE
    ) -> None:
        self.folder = folder
        self._facts = json.loads(json.dumps(facts))
        self._used: set[str] = set()
        self._waiting: list[tuple[str, Any]] = []
        self._held = 0
        self._writable = True
        # All processes of a run take the same chunks from it, those that the first one finds.
        names = json.dumps(self._open()).encode()
        self._finished: set[str] = set(json.loads(from_first(names)))
        at_once = bool(self._finished) or jax.process_count() > 1
        self._write_from = time.monotonic() + (0.0 if at_once else patience)

    def keep(self, key: Sequence[str | int], compute: Callable[[], T], like: Any = 0) -> T:
        """What ``compute`` returns, or what it returned before the study was cut off.

        Args:
            key: which chunk, the same in every run: phase, precision, number.
            compute: returns arrays.
            like: a pytree as ``compute`` returns, with anything in the places of its arrays; a
                single array by default.

        Raises:
            ValueError: a second chunk of this key, or a result unlike ``like``.
        """
        name = "-".join(map(str, key)).replace("/", "-").replace(" ", "_") + CHUNK
        if name in self._used:
            raise ValueError(f"the journal has a chunk {key} already")
        self._used.add(name)
        structure: Any = jax.tree.structure(like)
        leaves = self._read(name) if name in self._finished else None
        if leaves is not None and len(leaves) == structure.num_leaves:
            return jax.tree.unflatten(structure, leaves)
        out = compute()
        if jax.tree.structure(out) != structure:
            raise ValueError(f"chunk {key} is {jax.tree.structure(out)}, not {structure}")
        if self.folder:
            self._waiting.append((name, out))
            self._held += sum(leaf.nbytes for leaf in jax.tree.leaves(out))
            if self._held >= HELD or time.monotonic() >= self._write_from:
                self._write(self.folder)
        return out

    def remove(self) -> None:
        """Remove the folder: the result is safe, or of no interest."""
        self._waiting.clear()
        if self.folder and is_first():
            _empty(self.folder)

    def _open(self) -> list[str]:
        """The names of finished chunks, those of another study removed."""
        if self.folder is None or not is_first() or not self.folder.is_dir():
            return []
        try:
            found = json.loads((self.folder / FACTS).read_text())
        except (OSError, ValueError):
            found = None
        if found == self._facts:
            return [path.name for path in self.folder.glob(f"*{CHUNK}")]
        why = "is not complete"
        if isinstance(found, dict):
            names = sorted({*found, *self._facts})
            other = [name for name in names if found.get(name) != self._facts.get(name)]
            why = f"is of another study ({', '.join(other)} differ)"
        note(f"{self.folder} {why}, so nothing of it is used")
        _empty(self.folder)
        return []

    def _read(self, name: str) -> list[np.ndarray] | None:
        """The arrays of a chunk; None where its file is damaged."""
        content = b""
        if is_first() and self.folder:
            with contextlib.suppress(OSError):
                content = (self.folder / name).read_bytes()
        content = from_first(content)
        try:
            return _decode(content)
        except Exception:  # many kinds, for as many places where a file may be damaged
            return None

    def _write(self, folder: Path) -> None:
        """Write every chunk held so far; from now on each is written at once."""
        self._write_from = 0.0
        held, self._waiting, self._held = self._waiting, [], 0
        for name, tree in held:
            leaves = jax.tree.leaves(tree)
            if any(isinstance(leaf, jax.Array) and leaf.is_deleted() for leaf in leaves):
                continue  # donated to a later call: it will be computed again
            arrays = fetch(leaves)  # by all processes, since it may take all of them
            if is_first() and self._writable:
                try:
                    if not (folder / FACTS).exists():
                        replace_file(folder / FACTS, json.dumps(self._facts).encode())
                    replace_file(folder / name, _encode(arrays))
                except InputError as error:
                    note(f"{error.problem}, so a run that is cut off starts anew")
                    self._writable = False


def _encode(leaves: Sequence[Any]) -> bytes:
    """Arrays as an ``.npz``, bit for bit, after the names of their dtypes."""
    arrays = [np.asarray(leaf) for leaf in leaves]
    names = np.array([array.dtype.name for array in arrays], str)
    # NumPy's files know no bf16, only its bits.
    bits = [a.view(f"u{a.dtype.itemsize}") if a.dtype.kind == "V" else a for a in arrays]
    buffer = io.BytesIO()
    np.savez(buffer, names, *bits)
    return buffer.getvalue()


def _decode(content: bytes) -> list[np.ndarray]:
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        names, *bits = (file[f"arr_{i}"] for i in range(len(file.files)))
    return [a.view(jnp.dtype(str(name))) for name, a in zip(names, bits, strict=True)]


def _empty(folder: Path) -> None:
    """Remove a journal's files, whole and half, and its folder if nothing else is in it."""
    for pattern in (FACTS, f"*{CHUNK}", f".{FACTS}.*", f".*{CHUNK}.*"):
        for path in folder.glob(pattern):
            with contextlib.suppress(OSError):
                path.unlink()
    with contextlib.suppress(OSError):
        folder.rmdir()
