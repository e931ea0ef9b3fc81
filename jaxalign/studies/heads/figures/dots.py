"""Figures 1, 2 and 7: what matters against what drifts, and predicted against true."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from jaxalign.errors import counted
from jaxalign.measures.estimates import ALL_TASKS
from jaxalign.plots.labels import most_important
from jaxalign.plots.page import GREY, Page, facets, new_page, rows_of, say, sentence_page
from jaxalign.plots.scales import drawable, percent_axis
from jaxalign.plots.scatter import boxed_title, dots, layer_bar, names_of, square, zero_line
from jaxalign.plots.words import precision_name
from jaxalign.studies.heads.average import mean_maps
from jaxalign.studies.heads.figures.values import (
    caption,
    correlation_text,
    drawn,
    drift_percent,
    head_names,
    importance,
    left_out,
    likeness_text,
    mean_map,
)
from jaxalign.studies.heads.findings import Replacement, find
from jaxalign.studies.heads.result import HeadsResult, PromptResult
from jaxalign.study.measure import DRIFT, IMPORTANCE

PANEL = 3.3  # inches
NO_PRECISION = "No low precision was run, so there is nothing to compare with f32."


def _width(panels: int) -> float:
    return max(4.6, PANEL * panels + 0.9)


def importance_vs_drift(result: HeadsResult) -> Page:
    """Figure 1: one dot a head; do the same heads matter, and do those that matter drift?"""
    title = "Do the same heads matter in low precision?"
    if not result.precisions:
        return sentence_page(caption(result), title, NO_PRECISION)
    reading = (
        "One dot is one attention head, averaged over prompts. Above: what the answer's lead over "
        "the best other token loses when the head is set to zero, in f32 (across) and inside the "
        "low-precision model (up): on the dashed line it matters as much. Grey: f32 with random "
        "noise in the weights, as large as the precision's error. Below: how far low precision "
        "moves the head's output; correlations are inside layers. Intervals over heads and prompts."
    )
    precisions = drawn(result).precisions
    if any((drift_percent(result, name) == 0).any() for name in precisions):
        reading += " Heads at the left edge do not drift at all."
    reading += left_out(result)
    rows, columns = rows_of(len(precisions))
    width, body = _width(columns), 7.4 * rows
    page = new_page(caption(result), title, reading, width=width, body=body)
    grid = page.figure.subplots(2 * rows, columns, squeeze=False)
    height = importance(result)
    for n, precision in enumerate(precisions):
        row, column = divmod(n, columns)
        above, below = grid[2 * row : 2 * row + 2, column]
        _agreement_panel(page, above, result, precision)
        _drift_panel(page, below, result, precision, height)
        if n:
            below.sharey(grid[1, 0])
        if not column:
            above.set_ylabel(f"{IMPORTANCE.name} inside the precision ({IMPORTANCE.unit})")
            below.set_ylabel(f"zero-ablation {IMPORTANCE.label}, f32")
        if n in (columns - 1, len(precisions) - 1):
            for ax in (above, below):
                layer_bar(page.figure, ax, result.num_layers)
    for ax in [ax for pair in zip(grid[::2].flat, grid[1::2].flat, strict=True) for ax in pair][
        2 * len(precisions) :
    ]:
        ax.remove()
    return page


def _agreement_panel(page: Page, ax: Axes, result: HeadsResult, precision: str) -> None:
    """Importance in f32 against importance in a precision, noise of its size behind it."""
    found = find(
        result.statistics.agreement, task=ALL_TASKS, precision=precision, replacement="zero"
    )
    lines = [
        likeness_text(symbol, one)
        for symbol, one in (
            ("Pearson r", found.pearson if found else None),
            ("Spearman ρ", found.spearman if found else None),
        )
    ]
    boxed_title(ax, f"{precision_name(precision)} against f32", lines)
    ax.set_xlabel(f"{IMPORTANCE.name} in f32 ({IMPORTANCE.unit})")
    lows = [p.precisions[precision] for p in result.prompts]
    if not all("zero" in low.importance for low in lows):
        say(ax, "This older result has no importance\nin low precision.")
        return
    high, own = mean_maps(
        [p.zero_importance for p in result.prompts], [low.importance["zero"] for low in lows]
    )
    noise = [low.noise.importance["zero"] for low in lows if low.noise is not None]
    if noise:
        draws = drawable(np.mean(noise, axis=0))  # [draws, L, H]
        across = np.broadcast_to(high, draws.shape)
        ax.scatter(across, draws, s=5, color=GREY, alpha=0.45, linewidths=0, zorder=2)
    x, y, kept = dots(ax, high, own)
    if not kept.size:
        say(ax, "No head is finite in every prompt.")
        return
    square(ax, x, y)
    page.label(ax, x, y, names_of(most_important(x, x - y, count=5), kept, head_names(result)))


def _drift_panel(
    page: Page, ax: Axes, result: HeadsResult, precision: str, height: np.ndarray
) -> None:
    drift = drift_percent(result, precision)
    found = find(
        result.statistics.correlations,
        task=ALL_TASKS,
        precision=precision,
        importance="zero",
        drift="relative",
    )
    pearson, spearman = (found.pearson.estimate, found.spearman.estimate) if found else (None, None)
    prompts = found.prompts if found else 0
    lines = (
        correlation_text("Pearson r", pearson, prompts),
        correlation_text("Spearman ρ", spearman, prompts),
    )
    boxed_title(ax, f"importance and drift, {precision_name(precision)}", lines)
    ax.set_xlabel(f"mean {DRIFT.label}")
    x, y, kept = dots(ax, np.maximum(drift, percent_axis(ax, drift)), height)
    if not kept.size:
        say(ax, "No head is finite in every prompt.")
        return
    zero_line(ax)
    ax.margins(0.1)
    chosen = most_important(y, x, count=5)
    page.label(ax, x, y, names_of(chosen, kept, head_names(result)))


def zero_vs_mean_ablation(result: HeadsResult) -> Page:
    """Figure 2: zero against mean, and against resample replacement."""
    title = "Does a head's importance depend on what stands in for it?"
    reading = (
        "One dot is one attention head, averaged over prompts. On the dashed line both ways of "
        "replacing its output cost the answer the same. Below the line: setting it to zero costs "
        "more, which hints that part of its effect is a constant, kept by the replacement."
    )
    page = new_page(caption(result), title, reading, width=_width(2), body=3.35)
    axes = page.figure.subplots(1, 2)
    resampled = [p for p in result.prompts if p.resample_importance is not None]
    averaged = [p for p in result.prompts if p.mean_importance is not None]
    _replacement_panel(page, axes[0], result, averaged, "mean")
    _replacement_panel(page, axes[1], result, resampled, "resample")
    layer_bar(page.figure, axes[-1], result.num_layers)
    return page


def _replacement_panel(
    page: Page, ax: Axes, result: HeadsResult, prompts: list[PromptResult], kind: Replacement
) -> None:
    words = {"mean": "its mean over reference prompts", "resample": "its output on another prompt"}
    ax.set_title(f"Zero against {kind} ({counted(len(prompts), 'prompt')})")
    ax.set_xlabel(f"{IMPORTANCE.name}, head set to zero ({IMPORTANCE.unit})")
    ax.set_ylabel(f"{IMPORTANCE.name}, head set to\n{words[kind]} ({IMPORTANCE.unit})")
    zero = mean_map(prompts, lambda p: p.zero_importance)
    other = mean_map(prompts, lambda p: p.importance(kind))
    if zero is None or other is None:
        why = "No prompt has another one of\nits length and task to resample from."
        ran = result.provenance.options.get("ablations", (kind,))
        say(ax, why if kind in ran else f"The ablation {kind!r} was not run.")
        return
    x, y, kept = dots(ax, zero, other)
    square(ax, x, y)
    chosen = most_important(x, x - y, count=5)
    page.label(ax, x, y, names_of(chosen, kept, head_names(result)))


def first_order(result: HeadsResult) -> Page:
    """Figure 7: predicted against true gain of restoring each head alone."""
    title = "Does one gradient predict which head is worth restoring?"
    if not result.precisions:
        return sentence_page(caption(result), title, NO_PRECISION)
    reading = (
        "One dot is one attention head, averaged over prompts. Across: the gain that the gradient "
        "predicts for giving the head its f32 output back. Up: the gain measured when it is given "
        "back. On the dashed line the prediction is exact. Bound: in how many prompts the whole "
        "change Δm of the answer's lead stayed within the summed sizes of the predictions."
    )
    precisions = drawn(result).precisions
    reading += left_out(result)
    rows, columns = rows_of(len(precisions))
    width, body = _width(columns), 3.75 * rows
    page = new_page(caption(result), title, reading, width=width, body=body)
    axes = facets(page, len(precisions))
    for ax, precision in zip(axes, precisions, strict=True):
        _gain_panel(page, ax, result, precision)
    for ax in axes[::columns]:
        ax.set_ylabel("true gain of restoring the head (logits)")
    layer_bar(page.figure, axes[-1], result.num_layers)
    return page


def _gain_panel(page: Page, ax: Axes, result: HeadsResult, precision: str) -> None:
    found = find(result.statistics.first_order, task=ALL_TASKS, precision=precision)
    prompts = found.prompts if found else 0
    held = f"{found.bound_held} of {prompts}" if found else "none"
    lines = (
        correlation_text("Spearman ρ", found.spearman.estimate if found else None, prompts),
        f"bound |Δm| ≤ Σ |predicted|: held in {held}",
    )
    boxed_title(ax, f"{precision_name(precision)} against f32", lines)
    ax.set_xlabel("predicted gain ∇m · (f32 − low) (logits)")
    accounts = [p.precisions[precision].first_order for p in result.prompts]
    predicted, restored = mean_maps(
        [account.predicted for account in accounts], [account.restored for account in accounts]
    )
    x, y, kept = dots(ax, predicted, restored)
    if not kept.size:
        say(ax, "No head is finite in every prompt.")
        return
    square(ax, x, y)
    chosen = most_important(y, x, count=5)
    page.label(ax, x, y, names_of(chosen, kept, head_names(result)))
