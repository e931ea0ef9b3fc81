"""Importance and drift over training: one study a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from jaxalign.measures.estimates import ALL_TASKS
from jaxalign.plots.labels import most_important
from jaxalign.plots.looks import look
from jaxalign.plots.page import GREY, INK, PALE, Page, new_page, say
from jaxalign.plots.rows import interval
from jaxalign.plots.scales import drawable, percent_axis
from jaxalign.plots.words import precision_name, short_names
from jaxalign.studies.heads.figures.values import (
    caption,
    drawn,
    drift_percent,
    head_names,
    importance,
    left_out,
)
from jaxalign.studies.heads.findings import find
from jaxalign.studies.heads.result import HeadsResult
from jaxalign.study.measure import DRIFT, IMPORTANCE

Checkpoints = Sequence[tuple[str, HeadsResult]]
NAMED = 5
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")


def training(checkpoints: Checkpoints) -> Page:
    """Left: importance of each head; middle: mean drift by precision; right: their correlation."""
    title = "When do heads come to matter, and does precision bite harder as they do?"
    reading = (
        "Left: zero-ablation importance of each head, mean over the prompts of its checkpoint; the "
        f"{NAMED} largest ones in colour. Middle: drift of heads' outputs, mean over heads (band: "
        "quartiles of heads). Right: rank correlation over heads of importance with drift and its "
        "95 % interval over prompts. Prompts are those that each checkpoint answers, so their "
        "number differs: it stands under each checkpoint."
    )
    results = [result for _, result in checkpoints]
    reading += left_out(results[0])
    page = new_page(caption(results[-1]), title, reading, width=9.6, body=3.0, below=0.22)
    axes = page.figure.subplots(1, 3)
    places, names = _places([name for name, _ in checkpoints])
    counts = [f"{name}\n{len(result.prompts)}" for name, result in zip(names, results, strict=True)]
    _importances(axes[0], places, results)
    _drifts(axes[1], places, results)
    _correlations(axes[2], places, results)
    for ax in axes:
        ax.set_xticks(places, counts)
        ax.minorticks_off()
        ax.set_xlabel("checkpoint, prompts")
    handles, _ = axes[1].get_legend_handles_labels()
    page.legend(handles)
    return page


def _places(names: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Where checkpoints stand: at log(1 + step) where all are named for a step, else in order."""
    steps = [re.fullmatch(r"(?:.*\D)?(\d{1,15})", name) for name in names]
    if all(steps):
        return np.log10([1 + float(step.group(1)) for step in steps if step]), [
            step.group(1) for step in steps if step
        ]
    return np.arange(len(names), dtype=float), list(short_names(tuple(names)).values())


def _importances(ax: Axes, places: np.ndarray, results: Sequence[HeadsResult]) -> None:
    ax.set_title(f"{IMPORTANCE.name} of each head, f32 ({IMPORTANCE.unit})")
    curves = np.array([importance(result) for result in results])  # [C, L, H]
    flat = curves.reshape(len(curves), -1)
    chosen = most_important(np.nan_to_num(np.abs(flat).max(axis=0)), count=NAMED)
    ax.axhline(0, color=GREY, lw=0.7, zorder=1)
    ax.plot(places, flat, color=PALE, lw=0.7, zorder=2)
    names = head_names(results[0])
    for colour, head in zip(COLOURS, chosen, strict=False):
        ax.plot(places, flat[:, head], "o-", color=colour, ms=3.5, zorder=3)
        ax.annotate(
            names[head], (places[-1], flat[-1, head]), xytext=(4, 0),
            textcoords="offset points", va="center", size=6.5, color=colour,
            annotation_clip=False,
        )  # fmt: skip


def _drifts(ax: Axes, places: np.ndarray, results: Sequence[HeadsResult]) -> None:
    ax.set_title(f"{DRIFT.name} of heads' outputs ({DRIFT.unit})")
    shown: list[np.ndarray] = []
    for precision in drawn(results[0]).precisions:
        style = look(precision, results[0].precisions)
        maps = [drift_percent(result, precision) for result in results]
        if not all(np.isfinite(one).any() for one in maps):
            continue
        low, middle, high = np.array(
            [(np.nanquantile(m, 0.25), np.nanmean(m), np.nanquantile(m, 0.75)) for m in maps]
        ).T
        shown.append(np.concatenate([low, middle, high]))
        ax.fill_between(places, low, high, color=style.colour, alpha=0.15, lw=0)
        ax.plot(
            places, middle, style.marker + "-", color=style.colour, ms=4, mec=INK, mew=0.4,
            label=precision_name(precision),
        )  # fmt: skip
    if not ax.lines:
        say(ax, "No low precision was run.")
    else:
        # Everything drawn, bands too: a log scale only where it spreads over more than a decade,
        # or no tick would have a label.
        percent_axis(ax, drawable(np.concatenate(shown)), "y")


def _correlations(ax: Axes, places: np.ndarray, results: Sequence[HeadsResult]) -> None:
    ax.set_title("importance with drift (Spearman)")
    ax.set_ylim(-1, 1)
    ax.axhline(0, color=GREY, lw=0.7, zorder=1)
    precisions = drawn(results[0]).precisions
    # Side by side, since precisions often agree.
    step = 0.02 * (np.ptp(places) or 1.0)
    for number, precision in enumerate(precisions):
        style = look(precision, results[0].precisions)
        aside = places + step * (number - (len(precisions) - 1) / 2)
        for place, result in zip(aside, results, strict=True):
            found = find(
                result.statistics.correlations,
                task=ALL_TASKS,
                precision=precision,
                importance="zero",
                drift="relative",
            )
            interval(
                ax,
                found.spearman.estimate if found else None,
                place,
                style,
                upright=True,
                width=1.4,
            )
