"""Precision schemes side by side: what each changes, beside what noise would change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from jaxalign.errors import counted
from jaxalign.plots.looks import MEASURED, NOISE, Look
from jaxalign.plots.page import GREY, INK, PALE, Page, new_page
from jaxalign.plots.rows import bare, beside, interval
from jaxalign.plots.scales import drawable
from jaxalign.plots.words import (
    model_words,
    p_text,
    places_for,
    short_name,
    short_names,
    signed,
)
from jaxalign.studies.schemes.result import SchemeRow, SchemesResult
from jaxalign.study.measure import KL, MARGIN
from jaxalign.study.tables import estimate_text

ROW = 0.24  # inches
BAND = 0.3  # opacity
LEVEL = 0.05
UNTOLD = Look(GREY, "o")
MAX_ROWS = 40


def schemes(result: SchemesResult) -> Page:
    """One row a scheme, most bits first: KL, its ratio to noise's, the change of the lead."""
    title = "What does each precision scheme change, and is it more than noise?"
    reading = (
        "Left: the scheme against f32, mean over prompts with its 95 % interval; grey: the same "
        "precision in other batches; bracket: AWQ's and GPTQ's lottery, when weights move by a "
        "millionth. Middle: the KL over that of random noise as large as the scheme's error in "
        "every matrix; left of 1 it spares what matters. Filled: beyond all chance of the draws of "
        "noise (band), corrected for the number of schemes. Right: the change of the answer's lead "
        "over the best other token, p corrected; grey: not told from 0."
    )
    model, revision = model_words(vars(result.provenance.model))
    caption = (
        f"{model}; {revision}; device "
        f"{short_name(result.provenance.environment.device_kind, 80)}; "
        f"{counted(result.provenance.prompts.kept, 'prompt')}, "
        f"{result.provenance.prompts.positions} positions."
    )
    rows = [row for row in result.rows if row.margin_change is not None]
    if len(rows) > MAX_ROWS:
        reading += f" Drawn are the first {MAX_ROWS} of {len(rows)} schemes."
    rows = sorted(rows[:MAX_ROWS], key=lambda row: -row.bits)
    names = short_names(tuple(row.scheme for row in rows), 26)
    page = new_page(
        caption, title, reading, width=9.6, body=0.85 + ROW * max(len(rows), 3), below=0.22
    )
    axes = page.figure.subplots(1, 3, sharey=True, width_ratios=(1.1, 1.1, 1))
    _kl(axes[0], rows)
    _ratio(axes[1], rows)
    _change(axes[2], rows)
    labels = [f"{names[row.scheme]}  ({row.bits:.3g} bits)" for row in rows]
    axes[0].set_yticks(range(len(rows)), labels)
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    blue, red = MEASURED.colour, NOISE.colour
    page.legend(
        [
            Line2D([], [], color=blue, marker="o", ms=5, mec=INK, mew=0.4, label="scheme"),
            Line2D([], [], color=PALE, lw=6, label="up to here: batching"),
            Line2D([], [], color=red, marker="|", ms=7, label="lottery"),
            Line2D([], [], color=red, alpha=BAND, lw=6, label="draws of weight noise"),
        ]
    )
    return page


def _kl(ax: Axes, rows: Sequence[SchemeRow]) -> None:
    ax.set_title(f"{KL.name}(f32 ‖ scheme), {KL.unit}")
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:.0e}".replace("e-0", "e-"))
    )
    batching = drawable([row.kl_floor.batching for row in rows])
    seen = [float(v) for v in drawable([row.kl.value for row in rows]) if v > 0] or [1.0]
    # Batching in f32 lies many decades below everything else, which would leave no room for it.
    left = min(seen) / 10
    ax.set_xlim(left, max(seen) * 3)
    for height, (row, floor) in enumerate(zip(rows, batching, strict=True)):
        ax.axhline(height, color=PALE, lw=0.4, zorder=0)
        ax.barh(height, np.fmax(floor, left) - left, left=left, height=0.6, color=PALE, zorder=1)
        interval(ax, row.kl, float(height), MEASURED)
        if row.lottery is not None and row.lottery.low > 0:
            ends, at = (row.lottery.low, row.lottery.high), height + 0.32
            ax.plot(ends, (at, at), "-", marker="|", color=NOISE.colour, ms=5, lw=1.2, zorder=4)
    bare(ax)


def _ratio(ax: Axes, rows: Sequence[SchemeRow]) -> None:
    """KL over noise's, filled where it lies beyond the draws; the draws' own spread as a band."""
    ax.set_title("KL ÷ that of noise of its size")
    ax.set_xscale("log")
    ax.axvline(1, color=GREY, lw=0.7, zorder=1)
    ax.xaxis.set_major_locator(FixedLocator([0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    for height, row in enumerate(rows):
        ax.axhline(height, color=PALE, lw=0.4, zorder=0)
        value, noise = drawable([row.kl.value, row.kl_floor.weights])
        if not (value > 0 and noise > 0):
            continue
        if len(row.kl_floor.draws) > 1:
            low, high = (end(row.kl_floor.draws) / noise for end in (min, max))
            ax.plot(
                (low, high), (height, height), "-", color=NOISE.colour, alpha=BAND, lw=6, zorder=1,
                solid_capstyle="butt",
            )  # fmt: skip
        sure = row.kl_floor.corrected is not None and row.kl_floor.corrected <= LEVEL
        face = MEASURED.colour if sure else "white"
        ax.plot(value / noise, height, "o", color=MEASURED.colour, mfc=face, ms=5, zorder=3)
    ax.minorticks_off()
    bare(ax)


def _change(ax: Axes, rows: Sequence[SchemeRow]) -> None:
    ax.set_title(f"change of {MARGIN.short}")
    ax.axvline(0, color=GREY, lw=0.7, zorder=1)
    for height, row in enumerate(rows):
        ax.axhline(height, color=PALE, lw=0.4, zorder=0)
        change = row.margin_change
        if change is None or change.value is None:
            continue
        p = change.p if row.change_corrected is None else row.change_corrected
        told = p is not None and p <= LEVEL
        interval(ax, change, float(height), MEASURED if told else UNTOLD)
        places = min(4, places_for(change.low, change.high, change.value))
        text = estimate_text(replace(change, p=p), partial(signed, places=places), p=p_text)
        beside(ax, float(height), text)
    bare(ax)


FIGURES: MappingProxyType[str, Callable[[SchemesResult], Page]] = MappingProxyType(
    {"schemes": schemes}
)
