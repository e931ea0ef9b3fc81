"""The figure of an alignment: every value beside what chance and two seeds give."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from jaxalign.measures.alignment import Aligned
from jaxalign.plots.looks import MEASURED, NOISE
from jaxalign.plots.page import GREY, INK, PALE, Page, new_page
from jaxalign.plots.rows import bare, beside
from jaxalign.plots.words import short_name
from jaxalign.studies.align.result import AlignResult, Side

SEEDS = "#009E73"
SPREAD = 0.5  # of a row's height, that draws are scattered over


def nulls(result: AlignResult) -> Page:
    """Every measure's value beside the draws of its null and the pairs of seeds."""
    names = list(result.measures)
    seeds = bool(result.provenance.floor)
    page = new_page(
        _caption(result),
        f"Are the two more alike than chance{', and as alike as two seeds' if seeds else ''}?",
        "A measure a row: the value (circle) and what each draw of chance gives (dots)"
        f"{' and each pair of seeds of one precision (diamonds)' if seeds else ''}. "
        "z and p are of the value beside chance; p is corrected for the measures.",
        width=7.2,
        body=0.5 + 0.42 * len(names),
        below=0.3,
    )
    ax = page.figure.subplots()
    for height, name in enumerate(names):
        _row(ax, height, result.measures[name])
    ax.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    ax.set_ylim(len(names) - 0.5, -0.5)
    low = min((v for own in result.measures.values() for v in _values(own)), default=0.0)
    ax.set_xlim(min(-0.02, low - 0.02), 1.02)
    ax.set_xlabel("CKA" if result.kind == "activations" else "cosine, or share of features")
    bare(ax)
    page.legend(_legend(result))
    return page


def _values(own: Aligned) -> list[float]:
    return [*own.null, *own.floor, *([] if own.value is None else [own.value])]


def _row(ax: Axes, height: int, own: Aligned) -> None:
    """A measure's draws, pairs and value, or why it has none."""
    if own.value is None:
        ax.text(0.5, height, own.missing or "", ha="center", va="center", size=6.5, color=GREY)
        return
    ax.axhline(height, color=PALE, lw=0.4, zorder=0)
    for values, colour, marker, size in (
        (own.null, NOISE.colour, ".", 3.0),
        (own.floor, SEEDS, "D", 3.6),
    ):
        ax.plot(
            values, height + _scatter(len(values)), marker, color=colour, ms=size,
            mec=INK if marker == "D" else colour, mew=0.3, ls="", zorder=2,
        )  # fmt: skip
    ax.plot(own.value, height, MEASURED.marker, color=MEASURED.colour, ms=6, mec=INK, mew=0.4,
            zorder=3)  # fmt: skip
    beside(ax, height, _words(own))


def _scatter(count: int) -> np.ndarray:
    """Heights in a row that keep equal values apart, the same for the same count."""
    # Multiples of the golden ratio fill an interval evenly in any order.
    return SPREAD * ((np.arange(count) * 0.6180339887 + 0.5) % 1 - 0.5)


def _words(own: Aligned) -> str:
    assert own.value is not None
    text = f"{own.value:.3f}"
    if own.z is not None:
        text += f", z {own.z:+.1f}".replace("-", "−")
    if own.p_adjusted is not None:
        text += f", p {own.p_adjusted:.3f}"
    return text


def _legend(result: AlignResult) -> list[Line2D]:
    draws = any(own.null for own in result.measures.values())
    kinds = [("the two", MEASURED.colour, MEASURED.marker, 6.0, True)]
    kinds += [("chance", NOISE.colour, ".", 5.0, draws)]
    kinds += [("two seeds", SEEDS, "D", 4.0, bool(result.provenance.floor))]
    return [
        Line2D([], [], color=colour, marker=marker, ms=size, ls="", label=label)
        for label, colour, marker, size, there in kinds
        if there
    ]


def _caption(result: AlignResult) -> str:
    where = result.provenance
    what = "features" if result.kind == "dictionaries" else "tokens"

    def said(side: Side) -> str:
        model = f" of {short_name(side.model, 30)}" if side.model else ""
        size = f"{side.rows} {what} of width {side.width}"
        return f"{short_name(side.name, 50)} ({side.what}, {size}, {side.place}{model})"

    device = short_name(where.environment.device_kind, 40)
    return f"{said(where.first)} and {said(where.second)}; device {device}."


FIGURES: MappingProxyType[str, Callable[[AlignResult], Page]] = MappingProxyType(
    {"align1_nulls": nulls}
)
