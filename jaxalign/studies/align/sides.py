"""Opens what ``align`` compares, and refuses what cannot be compared."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.checkpoints.activations import Activations, is_whole, open_activations
from jaxalign.checkpoints.activations.manifest import AGAIN, MANIFEST
from jaxalign.checkpoints.dictionaries import TrainedDictionary, open_dictionary
from jaxalign.engine.activations import place_name
from jaxalign.errors import InputError
from jaxalign.measures.alignment import Kind
from jaxalign.shapes import Float
from jaxalign.studies.align.options import TOKENS, AlignOptions
from jaxalign.studies.align.result import Side

# What two sets of activations have in common where their rows are the same tokens.
SAME = ("texts_sha256", "window", "stride", "bos", "positions")


@dataclass(frozen=True, kw_only=True)
class Sides:
    """What is compared.

    Attributes:
        kind: of all of them.
        first, second: f32 ``[rows, width]``.
        floor: the same, one a seed.
        described: the first, the second, and those of the floor.
        texts: of activations: which tokens.
        notes: what a reader of the result has to know.
    """

    kind: Kind
    first: Float[np.ndarray, "rows width"]
    second: Float[np.ndarray, "others width"]
    floor: tuple[Float[np.ndarray, "rows width"], ...]
    described: tuple[Side, ...]
    texts: dict[str, Any]
    notes: tuple[str, ...]


def open_sides(options: AlignOptions) -> Sides:
    """Open two dictionaries or two sets of activations, and those of the floor.

    Args:
        options: what they are called, and which part of them is compared.

    Raises:
        InputError: a folder of neither kind; activations of other tokens; a floor of
            other sizes, of another place, or that names one twice; an option without use.
    """
    names = [str(options.first), str(options.second), *options.floor]
    flags = ["--first", "--second", *["--floor"] * len(options.floor)]
    kinds = [kind_of(name) for name in names]
    for name, flag, kind in zip(names, flags, kinds, strict=True):
        if kind != kinds[0]:
            raise InputError(
                f"--first {names[0]} has {kinds[0]} and {flag} {name} {kind}",
                "compare two dictionaries or two sets of activations",
            )
    open_all = _dictionaries if kinds[0] == "dictionaries" else _activations
    values, described, texts = open_all(names, options)
    _check_floor(described, flags)
    first, second, *floor = values
    return Sides(
        kind=kinds[0],
        first=first,
        second=second,
        floor=tuple(floor),
        described=tuple(described),
        texts=texts,
        notes=tuple(_notes(described)),
    )


def kind_of(name: str) -> Kind:
    """What a folder has, by its files.

    Args:
        name: of the folder, or of one of the hub, which can only have a dictionary.
    """
    return "activations" if (Path(name).expanduser() / MANIFEST).is_file() else "dictionaries"


def _dictionaries(
    names: Sequence[str], options: AlignOptions
) -> tuple[list[np.ndarray], list[Side], dict[str, Any]]:
    for flag, value in (("--layer", options.layer), ("--tokens", options.tokens)):
        if value is not None:
            raise InputError(
                f"{flag} is of activations, and these are dictionaries", "leave it out"
            )
    part = options.of or "encoder"
    opened = [_dictionary(name) for name in names]
    values = [
        np.asarray(one.dictionary.encoder, np.float32).T
        if part == "encoder"
        else np.asarray(one.dictionary.decoder, np.float32)
        for one in opened
    ]
    described = [
        Side(
            name=name,
            what=f"{one.dictionary.kind}, {part}",
            sha256=one.facts.sha256,
            rows=value.shape[0],
            width=value.shape[1],
            model=one.facts.model,
            weights_sha256=one.facts.weights_sha256,
            place=one.facts.site,
            seed=_seed(one),
        )
        for name, one, value in zip(names, opened, values, strict=True)
    ]
    return values, described, {}


def _seed(one: TrainedDictionary) -> int | None:
    """The seed that a training of ours began at; None where the files do not say."""
    options = one.facts.training.get("options")
    seed = options.get("seed") if isinstance(options, dict) else None
    return seed if isinstance(seed, int) else None


def _dictionary(name: str) -> TrainedDictionary:
    try:
        return open_dictionary(name)
    except InputError as error:
        if "in a layout that is known here" not in error.problem:
            raise
        raise InputError(
            f"{error.problem}, and no {MANIFEST} of activations",
            f"{error.remedy}; or what jaxalign extract wrote",
        ) from error


def _activations(
    names: Sequence[str], options: AlignOptions
) -> tuple[list[np.ndarray], list[Side], dict[str, Any]]:
    if options.of is not None:
        raise InputError("--of is of dictionaries, and these are activations", "leave it out")
    opened = [open_activations(Path(name).expanduser()) for name in names]
    limit = min(options.tokens or TOKENS, *(one.tokens for one in opened))
    for one in opened:
        _check_shards(one, limit)
    _check_tokens(opened, limit)
    values, described = [], []
    for name, one in zip(names, opened, strict=True):
        layer = _layer(one, options.layer)
        facts, value = one.facts, one.matrix(layer, limit=limit)
        step = layer + (facts.site == "resid")
        values.append(value)
        described.append(
            Side(
                name=name,
                what=facts.scheme,
                sha256=hashlib.sha256(value.tobytes()).hexdigest(),
                rows=value.shape[0],
                width=value.shape[1],
                model=facts.model,
                weights_sha256=facts.weights_sha256,
                place="embeddings" if facts.site == "embed" else place_name((facts.site, step)),
            )
        )
    facts = opened[0].facts
    texts = {"texts": facts.texts, **{name: getattr(facts, name) for name in SAME}}
    return values, described, texts


def _layer(one: Activations, asked: int | None) -> int:
    if asked is None and len(one.layers) > 1:
        raise InputError(
            f"{one.folder} has layers {', '.join(map(str, one.layers))}", "choose one with --layer"
        )
    [layer, *_] = one.layers
    return layer if asked is None else asked


def _check_tokens(opened: Sequence[Activations], limit: int) -> None:
    """Refuse activations whose rows are not the same tokens, naming what differs."""
    first = opened[0]
    for other in opened[1:]:
        for name in SAME:
            one, two = getattr(first.facts, name), getattr(other.facts, name)
            if one != two:
                raise InputError(
                    f"{first.folder} has {name} {str(one)[:16]} and {other.folder} {str(two)[:16]}"
                    ", so their rows are not the same tokens",
                    "extract both from the same texts with the same options",
                )
        for name in ("documents", "positions"):
            if not np.array_equal(getattr(first, name)[:limit], getattr(other, name)[:limit]):
                raise InputError(
                    f"{first.folder} and {other.folder} have other {name} in the same rows, so "
                    "their tokenizers cut the texts differently",
                    "compare models that share a tokenizer",
                )


def _check_shards(one: Activations, limit: int) -> None:
    """Hold the shards whose rows are compared against their checksums."""
    for number, shard in enumerate(one.shards):
        if one.facts.rows_of(number)[0] < limit and not is_whole(one.folder, shard):
            raise InputError(
                f"{one.folder / shard.file} has another checksum than {MANIFEST} says", AGAIN
            )


def _check_floor(described: Sequence[Side], flags: Sequence[str]) -> None:
    first, _, *floor = described
    for side in floor:
        if (side.rows, side.width) != (first.rows, first.width):
            raise InputError(
                f"--floor {side.name} is [{side.rows}, {side.width}] and --first [{first.rows}, "
                f"{first.width}], and every measure depends on sizes",
                "give a floor of the same sizes",
            )
        if side.place != first.place:
            raise InputError(
                f"--floor {side.name} is at {side.place} and --first at {first.place}",
                "give a floor of the same place",
            )
    hashes = [side.sha256 for side in floor]
    for side in floor:
        if hashes.count(side.sha256) > 1:
            raise InputError(
                f"--floor {side.name} is there twice, and a seed is no other seed than itself",
                "name each seed once",
            )


def _notes(described: Sequence[Side]) -> list[str]:
    """What makes a comparison another one than it may seem."""
    first, second, *floor = described
    notes = []
    if first.seed is not None and first.seed == second.seed:
        notes.append(
            f"both trainings began at seed {first.seed}: much of what they share may be that "
            "beginning; hold it against one of train-sae --steps 1"
        )
    for one in (second, *floor):
        for what in ("model", "place"):
            here, there = getattr(first, what), getattr(one, what)
            if here != there:
                notes.append(f"{one.name} is of {what} {there}, {first.name} of {here}")
    return notes
