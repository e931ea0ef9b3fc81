"""The page every figure stands on: style, title, reading aid, caption, and the files."""

from __future__ import annotations

import contextlib
import functools
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

from jaxalign.plots.labels import place_labels
from jaxalign.results import HeadsResult
from jaxalign.runtime.files import replace_file

INK, GREY, PALE = "#222222", "#6b6b6b", "#d9d9d9"
STYLE: MappingProxyType[Any, Any] = MappingProxyType(
    {
        "font.family": ["DejaVu Sans"],
        "font.size": 8,
        "axes.titlesize": 8.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titley": 1.0,  # no axes has ticks on top, so nothing is to be searched for there
        "axes.labelsize": 8,
        "axes.labelcolor": INK,
        "axes.edgecolor": GREY,
        "axes.linewidth": 0.7,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.formatter.useoffset": False,
        "text.color": INK,
        "text.parse_math": False,  # names from files may hold a dollar sign
        "xtick.labelsize": 7,
        "ytick.labelsize": 7,
        "xtick.color": INK,
        "ytick.color": INK,
        "legend.fontsize": 7,
        "legend.frameon": False,
        "lines.linewidth": 1.3,
        "figure.facecolor": "white",
        "savefig.facecolor": "white",
        "svg.fonttype": "none",
        "svg.hashsalt": "jaxalign",
    }
)
KINDS = ("png", "svg")
DPI = 200
MARGIN = 0.1  # inches, all around
TITLE_SIZE, READING_SIZE, CAPTION_SIZE = 10.5, 7.5, 6.5
LEADING = 1.3  # line height over font size
HEAD_MODES = {
    "true": "true attention heads",
    "edge-align": "head mode edge-align: blocks of the residual stream, not attention heads",
}


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Matplotlib's own defaults and ``STYLE``, whatever the user has configured."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(dict(STYLE))
        yield


@dataclass
class Page:
    """A figure between its title and its caption, with head labels still to be placed.

    Attributes:
        figure: the figure, its title, reading aid and caption in place.
        strip: bottom of the strip for a shared legend, figure fraction.
        labels: what ``label`` was given.
    """

    figure: Figure
    strip: float
    labels: list[tuple[Axes, np.ndarray, np.ndarray, list[tuple[int, str]]]] = field(
        default_factory=list
    )

    def label(self, ax: Axes, x: np.ndarray, y: np.ndarray, names: list[tuple[int, str]]) -> None:
        """Name the points ``(index, text)`` of a scatter once the layout is known."""
        self.labels.append((ax, x, y, names))

    def legend(self, handles: Sequence[Artist]) -> None:
        """One legend for all panels, in the strip under them."""
        self.figure.legend(
            handles=handles,
            loc="lower center",
            bbox_to_anchor=(0.5, self.strip),
            borderaxespad=0.2,
            ncols=len(handles),
        )

    def settled(self) -> Figure:
        """The figure with its layout fixed and its labels placed."""
        engine = self.figure.get_layout_engine()
        assert engine is not None
        # Two passes, since the first changes which ticks need room.
        for _ in range(2):
            engine.execute(self.figure)
        # From here on nothing may move, or labels would no longer clear what they were placed for.
        self.figure.set_layout_engine("none")
        for ax in self.figure.axes:
            # The solver's last digits depend on memory addresses, and SVG names are made of them.
            left, bottom, width, height = ax.get_position(original=True).bounds
            ax.set_position((round(left, 7), round(bottom, 7), round(width, 7), round(height, 7)))
            ax.apply_aspect()
        for label in self.labels:
            place_labels(*label)
        return self.figure


