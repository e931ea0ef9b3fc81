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
        centres = _candidates(dot, half)
        costs = _costs(centres, half, dot, dots, boxes, leaders, lines, bounds)
        centre = centres[np.argmin(costs)]
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


def _candidates(dot: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Centres around a point; the label's near edge, not its centre, stands on the circle."""
    angles = np.linspace(0, 2 * np.pi, DIRECTIONS, endpoint=False) + np.pi / 4
    rays = np.column_stack([np.cos(angles), np.sin(angles)])
    return np.concatenate([dot + rays * (radius - 3.0 + half) for radius in RADII])


def _costs(
    centres: np.ndarray,
    half: np.ndarray,
    dot: np.ndarray,
    dots: np.ndarray,
    boxes: list[tuple[float, float, float, float]],
    leaders: list[np.ndarray],
    lines: np.ndarray,
    bounds: tuple[float, ...],
) -> np.ndarray:
    """What each of these centres ``[C, 2]`` costs a label of this half size, ``[C]``."""
    low, high = centres - half, centres + half

    def inside(points: np.ndarray, room: float = 0.0) -> np.ndarray:
        """Which of some points lie in each candidate's box, ``[C, points]``."""
        after, before = points > low[:, None] - room, points < high[:, None] + room
        return (after & before).all(axis=2)

    def gap(points: np.ndarray) -> np.ndarray:
        """From each candidate's box to points, ``[C, points]``."""
        away = np.abs(points - centres[:, None]) - half
        return np.linalg.norm(np.maximum(away, 0), axis=2)

    cost = np.linalg.norm(centres - dot, axis=1)
    frame = np.array(bounds)
    outside = np.concatenate([low < frame[:2], high > frame[2:]], axis=1)
    cost += OUTSIDE * outside.any(axis=1)
    cost += OVER_DOT * inside(dots, DOT).sum(axis=1)
    cost += NEARER_TO_ANOTHER * (gap(dots) < gap(dot[None]) - 0.1).sum(axis=1)
    cost += OVER_LINE * inside(lines).any(axis=1)
    own: np.ndarray = np.linspace(dot, centres, 12, axis=1)[:, 2:-2]
    for left, bottom, right, top in boxes:
        apart = (left > high[:, 0] + 1) | (right < low[:, 0] - 1)
        apart |= (bottom > high[:, 1]) | (top < low[:, 1])
        cost += OVER_LABEL * ~apart
        hit = np.all((own > (left, bottom)) & (own < (right, top)), axis=2)
        cost += OVER_LEADER * np.any(hit, axis=1)
    for line in leaders:
        cost += OVER_LEADER * inside(line).any(axis=1)
    return cost
