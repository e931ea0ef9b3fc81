"""Tensors of a GGUF file under the names that they are published by, decoded when asked for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxalign.checkpoints.files import StateDict
from jaxalign.checkpoints.gguf_file import GGUFFile
from jaxalign.errors import InputError, shortened

NAME = re.compile(r"(?:blk\.(?P<layer>0|[1-9][0-9]{0,4})\.)?(?P<part>\w+)\.(?P<kind>weight|bias)")
# From a tensor's published name and what its blocks say to the tensor as it is published.
Arrange = Callable[[str, np.ndarray], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Spelling:
    """llama.cpp's names of a family's tensors, and the published ones.

    Attributes:
        outside: of the tensors outside of the blocks.
        layer: what the published names of a block begin with, with ``{layer}`` for its number.
        inside: of a block's tensors.
    """

    outside: Mapping[str, str]
    layer: str
    inside: Mapping[str, str]

    def names(self, file: GGUFFile, remedy: str) -> dict[str, str]:
        """The names in the file by the published ones.

        Args:
            file: whose tensors.
            remedy: for a file with a tensor that the family does not have.

        Raises:
            InputError: there is such a tensor.
        """
        names: dict[str, str] = {}
        for name in file.tensors:
            published = self._published(name)
            if published is None or published in names:
                raise InputError(
                    f"{file.path}: tensor {shortened(repr(name), 60)} is not known", remedy
                )
            names[published] = name
        return names

    def _published(self, name: str) -> str | None:
        found = NAME.fullmatch(name)
        if found is None:
            return None
        layer, part, kind = found.group("layer", "part", "kind")
        if layer is None:
            return f"{self.outside[part]}.{kind}" if part in self.outside else None
        block = self.layer.format(layer=layer)
        return f"{block}{self.inside[part]}.{kind}" if part in self.inside else None


def tensors_of(file: GGUFFile, names: Mapping[str, str], arrange: Arrange) -> StateDict:
    """The tensors of a file for ``load_params``; one at a time is in memory.

    Args:
        file: the file.
        names: those in the file by the published ones.
        arrange: puts the rows of a decoded tensor in their published order.
    """
    return _Tensors(_Decoded(file, names, arrange), str(file.path))


@dataclass(frozen=True)
class _Decoded(Mapping[str, Any]):
    file: GGUFFile
    names: Mapping[str, str]
    arrange: Arrange

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrange(name, self.file.decoded(self.names[name]))

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


class _Tensors(StateDict):
    """Tensors whose shapes are known before one is decoded."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor."""
        assert isinstance(self.files, _Decoded)
        tensors = self.files.file.tensors
        return {published: tensors[name].shape for published, name in self.files.names.items()}
