"""What a command does with a result that is written: print it, draw it, say where the files are."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxalign.commands.screen import Screen
from jaxalign.runtime.messages import note
from jaxalign.runtime.progress import Progress
from jaxalign.study.kind import ResultKind


def report(
    kind: ResultKind[Any],
    result: Any,
    arguments: argparse.Namespace,
    screen: Screen,
    beside: Sequence[Path],
) -> None:
    """Print the answer, say where the files are, and draw the figures.

    Args:
        kind: of the result.
        result: as its file has it.
        arguments: output and no_figures.
        screen: how much is said.
        beside: other files that were written.

    Raises:
        InputError: a figure cannot be written.
    """
    output = arguments.output
    screen.answer(kind, result, output)
    screen.say(f"\nresult: {output}")
    for path in beside:
        screen.say(str(path))
    if arguments.no_figures:
        return
    if others := _results_beside(kind, output):
        note(f"figures of {', '.join(others)} in the same folder are drawn over")
    with Progress(not screen.quiet).phase("figures"):
        drawn = kind.draw(result, output.parent / "figures")
    if drawn:
        screen.say(f"figures: {output.parent / 'figures'}")


def _results_beside(kind: ResultKind[Any], output: Path) -> list[str]:
    """Other results of the kind in an output's folder, whose figures have the same names."""
    drawn = os.path.isdir(output.parent / "figures")
    mark = f'"{kind.format.rpartition("/")[0]}/'.encode()  # of any version
    found = []
    for path in sorted(filter(Path.is_file, output.parent.glob("*.json"))) if drawn else ():
        with contextlib.suppress(OSError), open(path, "rb") as file:
            if path.name != output.name and mark in file.read(1000):
                found.append(path.name)
    return found
