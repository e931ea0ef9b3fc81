"""Published weight files: which tensors a folder holds, checked before one is used."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxalign.errors import InputError
from jaxalign.runtime.files import read_json

T = TypeVar("T")
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = ("F16", "BF16", "F32", "F64")
FLOAT8 = {"F8_E4M3": jnp.float8_e4m3fn, "F8_E5M2": jnp.float8_e5m2}


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a folder.

    Attributes:
        folder: where they are.
        files: each tensor's file, by the tensor's name.
        shapes: each tensor's shape.
        states: what each file was when it was opened; a file that was replaced or written since
            is refused, so that all tensors and the hash are of one checkpoint.
    """

    folder: Path
    files: dict[str, Path]
    shapes: dict[str, tuple[int, ...]]
    states: dict[Path, tuple[int, int, int, int]]

    def read(self, name: str) -> np.ndarray:
        """One tensor as it is on disk (the file is memory-mapped, only this tensor is copied).

        Raises:
            InputError: the file is damaged or was changed, or the tensor is of another type than
                ``DTYPES``, or holds NaN or infinity.
        """
        tensor = self._tensor(name, DTYPES, "use a checkpoint whose weights are not quantized")
        _check_finite(tensor, f"{self.files[name]}: tensor {name!r}")
        return tensor

    def stored(self, name: str, types: Sequence[str]) -> np.ndarray:
        """One tensor as it is on disk, of any type that quantized weights are stored in.

        Args:
            name: the tensor's.
            types: the types it may have, by their safetensors names (``I32``, ``F8_E4M3``).

        Raises:
            InputError: the file is damaged or was changed, or the tensor is of another type.
        """
        return self._tensor(name, types, "use the file as the quantizing tool wrote it")

    def type(self, name: str) -> str:
        """A tensor's type on disk by its safetensors name (``I32``, ``F8_E4M3``).

        Args:
            name: the tensor's.

        Raises:
            InputError: the file is damaged.
        """
        kind: str = _with_file(self.files[name], lambda file: file.get_slice(name).get_dtype())
        return kind

    def _tensor(self, name: str, types: Sequence[str], remedy: str) -> np.ndarray:
        path = self.files[name]
        dtype = self.type(name)
        if dtype not in types:
            raise InputError(
                f"{path}: tensor {name!r} is of type {dtype}, expected {' or '.join(types)}",
                remedy,
            )
        if dtype in FLOAT8:
            tensor = _bytes_of(path, name).view(FLOAT8[dtype]).reshape(self.shapes[name])
        else:
            tensor = _with_file(path, lambda file: file.get_tensor(name))
        self._check_unchanged([path])
        return tensor

    @property
    def size(self) -> int:
        """Bytes of the weight files when they were opened."""
        return sum(size for _, _, size, _ in self.states.values())

    def sha256(self) -> str:
        """Hash of the weight files, in the order of their names.

        Raises:
            InputError: one of them was changed since it was opened.
        """
        digest = sha256_of(sorted(self.states))
        self._check_unchanged(self.states)
        return digest

    def _check_unchanged(self, paths: Iterable[Path]) -> None:
        for path in paths:
            check_unchanged(path, self.states[path])


@dataclass(frozen=True)
class StateDict:
    """Tensors in memory under their published names, to be read as a ``Checkpoint``'s are."""

    files: Mapping[str, Any]
    folder: str = "the state dict"

    @functools.cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor."""
        return {name: tuple(tensor.shape) for name, tensor in self.files.items()}

    def read(self, name: str) -> np.ndarray:
        """One tensor as a NumPy array.

        Raises:
            InputError: it is not an array of floating-point numbers, or holds NaN or infinity.
        """
        try:
            tensor = np.asarray(self.files[name])
        except (TypeError, RuntimeError) as error:  # PyTorch's bfloat16, or a tensor with gradients
            raise InputError(
                f"tensor {name!r} is not one that NumPy can read ({error})",
                "give tensor.detach().float().cpu().numpy()",
            ) from error
        if not jnp.issubdtype(tensor.dtype, jnp.floating):
            raise InputError(
                f"tensor {name!r} is of type {tensor.dtype}, expected floating-point numbers",
                "give weights that are not quantized or packed",
            )
        _check_finite(tensor, f"tensor {name!r}")
        return tensor


def sha256_of(paths: Sequence[Path]) -> str:
    """Hash of some files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()


