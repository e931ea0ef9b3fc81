"""A study: a question, how it is answered, and how the answer is shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from jaxalign.checkpoints import Model
from jaxalign.errors import require_type
from jaxalign.prompts import SINGLE, PromptKind, PromptSet
from jaxalign.study.kind import ResultKind
from jaxalign.study.options import Common
from jaxalign.study.session import Session

O = TypeVar("O", bound=Common)  # noqa: E741 - options
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Study(ResultKind[R], Generic[O, R]):
    """One study: a kind of result, and what makes one of a model and prompts.

    Attributes:
        question: one line, of the help and of the report.
        options: a frozen dataclass that inherits ``study.options.Common``; the command's flags
            come from its fields.
        run: answers the question.
        examples: of the help: what is typed behind the command.
        prompts: the kind of prompts that it reads: single ones or pairs.
        beside: writes other files beside the result's, ``(session, result, path) → paths``.
    """

    question: str
    options: type[O]
    run: Callable[[Session, O], R]
    examples: tuple[str, ...] = ()
    prompts: PromptKind = SINGLE
    beside: Callable[[Session, R, Path], Sequence[Path]] | None = None

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
