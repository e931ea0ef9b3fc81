"""What figures are made of. Nothing here knows a study: it takes estimates, arrays and labels.

``draw`` writes figures as PNG (200 dpi) and as SVG with real text. The same result gives the same
bytes, whatever the user's own matplotlib settings are. A figure that has nothing to show is written
all the same, with a sentence that says why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from jaxalign.plots.page import Page, styled, write

Result = TypeVar("Result")

__all__ = ["draw"]


def draw(
    figures: Mapping[str, Callable[[Result], Page | None]], result: Result, folder: Path
) -> list[Path]:
    """Write figures of a result, each as PNG and SVG.

    Args:
        figures: by the name of its files, what makes the page of each; None for a result that the
            figure is not of.
        result: what the figures show.
        folder: made where it is missing; files of the same names are replaced, each whole or not
            at all.

    Returns:
        The paths written, PNG before SVG, in the order of ``figures``.

    Raises:
        InputError: the folder cannot be written.
    """
    paths: list[Path] = []
    with styled():
        for name, figure in figures.items():
            page = figure(result)
            paths += [] if page is None else write(page.settled(), Path(folder), name)
    return paths
