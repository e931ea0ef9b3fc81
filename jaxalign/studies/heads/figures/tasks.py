"""Figures 3 and 5: how tasks differ, in their heads and in what they lose."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.gridspec import GridSpecFromSubplotSpec, SubplotSpec
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from jaxalign.measures.estimates import Estimate
from jaxalign.plots.labels import most_important
from jaxalign.plots.looks import look
from jaxalign.plots.page import GREY, INK, PALE, Page, new_page, say, sentence_page
from jaxalign.plots.rows import bare, beside, interval
from jaxalign.plots.scales import percent_axis
from jaxalign.plots.scatter import dots, layer_bar, names_of, square
from jaxalign.plots.words import places_for, precision_name
from jaxalign.studies.heads.figures.values import (
    caption,
    complete,
    correlation_text,
    drawn,
    drift_percent,
    group_name,
    groups,
    head_names,
    importance,
    left_out,
    numbers_text,
)
from jaxalign.studies.heads.findings import find
from jaxalign.studies.heads.result import HeadsResult
from jaxalign.study.measure import DRIFT, IMPORTANCE, MARGIN

MAX_PAIRS = 3  # rows of scatter panels; more tasks than three have more pairs
ROW = 0.2  # inches, a row of estimates


def task_specificity(result: HeadsResult) -> Page:
    """Figure 3: task against task, and the correlations by task and precision."""
    title = "Do the heads that matter for one task drift more on it?"
    if not result.precisions:
        why = "No low precision was run, so no head can drift."
        return sentence_page(caption(result), title, why)
    shown = drawn(result)
    pairs = list(combinations(shown.tasks, 2))[:MAX_PAIRS]
    columns = 1 + len(shown.precisions)
    rows = len(shown.precisions) * (len(groups(result)) + 1)
    reading = (
        "Top: one dot is one head, seen in two tasks; on the dashed line it is the same in both. "
        "Bottom: the correlation over heads of importance with drift in each task, with its 95 % "
        "interval over heads and prompts; right of 0, heads that matter for the task drift more."
        if pairs
        else f"There is one task only ({group_name(result, result.tasks[0])}), so no other to "
        "compare heads with. Shown: the correlation over heads of importance with drift, with its "
        "95 % interval over heads and prompts; right of 0, the heads that matter drift more."
    )
    reading += left_out(result, tasks=True)
    total = len(shown.tasks) * (len(shown.tasks) - 1) // 2
    if total > len(pairs):
        reading += f" Drawn are the first {len(pairs)} of {total} pairs of tasks."
    heights = (2.85 * len(pairs), 0.75 + ROW * rows)
    width = max(7.6, 2.7 * columns + 0.8) if pairs else 7.6
    page = new_page(caption(result), title, reading, width=width, body=sum(heights))
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
    precisions = drawn(result).precisions
    grid = GridSpecFromSubplotSpec(len(pairs), 1 + len(precisions), place)
    for row, (first, second) in enumerate(pairs):
        title = f"{IMPORTANCE.name.capitalize()}, f32 ({IMPORTANCE.unit})"
        kinds = [(title, importance(result, first), importance(result, second))]
        kinds += [
            (
                f"{DRIFT.name.capitalize()}, {precision_name(name)} ({DRIFT.unit})",
                drift_percent(result, name, first),
                drift_percent(result, name, second),
            )
            for name in precisions
        ]
        for column, (title, x, y) in enumerate(kinds):
            ax = page.figure.add_subplot(grid[row, column])
            ax.set_title(title)
            ax.set_xlabel(f"on {group_name(result, first)}")
            ax.set_ylabel(f"on {group_name(result, second)}")
            _pair_panel(page, ax, x, y, head_names(result), logarithmic=column > 0)
        layer_bar(page.figure, ax, result.num_layers)


def _pair_panel(
    page: Page, ax: Axes, x: np.ndarray, y: np.ndarray, names: list[str], *, logarithmic: bool
) -> None:
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
    page.label(ax, x, y, names_of(chosen, kept, names))


def _correlation_panels(page: Page, place: SubplotSpec, result: HeadsResult) -> None:
    grid = GridSpecFromSubplotSpec(1, 2, place)
    left = page.figure.add_subplot(grid[0])
    axes = (left, page.figure.add_subplot(grid[1], sharey=left))
    axes[1].tick_params(labelleft=False)
    rows: list[tuple[str, str]] = []
    heights: list[float] = []
    for block, precision in enumerate(drawn(result).precisions):
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
                result.statistics.correlations,
                task=task,
                precision=precision,
                importance="zero",
                drift="relative",
            )
            estimate: Estimate | None = getattr(found, field).estimate if found else None
            prompts = found.prompts if found else 0
            ax.axhline(height, color=PALE, lw=0.4, zorder=0)
            shown = estimate if complete(estimate, prompts) else None
            interval(ax, shown, height, look(precision, result.precisions))
            text = correlation_text(symbol, estimate, prompts)
            beside(ax, height, text)
        ax.set_ylim(heights[-1] + 0.6, -0.6)
        bare(ax)
    names = [f"{precision_name(p)}, {group_name(result, task)}" for task, p in rows]
    axes[0].set_yticks(heights, names)


def task_degradation(result: HeadsResult) -> Page:
    """Figure 5: the metric by task and precision, and its paired change against f32."""
    title = "How much of each task survives low precision?"
    reading = (
        "Left: the answer's lead m, the logit of the target minus the largest other one, mean "
        "over prompts with its 95 % interval; a prompt is positive where the target comes first. "
        "Right: the change against f32 on the same prompts, on a scale of its own; left of 0, "
        "precision costs lead."
    )
    precisions = drawn(result).precisions
    reading += left_out(result, tasks=True)
    names = ("f32", *precisions)
    kinds = groups(result)
    body = 0.85 + max(0.75, 0.15 * (len(names) + 0.8) * len(kinds))
    width = max(5.2, 1.4 + 2.25 * len(names))
    page = new_page(caption(result), title, reading, width=width, body=body, below=0.22)
    axes = page.figure.subplots(
        1, len(names), sharey=True, squeeze=False, width_ratios=[1.2, *[1] * len(precisions)]
    )[0]
    _means_panel(axes[0], result, kinds, names)
    for ax, precision in zip(axes[1:], precisions, strict=True):
        _change_panel(ax, result, kinds, precision)
    axes[0].set_yticks(range(len(kinds)), [group_name(result, task) for task in kinds])
    axes[0].set_ylim(len(kinds) - 0.5, -0.5)
    looks = {name: look(name, result.precisions) for name in names}
    handles = [
        Line2D(
            [], [], color=one.colour, marker=one.marker, ms=5, mec=INK, mew=0.4,
            label=precision_name(name),
        )
        for name, one in looks.items()
    ]  # fmt: skip
    page.legend(handles)
    return page


def _means_panel(
    ax: Axes, result: HeadsResult, kinds: tuple[str, ...], names: tuple[str, ...]
) -> None:
    ax.set_title("Mean lead of the answer")
    ax.set_xlabel(MARGIN.short)
    for row, task in enumerate(kinds):
        for column, name in enumerate(names):
            found = find(result.statistics.task_means, task=task, precision=name)
            height = row + 0.6 * ((column + 0.5) / len(names) - 0.5)
            interval(ax, found.logit_diff if found else None, height, look(name, result.precisions))
    low, high = ax.get_xlim()
    ax.set_xlim(min(low, 0), max(high, 0))
    _rows(ax, len(kinds))


def _change_panel(ax: Axes, result: HeadsResult, kinds: tuple[str, ...], precision: str) -> None:
    ax.set_title(f"{precision_name(precision)} minus f32")
    ax.set_xlabel(f"change of {MARGIN.short}")
    for row, task in enumerate(kinds):
        found = find(result.statistics.task_means, task=task, precision=precision)
        change = found.change if found else None
        interval(ax, change, float(row), look(precision, result.precisions))
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
    bare(ax)
