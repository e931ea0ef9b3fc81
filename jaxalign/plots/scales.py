"""Values as an axis can hold them: what is too small or too large to draw, and log scales."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from jaxalign.plots.words import significant

# Matplotlib divides by the range of what it draws, so that subnormal numbers and numbers near
# float64's largest end it with an error. Nothing measured in f32 lies beyond these sizes.
SMALLEST, LARGEST = 1e-30, 1e30
# A log scale is worth its harder reading once the values spread this many decades.
LOG_FROM = 1.5


def drawable(values: object) -> np.ndarray:
    """Values as float64, 0 below ``SMALLEST`` in size, NaN above ``LARGEST`` and where None."""
    array = np.asarray(values, np.float64)
    sizes = np.abs(array)
    return np.where(sizes < SMALLEST, 0.0, np.where(sizes > LARGEST, np.nan, array))


def spans_decades(values: np.ndarray) -> bool:
    """Whether the positive values spread so far that a log scale reads better."""
    positive = values[np.isfinite(values) & (values > 0)]
    return positive.size > 1 and math.log10(positive.max() / positive.min()) > LOG_FROM


def percent_axis(ax: Axes, values: np.ndarray, which: str = "x") -> float:
    """Plain numbers on an axis of values ≥ 0, on a log scale where they spread far.

    Args:
        ax: the panel.
        values: everything to be drawn along the axis.
        which: "x" or "y".

    Returns:
        The value at which to draw zeros: a log scale has no place for 0, so they stand a step
        below the smallest other value; 0 on a linear scale.
    """
    if not spans_decades(values):
        return 0.0
    ax.set_xscale("log") if which == "x" else ax.set_yscale("log")
    axis = ax.xaxis if which == "x" else ax.yaxis
    axis.set_major_locator(log_ticks(values))
    axis.set_major_formatter(FuncFormatter(lambda value, _: significant(value, 1)))
    axis.set_minor_formatter(NullFormatter())
    return float(values[np.isfinite(values) & (values > 0)].min()) / 1.5


def log_ticks(values: np.ndarray) -> LogLocator:
    """Ticks at 1, 3, 10, 30, … or, over many decades, at powers of ten."""
    positive = values[np.isfinite(values) & (values > 0)]
    decades = np.log10(positive.max() / positive.min())
    return LogLocator(subs=(1.0,) if decades > 3 else (1.0, 3.0))
