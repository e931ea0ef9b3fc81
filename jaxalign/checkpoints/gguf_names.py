"""llama.cpp's names of tensors, and those that the same tensors are published under."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from jaxalign.errors import InputError, shortened

NAME = re.compile(r"(?:blk\.(?P<layer>0|[1-9][0-9]{0,4})\.)?(?P<part>\w+)\.(?P<kind>weight|bias)")


@dataclass(frozen=True, kw_only=True)
class Spelling:
    """llama.cpp's names of a family's tensors, and the published ones.

    Attributes:
        outside: of the tensors outside of the blocks.
        layer: what the published names of a block begin with, with ``{layer}`` for its number.
        inside: of a block's tensors.
        passed_over: tensors of the file that are no parameters; the settings are read with them.
    """

    outside: Mapping[str, str]
    layer: str
    inside: Mapping[str, str]
    passed_over: tuple[str, ...] = ()

    def names(self, tensors: Iterable[str], where: str) -> dict[str, str]:
        """The names in the file by the published ones.

        Args:
            tensors: names in the file.
            where: the file, for messages.

        Raises:
            InputError: there is a tensor that the family does not have.
        """
        names: dict[str, str] = {}
        for name in tensors:
            if name in self.passed_over:
                continue
            published = self._published(name)
            if published is None or published in names:
                raise InputError(
                    f"{where}: tensor {shortened(repr(name), 60)} is not known",
                    "use a file that llama.cpp's converter made of a model of this architecture, "
                    "or the model's folder with config.json and safetensors",
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


def part_of(name: str) -> str:
    """What a tensor of a file is, whatever its layer: ``attn_q`` of ``blk.0.attn_q.weight``."""
    return name.split(".")[-2]
