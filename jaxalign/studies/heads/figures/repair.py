"""Figure 4: what giving heads their f32 outputs back buys, against random orders."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from jaxalign.errors import counted
from jaxalign.measures.estimates import ALL_TASKS
from jaxalign.plots.page import GREY, INK, Page, new_page, say, sentence_page
from jaxalign.plots.scales import drawable
from jaxalign.plots.words import precision_name
from jaxalign.studies.heads.figures.values import (
    caption,
    drawn,
    group_name,
    left_out,
)
from jaxalign.studies.heads.findings import RANKINGS, Control, RepairTest
from jaxalign.studies.heads.result import HeadsResult, RepairResult
from jaxalign.study.measure import MARGIN
from jaxalign.study.tables import p_text

# Okabe & Ito's palette; marker and dashes say the same where colour is lost.
LOOKS = {
    "zero_importance": ("zero importance", "#0072B2", "o", "-"),
    "drift": ("drift", "#E69F00", "s", (0, (5, 1.5))),
    "importance_x_drift": ("importance × drift", "#009E73", "^", (0, (3, 1, 1, 1))),
    "first_order": ("first order |∇m·δ|", "#CC79A7", "D", (0, (1.5, 1))),
}
BESIDE: dict[Control, tuple[int, tuple[float, ...]]] = {
    "heads of the same layers": (0, (1, 1)),
    "random vectors": (0, (4, 1.5, 1, 1.5)),
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
        "of four rankings: how far the answer's lead m stays from f32's, mean over prompts; at 0 "
        "it is won back. Controls: random heads, random heads of a ranking's own layers, and the "
        "ranking's heads moved by random vectors as long as the repair. Verdicts say how many "
        "controls a ranking beats, p-values corrected for all tests of the study."
    )
    tasks = drawn(result).tasks
    columns = len(tasks)
    page = new_page(
        caption(result),
        title,
        reading + left_out(result, tasks=True),
        width=max(5.2, WIDTH * columns + 0.5),
        body=(CURVES + WORDS + LEGEND) * len(names),
        below=0.4,
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
        row[0].set_ylabel(f"mean |m(f32)\u00a0−\u00a0m| ({MARGIN.unit})")
    page.legend(_shared_legend(), columns=3)
    return page


def _panel(ax: Axes, result: HeadsResult, task: str, precision: str) -> list[Line2D]:
    """Draw one panel; return its rankings, labelled with their verdicts."""
    group = task if len(result.tasks) > 1 else ALL_TASKS
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
        curve = _distance(kept, [r.curves[ranking][None] for r in kept])[0]
        label, colour, marker, dashes = LOOKS[ranking]
        tests = [
            test
            for test in result.statistics.repair
            if (test.task, test.precision, test.ranking) == (group, precision, ranking)
        ]
        line = ax.plot(
            np.arange(curve.size), curve, color=colour, marker=marker, ls=dashes, ms=3.5,
            mec=INK, mew=0.3, zorder=4, label=f"{label}: {_verdict(tests)}", clip_on=False,
        )  # fmt: skip
        handles += line
    ax.set_xlabel("heads restored, k")
    ax.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    return handles


def _finite(repair: RepairResult) -> bool:
    curves = (*repair.curves.values(), repair.random)
    ends = drawable([repair.logit_diff_f32, repair.logit_diff_quantized])
    return all(np.isfinite(drawable(each)).all() for each in (ends, *curves))


def _distance(kept: Sequence[RepairResult], m: Sequence[np.ndarray]) -> np.ndarray:
    """Mean over prompts of ``|m(f32) − m|``, from k = 0, the low-precision model as it is.

    Args:
        kept: repairs of ``P`` prompts.
        m: ``[orders, steps]`` of each.
    """
    high = drawable([r.logit_diff_f32 for r in kept])
    start = np.abs(high - drawable([r.logit_diff_quantized for r in kept])).mean()
    found = np.abs(high[:, None, None] - drawable(list(m))).mean(axis=0)
    return np.concatenate([np.full((len(found), 1), start), found], axis=1)


def _references(ax: Axes, kept: Sequence[RepairResult]) -> None:
    k = np.array([0, *kept[0].steps])
    curves = _distance(kept, [r.random for r in kept])
    low, high = np.percentile(curves, [2.5, 97.5], axis=0)
    ax.fill_between(k, low, high, color=GREY, alpha=0.25, lw=0, zorder=1)
    ax.plot(k, curves.mean(axis=0), color=GREY, lw=1.2, zorder=2)
    for control, dashes in BESIDE.items():
        orders = [_orders(r, control) for r in kept]
        if all(own.size for own in orders):
            ax.plot(k, _distance(kept, orders).mean(axis=0), color=GREY, lw=1, ls=dashes, zorder=2)
    ax.axhline(0, color="black", lw=1.2, zorder=2)
    ax.axhline(float(curves[0, 0]), color="black", lw=1, ls=(0, (4, 3)), zorder=2)


def _orders(repair: RepairResult, control: Control) -> np.ndarray:
    """A control's orders of all rankings, ``[orders, steps]``; empty where it was not run."""
    found = [repair.control(control, name) for name in RANKINGS]
    known = [own for own in found if own is not None]
    return np.concatenate(known) if known else np.zeros((0, len(repair.steps)))


def _verdict(tests: Sequence[RepairTest]) -> str:
    """What a ranking's tests against its controls say together."""
    if not tests or tests[0].difference.value is None:
        return "not tested"
    if tests[0].prompts < 2:
        return f"{counted(tests[0].prompts, 'prompt')}, so no interval"
    if any(test.verdict == "below noise" for test in tests):
        return "below the noise of its roundings"
    beaten = [test for test in tests if test.verdict == "beats it"]
    weakest = max(tests, key=lambda test: test.difference.p_adjusted or 0)
    p = weakest.difference.p_adjusted
    return f"beats {len(beaten)} of {counted(len(tests), 'control')}" + (
        "" if p is None else f"\nlargest corrected {p_text(p)}"
    )


def _shared_legend() -> list[Artist]:
    return [
        Line2D([], [], color="black", lw=1.2, label="won back"),
        Line2D([], [], color="black", lw=1, ls=(0, (4, 3)), label="nothing restored"),
        Line2D([], [], color=GREY, lw=1.2, label="random heads"),
        Patch(color=GREY, alpha=0.25, lw=0, label="95 % of orders"),
        *(
            Line2D([], [], color=GREY, lw=1, ls=dashes, label=control.replace("heads of the ", ""))
            for control, dashes in BESIDE.items()
        ),
    ]
