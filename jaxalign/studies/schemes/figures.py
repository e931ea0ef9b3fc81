"""Precision schemes side by side: what each changes, beside what noise would change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import MappingProxyType

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from jaxalign.measures.estimates import Estimate
from jaxalign.plots.looks import MEASURED, NOISE
from jaxalign.plots.page import GREY, INK, PALE, Page, new_page
from jaxalign.plots.rows import bare, beside, interval
from jaxalign.plots.scales import drawable
from jaxalign.plots.words import (
    counted,
    model_words,
    p_text,
    places_for,
    short_name,
    short_names,
    signed,
)
from jaxalign.studies.schemes.result import NoiseFloor, SchemeRow, SchemesResult
from jaxalign.study.measure import DRIFT, KL, MARGIN
from jaxalign.study.tables import estimate_text

ROW = 0.24  # inches
MAX_ROWS = 40


def schemes(result: SchemesResult) -> Page:
    """One row a scheme, most bits first: KL, head drift and the change of the answer's lead."""
    title = "What does each precision scheme change, and is it more than noise?"
    reading = (
        "Filled: the scheme against f32, mean over prompts with its 95 % interval. Hollow: f32 "
        "with random noise in its weights, as large as the scheme's error in every matrix; a "
        "scheme left of it spares what matters. Grey bar: the same precision in other batches; "
        "what lies within it is no effect. Right: the change of the answer's lead over the best "
        "other token."
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
    kl, drift = f"{KL.name}(f32 ‖ scheme), {KL.unit}", f"{DRIFT.name} of heads' outputs"
    _measure(axes[0], kl, [(row.kl, row.kl_floor) for row in rows])
    _measure(axes[1], drift, [(row.drift, row.drift_floor) for row in rows])
    _change(axes[2], rows)
    labels = [f"{names[row.scheme]}  ({row.bits:.3g} bits)" for row in rows]
    axes[0].set_yticks(range(len(rows)), labels)
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    blue, red = MEASURED.colour, NOISE.colour
    page.legend(
        [
            Line2D([], [], color=blue, marker="o", ms=5, mec=INK, mew=0.4, label="scheme"),
            Line2D([], [], color=red, marker="o", ls="", ms=5, mfc="white", label="weight noise"),
            Line2D([], [], color=PALE, lw=6, label="up to here: batching"),
        ]
    )
    return page


def _measure(ax: Axes, title: str, rows: Sequence[tuple[Estimate, NoiseFloor]]) -> None:
    ax.set_title(title)
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:.0e}".replace("e-0", "e-"))
    )
    floors = drawable([(floor.batching, floor.weights) for _, floor in rows]).reshape(-1, 2)
    values = drawable([value.value for value, _ in rows])
    seen = [float(v) for v in (*values, *floors[:, 1]) if v > 0] or [1.0]
    # Batching in f32 lies many decades below everything else, which would leave no room for it.
    left = min(seen) / 10
    ax.set_xlim(left, max(seen) * 3)
    for height, ((value, _), (batching, noise)) in enumerate(zip(rows, floors, strict=True)):
        ax.axhline(height, color=PALE, lw=0.4, zorder=0)
        ax.barh(height, np.fmax(batching, left) - left, left=left, height=0.6, color=PALE, zorder=1)
        if noise > 0:
            ax.plot(noise, height, NOISE.marker, color=NOISE.colour, mfc="white", ms=5, zorder=2)
        interval(ax, value, float(height), MEASURED)
    bare(ax)


def _change(ax: Axes, rows: Sequence[SchemeRow]) -> None:
    ax.set_title(f"change of {MARGIN.short}")
    ax.axvline(0, color=GREY, lw=0.7, zorder=1)
    for height, row in enumerate(rows):
        ax.axhline(height, color=PALE, lw=0.4, zorder=0)
        change = row.margin_change
        if change is None or change.value is None:
            continue
        interval(ax, change, float(height), MEASURED)
        places = min(4, places_for(change.low, change.high, change.value))
        text = estimate_text(change, partial(signed, places=places), p=p_text)
        beside(ax, float(height), text)
    bare(ax)


FIGURES: MappingProxyType[str, Callable[[SchemesResult], Page]] = MappingProxyType(
    {"schemes": schemes}
)
