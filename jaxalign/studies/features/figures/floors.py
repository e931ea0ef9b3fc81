"""Figures of what precisions do to features, beside floors."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from jaxalign.plots.looks import look
from jaxalign.plots.page import GREY, INK, PALE, Page, facets, new_page
from jaxalign.plots.words import precision_name, short_name
from jaxalign.studies.features.figures.shared import (
    MOST,
    WIDTH,
    caption,
    legend,
    log_axis,
    names_of,
    panels,
)
from jaxalign.studies.features.result import DictionaryReport, FeaturesResult
from jaxalign.studies.features.rows import CONTROLS, FeatureRow, Floor

LINES = ("-", ":", "--")  # the dictionary, and each of its controls


def survival(result: FeaturesResult) -> Page:
    """Share of features above each correlation, by scheme, with the noise of its size."""
    page, axes = panels(
        result,
        "How many features survive, whatever correlation one asks for?",
        "Share of the features whose activations correlate with f32's by at least 1 − x. To the "
        "left more is asked. Lines: schemes; dots in their colour: random weights as far from f32; "
        "dotted: random directions, dashed: directions of single tokens, in the features' place. "
        "Left edge: 1e-6 and less.",
    )
    names = names_of(result)
    ends = 1 - np.array(result.thresholds)
    for ax, own in zip(axes, result.dictionaries, strict=False):
        drawn = [ends]
        for row in own.rows:
            colour = look(row.scheme, names).colour
            for one, style in zip((row, *map(own.beside(row.scheme).get, CONTROLS)), LINES,
                                  strict=True):  # fmt: skip
                if one is not None:
                    lost = np.fmax(np.sort(1 - one.rho[np.isfinite(one.rho)]), 1e-6)
                    share = np.arange(1, len(lost) + 1) / max(1, len(lost))
                    ax.plot(lost, share, style, color=colour, lw=1.5 if style == "-" else 0.9)
                    drawn.append(lost)
            if row.tensor:
                floor = np.array(row.tensor.curve, float)
                ax.plot(ends, floor, "o", color=colour, ms=3, mfc="white", mew=0.8)
        log_axis(ax, "x", np.concatenate(drawn))
        ax.set_xlabel("1 − ρ")
        ax.set_ylim(0, 1.02)
        ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.0%}"))
    axes[0].set_ylabel("share of features")
    dots = Line2D([], [], color=GREY, marker="o", mfc="white", ls="", ms=4,
                  label="noise of its size")  # fmt: skip
    beside = [Line2D([], [], color=GREY, ls=style, lw=0.9, label=name)
              for name, style in zip(CONTROLS, LINES[1:], strict=True)]  # fmt: skip
    legend(page, result, dots, *beside)
    return page


def dose(result: FeaturesResult) -> Page:
    """What features lose against what perplexity costs."""
    page, axes = panels(
        result,
        "Do features lose what predictions lose?",
        "Each scheme: the rise of perplexity against f32, and what its features lose, both on a "
        "log axis; the intervals over documents are mostly smaller than the marks. Dotted: bf16. "
        "Noise is drawn at its scheme's rise. Open: perplexity does not rise.",
    )
    names = names_of(result)
    clean = result.predictions[0].perplexity.value or 1.0
    rises = {
        own.scheme: np.log((own.perplexity.value or np.nan) / clean) for own in result.predictions
    }
    seen = [rise for name, rise in rises.items() if rise > 0 and name != "f32"] or [1e-3]
    edge = min(seen) / 3
    for ax, own in zip(axes, result.dictionaries, strict=False):
        drawn = []
        for row in own.rows:
            x, style = max(rises[row.scheme], edge), look(row.scheme, names)
            if row.lost.value is None:
                continue
            if row.lost.low and row.lost.high:
                ax.plot([x, x], [row.lost.low, row.lost.high], color=style.colour, lw=1)
            rises_at_all = rises[row.scheme] > 0
            ax.plot(x, row.lost.value, style.marker, color=style.colour, ms=5, mec=INK, mew=0.4,
                    mfc=style.colour if rises_at_all else "white")  # fmt: skip
            drawn.append((x, row.lost.value))
            if row.tensor and row.tensor.lost:
                ax.plot(x, row.tensor.lost, "_", color=INK, ms=13, mew=1.2)
        if own.bf16[0]:
            ax.axhline(own.bf16[0], color=GREY, lw=0.9, ls=":")
            drawn.append((edge, own.bf16[0]))
        for which, values in zip("xy", np.array(drawn).reshape(-1, 2).T, strict=True):
            log_axis(ax, which, values)
        ax.set_xlabel("rise of log perplexity, nats")
    axes[0].set_ylabel("lost: 1 − ρ², mean")
    legend(
        page,
        result,
        Line2D([], [], color=INK, marker="_", ls="", ms=11, mew=1.2, label="noise of its size"),
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
        caption(result), "Which features lose most: the weak ones?", reading, width=WIDTH,
        body=2.4 * -(-len(shown) // columns),
    )  # fmt: skip
    axes = facets(page, len(shown), 3)
    names = names_of(result)
    for ax, row in zip(axes, shown, strict=True):
        there = np.isfinite(row.rho)
        x, y = np.fmax(own.peak[there], 1e-6), np.fmax(1 - row.rho[there], 1e-6)
        style = look(row.scheme, names)
        ax.plot(x, y, ".", color=style.colour, ms=2.5, alpha=0.5, rasterized=True)
        order = np.array_split(np.argsort(x), min(10, len(x)))
        ax.plot(
            [np.median(x[part]) for part in order], [np.median(y[part]) for part in order],
            color=INK, lw=1.2,
        )  # fmt: skip
        log_axis(ax, "x", x)
        log_axis(ax, "y", y)
        ax.set_title(precision_name(row.scheme))
        ax.set_xlabel("largest activation in f32")
    axes[0].set_ylabel("1 − ρ")
    return page


def ratios(result: FeaturesResult) -> Page:
    """Each scheme over its floors."""
    kinds = {
        "tensor": ("o", "noise by matrix"), "group": ("s", "noise by group"),
        "pruning": ("^", "pruning"),
    }  # fmt: skip
    shown = {
        kind: mark for kind, mark in kinds.items()
        if any(getattr(row, kind) for own in result.dictionaries for row in own.rows)
    }  # fmt: skip
    marks = dict(zip(CONTROLS, "Dv", strict=True))
    page, axes = panels(
        result,
        "Is it more than something else as large does?",
        "What features lose under a scheme over what they lose under each floor, with 95 % "
        "intervals over documents and draws. Right of 1 the scheme does more, left of it less. "
        "Filled: told from 1. Grey: the same ratio to noise by matrix of directions that nothing "
        "was trained for.",
        body=0.8 + 0.42 * max(2, len(result.dictionaries[0].rows)),
    )
    for ax, own in zip(axes, result.dictionaries, strict=False):
        ax.axvline(1, color=GREY, lw=0.7)
        for height, row in enumerate(own.rows):
            ax.axhline(height, color=PALE, lw=0.4, zorder=0)
            every = [(getattr(row, kind), mark, INK) for kind, (mark, _) in shown.items()]
            every += [(one and one.tensor, marks[name], GREY)
                      for name, one in own.beside(row.scheme).items()]  # fmt: skip
            for shift, (floor, mark, colour) in zip(
                np.linspace(-0.32, 0.32, len(every)), every, strict=True
            ):
                _one_ratio(ax, floor, height + shift, mark, colour)
        ax.set_yticks(range(len(own.rows)), [precision_name(row.scheme) for row in own.rows])
        ax.set_ylim(len(own.rows) - 0.5, -0.5)
        ax.set_xlabel("÷ floor")
    labels = [(mark, label, INK) for mark, label in shown.values()]
    labels += [(mark, name, GREY) for name, mark in marks.items()]
    page.legend([
        Line2D([], [], color=colour, marker=mark, ls="", ms=4, label=label)
        for mark, label, colour in labels
    ])  # fmt: skip
    return page


def _one_ratio(ax: Axes, floor: Floor | None, height: float, marker: str, colour: str) -> None:
    if floor is None or floor.ratio.value is None:
        return
    ratio, value = floor.ratio, floor.ratio.value
    if ratio.low is not None and ratio.high is not None:
        ax.plot([ratio.low, ratio.high], [height, height], color=colour, lw=1)
    told = floor.verdict in ("more", "less")
    ax.plot(value, height, marker, color=colour, mfc=colour if told else "white", ms=4.5, zorder=3)


def rates(result: FeaturesResult) -> Page:
    """Dead, rare, common and frequent features in every precision."""
    page, axes = panels(
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
