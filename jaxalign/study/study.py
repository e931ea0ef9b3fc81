"""A study: a question, how it is answered, and how the answer is shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from jaxalign.checkpoints import Model
from jaxalign.errors import require_type
from jaxalign.prompts import SINGLE, PromptKind, PromptSet
from jaxalign.study import records, result_file
from jaxalign.study.options import Common
from jaxalign.study.session import Session

O = TypeVar("O", bound=Common)  # noqa: E741 - options
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Study(Generic[O, R]):
    """One study.

    Attributes:
        name: the command, the file, and part of its format.
        question: one line, of the help and of the report.
        options: a frozen dataclass that inherits ``study.options.Common``; the command's flags
            come from its fields.
        result: a frozen dataclass with a field ``provenance``; the codec reads its type hints.
        run: answers the question.
        table: the answer as one screen of text, at most 100 columns and 35 lines.
        details: what ``--verbose`` prints after it; "" for nothing.
        figures: returns by file name what makes a page of a result; it is called to draw, so that
            matplotlib is not imported before.
        version: of the file.
        older: what reads files of older formats, ``(content, path) → result``, by format.
        examples: of the help: what is typed behind the command.
        prompts: the kind of prompts that it reads: single ones or pairs.
        beside: writes other files beside the result's, ``(session, result, path) → paths``.
    """

    name: str
    question: str
    options: type[O]
    result: type[R]
    run: Callable[[Session, O], R]
    table: Callable[[R], str]
    details: Callable[[R], str] = lambda result: ""
    figures: Callable[[], Mapping[str, Callable[[R], Any]]] = dict
    version: int = 1
    older: Mapping[str, Callable[[Any, Path], R]] = field(default_factory=dict)
    examples: tuple[str, ...] = ()
    prompts: PromptKind = SINGLE
    beside: Callable[[Session, R, Path], Sequence[Path]] | None = None

    def __post_init__(self) -> None:
        records.STUDY_OF.setdefault(self.result, self)

    @property
    def format(self) -> str:
        """What a file of this study begins with."""
        return f"jaxalign.{self.name}/{self.version}"

    def __call__(self, model: Model, prompts: PromptSet, options: Any = None, **session: Any) -> R:
        """Run the study in this process.

        Args:
            model: from ``jaxalign.load``, in f32.
            prompts: from ``jaxalign.read_prompts``; pairs from ``jaxalign.read_pairs``.
            options: the study's; its defaults by default.
            session: what else ``Session.open`` takes.

        Raises:
            InputError: model, prompts or options cannot be used.

        Example:
            >>> from jaxalign.studies import STUDIES
            >>> result = STUDIES["schemes"](jaxalign.load("demo"), jaxalign.read_prompts())
        """
        options = self.options() if options is None else options
        require_type("options", options, self.options, f"a {self.options.__name__}")
        with Session.open(
            self.format, model, prompts, options, kind=self.prompts, **session
        ) as opened:
            return self.run(opened, options)

    def write(self, result: R, path: Path | str) -> R:
        """Write a result; returns it as it will be read.

        Args:
            result: the study's.
            path: the file.

        Raises:
            InputError: it cannot be written.
        """
        return result_file.write(result, path, self.format)

    def draw(self, result: R, folder: Path) -> list[Path]:
        """Draw the figures of a result; returns the paths written.

        Args:
            result: the study's.
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
            InputError: no such file, or not one of this study's.
        """
        kinds = {self.format: self.result, **self.older}
        return result_file.read(path, kinds, f"run: jaxalign {self.name}")
