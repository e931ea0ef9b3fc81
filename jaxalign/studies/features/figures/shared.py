"""What the figures of a features study share: caption, page, legend, axes."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from jaxalign.errors import counted
from jaxalign.plots.looks import look
from jaxalign.plots.page import Page, facets, new_page
from jaxalign.plots.scales import log_ticks
from jaxalign.plots.words import model_words, precision_name, short_name
from jaxalign.studies.features.result import FeaturesResult

MOST = 6  # dictionaries of a page
WIDTH = 9.6


def caption(result: FeaturesResult) -> str:
    """What the numbers are of: model, revision, device, tokens.

    Args:
        result: of the study.
    """
    model, revision = model_words(vars(result.provenance.model))
    device = short_name(result.provenance.environment.device_kind, 80)
    texts = result.texts
    return (
        f"{model}; {revision}; device {device}; {texts.tokens} tokens of "
        f"{counted(texts.documents, 'document')}."
    )


def panels(
    result: FeaturesResult, title: str, reading: str, body: float = 2.6
) -> tuple[Page, list[Axes]]:
    """A page with a panel for each dictionary.

    Args:
        result: of the study.
        title: the question.
        reading: how to read it.
        body: height of a row of panels, inches.
    """
    shown = result.dictionaries[:MOST]
    if len(result.dictionaries) > MOST:
        reading += f" Drawn are {MOST} of {len(result.dictionaries)} dictionaries."
    rows = -(-len(shown) // 3)
    page = new_page(caption(result), title, reading, width=WIDTH, body=body * rows, below=0.4)
    axes = facets(page, len(shown), 3)
    for ax, own in zip(axes, shown, strict=True):
        mark = "" if own.valid else " (explains too little)"
        ax.set_title(short_name(own.place, 20) + mark)
    return page, axes


def names_of(result: FeaturesResult) -> tuple[str, ...]:
    """The names of the schemes.

    Args:
        result: of the study.
    """
    return tuple(row.scheme for row in result.dictionaries[0].rows)


def legend(page: Page, result: FeaturesResult, *more: Line2D) -> None:
    """One legend of the schemes.

    Args:
        page: under whose panels it stands.
        result: of the study.
        more: other lines to explain.
    """
    names = names_of(result)
    lines = [
        Line2D([], [], color=look(name, names).colour, marker=look(name, names).marker, ms=4,
               label=precision_name(name))
        for name in names
    ]  # fmt: skip
    page.legend([*lines, *more])


def log_axis(ax: Axes, which: str, values: object) -> None:
    """A log scale with a label at 1, 3, 10, 30, … or, over many decades, at powers of ten.

    Args:
        ax: the panel.
        which: "x" or "y".
        values: everything that is drawn along it.
    """
    axis = ax.xaxis if which == "x" else ax.yaxis
    (ax.set_xscale if which == "x" else ax.set_yscale)("log")
    there = np.asarray(values, float).ravel()
    if (np.isfinite(there) & (there > 0)).any():
        axis.set_major_locator(log_ticks(there))
    axis.set_major_formatter(FuncFormatter(lambda v, _: power(v)))
    axis.set_minor_formatter(NullFormatter())


def power(value: float) -> str:
    """``0.03``, ``1e-5``: a number of one digit.

    Args:
        value: positive.
    """
    if 1e-2 <= value < 1e3:
        return f"{value:g}"
    return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
