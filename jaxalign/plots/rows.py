"""Panels of one row an estimate: a point, its interval, and text beside it."""

from __future__ import annotations

from matplotlib.axes import Axes

from jaxalign.measures.estimates import Estimate
from jaxalign.plots.looks import Look
from jaxalign.plots.page import INK
from jaxalign.plots.scales import drawable


def interval(
    ax: Axes,
    estimate: Estimate | None,
    place: float,
    look: Look,
    *,
    upright: bool = False,
    width: float = 1.6,
) -> None:
    """Draw a point and its interval, or nothing where there is no value.

    Args:
        ax: the panel.
        estimate: value and interval, data units.
        place: of the row (of the column, if ``upright``), data units.
        look: colour and marker.
        upright: values go up, not across.
        width: of the interval's line, points.
    """
    if estimate is None:
        return
    value, low, high = drawable([estimate.value, estimate.low, estimate.high])
    if value != value:
        return
    logarithmic = (ax.get_yscale() if upright else ax.get_xscale()) == "log"
    if low <= high and not (logarithmic and low <= 0):
        line = ax.vlines if upright else ax.hlines
        line(place, low, high, color=look.colour, lw=width, zorder=2)
    point = (place, value) if upright else (value, place)
    ax.plot(*point, look.marker, color=look.colour, ms=5, mec=INK, mew=0.4, zorder=3)


def beside(ax: Axes, height: float, text: str) -> None:
    """Text to the right of the panel, in line with the row at ``height``.

    Args:
        ax: the panel.
        height: of the row, in data units.
        text: one line.
    """
    ax.annotate(
        text,
        (1.0, height),
        xycoords=("axes fraction", "data"),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        size=6.5,
        annotation_clip=False,
    )


def bare(ax: Axes) -> None:
    """No left edge and no tick marks: the rows' names stand for the axis."""
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)
