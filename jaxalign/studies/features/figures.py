"""Figures of a features study: survival, dose, ratios to floors, and feature by feature."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from jaxalign.errors import counted
from jaxalign.plots.looks import NOISE, look
from jaxalign.plots.page import GREY, INK, PALE, Page, facets, new_page
from jaxalign.plots.words import model_words, precision_name, short_name
from jaxalign.studies.features.result import DictionaryReport, FeatureRow, FeaturesResult, Floor
from jaxalign.studies.features.table import verdict_of

MOST = 6  # dictionaries of a page
WIDTH = 9.6


def _caption(result: FeaturesResult) -> str:
    model, revision = model_words(vars(result.provenance.model))
    device = short_name(result.provenance.environment.device_kind, 80)
    texts = result.texts
    return (
        f"{model}; {revision}; device {device}; {texts.tokens} tokens of "
        f"{counted(texts.documents, 'document')}."
    )


def _page(
    result: FeaturesResult, title: str, reading: str, body: float = 2.6
) -> tuple[Page, list[Axes]]:
    shown = result.dictionaries[:MOST]
    if len(result.dictionaries) > MOST:
        reading += f" Drawn are {MOST} of {len(result.dictionaries)} dictionaries."
    rows = -(-len(shown) // 3)
    page = new_page(_caption(result), title, reading, width=WIDTH, body=body * rows, below=0.4)
    axes = facets(page, len(shown), 3)
    for ax, own in zip(axes, shown, strict=True):
        mark = "" if own.valid else " (explains too little)"
        ax.set_title(short_name(own.place, 20) + mark)
    return page, axes


def _names(result: FeaturesResult) -> tuple[str, ...]:
    return tuple(row.scheme for row in result.dictionaries[0].rows)


def _legend(page: Page, result: FeaturesResult, *more: Line2D) -> None:
    names = _names(result)
    lines = [
        Line2D([], [], color=look(name, names).colour, marker=look(name, names).marker, ms=4,
               label=precision_name(name))
        for name in names
    ]  # fmt: skip
    page.legend([*lines, *more])


def survival(result: FeaturesResult) -> Page:
    """Share of features above each correlation, by scheme, with the noise of its size."""
    page, axes = _page(
        result,
        "How many features survive, whatever correlation one asks for?",
        "Share of the features whose activations correlate with f32's by at least 1 − x. To the "
        "left more is asked. Each scheme (line) beside the median of random weights as far from "
        "f32 (bar across its half).",
    )
    names = _names(result)
    for ax, own in zip(axes, result.dictionaries, strict=False):
        for row in own.rows:
            lost = np.sort(1 - row.rho[np.isfinite(row.rho)])
            share = np.arange(1, len(lost) + 1) / max(1, len(lost))
            ax.plot(np.fmax(lost, 1e-9), share, color=look(row.scheme, names).colour)
            if row.tensor and row.tensor.lost:
                ax.plot([row.tensor.lost] * 2, [0.46, 0.54], color=NOISE.colour, lw=1.6, zorder=4)
        _log(ax, "x")
        ax.set_xlabel("1 − ρ")
        ax.set_ylim(0, 1)
        ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.0%}"))
    axes[0].set_ylabel("share of features")
    _legend(page, result, Line2D([], [], color=NOISE.colour, label="median of noise of its size"))
    return page


def dose(result: FeaturesResult) -> Page:
    """What features lose against what perplexity costs."""
    page, axes = _page(
        result,
        "Do features lose what predictions lose?",
        "Each scheme: the rise of perplexity against f32, and the median of what its features "
        "lose, both on a log axis; bars: 95 % over documents. Grey: what two ways of batching f32 "
        "differ by. A scheme at the left edge costs no perplexity that can be measured.",
    )
    names = _names(result)
    clean = result.predictions[0].perplexity.value or 1.0
    rises = {
        own.scheme: np.log((own.perplexity.value or np.nan) / clean) for own in result.predictions
    }
    seen = [rise for name, rise in rises.items() if rise > 0 and name != "f32"] or [1e-3]
    edge = min(seen) / 3
    for ax, own in zip(axes, result.dictionaries, strict=False):
        for row in own.rows:
            x, style = max(rises[row.scheme], edge), look(row.scheme, names)
            if row.lost.value is None:
                continue
            if row.lost.low and row.lost.high:
                ax.plot([x, x], [row.lost.low, row.lost.high], color=style.colour, lw=1)
            ax.plot(x, row.lost.value, style.marker, color=style.colour, ms=5, mec=INK, mew=0.4)
            if row.tensor and row.tensor.lost:
                ax.plot(x, row.tensor.lost, "_", color=NOISE.colour, ms=9, mew=1.6)
        if own.batching[0]:
            ax.axhline(own.batching[0], color=GREY, lw=0.7, ls=":")
        _log(ax, "x")
        _log(ax, "y")
        ax.set_xlabel("rise of log perplexity, nats")
    axes[0].set_ylabel("lost: 1 − ρ, median")
    _legend(
        page,
        result,
        Line2D([], [], color=NOISE.colour, marker="_", ls="", ms=9, label="noise of its size"),
    )
    return page


def by_peak(result: FeaturesResult) -> Page:
    """What each feature loses against its largest activation in f32."""
    rows = result.dictionaries[0].rows
    shown = list(rows[:MOST])
    own = result.dictionaries[0]
    reading = (
        f"Every feature of {short_name(own.place, 20)} that is judged: its largest activation in "
        "f32 and what it loses. Line: the median in each tenth of the features."
    )
    columns = min(3, len(shown))
    page = new_page(
        _caption(result), "Which features lose most: the weak ones?", reading, width=WIDTH,
        body=2.4 * -(-len(shown) // columns), below=0.4,
    )  # fmt: skip
    axes = facets(page, len(shown), 3)
    names = _names(result)
    for ax, row in zip(axes, shown, strict=True):
        there = np.isfinite(row.rho)
        x, y = own.peak[there], np.fmax(1 - row.rho[there], 1e-9)
        style = look(row.scheme, names)
        ax.plot(x, y, ".", color=style.colour, ms=2.5, alpha=0.5, rasterized=True)
        order = np.array_split(np.argsort(x), min(10, len(x)))
        ax.plot(
            [np.median(x[part]) for part in order], [np.median(y[part]) for part in order],
            color=INK, lw=1.2,
        )  # fmt: skip
        _log(ax, "x")
        _log(ax, "y")
        ax.set_title(precision_name(row.scheme))
        ax.set_xlabel("largest activation in f32")
    axes[0].set_ylabel("lost: 1 − ρ")
    return page


def ratios(result: FeaturesResult) -> Page:
    """Each scheme over its floors."""
    page, axes = _page(
        result,
        "Is it more than noise of its size does?",
        "What features lose under a scheme over what they lose under each floor, with 95 % "
        "intervals over documents and draws. Right of 1 the scheme does more, left of it less. "
        "Filled: told from 1, corrected.",
        body=0.8 + 0.34 * max(2, len(result.dictionaries[0].rows)),
    )
    kinds = {"tensor": ("o", 0.0), "group": ("s", 0.18), "pruning": ("^", -0.18)}
    for ax, own in zip(axes, result.dictionaries, strict=False):
        ax.axvline(1, color=GREY, lw=0.7)
        for height, row in enumerate(own.rows):
            ax.axhline(height, color=PALE, lw=0.4, zorder=0)
            for kind, (marker, shift) in kinds.items():
                _one_ratio(ax, getattr(row, kind), height + shift, marker)
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_yticks(range(len(own.rows)), [precision_name(row.scheme) for row in own.rows])
        ax.set_ylim(len(own.rows) - 0.5, -0.5)
        ax.set_xlabel("÷ floor")
    page.legend([
        Line2D([], [], color=INK, marker=marker, ls="", ms=4, label=label)
        for label, marker in (("noise by matrix", "o"), ("noise by group", "s"), ("pruning", "^"))
    ])  # fmt: skip
    return page


def _one_ratio(ax: Axes, floor: Floor | None, height: float, marker: str) -> None:
    if floor is None or floor.ratio.value is None or floor.ratio.value <= 0:
        return
    ratio, value = floor.ratio, floor.ratio.value
    if ratio.low and ratio.high:
        ax.plot([ratio.low, ratio.high], [height, height], color=INK, lw=1)
    told = verdict_of(floor) != "what"
    ax.plot(value, height, marker, color=INK, mfc=INK if told else "white", ms=4.5, zorder=3)


def rates(result: FeaturesResult) -> Page:
    """Dead, rare, common and frequent features in every precision."""
    page, axes = _page(
        result,
        "Do features fall silent?",
        "Shares of all features: never active on these texts, on less than 1 % of the tokens, on "
        "less than 50 %, on more; in f32 and in each precision.",
        body=0.8 + 0.3 * (1 + len(result.dictionaries[0].rows)),
    )
    shades = {"dead": "#444444", "rare": "#9ecae1", "common": "#4292c6", "frequent": "#08306b"}
    for ax, own in zip(axes, result.dictionaries, strict=False):
        entries: list[DictionaryReport | FeatureRow] = [own, *own.rows]
        for height, entry in enumerate(entries):
            left = 0.0
            for name, colour in shades.items():
                share = getattr(entry, name)
                ax.barh(height, share, left=left, height=0.7, color=colour)
                left += share
        labels = ["f32", *(precision_name(row.scheme) for row in own.rows)]
        ax.set_yticks(range(len(entries)), labels)
        ax.set_ylim(len(entries) - 0.5, -0.5)
        ax.set_xlim(0, 1)
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.0%}"))
    page.legend([Line2D([], [], color=c, lw=6, label=name) for name, c in shades.items()])
    return page


def _log(ax: Axes, which: str) -> None:
    axis = ax.xaxis if which == "x" else ax.yaxis
    (ax.set_xscale if which == "x" else ax.set_yscale)("log")
    axis.set_major_formatter(
        FuncFormatter(lambda v, _: f"{v:.0e}".replace("e-0", "e-").replace("e+00", ""))
    )
    axis.set_minor_formatter(NullFormatter())


def _power(value: float) -> str:
    return f"{value:.0e}".replace("e-0", "e-").replace("e+00", "").replace("e+0", "e")


FIGURES: MappingProxyType[str, Callable[[FeaturesResult], Page]] = MappingProxyType(
    {
        "features1_survival": survival,
        "features2_dose": dose,
        "features3_ratios": ratios,
        "features4_by_peak": by_peak,
        "features5_rates": rates,
    }
)
