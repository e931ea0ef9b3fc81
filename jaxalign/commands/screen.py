"""What a command prints, and where: the answer on stdout, everything else as the user asks."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxalign.study.estimate import Taken
from jaxalign.study.kind import ResultKind
from jaxalign.study.records import content_of


@dataclass(frozen=True, kw_only=True)
class Screen:
    """How much a command says.

    Attributes:
        quiet: nothing but the answer: no progress, no lines about what runs and where files are.
        verbose: the answer is the screen and all details.
        json: the answer is one JSON object, alone on stdout.
    """

    quiet: bool = False
    verbose: bool = False
    json: bool = False

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> Screen:
        """The screen that the arguments ask for.

        Args:
            arguments: from ``parse``; of a command without these options, or of none.
        """
        names = ("quiet", "verbose", "json")
        return cls(**{name: bool(getattr(arguments, name, False)) for name in names})

    def say(self, text: str) -> None:
        """A line beside the answer."""
        if not self.quiet:
            print(text, file=sys.stderr if self.json else sys.stdout, flush=True)

    def answer(self, kind: ResultKind[Any], result: Any, output: Path) -> None:
        """The result.

        Args:
            kind: of the result.
            result: what is said.
            output: the file that has it.
        """
        if self.json:
            self.object({**content_of(kind, result), "file": str(output)})
            return
        details = kind.details(result) if self.verbose else ""
        blocks = [kind.table(result), *([details] if details else [])]
        print(("" if self.quiet else "\n") + "\n\n".join(blocks), flush=True)

    def estimate(self, taken: Taken) -> None:
        """What a study would take."""
        self.object(taken.content()) if self.json else print(taken.text(), flush=True)

    def object(self, content: dict[str, Any]) -> None:
        """One JSON object on a line of its own."""
        print(json.dumps(content, ensure_ascii=False, allow_nan=False), flush=True)
