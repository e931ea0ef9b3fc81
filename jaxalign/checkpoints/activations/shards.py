"""The files of a folder of activations: written whole, mapped into memory to be read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from jaxalign.checkpoints.activations.manifest import (
    AGAIN,
    DTYPES,
    MANIFEST,
    ActivationFacts,
    Shard,
    shard_name,
)
from jaxalign.checkpoints.files import sha256_of
from jaxalign.errors import InputError, shown
from jaxalign.runtime.files import replace_file
from jaxalign.shapes import Float, Int

DOCUMENT, POSITION = "document", "position"


def write_shard(
    folder: Path,
    number: int,
    layers: Mapping[int, Float[np.ndarray, "rows D"]],
    documents: Int[np.ndarray, " rows"],
    positions: Int[np.ndarray, " rows"],
) -> Shard:
    """Write a shard, whole or not at all; returns what the manifest says of it.

    Args:
        folder: of the shards.
        number: of the shard, from 0.
        layers: activations by layer, of the dtype that the manifest names.
        documents: the document of each row.
        positions: the place of each row's token in its document.

    Raises:
        InputError: it cannot be written.
    """
    tensors = {f"layer.{layer}": np.ascontiguousarray(rows) for layer, rows in layers.items()}
    tensors |= {DOCUMENT: documents.astype(np.int32), POSITION: positions.astype(np.int32)}
    content = save(tensors, metadata={"format": "pt"})
    replace_file(folder / shard_name(number), content)
    sha256 = hashlib.sha256(content).hexdigest()
    finite = all(bool(np.isfinite(rows).all()) for rows in layers.values())
    return Shard(file=shard_name(number), rows=len(documents), sha256=sha256, finite=finite)


def is_whole(folder: Path, shard: Shard) -> bool:
    """Whether a shard's file is there and has its checksum.

    Args:
        folder: of the shards.
        shard: as the manifest has it.
    """
    try:
        return sha256_of([folder / shard.file]) == shard.sha256
    except OSError:
        return False


def mapped(path: Path, facts: ActivationFacts, number: int) -> dict[str, np.ndarray]:
    """The arrays of a shard, mapped into memory: what is not looked at is not read.

    Args:
        path: the file.
        facts: of the folder.
        number: of the shard, from 0.

    Raises:
        InputError: it is missing, damaged, or not what the facts say.
    """
    first, last = facts.rows_of(number)
    rows, width = last - first, facts.width
    expected: dict[str, tuple[str, tuple[int, ...]]] = {
        f"layer.{n}": (DTYPES[facts.dtype], (rows, width)) for n in facts.layers
    }
    expected |= dict.fromkeys((DOCUMENT, POSITION), ("I32", (rows,)))
    try:
        with safe_open(path, framework="numpy") as file:  # refuses a file that was cut short
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            found = {n: (s.get_dtype(), tuple(s.get_shape())) for n, s in slices.items()}
        if found != expected:
            name = next(n for n in {**expected, **found} if expected.get(n) != found.get(n))
            raise InputError(
                f"{path}: {shown(name)} is {_words(found.get(name))}, and {MANIFEST} says "
                f"{_words(expected.get(name))}",
                AGAIN,
            )
        with path.open("rb") as raw:
            start = int.from_bytes(raw.read(8), "little")
            header = json.loads(raw.read(start))
        whole = np.memmap(path, np.uint8, mode="r")
    except InputError:
        raise
    except (SafetensorError, OSError, ValueError) as error:
        why = "is missing" if isinstance(error, FileNotFoundError) else f"is damaged ({error})"
        raise InputError(f"{path} {why}", AGAIN) from error
    dtypes = {"I32": np.dtype(np.int32)} | {n: jnp.dtype(name) for name, n in DTYPES.items()}
    out = {}
    for name, (dtype, shape) in expected.items():
        low, high = header[name]["data_offsets"]
        out[name] = whole[8 + start + low : 8 + start + high].view(dtypes[dtype]).reshape(shape)
    return out


def _words(found: tuple[str, tuple[int, ...]] | None) -> str:
    return "not there" if found is None else f"{found[0]} {list(found[1])}"