def new_page(
    about: HeadsResult | str,
    title: str,
    reading: str,
    *,
    width: float,
    body: float,
    below: float = 0.0,
) -> Page:
    """An empty page; sizes in inches.

    Args:
        about: the result whose caption it carries, or the caption itself.
        title: the question that the figure answers, in plain words.
        reading: how to read it, and what is missing from it.
        width: of the whole page.
        body: height of the panels.
        below: height of a strip under the panels, for a shared legend.
    """
    room = width - 2 * MARGIN
    blocks = [
        (wrapped(text, room, size), size)
        for text, size in (
            (title, TITLE_SIZE),
            (reading, READING_SIZE),
            (about if isinstance(about, str) else caption(about), CAPTION_SIZE),
        )
    ]
    heights = [len(lines) * size * LEADING / 72 for lines, size in blocks]
    foot = MARGIN + heights[2] + 0.1 + below
    height = foot + body + 0.12 + heights[1] + 0.05 + heights[0] + MARGIN
    figure = Figure(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(figure)
    rect = (MARGIN / width, foot / height, 1 - 2 * MARGIN / width, body / height)
    figure.set_layout_engine("constrained", rect=rect, w_pad=0.05, h_pad=0.05)
    tops = (height - MARGIN, height - MARGIN - heights[0] - 0.05, MARGIN + heights[2])
    looks = ({"weight": "bold"}, {"color": INK}, {"color": GREY})
    for (lines, size), top, look in zip(blocks, tops, looks, strict=True):
        place = (MARGIN / width, top / height)
        figure.text(
            *place, "\n".join(lines), size=size, va="top", linespacing=LEADING, in_layout=False
        ).set(**look)
    return Page(figure, (MARGIN + heights[2] + 0.05) / height)


def sentence_page(result: HeadsResult, title: str, sentence: str) -> Page:
    """A page for a figure that has nothing to show: the sentence says why."""
    page = new_page(result, title, "", width=7.2, body=1.2)
    ax = page.figure.subplots()
    ax.set_axis_off()
    lines = "\n".join(wrapped(sentence, 6.4, 9.0))
    ax.text(0.5, 0.5, lines, ha="center", va="center", size=9, transform=ax.transAxes)
    return page


def say(ax: Axes, sentence: str) -> None:
    """Put a sentence where a panel has nothing to show."""
    ax.set_xticks([])
    ax.set_yticks([])
    ax.text(
        0.5, 0.5, sentence, ha="center", va="center", color=GREY, wrap=True, transform=ax.transAxes
    )


def caption(result: HeadsResult) -> str:
    """Model, revision, device, prompts and head mode, and what stands in for what."""
    model = result.metadata["model"]
    revision = model["revision"] or f"none (weights sha256 {model['weights_sha256'][:12]})"
    counts = Counter(prompt.task for prompt in result.prompts)
    by_task = ", ".join(f"{count} {task}" for task, count in counts.items())
    parts = (
        f"Model {model['name']}",
        f"revision {revision}",
        f"device {result.metadata['device']}",
        f"{counted(len(result.prompts), 'prompt')} ({by_task})",
        HEAD_MODES[result.head_mode],
    )
    note = " ".join(model["note"].split())
    return "; ".join(parts) + "." + (f" Note: {note.rstrip('.')}." if note else "")


def counted(n: int, noun: str) -> str:
    """``1 prompt``, ``2 prompts``."""
    return f"{n} {noun}" + ("" if n == 1 else "s")


@functools.cache
def text_width(text: str, size: float) -> float:
    """Width of one line in inches."""
    # At 72 dpi a pixel is a point.
    renderer = RendererAgg(1, 1, 72)
    font = FontProperties(family=STYLE["font.family"], size=size)
    return renderer.get_text_width_height_descent(text, font, ismath=False)[0] / 72


def wrapped(text: str, width: float, size: float) -> list[str]:
    """The text in lines no wider than ``width`` inches; no line for an empty text.

    Breaks at spaces, not at no-break spaces.
    """
    lines: list[str] = []
    filled = 0.0
    for word in filter(None, text.split(" ")):
        more = text_width(f" {word}", size)
        if lines and filled + more <= width:
            lines[-1] += f" {word}"
            filled += more
        else:
            lines.append(word)
            filled = text_width(word, size)
    return lines


def write(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write the figure as PNG and SVG, each whole or not at all, with no date or version in it.

    Raises:
        InputError: the folder cannot be written.
    """
    # Each canvas by itself: ``savefig`` would lay out the whole figure once more for each file.
    FigureCanvasAgg(figure).print_png(png := io.BytesIO(), metadata={"Software": None})
    FigureCanvasSVG(figure).print_svg(svg := io.BytesIO(), metadata={"Date": None, "Creator": None})
    paths = [folder / f"{name}.{kind}" for kind in KINDS]
    for path, content in zip(paths, (png, svg), strict=True):
        replace_file(path, content.getvalue())
    return paths
