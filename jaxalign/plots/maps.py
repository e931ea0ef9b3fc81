"""Values as maps of coloured cells, with their numbers where there is room."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Colormap, LogNorm, Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from jaxalign.plots.page import GREY, INK
from jaxalign.plots.scales import drawable, log_ticks, spans_decades
from jaxalign.plots.words import signed, significant

MAX_NUMBERS = 64  # cells; above this numbers would be too small to read
NUMBERED, PLAIN = (0.29, 0.27), (0.17, 0.17)  # inches, a cell with and without its number
NOT_FINITE = "#bdbdbd"
DARK = 0.2  # relative luminance below which white text has more contrast than dark text


def signed_map(figure: Figure, ax: Axes, values: np.ndarray, label: str) -> None:
    """Draw values of both signs, symmetric around 0.

    Args:
        figure: that ``ax`` belongs to.
        ax: the panel.
        values: ``[rows, columns]``.
        label: of the colour bar.
    """
    values = drawable(values)
    largest = float(np.abs(values[np.isfinite(values)]).max(initial=0)) or 1.0
    norm, cmap = TwoSlopeNorm(0, -largest, largest), matplotlib.colormaps["PuOr_r"]
    cells(figure, ax, values, norm, cmap, label)
    if values.size <= MAX_NUMBERS:
        numbers(ax, values, norm, cmap, lambda v: signed(v, 2))
    else:
        # A grey print cannot tell clearly negative cells from positive ones by their colour.
        _marks(ax, values < -0.1 * largest, "_", 12.0)


def size_map(figure: Figure, ax: Axes, values: np.ndarray, label: str) -> None:
    """Draw values ≥ 0, on a log scale where they spread far.

    Args:
        figure: that ``ax`` belongs to.
        ax: the panel.
        values: ``[rows, columns]``.
        label: of the colour bar.
    """
    values = drawable(values)
    finite = values[np.isfinite(values)]
    high = float(finite.max(initial=0)) or 1.0
    norm: Normalize = Normalize(0, high)
    if spans_decades(values):
        norm = LogNorm(float(finite[finite > 0].min()), high, clip=True)
    cmap = matplotlib.colormaps["cividis"]
    cells(figure, ax, values, norm, cmap, label)
    if values.size <= MAX_NUMBERS:
        numbers(ax, values, norm, cmap, significant)


def cells(
    figure: Figure, ax: Axes, values: np.ndarray, norm: Normalize, cmap: Colormap, label: str
) -> Colorbar:
    """Draw one coloured cell a value, row 0 on top, and a colour bar below.

    Args:
        figure: that ``ax`` belongs to.
        ax: the panel.
        values: ``[rows, columns]``, ``drawable``; cells that are not finite are crossed out.
        norm: from values to the range of ``cmap``.
        cmap: the colours.
        label: of the colour bar.
    """
    drawn = bare_cells(ax, values, norm, cmap)
    bar = figure.colorbar(
        drawn, ax=ax, label=label, location="bottom", aspect=24, pad=0.02, fraction=0.06
    )
    bar.outline.set_visible(False)
    if isinstance(norm, LogNorm):
        bar.ax.xaxis.set_major_locator(log_ticks(values))
        bar.ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: significant(v, 1)))
        bar.ax.xaxis.set_minor_formatter(NullFormatter())
    else:
        bar.locator = MaxNLocator(4)
        bar.update_ticks()
    bar.ax.minorticks_off()
    bar.ax.tick_params(color=GREY)
    return bar


def bare_cells(ax: Axes, values: np.ndarray, norm: Normalize, cmap: Colormap) -> QuadMesh:
    """Draw one coloured cell a value, row 0 on top.

    Args:
        ax: the panel.
        values: ``[rows, columns]``, ``drawable``; cells that are not finite are crossed out.
        norm: from values to the range of ``cmap``.
        cmap: the colours.
    """
    rows, columns = values.shape
    drawn = ax.pcolormesh(
        np.arange(columns + 1) - 0.5,
        np.arange(rows + 1) - 0.5,
        np.ma.masked_invalid(values),
        norm=norm,
        cmap=cmap,
        edgecolors="white",
        linewidth=0.4,
    )
    ax.set_facecolor(NOT_FINITE)
    ax.set_ylim(rows - 0.5, -0.5)  # layer 0 on top, as in the file
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    _marks(ax, ~np.isfinite(values), "x", 9.0)
    return drawn


def shared_bar(
    figure: Figure, panels: Sequence[Axes], drawn: QuadMesh, label: str, places: int
) -> None:
    """One colour bar below all panels, of values symmetric around 0, with ticks at its ends.

    Args:
        figure: that the panels belong to.
        panels: which share the colours.
        drawn: the cells of one of them.
        label: of the bar.
        places: decimals of its ticks.
    """
    bar = figure.colorbar(
        drawn, ax=[*panels], label=label, location="bottom", aspect=50, shrink=0.6,
        pad=0.02, fraction=0.05,
    )  # fmt: skip
    bar.outline.set_visible(False)
    ends = float(np.max(drawn.norm.vmax or 0))
    bar.set_ticks([-ends, 0, ends])
    bar.ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: signed(v, places)))
    bar.ax.minorticks_off()
    bar.ax.tick_params(color=GREY)


def shade(value: float, norm: Normalize, cmap: Colormap) -> str:
    """What can be read on the cell of a value: light on dark and dark on light.

    Args:
        value: of the cell.
        norm, cmap: as the cells had them.
    """
    luminance = np.dot((0.2126, 0.7152, 0.0722), np.power(cmap(norm(value))[:3], 2.2))
    return "white" if luminance < DARK else INK


def dots(ax: Axes, values: np.ndarray, norm: Normalize, cmap: Colormap) -> None:
    """A dot in the cell of each finite value.

    Args:
        ax: the panel.
        values: ``[rows, columns]``.
        norm, cmap: as the cells had them.
    """
    rows, columns = np.nonzero(np.isfinite(values))
    colours = [shade(float(value), norm, cmap) for value in values[rows, columns]]
    ax.scatter(columns, rows, s=3, color=colours, linewidths=0)


def numbers(
    ax: Axes,
    values: np.ndarray,
    norm: Normalize,
    cmap: Colormap,
    write: Callable[[float], str],
) -> None:
    """Write the finite values of ``cells`` into their cells, light on dark and dark on light.

    Args:
        ax: the panel.
        values: ``[rows, columns]``.
        norm: as ``cells`` had it.
        cmap: as ``cells`` had it.
        write: a value as text.
    """
    for row, column in np.argwhere(np.isfinite(values)):
        value = float(values[row, column])
        colour = shade(value, norm, cmap)
        ax.text(column, row, write(value), ha="center", va="center", color=colour, size=5.5)


def _marks(ax: Axes, where: np.ndarray, marker: str, size: float) -> None:
    """One marker in each of these cells; all are one artist, since a text each takes long."""
    rows, columns = np.nonzero(where)
    if rows.size:
        ax.scatter(columns, rows, s=size, marker=marker, color=INK, linewidths=0.7)
