"""Tensors of a GGUF file under the names and in the order of rows that they are published in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxalign.checkpoints.files import StateDict
from jaxalign.checkpoints.gguf_architectures import Architecture
from jaxalign.checkpoints.gguf_file import GGUFFile
from jaxalign.checkpoints.gguf_names import part_of
from jaxalign.model.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Published(Mapping[str, Any]):
    """Tensors by their published names; one is decoded when it is asked for.

    Attributes:
        file: the file.
        names: those in the file by the published ones.
        architecture: of the file.
        config: of the model.
    """

    file: GGUFFile
    names: Mapping[str, str]
    architecture: Architecture
    config: ModelConfig

    def __getitem__(self, name: str) -> np.ndarray:
        stored = self.names[name]
        tensor = self._ordered(stored, self.file.decoded(stored))
        norm = part_of(stored).endswith("norm") and stored.endswith(".weight")
        if not norm:
            return tensor
        with np.errstate(invalid="ignore"):  # what is not finite is refused where it is used
            return tensor - np.float32(self.architecture.norms_add)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def kind(self, name: str) -> str:
        """The block type of a tensor."""
        return str(self.file.tensors[self.names[name]].kind.name)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self.file.tensors[self.names[name]].shape

    def blocks(self, name: str) -> np.ndarray:
        """A matrix as it is stored, uint8 ``[out, blocks, bytes]``.

        Args:
            name: as published.
        """
        return self._ordered(self.names[name], self.file.blocks(self.names[name]))

    def _ordered(self, stored: str, rows: np.ndarray) -> np.ndarray:
        order = self.architecture.order(part_of(stored), len(rows), self.config)
        return rows if order is None else rows[order]


def published(file: GGUFFile, architecture: Architecture, config: ModelConfig) -> Published:
    """The tensors of a file.

    Args:
        file: the file.
        architecture: of the file.
        config: of the model.

    Raises:
        InputError: there is a tensor that the architecture does not have.
    """
    names = architecture.spelling.names(file.tensors, str(file.path))
    return Published(file=file, names=names, architecture=architecture, config=config)


class GGUFTensors(StateDict):
    """``Published`` tensors for ``load_params``; shapes are known before one is decoded."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor."""
        assert isinstance(self.files, Published)
        return {name: self.files.shape(name) for name in self.files}
