"""Activations of a folder, read row by row where they are."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.checkpoints.activations.manifest import (
    AGAIN,
    MANIFEST,
    ActivationFacts,
    Shard,
    read_manifest,
)
from jaxalign.checkpoints.activations.shards import DOCUMENT, POSITION, is_whole, mapped
from jaxalign.errors import InputError
from jaxalign.shapes import Float, Int


@dataclass(frozen=True, kw_only=True, eq=False)
class Activations:
    """A folder of activations; rows are read when they are asked for, and not kept.

    Attributes:
        folder: where they are.
        facts: what they are.
        shards: the files, in order.
    """

    folder: Path
    facts: ActivationFacts
    shards: tuple[Shard, ...]
    _maps: dict[int, dict[str, np.ndarray]] = field(default_factory=dict, init=False, repr=False)

    @property
    def tokens(self) -> int:
        """How many rows there are."""
        return self.facts.tokens

    @property
    def layers(self) -> tuple[int, ...]:
        """Which layers there are."""
        return self.facts.layers

    @functools.cached_property
    def documents(self) -> Int[np.ndarray, " tokens"]:
        """The document of each row, from 0, in the order of the texts that are long enough."""
        return np.concatenate([self._map(i)[DOCUMENT] for i in range(len(self.shards))])

    @functools.cached_property
    def positions(self) -> Int[np.ndarray, " tokens"]:
        """The place of each row's token in its document, from 0."""
        return np.concatenate([self._map(i)[POSITION] for i in range(len(self.shards))])

    def rows(
        self, layer: int, indices: Int[np.ndarray, " rows"] | Sequence[int]
    ) -> Float[np.ndarray, "rows D"]:
        """Some rows of a layer, f32, in the order asked for.

        Args:
            layer: of ``layers``.
            indices: numbers of rows, from 0; each as often as it is named.

        Raises:
            InputError: there is no such layer, or a shard was changed or removed.
            IndexError: there is no such row.
        """
        name, wanted = self._name(layer), np.asarray(indices, np.int64).reshape(-1)
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < self.tokens):
            raise IndexError(f"rows {wanted.min()} … {wanted.max()} of {self.tokens}")
        out = np.empty((len(wanted), self.facts.width), np.float32)
        order = np.argsort(wanted, kind="stable")  # a file is read from its beginning to its end
        ends = np.searchsorted(wanted[order], self._ends)
        for number, (low, high) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            if low < high:
                own = order[low:high]
                out[own] = self._map(number)[name][wanted[own] - self.facts.rows_of(number)[0]]
        return out

    def matrix(self, layer: int, limit: int | None = None) -> Float[np.ndarray, "tokens D"]:
        """The rows of a layer in memory, f32.

        Args:
            layer: of ``layers``.
            limit: the first so many at most; all by default.

        Raises:
            InputError: there is no such layer, or a shard was changed or removed.
        """
        return self.rows(
            layer, np.arange(self.tokens if limit is None else min(limit, self.tokens))
        )

    def source(self, layer: int, chosen: Int[np.ndarray, " chosen"] | None = None) -> LayerRows:
        """A layer as ``dictionaries.fit`` reads it.

        Args:
            layer: of ``layers``.
            chosen: numbers of the rows that there are; all by default.

        Raises:
            InputError: there is no such layer.
        """
        self._name(layer)
        return LayerRows(activations=self, layer=layer, chosen=chosen)

    def check(self) -> None:
        """Hold every shard against its checksum.

        Raises:
            InputError: names the first that has another.
        """
        for shard in self.shards:
            if not is_whole(self.folder, shard):
                raise InputError(
                    f"{self.folder / shard.file} has another checksum than {MANIFEST} says", AGAIN
                )

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([shard.rows for shard in self.shards])

    def _name(self, layer: int) -> str:
        if layer not in self.layers:
            raise InputError(
                f"{self.folder} has no layer {layer}",
                f"give one of {', '.join(map(str, self.layers))}",
            )
        return f"layer.{layer}"

    def _map(self, number: int) -> dict[str, np.ndarray]:
        if number not in self._maps:
            self._maps[number] = mapped(self.folder / self.shards[number].file, self.facts, number)
        return self._maps[number]


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerRows:
    """Rows of one layer, read when they are asked for: ``rows[numbers]`` is f32 ``[numbers, D]``.

    Attributes:
        activations: the folder.
        layer: of it.
        chosen: numbers of the rows that there are; None for all.
    """

    activations: Activations
    layer: int
    chosen: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and width, as an array has them."""
        count = self.activations.tokens if self.chosen is None else len(self.chosen)
        return count, self.activations.facts.width

    def __getitem__(self, index: Any) -> np.ndarray:
        """Rows by a slice or by their numbers."""
        if isinstance(index, slice):
            index = np.arange(*index.indices(self.shape[0]))
        own = index if self.chosen is None else self.chosen[index]
        return self.activations.rows(self.layer, own)


def open_activations(folder: Path | str, *, check: bool = False) -> Activations:
    """Open what ``jaxalign extract`` wrote: every file is there and has the shapes it should.

    Args:
        folder: with a manifest.
        check: whether every shard is held against its checksum, too, which reads all of them.

    Raises:
        InputError: no manifest, one of another version or that says otherwise than the shards, an
            extraction that was not finished, or a shard that is damaged; names the file.

    Example:
        >>> found = open_activations("results/activations")
        >>> found.matrix(3, limit=1000).shape
        (1000, 128)
    """
    folder = Path(folder)
    facts, shards = read_manifest(folder)
    if len(shards) < facts.shard_count or any(shard is None for shard in shards):
        there = sum(shard is not None for shard in shards)
        raise InputError(
            f"{folder} has {there} of {facts.shard_count} shards: its extraction has not ended",
            AGAIN,
        )
    found = Activations(folder=folder, facts=facts, shards=tuple(s for s in shards if s))
    for number in range(len(shards)):
        found._map(number)
    if check:
        found.check()
    return found
