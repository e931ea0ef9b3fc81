"""``--revisions``: the study of a model at several points of its training."""

from __future__ import annotations

import argparse
import copy
import os
from collections.abc import Callable
from pathlib import Path

from jaxalign.commands.screen import Screen
from jaxalign.errors import InputError
from jaxalign.processes.distributed import is_first
from jaxalign.studies.heads import HEADS
from jaxalign.studies.heads.result import HeadsResult
from jaxalign.study.option import listed


def result_file(output: Path, revision: str) -> Path:
    """Where the study of one revision is kept: ``experiment.step1000.json``."""
    return output.with_name(f"{output.stem}.{revision.replace('/', '-')}{output.suffix}")


def over_training(
    arguments: argparse.Namespace, study: Callable[[argparse.Namespace], list[str]]
) -> list[str]:
    """Study every revision, keep a result of each, and draw importance and drift over training.

    A folder given as ``--model`` holds one folder a revision. A study that was cut off goes on from
    its own finished calls.

    Returns:
        What each study says of activations that left a precision's range.

    Raises:
        InputError: fewer than two revisions, one named twice, or no model named.
    """
    revisions = listed(arguments.revisions)
    if len(set(revisions)) < max(2, len(revisions)):
        raise InputError(
            f"--revisions {arguments.revisions!r}: expected two or more, each once",
            "name them with commas, for example step1000,step10000,step143000",
        )
    if arguments.model is None:
        raise InputError(
            "--revisions needs --model",
            "give --model EleutherAI/pythia-70m, or a folder with one folder a revision",
        )
    if arguments.revision is not None:
        raise InputError("--revisions and --revision exclude each other", "give one of the two")
    kept = [result_file(arguments.output, revision).name for revision in revisions]
    places = [os.path.realpath(Path(arguments.model) / revision) for revision in revisions]
    for names in (kept, places):
        if twice := [r for r, name in zip(revisions, names, strict=True) if names.count(name) > 1]:
            raise InputError(
                f"--revisions {', '.join(twice)} would share a result file or are one folder",
                "study them by separate commands with an --output each",
            )
    for revision in revisions:
        if Path(arguments.model).is_dir() and not (Path(arguments.model) / revision).is_dir():
            raise InputError(
                f"--model {arguments.model} has no folder {revision!r}",
                "give a folder that has one folder for each of --revisions",
            )
    found: list[tuple[str, HeadsResult]] = []
    overflows: list[str] = []
    for revision in revisions:
        one = copy.copy(arguments)
        one.output, one.no_figures = result_file(arguments.output, revision), True
        folder = Path(arguments.model) / revision
        one.model, one.revision = (
            (str(folder), None) if folder.is_dir() else (arguments.model, revision)
        )
        overflows += study(one)
        if is_first() and arguments.shard is None and not arguments.estimate:
            found.append((revision, HEADS.read(one.output)))
    if found and not arguments.no_figures:
        from jaxalign.plots import draw  # matplotlib takes a second
        from jaxalign.studies.heads.figures import OVER_TRAINING

        [path, _] = draw(OVER_TRAINING, found, arguments.output.parent / "figures")
        Screen.of(arguments).say(f"figure: {path}")
    return overflows