def open_checkpoint(folder: Path, aliases: Sequence[str] = (), single: str = SINGLE) -> Checkpoint:
    """List a folder's tensors, from one safetensors file or from the shards of an index.

    Where a folder has both, the one file is read, as transformers does: saving a model again may
    leave the shards and the index of before.

    Args:
        folder: holds the files.
        aliases: names that the index may have without a tensor: other names of one that is there.
        single: the name of the one file; its index is called after it.

    Raises:
        InputError: no safetensors, a damaged or missing file, a tensor in two shards, or an
            index that says otherwise than its shards.
    """
    index = folder / f"{single}.index.json"
    if os.path.isfile(folder / single):
        indexed, paths = None, [folder / single]
    elif os.path.isfile(index):
        indexed = _read_index(index)
        for name in aliases:
            if name in indexed and not os.path.exists(folder / indexed[name]):
                del indexed[name]
        paths = sorted({folder / name for name in indexed.values()})
    else:
        raise _no_safetensors(folder)
    states = {path: state_of(path) for path in paths}
    files: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for path in paths:
        for name, shape in _with_file(path, _shapes).items():
            if name in files:
                raise InputError(
                    f"tensor {name!r} is both in {files[name].name} and in {path.name}",
                    "remove the shard that does not belong to this checkpoint",
                )
            files[name], shapes[name] = path, shape
    if indexed is not None:
        _check_index(folder, {name: folder / said for name, said in indexed.items()
                              if name in files or name not in aliases}, files)  # fmt: skip
    return Checkpoint(folder, files, shapes, states)


def state_of(path: Path) -> tuple[int, int, int, int]:
    """What changes when a file is replaced or written: device, inode, size, time of writing.

    Args:
        path: the file.

    Raises:
        InputError: it is missing, cannot be read, or is no regular file.
    """
    try:
        found = os.stat(path)
    except FileNotFoundError as error:
        raise InputError(f"weights file {path} is missing", "download it again") from error
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise InputError(f"weights file {path} cannot be read ({error})", "check it") from error
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"weights file {path} is no regular file", "download it again")
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def check_unchanged(path: Path, state: tuple[int, int, int, int]) -> None:
    """Refuse a file that is no longer what it was.

    Args:
        path: the file.
        state: ``state_of`` it when it was opened.

    Raises:
        InputError: it was replaced or written since.
    """
    if state_of(path) != state:
        raise InputError(
            f"weights file {path} was replaced or written while it was read",
            "wait until whatever writes it has finished, or copy the folder first",
        )


def _check_finite(tensor: np.ndarray, called: str) -> None:
    bad = int((~np.isfinite(tensor)).sum())
    if bad:
        raise InputError(
            f"{called} has {bad} values that are NaN or infinite",
            "download the checkpoint again; if it is your own, find the step that broke it",
        )


def _check_index(folder: Path, indexed: dict[str, Path], files: dict[str, Path]) -> None:
    """Index and shards name the same tensors in the same files."""
    for name in sorted(indexed.keys() | files.keys()):
        if files.get(name) != indexed.get(name):
            found, said = (
                each[name].relative_to(folder) if name in each else "no shard"
                for each in (files, indexed)
            )
            raise InputError(
                f"{folder}: tensor {name!r} is in {found}, but {INDEX} says {said}",
                "download the checkpoint again",
            )


def _shapes(file: safe_open) -> dict[str, tuple[int, ...]]:
    return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def _with_file(path: Path, use: Callable[[safe_open], T]) -> T:
    try:
        with safe_open(path, framework="numpy") as file:
            return use(file)
    except FileNotFoundError as error:
        raise InputError(f"weights file {path} is missing", "download it again") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"weights file {path} is damaged or cut short ({error})", "download it again"
        ) from error


def _bytes_of(path: Path, name: str) -> np.ndarray:
    """A tensor's bytes: the library gives NumPy no float8. It has checked the file's header."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        start, end = json.loads(file.read(size))[name]["data_offsets"]
        file.seek(8 + size + start)
        return np.frombuffer(file.read(end - start), np.uint8)


def _read_index(path: Path) -> dict[str, str]:
    content = read_json(path, "download it again")
    indexed = content.get("weight_map") if isinstance(content, dict) else None
    right = isinstance(indexed, dict) and all(isinstance(v, str) for v in indexed.values())
    if not right or not indexed:
        raise InputError(
            f"{path} is not a safetensors index: it has no weight_map from tensors to files",
            "download it again",
        )
    for name in indexed.values():
        if os.path.isabs(name) or ".." in Path(name).parts:
            raise InputError(f"{path} names a file outside of its folder: {name!r}", "correct it")
    return indexed


def _no_safetensors(folder: Path) -> InputError:
    if list(folder.glob("pytorch_model*.bin")):
        return InputError(
            f"{folder} has only pytorch_model.bin, a pickle, which can run code when it is opened",
            "convert it on a machine you trust: AutoModelForCausalLM.from_pretrained(folder)"
            ".save_pretrained(folder, safe_serialization=True)",
        )
    return InputError(
        f"{folder} has neither {SINGLE} nor {INDEX}", "point --model at a checkpoint's folder"
    )
