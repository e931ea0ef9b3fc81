"""Figure 8: the estimates of a screen against the exact values of the same heads."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from jaxalign.errors import counted
from jaxalign.measures.estimates import Estimate
from jaxalign.plots.labels import most_important
from jaxalign.plots.page import INK, Page, new_page, say
from jaxalign.plots.scatter import boxed_title, dots, layer_bar, names_of, square
from jaxalign.studies.heads.average import mean_maps
from jaxalign.studies.heads.figures.values import caption, head_names
from jaxalign.studies.heads.findings import Head, Screen
from jaxalign.studies.heads.result import HeadsResult
from jaxalign.study.measure import IMPORTANCE
from jaxalign.study.tables import estimate_text

TITLE = "How good are the screen's estimates?"
LABELLED = 6  # heads a panel


def estimate_against_exact(result: HeadsResult) -> Page | None:
    """Figure 8: one dot an exact head: estimated before it was certified, and exact.

    Args:
        result: None is returned where every head is exact, so that nothing was estimated.
    """
    screen = result.screen
    if screen is None:
        return None
    reading = (
        f"One dot is one attention head that is exact on {counted(len(screen.prompts), 'prompt')}. "
        "Across: what the screen had estimated its importance to be when it dropped the head, or "
        "when it had its last choice; bars are one standard error over the choice of prompts. Up: "
        "the exact importance. On the dashed line the estimate was right. Left: a random sample of "
        "the heads that were dropped; it says how far the estimates of all dropped ones may be "
        "trusted. Right: the heads that the screen put first, chosen because they are large."
    )
    page = new_page(caption(result), TITLE, reading, width=7.5, body=3.9)
    left, right = page.figure.subplots(1, 2)
    found = screen.agreement
    _panel(page, left, result, screen, screen.sampled)
    boxed_title(
        left,
        f"{counted(len(screen.sampled), 'dropped head')}, a random sample",
        (
            f"Spearman ρ {_text(found.spearman)}",
            f"calibration slope {_text(found.slope)}",
            "worst miss " + ("–" if found.worst_miss is None else f"{found.worst_miss:.2f} logits"),
        ),
    )
    _panel(page, right, result, screen, screen.top)
    boxed_title(
        right,
        f"{counted(len(screen.top), 'head')} put first",
        (f"{screen.cost:.0%} of the exact sweep's operations",),
    )
    left.set_ylabel(f"exact zero-ablation {IMPORTANCE.label}")
    layer_bar(page.figure, right, result.num_layers)
    return page


def _panel(
    page: Page, ax: Axes, result: HeadsResult, screen: Screen, heads: tuple[Head, ...]
) -> None:
    chosen = np.zeros(screen.estimate.shape, bool)
    for head in heads:
        chosen[head] = True
    [exact] = mean_maps([prompt.zero_importance for prompt in result.prompts])
    x, y, kept = dots(ax, screen.estimate, np.where(chosen, exact, np.nan))
    ax.set_xlabel(f"estimated {IMPORTANCE.label}")
    if not kept.size:
        say(ax, "All heads of the random sample\ncame to the top.")
        return
    error = screen.error.ravel()[kept]
    ax.errorbar(x, y, xerr=error, fmt="none", ecolor=INK, elinewidth=0.5, alpha=0.5, zorder=2)
    square(ax, x, y)
    shown = most_important(y, x - y, count=LABELLED)
    page.label(ax, x, y, names_of(shown, kept, head_names(result)))


def _text(estimate: Estimate) -> str:
    return estimate_text(estimate, "{:+.2f}".format, missing="not defined")
