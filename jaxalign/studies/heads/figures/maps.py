"""Figure 6: importance and drift as maps of layer and head."""

from __future__ import annotations

import numpy as np

from jaxalign.plots.maps import MAX_NUMBERS, NUMBERED, PLAIN, signed_map, size_map
from jaxalign.plots.page import Page, facets, new_page, rows_of
from jaxalign.plots.words import precision_name
from jaxalign.studies.heads.figures.values import (
    caption,
    drawn,
    drift_percent,
    importance,
    left_out,
)
from jaxalign.studies.heads.result import HeadsResult
from jaxalign.study.measure import DRIFT, IMPORTANCE


def head_map(result: HeadsResult) -> Page:
    """Figure 6: importance beside the drift of every precision."""
    precisions = drawn(result).precisions
    panels = 1 + len(precisions)
    reading = (
        "Each cell is one head, averaged over all prompts. Importance: how much the answer's lead "
        "shrinks when the head is set to zero in f32 (negative: it grows). Drift: how far low "
        f"precision moves the head's output, in {DRIFT.long_unit}."
    )
    rows, columns = result.num_layers, result.num_heads
    cell = NUMBERED if rows * columns <= MAX_NUMBERS else PLAIN
    down, across = rows_of(panels)
    width = max(4.6, across * max(1.6, columns * cell[0] + 0.3) + 0.5)
    body = (max(rows, 4) * cell[1] + 1.15) * down
    maps = [importance(result), *(drift_percent(result, name) for name in precisions)]
    if not all(np.isfinite(values).all() for values in maps):
        reading += " Crossed out: not finite in at least one prompt."
    title = "Where are the heads that matter, and where does precision bite?"
    reading += left_out(result)
    page = new_page(caption(result), title, reading, width=width, body=body)
    axes = facets(page, panels)
    axes[0].set_title(f"{IMPORTANCE.name.capitalize()}, f32")
    signed_map(page.figure, axes[0], maps[0], IMPORTANCE.short)
    for ax, values, precision in zip(axes[1:], maps[1:], precisions, strict=True):
        ax.set_title(f"{DRIFT.name.capitalize()}, {precision_name(precision)}")
        size_map(page.figure, ax, values, DRIFT.short)
    for ax in axes:
        ax.set_xlabel("head")
    for ax in axes[::across]:
        ax.set_ylabel("layer")
    return page
