"""A GGUF file's head, read within the file's bounds: its settings, and where each tensor stands.

Little-endian: ``GGUF``, a u32 version, u64 counts of tensors and of settings; per setting a text, a
u32 type and a value; per tensor a text, its dimensions (fastest first), a u32 block type and a u64
offset; then, aligned, the tensors' data, one after the other in the order of the head. A text is a
u64 length and UTF-8 bytes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.checkpoints.files import check_unchanged, state_of
from jaxalign.errors import InputError

MAGIC, VERSIONS = b"GGUF", (2, 3)
MOST_DIMENSIONS = 4
SCALARS = {0: "u1", 1: "i1", 2: "u2", 3: "i2", 4: "u4", 5: "i4", 6: "f4", 7: "?", 10: "u8",
           11: "i8", 12: "f8"}  # fmt: skip
TEXT, ARRAY = 8, 9


def is_gguf(path: Path) -> bool:
    """Whether a file can be read and begins as a GGUF file does, whatever its name."""
    try:
        with open(path, "rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """Where a tensor stands in a file.

    Attributes:
        shape: slowest dimension first.
        kind: a ``gguf.GGMLQuantizationType``.
        start: its first byte in the file.
        size: bytes.
    """

    shape: tuple[int, ...]
    kind: Any
    start: int
    size: int


@dataclass(frozen=True, kw_only=True)
class GGUFFile:
    """A GGUF file whose head has been checked.

    Attributes:
        path: the file.
        settings: what it says of the model, by key: numbers, texts, truth values, lists.
        tensors: by their names.
        data: uint8, the whole file, memory-mapped.
        state: ``files.state_of`` it when it was opened.
    """

    path: Path
    settings: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    data: np.ndarray
    state: tuple[int, int, int, int]

    def sha256(self) -> str:
        """Hash of the file that the tensors were decoded from.

        Raises:
            InputError: it was replaced or written since it was opened.
        """
        digest = hashlib.sha256(self.data.data).hexdigest()
        check_unchanged(self.path, self.state)
        return digest

    def blocks(self, name: str) -> np.ndarray:
        """One matrix as it is stored, uint8 ``[rows, blocks, bytes]``."""
        import gguf

        tensor = self.tensors[name]
        stored = self.data[tensor.start : tensor.start + tensor.size]
        return stored.reshape(tensor.shape[0], -1, gguf.GGML_QUANT_SIZES[tensor.kind][1])

    def decoded(self, name: str) -> np.ndarray:
        """One tensor, f32.

        Raises:
            InputError: its block type is not decoded by the ``gguf`` package.
        """
        import gguf

        tensor = self.tensors[name]
        stored = self.data[tensor.start : tensor.start + tensor.size]
        try:
            with np.errstate(all="ignore"):  # what is not finite is refused by its name later
                values = gguf.dequantize(stored.reshape(*tensor.shape[:-1], -1), tensor.kind)
        except NotImplementedError as error:
            raise InputError(
                f"{self.path}: tensor {name!r} is of type {tensor.kind.name}, which the gguf "
                "package does not decode",
                "update the package, or quantize to another type",
            ) from error
        return values.astype(np.float32).reshape(tensor.shape)


def open_gguf(path: Path) -> GGUFFile:
    """Read the head of a GGUF file.

    Raises:
        InputError: the ``gguf`` package is not installed, or the file is damaged: a text that is
            not UTF-8, a length beyond its end, tensors that overlap or leave gaps.
    """
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"{path} is a GGUF file, which needs the gguf package",
            "install it: pip install 'jaxalign[gguf]'",
        ) from error
    state = state_of(path)
    try:
        with path.open("rb") as file:
            whole = state[2]
            data = np.memmap(file, np.uint8, "r") if whole else np.zeros(0, np.uint8)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", "check it") from error
    head = _Head(path, data)
    if bytes(head.take(4)) != MAGIC:
        raise head.damaged("it does not begin with GGUF")
    if (version := head.number("u4")) not in VERSIONS:
        raise head.damaged(f"version {version}, expected {' or '.join(map(str, VERSIONS))}")
    tensors, count = head.number("u8"), head.number("u8")
    settings = head.named(count, "setting", lambda: head.value(head.number("u4")))
    described = head.named(tensors, "tensor", head.tensor)
    placed = head.placed(described, settings)
    return GGUFFile(path=path, settings=settings, tensors=placed, data=data, state=state)


class _Head:
    """A position in the head of a file; nothing is read beyond the file's end."""

    def __init__(self, path: Path, data: np.ndarray) -> None:
        # A vocabulary is 100 000 texts: a slice of a memoryview takes a tenth of an array's time.
        self.path, self.data, self.at, self.bytes = path, data, 0, data.data

    def damaged(self, why: str) -> InputError:
        return InputError(f"{self.path} is damaged or no GGUF file ({why})", "download it again")

    def take(self, size: int) -> memoryview:
        """The next bytes."""
        if size > self.data.size - self.at:
            raise self.damaged(f"{size} bytes at {self.at}, but it has {self.data.size}")
        self.at += size
        return self.bytes[self.at - size : self.at]

    def numbers(self, kind: str, count: int) -> list[Any]:
        size = np.dtype(kind).itemsize
        return np.frombuffer(self.take(size * count), f"<{kind}" if size > 1 else kind).tolist()

    def number(self, kind: str) -> Any:
        return self.numbers(kind, 1)[0]

    def text(self) -> str:
        raw = bytes(self.take(int.from_bytes(self.take(8), "little")))
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise self.damaged(f"a text of {len(raw)} bytes that is not UTF-8") from error

    def value(self, kind: int) -> Any:
        """A setting's value."""
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == TEXT:
            return self.text()
        if kind != ARRAY:
            raise self.damaged(f"a setting of the type {kind}")
        kind, count = self.number("u4"), self.number("u8")
        if kind in SCALARS:
            return self.numbers(SCALARS[kind], count)
        if kind != TEXT:
            raise self.damaged(f"a list of the type {kind}")
        return [self.text() for _ in range(count)]

    def named(self, count: int, what: str, read: Any) -> dict[str, Any]:
        """Some entries, each after its name.

        Args:
            count: how many.
            what: what an entry is called, for messages.
            read: reads one.
        """
        found: dict[str, Any] = {}
        for _ in range(count):
            name = self.text()
            if name in found:
                raise self.damaged(f"two {what}s are called {name!r}")
            found[name] = read()
        return found

    def tensor(self) -> tuple[tuple[int, ...], Any, int, int]:
        """The shape of a tensor, its block type, its offset and its bytes."""
        import gguf

        count = self.number("u4")
        if not 1 <= count <= MOST_DIMENSIONS:
            raise self.damaged(f"a tensor of {count} dimensions")
        shape = tuple(reversed(self.numbers("u8", count)))
        number, offset = self.number("u4"), self.number("u8")
        try:
            kind = gguf.GGMLQuantizationType(number)
        except ValueError as error:
            raise self.damaged(f"a tensor of the block type {number}") from error
        block, size = gguf.GGML_QUANT_SIZES[kind]
        if shape[-1] % block or 0 in shape:
            raise self.damaged(f"a tensor of shape {list(shape)} in blocks of {block}")
        return shape, kind, offset, math.prod(shape) // block * size

    def placed(self, described: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
        """Tensors whose data follow each other, aligned, to the end of the file."""
        alignment = settings.get("general.alignment", 32)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise self.damaged(f"general.alignment is {alignment!r}, expected a power of two")
        first, expected, found = _aligned(self.at, alignment), 0, {}
        for name, (shape, kind, offset, size) in described.items():
            if offset != expected:
                raise self.damaged(f"tensor {name!r} begins at {offset}, expected {expected}")
            if first + offset + size > self.data.size:
                raise self.damaged(f"tensor {name!r} ends behind the end of the file")
            found[name] = Tensor(shape=shape, kind=kind, start=first + offset, size=size)
            expected = _aligned(offset + size, alignment)
        return found


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment
