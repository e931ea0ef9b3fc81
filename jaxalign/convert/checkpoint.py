"""Published weight files: which tensors a folder holds, checked before one is used."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxalign.errors import InputError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = ("F16", "BF16", "F32")
FLOAT8 = {"F8_E4M3": jnp.float8_e4m3fn, "F8_E5M2": jnp.float8_e5m2}


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a folder: ``files`` maps a tensor's name to the file that holds it."""

    folder: Path
    files: dict[str, Path]
    shapes: dict[str, tuple[int, ...]]

    def read(self, name: str) -> np.ndarray:
        """One tensor as it is on disk (the file is memory-mapped, only this tensor is copied).

        Raises:
            InputError: the file is damaged, or the tensor is of another type than f16, bf16 or
                f32, or holds NaN or infinity.
        """
        dtype = _with_file(self.files[name], lambda file: file.get_slice(name).get_dtype())
        if dtype not in DTYPES:
            raise InputError(
                f"{self.files[name]}: tensor {name!r} is of type {dtype}, expected one of "
                f"{', '.join(DTYPES)}",
                "use a checkpoint whose weights are not quantized or packed",
            )
        tensor = _with_file(self.files[name], lambda file: file.get_tensor(name))
        _check_finite(tensor, f"{self.files[name]}: tensor {name!r}")
        return tensor

    def stored(self, name: str, types: Sequence[str]) -> np.ndarray:
        """One tensor as it is on disk, of any type that quantized weights are stored in.

        Args:
            types: the types it may have, by their safetensors names (``I32``, ``F8_E4M3``).

        Raises:
            InputError: the file is damaged, or the tensor is of another type.
        """
        path = self.files[name]
        dtype = _with_file(path, lambda file: file.get_slice(name).get_dtype())
        if dtype not in types:
            raise InputError(
                f"{path}: tensor {name!r} is of type {dtype}, expected {' or '.join(types)}",
                "use the file as the quantizing tool wrote it",
            )
        if dtype in FLOAT8:
            return _bytes_of(path, name).view(FLOAT8[dtype]).reshape(self.shapes[name])
        return _with_file(path, lambda file: file.get_tensor(name))

    def sha256(self) -> str:
        """Hash of the weight files, in the order of their names."""
        return sha256_of(sorted(set(self.files.values())))


@dataclass(frozen=True)
class StateDict:
    """Tensors in memory under their published names, to be read as a ``Checkpoint``'s are."""

    files: Mapping[str, Any]
    folder: str = "the state dict"

    @property
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


def open_checkpoint(folder: Path, single: str = SINGLE) -> Checkpoint:
    """List a folder's tensors, from one safetensors file or from the shards of an index.

    Args:
        folder: the checkpoint's.
        single: the name of the one file; its index is called after it.

    Raises:
        InputError: no safetensors, a damaged or missing file, a tensor in two shards, or an
            index that says otherwise than its shards.
    """
    if (index := folder / f"{single}.index.json").is_file():
        indexed = _read_index(index)
        paths = sorted({folder / name for name in indexed.values()})
    elif (folder / single).is_file():
        indexed, paths = None, [folder / single]
    else:
        raise _no_safetensors(folder)
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
        _check_index(folder, indexed, files)
    return Checkpoint(folder, files, shapes)


def _check_finite(tensor: np.ndarray, called: str) -> None:
    bad = int((~np.isfinite(tensor)).sum())
    if bad:
        raise InputError(
            f"{called} has {bad} values that are NaN or infinite",
            "download the checkpoint again; if it is your own, find the step that broke it",
        )


def _check_index(folder: Path, indexed: dict[str, str], files: dict[str, Path]) -> None:
    """Index and shards name the same tensors in the same files."""
    for name in sorted(indexed.keys() | files.keys()):
        found = files[name].name if name in files else "no shard"
        said = indexed.get(name, "no shard")
        if found != said:
            raise InputError(
                f"{folder}: tensor {name!r} is in {found}, but {INDEX} says {said}",
                "download the checkpoint again",
            )


def _shapes(file: safe_open) -> dict[str, tuple[int, ...]]:
    return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def _with_file(path: Path, use):  # type: ignore[no-untyped-def]
    try:
        with safe_open(path, framework="numpy") as file:
            return use(file)
    except FileNotFoundError as error:
        raise InputError(f"weights file {path} is missing", "download it again") from error
    except (SafetensorError, OSError) as error:
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
    try:
        indexed = json.loads(path.read_text())["weight_map"]
        if not isinstance(indexed, dict) or not all(isinstance(v, str) for v in indexed.values()):
            raise TypeError("its weight_map does not map tensors to files")
        return indexed
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path} is not a safetensors index ({error})", "download it again"
        ) from error


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
