"""The page every figure stands on: style, title, reading aid, caption, and the files."""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Callable, Iterator, Sequence
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
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter

from jaxalign.errors import shortened
from jaxalign.plots.labels import place_labels
from jaxalign.plots.words import FAMILY, shown
from jaxalign.runtime.files import replace_file

INK, GREY, PALE = "#222222", "#6b6b6b", "#d9d9d9"
STYLE: MappingProxyType[Any, Any] = MappingProxyType(
    {
        "font.family": [FAMILY],
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
FORMATS = ("png", "svg")
DPI = 200
MOST_DOTS = 12_000  # along a side; a larger page has fewer dots an inch
MARGIN = 0.1  # inches, all around
TITLE_SIZE, READING_SIZE, CAPTION_SIZE = 10.5, 7.5, 6.5
LONGEST_WORD = 80  # characters
LEADING = 1.3  # line height over font size


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
        """Name points of a scatter once the layout is known.

        Args:
            ax: the panel.
            x, y: the points, in data units.
            names: which points get a name, ``(index, text)``.
        """
        self.labels.append((ax, x, y, names))

    def legend(self, handles: Sequence[Artist], columns: int | None = None) -> None:
        """One legend for all panels, in the strip under them.

        Args:
            handles: what it explains.
            columns: by default all handles stand in one row.
        """
        self.figure.legend(
            handles=handles,
            loc="lower center",
            bbox_to_anchor=(0.5, self.strip),
            borderaxespad=0.2,
            ncols=columns or len(handles),
        )

    def settled(self) -> Figure:
        """The figure with its text safe to draw, its layout fixed and its labels placed."""
        _clean(self.figure)
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
        for ax, x, y, names in self.labels:
            place_labels(ax, x, y, [(point, shown(name)) for point, name in names])
        return self.figure


def _clean(figure: Figure) -> None:
    """Let every text in the figure pass ``shown``, labels of ticks too."""
    for text in figure.findobj(Text):
        written = shown(text.get_text())
        if written != text.get_text():
            text.set_text(written)
    for ax in figure.findobj(Axes):
        for axis in (ax.xaxis, ax.yaxis):
            write = axis.get_major_formatter()
            if isinstance(write, FuncFormatter):  # names given to ticks, too
                axis.set_major_formatter(FuncFormatter(_shown_ticks(write)))


def _shown_ticks(write: FuncFormatter) -> Callable[[float, int | None], str]:
    return lambda value, place: shown(write(value, place))


def new_page(
    caption: str,
    title: str,
    reading: str,
    *,
    width: float,
    body: float,
    below: float = 0.0,
) -> Page:
    """An empty page; sizes in inches.

    Args:
        caption: what the numbers are of: model, revision, device, prompts.
        title: the question that the figure answers, in plain words.
        reading: how to read it, and what is missing from it.
        width: of the whole page.
        body: height of the panels.
        below: height of a strip under the panels, for a shared legend.
    """
    room = width - 2 * MARGIN
    blocks = [
        (wrapped(shown(text), room, size), size)
        for text, size in (
            (title, TITLE_SIZE),
            (reading, READING_SIZE),
            (caption, CAPTION_SIZE),
        )
    ]
    heights = [len(lines) * size * LEADING / 72 for lines, size in blocks]
    foot = MARGIN + heights[2] + 0.1 + below
    height = foot + body + 0.12 + heights[1] + 0.05 + heights[0] + MARGIN
    figure = Figure(figsize=(width, height), dpi=min(DPI, MOST_DOTS / max(width, height)))
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


MOST_ASIDE = 3  # panels in a row; more are too small to read


def rows_of(panels: int, most: int = MOST_ASIDE) -> tuple[int, int]:
    """``(rows, columns)`` of a figure with so many panels, of nearly equal rows.

    Args:
        panels: 1 or more.
        most: panels in a row.

    Example:
        >>> rows_of(4), rows_of(5), rows_of(3)
        ((2, 2), (2, 3), (1, 3))
    """
    rows = -(-panels // most)
    return rows, -(-panels // rows)


def facets(page: Page, panels: int, most: int = MOST_ASIDE, **shared: Any) -> list[Axes]:
    """Panels alike, row by row, at most ``most`` in a row.

    Only the panels at the left keep a label of their y axis where it is shared. Give the page
    ``rows_of(panels)[0]`` times the height of one row.

    Args:
        page: an empty one.
        panels: how many.
        most: in a row.
        shared: what ``Figure.subplots`` takes, such as ``sharey=True``.
    """
    rows, columns = rows_of(panels, most)
    grid = page.figure.subplots(rows, columns, squeeze=False, **shared)
    flat = list(grid.flat)
    for ax in flat[panels:]:
        ax.remove()
    if shared.get("sharex"):  # a panel with nothing under it shows the ticks itself
        for ax in flat[max(0, panels - columns) : panels]:
            ax.xaxis.set_tick_params(labelbottom=True)
    return flat[:panels]


def sentence_page(caption: str, title: str, sentence: str) -> Page:
    """A page for a figure that has nothing to show.

    Args:
        caption: as on every page.
        title: the question that the figure would answer.
        sentence: why it has no answer.
    """
    page = new_page(caption, title, "", width=7.2, body=1.2)
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


@functools.cache
def text_width(text: str, size: float) -> float:
    """Width of one line in inches."""
    # At 72 dpi a pixel is a point.
    renderer = RendererAgg(1, 1, 72)
    font = FontProperties(family=STYLE["font.family"], size=size)
    return renderer.get_text_width_height_descent(text, font, ismath=False)[0] / 72


def wrapped(text: str, width: float, size: float) -> list[str]:
    """The text in lines no wider than ``width`` inches; no line for an empty text.

    Breaks at spaces, not at no-break spaces. A word of more than ``LONGEST_WORD`` characters loses
    its middle.

    Args:
        text: words and spaces.
        width: inches.
        size: of the font, points.
    """
    lines: list[str] = []
    filled = 0.0
    for word in filter(None, text.split(" ")):
        word = shortened(word, LONGEST_WORD)
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

    Args:
        figure: settled.
        folder: made where it is missing.
        name: of the files, without their ending.

    Raises:
        InputError: the folder cannot be written.
    """
    # Each canvas by itself: ``savefig`` would lay out the whole figure once more for each file.
    FigureCanvasAgg(figure).print_png(png := io.BytesIO(), metadata={"Software": None})
    FigureCanvasSVG(figure).print_svg(svg := io.BytesIO(), metadata={"Date": None, "Creator": None})
    paths = [folder / f"{name}.{kind}" for kind in FORMATS]
    for path, content in zip(paths, (png, svg), strict=True):
        replace_file(path, content.getvalue())
    return paths
