"""Figure 4: what giving heads their f32 outputs back buys, against random orders."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from jaxalign.plots.page import GREY, INK, Page, new_page, say, sentence_page
from jaxalign.plots.scales import drawable
from jaxalign.plots.words import counted, places_for, precision_name
from jaxalign.studies.heads.figures.values import (
    ALL,
    caption,
    drawn,
    find,
    group_name,
    left_out,
    numbers_text,
)
from jaxalign.studies.heads.result import RANKINGS, HeadsResult, RepairResult, RepairTest
from jaxalign.study.measure import MARGIN

# Okabe & Ito's palette; marker and dashes say the same where colour is lost.
LOOKS = {
    "zero_importance": ("zero importance", "#0072B2", "o", "-"),
    "drift": ("drift", "#E69F00", "s", (0, (5, 1.5))),
    "importance_x_drift": ("importance × drift", "#009E73", "^", (0, (3, 1, 1, 1))),
    "first_order": ("first order |∇m·δ|", "#CC79A7", "D", (0, (1.5, 1))),
}
# Inches: width of a panel with its axis, height of its curves, of its words, of its legend.
WIDTH, CURVES, WORDS, LEGEND = 3.4, 1.95, 0.75, 1.08


def circuit_repair(result: HeadsResult) -> Page:
    """Figure 4: repair curves, tasks across and precisions down."""
    title = "How many heads must be restored to win the answer back?"
    repaired = {repair.precision for repair in result.repairs}
    names = [name for name in drawn(result).precisions if name in repaired]
    if not names:
        why = "No repair was run, so there are no curves to show."
        return sentence_page(caption(result), title, why)
    reading = (
        "The low-precision model with the f32 outputs of its first k heads put back, in the order "
        "of four rankings; m is the logit of the target minus the largest other one, mean over "
        "prompts. Verdicts compare, over all k, how much of the distance "
        "|m(f32)\u00a0−\u00a0m| a ranking "
        "closes beyond random orders: logits, 95 % interval over prompts."
    )
    tasks = drawn(result).tasks
    columns = len(tasks)
    page = new_page(
        caption(result),
        title,
        reading + left_out(result, tasks=True),
        width=max(5.2, WIDTH * columns + 0.5),
        body=(CURVES + WORDS + LEGEND) * len(names),
        below=0.22,
    )
    axes = page.figure.subplots(
        2 * len(names), columns, squeeze=False, height_ratios=[CURVES, LEGEND] * len(names)
    )
    for row, legends, precision in zip(axes[::2], axes[1::2], names, strict=True):
        for ax, below, task in zip(row, legends, tasks, strict=True):
            handles = _panel(ax, result, task, precision)
            below.set_axis_off()
            below.legend(
                handles=handles,
                loc="upper left",
                borderaxespad=0,
                handlelength=3.2,
                labelspacing=0.4,
                fontsize=6.5,
            ).set_in_layout(False)
        row[0].set_ylabel(f"mean {MARGIN.short}")
    page.legend(_shared_legend())
    return page


def _panel(ax: Axes, result: HeadsResult, task: str, precision: str) -> list[Line2D]:
    """Draw one panel; return its rankings, labelled with their verdicts."""
    group = task if len(result.tasks) > 1 else ALL
    curves = [r for r in result.repairs if (r.task, r.precision) == (task, precision)]
    kept = [r for r in curves if _finite(r)]
    count = counted(len(kept), "prompt")
    if len(kept) < len(curves):
        count = f"{len(kept)} of {len(curves)} prompts are finite"
    name = f"{group_name(result, group)}, {precision_name(precision)}"
    ax.set_title(f"{name} ({count})")
    if not kept:
        say(ax, "No prompt has finite curves.")
        return []
    _references(ax, kept)
    handles: list[Line2D] = []
    for ranking in RANKINGS:
        curve = _with_start(kept, drawable([r.curves[ranking] for r in kept]).mean(axis=0))
        label, colour, marker, dashes = LOOKS[ranking]
        test = find(result.statistics.repair, task=group, precision=precision, ranking=ranking)
        line = ax.plot(
            np.arange(curve.size), curve, color=colour, marker=marker, ls=dashes, ms=3.5,
            mec=INK, mew=0.3, zorder=4, label=f"{label}: {_verdict(test)}", clip_on=False,
        )  # fmt: skip
        handles += line
    ax.set_xlabel("heads restored, k")
    ax.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    return handles


def _finite(repair: RepairResult) -> bool:
    curves = (*repair.curves.values(), repair.random)
    ends = drawable([repair.logit_diff_f32, repair.logit_diff_quantized])
    return all(np.isfinite(drawable(each)).all() for each in (ends, *curves))


def _with_start(kept: Sequence[RepairResult], curve: np.ndarray) -> np.ndarray:
    """The curve from k = 0, the low-precision model as it is."""
    start = drawable([r.logit_diff_quantized for r in kept]).mean()
    return np.concatenate([[start], curve])


def _references(ax: Axes, kept: Sequence[RepairResult]) -> None:
    # [orders, K], each a mean over prompts
    orders = drawable([r.random for r in kept]).mean(axis=0)
    curves = np.array([_with_start(kept, curve) for curve in orders])
    low, high = np.percentile(curves, [2.5, 97.5], axis=0)
    k = np.arange(curves.shape[1])
    ax.fill_between(k, low, high, color=GREY, alpha=0.25, lw=0, zorder=1)
    ax.plot(k, curves.mean(axis=0), color=GREY, lw=1.2, zorder=2)
    ax.axhline(float(np.mean([r.logit_diff_f32 for r in kept])), color="black", lw=1.2, zorder=2)
    ax.axhline(float(curves[0, 0]), color="black", lw=1, ls=(0, (4, 3)), zorder=2)


def _verdict(test: RepairTest | None) -> str:
    if test is None or test.difference.value is None:
        return "not tested"
    difference = test.difference
    if None in (difference.low, difference.high, difference.p) or test.prompts < 2:
        return f"{test.verdict}\n{counted(test.prompts, 'prompt')}, so no interval"
    places = places_for(difference.value, difference.low, difference.high)
    return f"{test.verdict}\n{numbers_text(difference, places)}"


def _shared_legend() -> list[Artist]:
    return [
        Line2D([], [], color="black", lw=1.2, label="f32"),
        Line2D([], [], color="black", lw=1, ls=(0, (4, 3)), label="nothing restored"),
        Line2D([], [], color=GREY, lw=1.2, label="random orders, mean"),
        Patch(color=GREY, alpha=0.25, lw=0, label="95 % of random orders"),
    ]
