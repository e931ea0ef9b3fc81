"""One dot a cell of two maps: colours by row, diagonals and the box with a correlation."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jaxalign.plots.page import GREY, INK, PALE
from jaxalign.plots.scales import drawable

BOX_SIZE = 7.0
MAX_LAYER_TICKS = 12


def layer_colours(num_layers: int) -> ScalarMappable:
    """Viridis in as many steps as there are layers: ordered for colour-blind eyes and in grey."""
    # The last tenth of viridis is too light on white paper.
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.92, num_layers))
    norm = BoundaryNorm(np.arange(num_layers + 1) - 0.5, num_layers)
    return ScalarMappable(norm, ListedColormap(list(shades)))


def layer_bar(figure: Figure, ax: Axes, num_layers: int) -> None:
    """The colour bar of the layers to the right of ``ax``, as high as its panel.

    Args:
        figure: the page's.
        ax: the panel.
        num_layers: ``L``.
    """
    step = -(-num_layers // MAX_LAYER_TICKS)
    bar = figure.colorbar(
        layer_colours(num_layers),
        cax=ax.inset_axes((1.05, 0, 0.04, 1)),
        label="layer",
        ticks=np.arange(0, num_layers, step),
    )
    bar.ax.minorticks_off()
    bar.ax.tick_params(length=0)
    bar.outline.set_visible(False)


def dots(ax: Axes, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw two ``[L, H]`` maps against each other; return the finite points and their indices.

    Args:
        ax: the panel.
        x, y: ``[L, H]``, in the units of the axes.
    """
    layers = np.repeat(np.arange(x.shape[0]), x.shape[1])
    flat_x, flat_y = drawable(x).ravel(), drawable(y).ravel()
    kept = np.flatnonzero(np.isfinite(flat_x) & np.isfinite(flat_y))
    shades = layer_colours(x.shape[0]).to_rgba(layers[kept])
    size = 26 if kept.size <= 64 else 14
    ax.scatter(
        flat_x[kept], flat_y[kept], c=shades, s=size, edgecolors=INK, linewidths=0.4, zorder=3
    )
    return flat_x[kept], flat_y[kept], kept


def names_of(
    indices: Sequence[int], kept: np.ndarray, names: Sequence[str]
) -> list[tuple[int, str]]:
    """Names of chosen points among those that ``dots`` drew.

    Args:
        indices: of the points, counted among those drawn.
        kept: ``[points]`` what ``dots`` returned: the place of each point in the flattened map.
        names: of all cells of the map, flattened.
    """
    return [(i, names[int(kept[i])]) for i in indices]


def zero_line(ax: Axes, which: str = "y") -> None:
    """Where a value has no effect."""
    line = ax.axhline if which == "y" else ax.axvline
    line(0, color=GREY, lw=0.7, zorder=1)


def square(ax: Axes, *values: np.ndarray) -> None:
    """The same limits on both axes, and the diagonal on which both are equal."""
    finite = np.concatenate([v[np.isfinite(v)].ravel() for v in values])
    low, high = (min(finite.min(), 0.0), max(finite.max(), 0.0)) if finite.size else (0.0, 1.0)
    room = 0.08 * ((high - low) or 1.0)
    limits = (low - room, high + room)
    ax.set_xlim(limits)
    ax.set_ylim(limits)
    ax.set_aspect("equal")
    ax.axline((0, 0), slope=1, color=GREY, lw=0.8, ls=(0, (4, 2)), zorder=1)
    ax.axhline(0, color=PALE, lw=0.7, zorder=0)
    ax.axvline(0, color=PALE, lw=0.7, zorder=0)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))


def boxed_title(ax: Axes, title: str, lines: Sequence[str]) -> None:
    """A panel's title and under it, outside of the data, a box of text.

    Args:
        ax: the panel.
        title: one line, bold.
        lines: of the box.
    """
    height = BOX_SIZE * 1.25 * len(lines)
    ax.set_title(title, pad=height + 15)
    ax.annotate(
        "\n".join(lines),
        (0, 1),
        xytext=(2.8, 8),
        xycoords="axes fraction",
        textcoords="offset points",
        va="bottom",
        size=BOX_SIZE,
        linespacing=1.25,
        bbox={"boxstyle": "square,pad=0.35", "fc": "white", "ec": GREY, "lw": 0.6},
        annotation_clip=False,
    )
