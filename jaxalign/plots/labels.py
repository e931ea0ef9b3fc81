"""Labels beside the points of a scatter that clear each other and the points."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes

SIZE = 6.5  # points
DIRECTIONS = 16
RADII = (7.0, 11.0, 16.0, 22.0, 30.0, 40.0)  # points
LEADER_FROM = 12.0  # a label further away than this gets a line to its point
DOT = 2.5  # half the width of a point's mark

# What a place costs, so that a label would rather lie far from its point than over another label.
OVER_LABEL, OUTSIDE, OVER_DOT, OVER_LEADER, OVER_LINE = 1000.0, 500.0, 40.0, 60.0, 15.0
NEARER_TO_ANOTHER = 25.0


def most_important(*scores: np.ndarray, count: int) -> list[int]:
    """Indices of the ``count`` largest of each score's absolute values, each index once."""
    chosen: dict[int, None] = {}
    for score in scores:
        size = np.where(np.isfinite(score), np.abs(score), -1.0)
        best = np.argsort(-size, kind="stable")[:count]
        chosen |= dict.fromkeys(int(i) for i in best if size[i] > 0)
    return list(chosen)


def place_labels(
    ax: Axes, x: np.ndarray, y: np.ndarray, names: list[tuple[int, str]]
) -> list[tuple[float, float, float, float]]:
    """Write each name near its point, first names first, where it covers least.

    Args:
        ax: axes whose layout is final.
        x: ``[N]`` every point drawn, data units.
        y: ``[N]``.
        names: ``(index of the point, text)``.

    Returns:
        The boxes taken, ``(left, bottom, right, top)`` in points.
    """
    figure = ax.get_figure(root=True)
    assert figure is not None
    scale = 72 / figure.dpi
    dots = ax.transData.transform(np.column_stack([x, y])) * scale
    frame = ax.get_window_extent()
    bounds = tuple(v * scale for v in (frame.x0, frame.y0, frame.x1, frame.y1))
    boxes: list[tuple[float, float, float, float]] = []
    leaders: list[np.ndarray] = []
    lines = _line_points(ax) * scale
    for index, text in names:
        dot = dots[index]
        half = np.array([0.31 * SIZE * len(text), 0.5 * SIZE])
        centre = min(
            _candidates(dot, half),
            key=lambda c: _cost(c, half, dot, dots, boxes, leaders, lines, bounds),
        )
        boxes.append((*(centre - half), *(centre + half)))
        far = math.dist(centre, dot) > LEADER_FROM + half[0]
        if far:
            leaders.append(np.linspace(dot, centre, 12)[1:])
        ax.annotate(
            text,
            (x[index], y[index]),
            xytext=tuple(centre - dot),
            textcoords="offset points",
            ha="center",
            va="center",
            size=SIZE,
            zorder=6,
            arrowprops={"arrowstyle": "-", "lw": 0.5, "color": "#6b6b6b", "shrinkB": 2.0}
            if far
            else None,
        )
    return boxes


def _line_points(ax: Axes) -> np.ndarray:
    """Points, display units, along the straight lines drawn in the axes."""
    ends = [line.get_transform().transform(np.asarray(line.get_xydata())) for line in ax.lines]
    along = [np.linspace(end[0], end[-1], 200) for end in ends]
    return np.concatenate(along) if along else np.zeros((0, 2))


def _candidates(dot: np.ndarray, half: np.ndarray) -> list[np.ndarray]:
    """Centres around a point; the label's near edge, not its centre, stands on the circle."""
    angles = np.linspace(0, 2 * np.pi, DIRECTIONS, endpoint=False) + np.pi / 4
    rays = np.column_stack([np.cos(angles), np.sin(angles)])
    return [dot + ray * (radius - 3.0 + half) for radius in RADII for ray in rays]


def _cost(
    centre: np.ndarray,
    half: np.ndarray,
    dot: np.ndarray,
    dots: np.ndarray,
    boxes: list[tuple[float, float, float, float]],
    leaders: list[np.ndarray],
    lines: np.ndarray,
    bounds: tuple[float, ...],
) -> float:
    low, high = centre - half, centre + half
    cost = math.dist(centre, dot)
    outside = (low < bounds[:2]).any() or (high > bounds[2:]).any()
    cost += OUTSIDE * float(outside)
    for left, bottom, right, top in boxes:
        apart = left > high[0] + 1 or right < low[0] - 1 or bottom > high[1] or top < low[1]
        cost += 0.0 if apart else OVER_LABEL
    cost += OVER_DOT * int(((dots > low - DOT) & (dots < high + DOT)).all(axis=1).sum())
    gaps = np.linalg.norm(np.maximum(np.abs(dots - centre) - half, 0), axis=1)
    own_gap = np.linalg.norm(np.maximum(np.abs(dot - centre) - half, 0))
    cost += NEARER_TO_ANOTHER * int((gaps < own_gap - 0.1).sum())
    cost += OVER_LINE * float(((lines > low) & (lines < high)).all(axis=1).any())
    own = np.linspace(dot, centre, 12)[2:-2]
    for left, bottom, right, top in boxes:
        hit = (own > (left, bottom)) & (own < (right, top))
        cost += OVER_LEADER * float(hit.all(axis=1).any())
    for line in leaders:
        cost += OVER_LEADER * float(((line > low) & (line < high)).all(axis=1).any())
    return cost
