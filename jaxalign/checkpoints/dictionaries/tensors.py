"""The tensors of a dictionary's file: all that belong to it, no others, of the right shapes."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save

from jaxalign.checkpoints.dictionaries.facts import CHANGED
from jaxalign.checkpoints.files import open_checkpoint
from jaxalign.errors import InputError
from jaxalign.runtime.files import read_bytes, replace_file

Tensors = dict[str, np.ndarray]
MOST = 1 << 36  # bytes of an npz file


def read_safetensors(path: Path, names: Sequence[str], optional: Sequence[str] = ()) -> Tensors:
    """The tensors of a file, in f32.

    Args:
        path: the file.
        names: those that it must have.
        optional: those that it may have beside them.

    Raises:
        InputError: a damaged file, a missing tensor, one that does not belong there, or one of
            whole numbers, with NaN or infinity.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing", CHANGED)
    checkpoint = open_checkpoint(path.parent, single=path.name)
    _check_names(path, checkpoint.shapes, names, optional)
    with np.errstate(over="ignore"):  # what f32 does not hold is refused as infinite
        return {name: np.asarray(checkpoint.read(name), np.float32) for name in checkpoint.shapes}


def read_npz(path: Path, names: Sequence[str], optional: Sequence[str] = ()) -> Tensors:
    """As ``read_safetensors``, of NumPy's archive.

    Args:
        path: the file.
        names: those that it must have.
        optional: those that it may have beside them.

    Raises:
        InputError: as ``read_safetensors``; or an array of Python objects, which would run code.
    """
    try:
        with np.load(io.BytesIO(read_bytes(path, CHANGED, MOST)), allow_pickle=False) as file:
            if len(set(file.files)) < len(file.files):
                raise ValueError("it has an array twice")
            found = {name: file[name] for name in file.files}
    except InputError:
        raise
    except Exception as error:  # zipfile, zlib and NumPy have errors of their own
        raise InputError(f"{path} is damaged or no npz archive ({error})", CHANGED) from error
    _check_names(path, found, names, optional)
    for name, value in found.items():
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise InputError(f"{path}: {name} is of type {value.dtype}, expected floats", CHANGED)
    with np.errstate(over="ignore"):  # what f32 does not hold is refused as infinite
        return {name: np.asarray(value, np.float32) for name, value in found.items()}


def _check_names(
    path: Path, found: Mapping[str, Any], names: Sequence[str], optional: Sequence[str]
) -> None:
    if missing := [name for name in names if name not in found]:
        raise InputError(f"{path} has no tensor {', '.join(map(repr, missing))}", CHANGED)
    if strange := [name for name in found if name not in (*names, *optional)]:
        raise InputError(
            f"{path} has a tensor {strange[0]!r}, which a dictionary of this kind does not have",
            "use the file as it was written; nothing of it may be left unread",
        )


def check_sizes(path: Path, encoder: np.ndarray, said: Mapping[str, int | None]) -> None:
    """Refuse settings that say other sizes than the tensors have.

    Args:
        path: of the tensors.
        encoder: ``[D, features]``.
        said: width and features by the names of the settings, in this order; None: not said.

    Raises:
        InputError: names the setting.
    """
    if encoder.ndim != 2:
        raise InputError(
            f"{path}: the encoder has shape {list(encoder.shape)}, expected a matrix", CHANGED
        )
    for (name, value), size in zip(said.items(), encoder.shape, strict=True):
        if value is not None and value != size:
            raise InputError(
                f"{path}: the settings say {name} {value}, and the encoder has {size}", CHANGED
            )


def sha256_of_tensors(tensors: Mapping[str, Any]) -> str:
    """A hash of names, shapes and f32 numbers, whatever file they came from.

    Args:
        tensors: by name.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = np.ascontiguousarray(tensors[name], np.float32)
        digest.update(f"{name}{value.shape}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def write_safetensors(path: Path, tensors: Mapping[str, Any]) -> None:
    """Write tensors, whole or not at all.

    Args:
        path: the file.
        tensors: by name.
    """
    whole = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    replace_file(path, save(whole, metadata={"format": "pt"}))
