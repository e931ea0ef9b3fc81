"""Figure 6: importance and drift as maps of layer and head."""

from __future__ import annotations

from collections.abc import Callable

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Colormap, LogNorm, Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from jaxalign.plots.page import GREY, INK, Page, new_page
from jaxalign.plots.scatter import log_ticks
from jaxalign.plots.values import (
    drift_percent,
    importance,
    precision_name,
    signed,
    significant,
    spans_decades,
)
from jaxalign.results import HeadsResult

MAX_NUMBERS = 64  # cells; above this numbers would be too small to read
NUMBERED, PLAIN = (0.29, 0.27), (0.17, 0.17)  # inches, a cell with and without its number
NOT_FINITE = "#bdbdbd"
DARK = 0.2  # relative luminance below which white text has more contrast than dark text


def head_map(result: HeadsResult) -> Page:
    """Figure 6: importance beside the drift of every precision."""
    panels = 1 + len(result.precisions)
    reading = (
        "Each cell is one head, averaged over all prompts. Importance: how much the answer's lead "
        "shrinks when the head is set to zero in f32 (negative: it grows). Drift: how far low "
        "precision moves the head's output, in per cent of the norm of its f32 output."
    )
    rows, columns = result.num_layers, result.num_heads
    cell = NUMBERED if rows * columns <= MAX_NUMBERS else PLAIN
    width = max(4.6, panels * max(1.6, columns * cell[0] + 0.3) + 0.5)
    body = max(rows, 4) * cell[1] + 1.15
    maps = [importance(result), *(drift_percent(result, name) for name in result.precisions)]
    if not all(np.isfinite(values).all() for values in maps):
        reading += " Crossed out: not finite in at least one prompt."
    title = "Where are the heads that matter, and where does precision bite?"
    page = new_page(result, title, reading, width=width, body=body)
    axes = page.figure.subplots(1, panels, squeeze=False)[0]
    _importance_map(page.figure, axes[0], maps[0])
    for ax, values, precision in zip(axes[1:], maps[1:], result.precisions, strict=True):
        _drift_map(page.figure, ax, values, precision)
    axes[0].set_ylabel("layer")
    return page


def _importance_map(figure: Figure, ax: Axes, values: np.ndarray) -> None:
    largest = float(np.abs(values[np.isfinite(values)]).max(initial=0)) or 1.0
    ax.set_title("Importance, f32")
    norm = TwoSlopeNorm(0, -largest, largest)
    _cells(figure, ax, values, norm, matplotlib.colormaps["PuOr_r"], "importance (logits)")
    if values.size <= MAX_NUMBERS:
        _numbers(ax, values, norm, matplotlib.colormaps["PuOr_r"], lambda v: signed(v, 2))
    else:
        _minus_signs(ax, values, largest)


def _drift_map(figure: Figure, ax: Axes, values: np.ndarray, precision: str) -> None:
    ax.set_title(f"Drift, {precision_name(precision)}")
    finite = values[np.isfinite(values)]
    high = float(finite.max(initial=0)) or 1.0
    norm: Normalize = Normalize(0, high)
    if spans_decades(values):
        norm = LogNorm(float(finite[finite > 0].min()), high, clip=True)
    cmap = matplotlib.colormaps["cividis"]
    _cells(figure, ax, values, norm, cmap, "drift (%)")
    if values.size <= MAX_NUMBERS:
        _numbers(ax, values, norm, cmap, significant)


def _cells(
    figure: Figure, ax: Axes, values: np.ndarray, norm: Normalize, cmap: Colormap, label: str
) -> Colorbar:
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
    ax.set_xlabel("head")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    for row, column in np.argwhere(~np.isfinite(values)):
        ax.text(column, row, "×", ha="center", va="center", color=INK, size=8)
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


def _numbers(
    ax: Axes,
    values: np.ndarray,
    norm: Normalize,
    cmap: Colormap,
    write: Callable[[float], str],
) -> None:
    for row, column in np.argwhere(np.isfinite(values)):
        value = float(values[row, column])
        luminance = np.dot((0.2126, 0.7152, 0.0722), np.power(cmap(norm(value))[:3], 2.2))
        shade = "white" if luminance < DARK else INK
        ax.text(column, row, write(value), ha="center", va="center", color=shade, size=5.5)


def _minus_signs(ax: Axes, values: np.ndarray, largest: float) -> None:
    """Mark clearly negative cells, whose colour a grey print cannot tell from positive ones."""
    for row, column in np.argwhere(values < -0.1 * largest):
        ax.text(column, row, "−", ha="center", va="center", color=INK, size=6)
