"""What a folder of activations says of itself: ``manifest.json``."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from jaxalign.edits.points import POINTS
from jaxalign.errors import InputError, shown
from jaxalign.runtime.files import read_json, replace_file

KIND, VERSION = "jaxalign.activations", 1
MANIFEST = "manifest.json"
AGAIN = "run jaxalign extract again with the same options and this folder as --output"
# Names of the same types, in a manifest and in safetensors files.
DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


@dataclass(frozen=True, kw_only=True)
class ActivationFacts:
    """What decides the numbers of a folder of activations.

    Attributes:
        model: its name.
        revision: of the model, where it has one.
        weights_sha256: of the model's weight files.
        scheme: the precision's name.
        quantized_sha256: of the weight files of a checkpoint that another tool quantized.
        calibration_sha256: of the texts that the scheme was calibrated on, where it was.
        site: a name of ``edits.points.POINTS``, or "embed": what the first block reads.
        layers: of the site; 0 alone of the embedding.
        width: ``D``.
        dtype: of the numbers on disk.
        texts: what the texts are called, as they were named to the command.
        texts_sha256: of all texts that were given.
        documents: how many are read.
        windows: of the texts that are read.
        tokens: rows of all shards together.
        window, stride, bos: how texts were cut: ``prompts.Windows``.
        positions: "all" but the first of each window, or the "last" of each alone.
        shard_tokens: rows of every shard but the last.
        batch: windows of a call: in 16-bit floats a batch of another size has other last bits.
        device: that computed them.
        versions: of this package and of JAX.
        notes: what a reader has to know of them.
    """

    model: str
    revision: str | None
    weights_sha256: str
    scheme: str
    quantized_sha256: str | None
    calibration_sha256: str | None
    site: str
    layers: tuple[int, ...]
    width: int
    dtype: str
    texts: str
    texts_sha256: str
    documents: int
    windows: int
    tokens: int
    window: int
    stride: int
    bos: int | None
    positions: str
    shard_tokens: int
    batch: int
    device: str
    versions: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def shard_count(self) -> int:
        """Shards of the whole."""
        return -(-self.tokens // self.shard_tokens)

    @property
    def size(self) -> int:
        """Bytes that all shards take, but for their headers."""
        return self.tokens * (len(self.layers) * self.width * jnp.dtype(self.dtype).itemsize + 8)

    def rows_of(self, number: int) -> tuple[int, int]:
        """First row of a shard, and the row behind its last.

        Args:
            number: of the shard, from 0.
        """
        first = number * self.shard_tokens
        return first, min(first + self.shard_tokens, self.tokens)


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A file of rows.

    Attributes:
        file: its name in the folder.
        rows: how many it has.
        sha256: of the file.
        finite: whether no activation in it left the precision's range.
    """

    file: str
    rows: int
    sha256: str
    finite: bool


def shard_name(number: int) -> str:
    """The file of a shard.

    Args:
        number: from 0.
    """
    return f"shard-{number:05d}.safetensors"


def read_manifest(folder: Path) -> tuple[ActivationFacts, list[Shard | None]]:
    """What a folder says of itself; of a shard that is not finished None.

    Args:
        folder: with a manifest.

    Raises:
        InputError: there is none, or one that cannot be used.
    """
    path = folder / MANIFEST
    content = read_json(path, "give a folder that jaxalign extract wrote")
    kind, _, version = str(content.get("format") if isinstance(content, dict) else "").partition(
        "/"
    )
    if kind != KIND:
        raise InputError(
            f"{path} is of another format than {KIND}", "give a folder that jaxalign extract wrote"
        )
    if version != str(VERSION):
        raise InputError(
            f"{path} is of version {version[:20]!r}, and this program reads {VERSION}",
            "read it with the version of jaxalign that wrote it, or extract it again",
        )
    facts = _of(ActivationFacts, content.get("facts"), path)
    shards = content.get("shards")
    if not isinstance(shards, list) or len(shards) > facts.shard_count:
        raise InputError(
            f"{path}: shards is {shown(shards)}, expected a list of {facts.shard_count}", AGAIN
        )
    found = [None if one is None else _of(Shard, one, path) for one in shards]
    for number, shard in enumerate(found):
        first, last = facts.rows_of(number)
        expected = shard_name(number), last - first
        if shard is not None and (shard.file, shard.rows) != expected:
            raise InputError(
                f"{path}: shard {number} is {shard.file[:80]} of {shard.rows} rows, expected "
                f"{expected[0]} of {expected[1]}",
                AGAIN,
            )
    return facts, found


def write_manifest(folder: Path, facts: ActivationFacts, shards: Sequence[Shard | None]) -> None:
    """Write the manifest, whole or not at all.

    Args:
        folder: of the shards.
        facts: what they are.
        shards: in order; None for one that is not finished.

    Raises:
        InputError: it cannot be written.
    """
    content = {
        "format": f"{KIND}/{VERSION}",
        "facts": dataclasses.asdict(facts),
        "shards": [shard and dataclasses.asdict(shard) for shard in shards],
    }
    replace_file(folder / MANIFEST, (json.dumps(content, indent=1) + "\n").encode())


def _of(kind: Any, content: Any, path: Path) -> Any:
    """A dataclass of what a manifest says, every field there and of its type."""
    if not isinstance(content, dict):
        raise InputError(f"{path} has {shown(content)}, expected an object", AGAIN)
    hints = typing.get_type_hints(kind)
    if odd := [name for name in {**hints, **content} if (name in hints) != (name in content)]:
        raise InputError(
            f"{path}: {shown(odd[0])} is {'missing' if odd[0] in hints else 'not known'}", AGAIN
        )
    for name, hint in hints.items():
        if not _fits(content[name], hint):
            raise InputError(
                f"{path}: {name} is {shown(content[name])}, expected {_WORDS[str(hint)]}", AGAIN
            )
    sites = tuple(name for name, point in POINTS.items() if point.position and name != "logits")
    for name, known in (
        ("dtype", DTYPES), ("positions", ("all", "last")), ("site", ("embed", *sites)),
    ):  # fmt: skip
        if name in hints and content[name] not in known:
            raise InputError(
                f"{path}: {name} is {shown(content[name])}, expected {' or '.join(known)}", AGAIN
            )
    return kind(**{n: tuple(v) if isinstance(v, list) else v for n, v in content.items()})


_WORDS = {
    str(str): "a text",
    str(int): "a whole number above 0",
    str(bool): "true or false",
    str(str | None): "a text or null",
    str(int | None): "a whole number or null",
    str(tuple[int, ...]): "whole numbers, each once, rising",
    str(tuple[str, ...]): "texts",
}


def _fits(value: Any, hint: Any) -> bool:
    if isinstance(hint, types.UnionType):
        kind = typing.get_args(hint)[0]
        return value is None or (type(value) is kind and (kind is str or value >= 0))
    if typing.get_origin(hint) is tuple:
        kind = typing.get_args(hint)[0]
        right = isinstance(value, list) and all(type(one) is kind for one in value)
        return right and (kind is str or (bool(value) and value == sorted({*value})))
    return type(value) is hint and (hint is not int or value > 0)
