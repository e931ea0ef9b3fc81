"""Figures 3 and 5: how tasks differ, in their heads and in what they lose."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.gridspec import GridSpecFromSubplotSpec, SubplotSpec
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from jaxalign.plots.labels import most_important
from jaxalign.plots.page import GREY, INK, PALE, Page, new_page, say, sentence_page
from jaxalign.plots.scatter import beside, dots, layer_bar, names_of, percent_axis, square
from jaxalign.plots.values import (
    complete,
    correlation_text,
    drift_percent,
    find,
    group_name,
    groups,
    importance,
    numbers_text,
    places_for,
    precision_name,
)
from jaxalign.results import Estimate, HeadsResult

MAX_PAIRS = 3  # rows of scatter panels; more tasks than three have more pairs
ROW = 0.2  # inches, a row of estimates


@dataclass(frozen=True)
class Look:
    """Colour and marker of a category; the marker says the same where colour is lost."""

    colour: str
    marker: str


# Okabe & Ito's palette; f32 in black, as the reference of every comparison.
LOOKS = {
    "f32": Look("#000000", "o"),
    "f16": Look("#0072B2", "s"),
    "int8-sim": Look("#D55E00", "^"),
}
MORE_COLOURS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#0072B2", "#D55E00")
MORE_MARKERS = "DvPX<>ph*"


def look(result: HeadsResult, precision: str) -> Look:
    """The look of a precision, the same in every figure of a result."""
    others = [name for name in result.precisions if name not in LOOKS]
    if precision in LOOKS:
        return LOOKS[precision]
    # The two cycles have no common divisor, so that no look repeats before the 63rd precision.
    place = others.index(precision)
    return Look(MORE_COLOURS[place % len(MORE_COLOURS)], MORE_MARKERS[place % len(MORE_MARKERS)])


def task_specificity(result: HeadsResult) -> Page:
    """Figure 3: task against task, and the correlations by task and precision."""
    title = "Do the heads that matter for one task drift more on it?"
    if not result.precisions:
        return sentence_page(result, title, "No low precision was run, so no head can drift.")
    pairs = list(combinations(result.tasks, 2))[:MAX_PAIRS]
    columns = 1 + len(result.precisions)
    rows = len(result.precisions) * (len(groups(result)) + 1)
    reading = (
        "Top: one dot is one head, seen in two tasks; on the dashed line it is the same in both. "
        "Bottom: the correlation over heads of importance with drift in each task, with its 95 % "
        "interval over prompts; right of 0, the heads that matter for the task drift more."
        if pairs
        else f"There is one task only ({result.tasks[0]}), so no other to compare heads with. "
        "Shown: the correlation over heads of importance with drift, with its 95 % interval over "
        "prompts; right of 0, the heads that matter drift more."
    )
    total = len(result.tasks) * (len(result.tasks) - 1) // 2
    if total > len(pairs):
        reading += f" Drawn are the first {len(pairs)} of {total} pairs of tasks."
    heights = (2.85 * len(pairs), 0.75 + ROW * rows)
    width = max(7.6, 2.7 * columns + 0.8) if pairs else 7.6
    page = new_page(result, title, reading, width=width, body=sum(heights))
    if pairs:
        halves = page.figure.add_gridspec(3, 1, height_ratios=(heights[0], 0.12, heights[1]))
        bottom = halves[2]
        _pair_panels(page, halves[0], result, pairs)
    else:
        bottom = page.figure.add_gridspec(1, 1)[0]
    _correlation_panels(page, bottom, result)
    return page


def _pair_panels(
    page: Page, place: SubplotSpec, result: HeadsResult, pairs: list[tuple[str, str]]
) -> None:
    grid = GridSpecFromSubplotSpec(len(pairs), 1 + len(result.precisions), place)
    for row, (first, second) in enumerate(pairs):
        kinds = [
            ("Importance, f32 (logits)", importance(result, first), importance(result, second))
        ]
        kinds += [
            (
                f"Drift, {precision_name(name)} (%)",
                drift_percent(result, name, first),
                drift_percent(result, name, second),
            )
            for name in result.precisions
        ]
        for column, (title, x, y) in enumerate(kinds):
            ax = page.figure.add_subplot(grid[row, column])
            ax.set_title(title)
            ax.set_xlabel(f"on {group_name(result, first)}")
            ax.set_ylabel(f"on {group_name(result, second)}")
            _pair_panel(page, ax, x, y, logarithmic=column > 0)
        layer_bar(page.figure, ax, result.num_layers)


def _pair_panel(page: Page, ax: Axes, x: np.ndarray, y: np.ndarray, logarithmic: bool) -> None:
    num_heads = x.shape[1]
    if logarithmic:
        both = np.stack([x, y])
        floor = percent_axis(ax, both)
        logarithmic = floor > 0
        percent_axis(ax, both, "y")
        x, y = np.maximum(x, floor), np.maximum(y, floor)
    x, y, kept = dots(ax, x, y)
    if not kept.size:
        say(ax, "No head is finite\nin every prompt.")
        return
    if logarithmic:
        limits = (min(x.min(), y.min()) / 1.4, max(x.max(), y.max()) * 1.6)
        ax.set(xlim=limits, ylim=limits, aspect="equal")
        ax.axline((limits[0],) * 2, (limits[1],) * 2, color=GREY, lw=0.8, ls=(0, (4, 2)), zorder=1)
    else:
        square(ax, x, y)
    chosen = most_important(x, y, count=3)
    page.label(ax, x, y, names_of(chosen, kept, num_heads))


def _correlation_panels(page: Page, place: SubplotSpec, result: HeadsResult) -> None:
    grid = GridSpecFromSubplotSpec(1, 2, place)
    left = page.figure.add_subplot(grid[0])
    axes = (left, page.figure.add_subplot(grid[1], sharey=left))
    axes[1].tick_params(labelleft=False)
    rows: list[tuple[str, str]] = []
    heights: list[float] = []
    for block, precision in enumerate(result.precisions):
        for task in groups(result):
            heights.append(len(rows) + 0.6 * block)
            rows.append((task, precision))
    for ax, field, symbol in zip(axes, ("pearson", "spearman"), ("r", "ρ"), strict=True):
        ax.set_title({"pearson": "Pearson", "spearman": "Spearman (ranks)"}[field])
        ax.set_xlim(-1, 1)
        ax.set_xlabel("correlation of importance with drift")
        ax.axvline(0, color=GREY, lw=0.7, zorder=1)
        for height, (task, precision) in zip(heights, rows, strict=True):
            found = find(
                result.statistics.correlations, task=task, precision=precision, importance="zero"
            )
            estimate: Estimate | None = getattr(found, field) if found else None
            prompts = found.prompts if found else 0
            ax.axhline(height, color=PALE, lw=0.4, zorder=0)
            _estimate(
                ax, estimate if complete(estimate, prompts) else None, height, result, precision
            )
            text = correlation_text(symbol, estimate, prompts)
            beside(ax, height, text)
        ax.set_ylim(heights[-1] + 0.6, -0.6)
        ax.spines["left"].set_visible(False)
        ax.tick_params(axis="y", length=0)
    names = [f"{precision_name(p)}, {group_name(result, task)}" for task, p in rows]
    axes[0].set_yticks(heights, names)


def _estimate(
    ax: Axes, estimate: Estimate | None, height: float, result: HeadsResult, precision: str
) -> None:
    """A point and its interval in one row."""
    if estimate is None or estimate.value is None:
        return
    style = look(result, precision)
    if estimate.low is not None and estimate.high is not None:
        ax.hlines(height, estimate.low, estimate.high, color=style.colour, lw=1.6, zorder=2)
    ax.plot(estimate.value, height, style.marker, color=style.colour, ms=5, mec=INK, mew=0.4)


def task_degradation(result: HeadsResult) -> Page:
    """Figure 5: the metric by task and precision, and its paired change against f32."""
    title = "How much of each task survives low precision?"
    reading = (
        "Left: the answer's lead m, the logit of the target minus the largest other one, mean "
        "over prompts with its 95 % interval; a prompt is positive where the target comes first. "
        "Right: the change against f32 on the same prompts, on a scale of its own; left of 0, "
        "precision costs lead."
    )
    names = ("f32", *result.precisions)
    kinds = groups(result)
    body = 0.85 + max(0.75, 0.15 * (len(names) + 0.8) * len(kinds))
    page = new_page(
        result, title, reading, width=max(5.2, 1.4 + 2.25 * len(names)), body=body, below=0.22
    )
    axes = page.figure.subplots(
        1, len(names), sharey=True, squeeze=False, width_ratios=[1.2, *[1] * len(result.precisions)]
    )[0]
    _means_panel(axes[0], result, kinds, names)
    for ax, precision in zip(axes[1:], result.precisions, strict=True):
        _change_panel(ax, result, kinds, precision)
    axes[0].set_yticks(range(len(kinds)), [group_name(result, task) for task in kinds])
    axes[0].set_ylim(len(kinds) - 0.5, -0.5)
    handles = [
        Line2D(
            [], [], color=look(result, n).colour, marker=look(result, n).marker, ms=5, mec=INK,
            mew=0.4, label=precision_name(n),
        )
        for n in names
    ]  # fmt: skip
    page.legend(handles)
    return page


def _means_panel(
    ax: Axes, result: HeadsResult, kinds: tuple[str, ...], names: tuple[str, ...]
) -> None:
    ax.set_title("Mean lead of the answer")
    ax.set_xlabel("m (logits)")
    for row, task in enumerate(kinds):
        for column, name in enumerate(names):
            found = find(result.statistics.task_means, task=task, precision=name)
            height = row + 0.6 * ((column + 0.5) / len(names) - 0.5)
            _estimate(ax, found.logit_diff if found else None, height, result, name)
    low, high = ax.get_xlim()
    ax.set_xlim(min(low, 0), max(high, 0))
    _rows(ax, len(kinds))


def _change_panel(ax: Axes, result: HeadsResult, kinds: tuple[str, ...], precision: str) -> None:
    ax.set_title(f"{precision_name(precision)} minus f32")
    ax.set_xlabel("change of m (logits)")
    for row, task in enumerate(kinds):
        found = find(result.statistics.task_means, task=task, precision=precision)
        change = found.change if found else None
        _estimate(ax, change, float(row), result, precision)
        text = "no finite prompt"
        if change is not None and change.value is not None:
            text = numbers_text(change, places_for(change.low, change.high, change.value))
        ax.annotate(
            text, (0.5, row), xycoords=("axes fraction", "data"), xytext=(0, 5),
            textcoords="offset points", ha="center", va="bottom", size=6.5,
            bbox={"fc": "white", "ec": "none", "pad": 0.5},
        )  # fmt: skip
    ax.margins(x=0.15)
    ax.xaxis.set_major_locator(MaxNLocator(4))
    _rows(ax, len(kinds))


def _rows(ax: Axes, count: int) -> None:
    ax.axvline(0, color=GREY, lw=0.7, zorder=1)
    for border in np.arange(1, count) - 0.5:
        ax.axhline(border, color=PALE, lw=0.5, zorder=0)
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)
