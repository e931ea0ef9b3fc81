"""A kind of result: how it is written and read, its screen and its figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from jaxalign.study import records, result_file

R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class ResultKind(Generic[R]):
    """A kind of result. A study has one; so has a comparison that runs no model.

    Attributes:
        name: the command, the file, and part of its format.
        result: a frozen dataclass with a field ``provenance``; the codec reads its type hints.
        table: the answer as one screen of text, at most 100 columns and 35 lines.
        details: what ``--verbose`` prints after it; "" for nothing.
        figures: returns by file name what makes a page of a result; it is called to draw, so that
            matplotlib is not imported before.
        version: of the file.
        older: what reads files of older formats, ``(content, path) → result``, by format.
    """

    name: str
    result: type[R]
    table: Callable[[R], str]
    details: Callable[[R], str] = lambda result: ""
    figures: Callable[[], Mapping[str, Callable[[R], Any]]] = dict
    version: int = 1
    older: Mapping[str, Callable[[Any, Path], R]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        records.KIND_OF.setdefault(self.result, self)

    @property
    def format(self) -> str:
        """What a file of this kind begins with."""
        return f"jaxalign.{self.name}/{self.version}"

    def write(self, result: R, path: Path | str) -> R:
        """Write a result; returns it as it will be read.

        Args:
            result: of this kind.
            path: the file.

        Raises:
            InputError: it cannot be written.
        """
        return result_file.write(result, path, self.format)

    def draw(self, result: R, folder: Path) -> list[Path]:
        """Draw the figures of a result; returns the paths written.

        Args:
            result: of this kind.
            folder: made where it is missing.

        Raises:
            InputError: the folder cannot be written.
        """
        from jaxalign.plots import draw  # matplotlib takes a second

        return draw(self.figures(), result, folder)

    def read(self, path: Path | str) -> R:
        """Read a result, of an older format, too.

        Args:
            path: the file.

        Raises:
            InputError: no such file, or not one of this kind.
        """
        kinds = {self.format: self.result, **self.older}
        return result_file.read(path, kinds, f"run: jaxalign {self.name}")
