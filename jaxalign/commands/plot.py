"""``plot``: the figures of a result, from its file alone."""

from __future__ import annotations

import argparse

from jaxalign import results
from jaxalign.plots import draw
from jaxalign.runtime.files import check_writable
from jaxalign.studies.heads.figures import FIGURES


def run(arguments: argparse.Namespace) -> int:
    """Draw and print the paths; returns the exit code."""
    result = results.read(arguments.input)
    folder = arguments.figures or arguments.input.parent / "figures"
    check_writable(folder / "figure.png")
    for path in draw(FIGURES, result, folder):
        print(path)
    return 0
