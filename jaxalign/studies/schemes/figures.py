"""Precision schemes side by side: what each changes, beside what noise would change."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from jaxalign.plots.page import GREY, INK, PALE, Page, counted, new_page
from jaxalign.plots.scatter import beside
from jaxalign.plots.values import numbers_text, places_for
from jaxalign.results import Estimate
from jaxalign.studies.schemes.result import NoiseFloor, SchemeRow, SchemesResult

ROW = 0.24  # inches
MEASURED, NOISE = "#0072B2", "#D55E00"


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
    provenance = result.provenance
    caption = (
        f"Model {provenance.of_model}; device {provenance.environment.device_kind}; "
        f"{counted(provenance.prompts.kept, 'prompt')}, {provenance.prompts.positions} positions."
    )
    rows = [row for row in result.rows if row.margin_change is not None]
    rows.sort(key=lambda row: -row.bits)
    page = new_page(
        caption, title, reading, width=9.6, body=0.85 + ROW * max(len(rows), 3), below=0.22
    )
    axes = page.figure.subplots(1, 3, sharey=True, width_ratios=(1.1, 1.1, 1))
    _measure(axes[0], "KL(f32 ‖ scheme), nats", [(row.kl, row.kl_floor) for row in rows])
    _measure(axes[1], "drift of heads' outputs", [(row.drift, row.drift_floor) for row in rows])
    _change(axes[2], rows)
    axes[0].set_yticks(range(len(rows)), [f"{row.scheme}  ({row.bits:.3g} bits)" for row in rows])
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    page.legend(
        [
            Line2D([], [], color=MEASURED, marker="o", ms=5, mec=INK, mew=0.4, label="scheme"),
            Line2D([], [], color=NOISE, marker="o", ls="", ms=5, mfc="white", label="weight noise"),
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
    seen = [value.value for value, _ in rows if value.value] or [1.0]
    seen += [floor.weights for _, floor in rows if floor.weights]
    # Batching in f32 lies many decades below everything else, which would leave no room for it.
    left = min(seen) / 10
    ax.set_xlim(left, max(seen) * 3)
    for height, (value, floor) in enumerate(rows):
        ax.axhline(height, color=PALE, lw=0.4, zorder=0)
        ax.barh(
            height, max(floor.batching, left) - left, left=left, height=0.6, color=PALE, zorder=1
        )
        if floor.weights:
            ax.plot(floor.weights, height, "o", color=NOISE, mfc="white", ms=5, zorder=2)
        if value.value is None:
            continue
        if value.low and value.high:
            ax.hlines(height, value.low, value.high, color=MEASURED, lw=1.6, zorder=3)
        ax.plot(value.value, height, "o", color=MEASURED, ms=5, mec=INK, mew=0.4, zorder=4)
    _bare(ax)


def _change(ax: Axes, rows: Sequence[SchemeRow]) -> None:
    ax.set_title("change of m (logits)")
    ax.axvline(0, color=GREY, lw=0.7, zorder=1)
    for height, row in enumerate(rows):
        ax.axhline(height, color=PALE, lw=0.4, zorder=0)
        change = row.margin_change
        if change is None or change.value is None:
            continue
        if change.low is not None and change.high is not None:
            ax.hlines(height, change.low, change.high, color=MEASURED, lw=1.6, zorder=2)
        ax.plot(change.value, height, "o", color=MEASURED, ms=5, mec=INK, mew=0.4, zorder=3)
        places = min(4, places_for(change.low, change.high, change.value))
        beside(ax, float(height), numbers_text(change, places))
    _bare(ax)


def _bare(ax: Axes) -> None:
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)
