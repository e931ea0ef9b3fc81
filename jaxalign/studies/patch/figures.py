"""Maps of what an exchange does, curves of knock-outs, and estimates against exact effects."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import MappingProxyType

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.lines import Line2D

from jaxalign.errors import counted
from jaxalign.measures.estimates import ALL_TASKS
from jaxalign.plots.looks import MEASURED, NOISE
from jaxalign.plots.maps import MAX_NUMBERS, bare_cells, dots, numbers, shared_bar
from jaxalign.plots.page import GREY, Page, facets, new_page, rows_of
from jaxalign.plots.scales import drawable
from jaxalign.plots.scatter import boxed_title, square
from jaxalign.plots.words import model_words, short_name, signed, significant
from jaxalign.studies.patch.result import KNOCKOUT, ROLES, SWEEPS, PatchMap, PatchResult
from jaxalign.study.tables import estimate_text

COLOURS = matplotlib.colormaps["PuOr_r"]
LABEL = "share of the answer, %"
MOST_PANELS = 12
FEW_PERCENT = 10  # below which a number has a decimal
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")
MARKERS = "os^Dv"
MOST_LABELS = 24  # names of rows


def _caption(result: PatchResult) -> str:
    model, revision = model_words(vars(result.provenance.model))
    kept, given = result.provenance.prompts.kept, result.provenance.prompts.given
    return f"{model}; {revision}; {kept} of {counted(given, 'pair')}."


def positions(result: PatchResult) -> Page | None:
    """Layer by position, a row of panels a sweep: all pairs by role, then templates by word."""
    title = "Where does a prompt carry the answer, layer by layer?"
    every = [m for m in result.maps if _by_position(m)]
    # A row a layer reads before a row a head.
    every = [m for m in every if m.sweep != "heads-positions"] or every
    if not every:
        return None
    reading = (
        "A value of the other run is put in at one layer and place: the share of the answer's "
        "difference that this makes up, mean over pairs. Numbers, or dots: told from a random "
        "value as far away (p < 0.05, corrected). By role: pairs of all tasks; by word: one "
        "template. A star: the clean and the corrupted prompt of a pair differ there; brackets: "
        "pairs do. Before the first change both runs are equal."
    )
    return _maps(_caption(result), title, reading, every, words=True)


def heads(result: PatchResult) -> Page | None:
    """Layer by head: what each head gathers, reads by, and says directly to the logits."""
    title = "Which heads carry the answer?"
    every = [
        m
        for m in result.maps
        if m.columns[0].startswith("H0") and (m.task == ALL_TASKS or m.sweep == "heads")
        and not _receiver(m)
    ]  # fmt: skip
    if not every:
        return None
    reading = (
        "One head of the other run at a time, at all positions; 'paths to logits': its change goes "
        "along the residual stream and through MLPs alone, every other head stays. Numbers, or "
        "dots: told from a random value as far away (p < 0.05, corrected)."
    )
    return _maps(_caption(result), title, reading, every, words=False)


def paths(result: PatchResult) -> Page | None:
    """Layer by head of the sender, a panel for each input of each receiver."""
    every = [m for m in result.maps if _receiver(m)]
    if not every:
        return None
    title = "Which heads write what the heads with the largest direct effect read?"
    effects = np.concatenate([np.abs(m.effect).ravel() for m in every])
    if np.isfinite(effects).any():
        title += f" At most {significant(100 * float(np.nanmax(effects)))} % of the answer"
    reading = (
        "A sender's change reaches one input (query, key or value) of one receiver along the "
        "residual stream and through MLPs, and nothing else. Numbers, or dots: told from a random "
        "value as far away (p < 0.05, corrected)."
    )
    return _maps(_caption(result), title, reading, every, words=False)


def _by_position(each: PatchMap) -> bool:
    return each.sweep in SWEEPS and "S" in SWEEPS[each.sweep].apart


def _receiver(each: PatchMap) -> bool:
    return each.sweep.startswith("paths to L")


def _maps(
    caption: str, title: str, reading: str, every: Sequence[PatchMap], *, words: bool
) -> Page:
    """Maps side by side on one scale of colours."""
    shown = every[:MOST_PANELS]
    if any(not np.isfinite(m.effect).all() for m in shown):
        reading += " ×: not exchanged, or no pair has the place."
    if any(m.too_few for m in shown):
        reading += (
            " Too few: of pairs, so that the test can hardly tell anything; read the colours alone."
        )
    if len(every) > len(shown):
        reading += f" Drawn are {len(shown)} of {len(every)} maps."
    most = len({m.task for m in shown}) if words else 3
    most = max(1, min(most, 4))
    tall = max(len(m.rows) for m in shown)
    height = 1.25 + 0.19 * min(tall, 40) + (0.75 if words else 0.0)
    rows, columns = rows_of(len(shown), most)
    page = new_page(caption, title, reading, width=max(7.2, 3.1 * columns), body=height * rows)
    largest = max((float(np.nanmax(np.abs(m.effect), initial=0)) for m in shown), default=0) or 1
    norm = TwoSlopeNorm(0, -100 * largest, 100 * largest)
    panels = facets(page, len(shown), most)
    drawn = [_map(ax, each, norm) for ax, each in zip(panels, shown, strict=True)]
    shared_bar(page.figure, panels, drawn[0], LABEL, _places(norm))
    return page


def _places(norm: Normalize) -> int:
    """Decimals of numbers on a scale of colours."""
    return int((norm.vmax or 0) < FEW_PERCENT)


def _of_pairs(each: PatchMap) -> str:
    """The pairs of a map, for its title."""
    few = " (too few)" if each.too_few else ""
    return f"{short_name(each.task)}, {counted(each.pairs, 'pair')}{few}"


def _map(ax: Axes, each: PatchMap, norm: Normalize) -> QuadMesh:
    """One map in percent, its told places numbered or dotted."""
    values = drawable(100 * each.effect)
    drawn = bare_cells(ax, values, norm, COLOURS)
    told = np.where(each.told, values, np.nan)
    if values.size <= MAX_NUMBERS:
        write = functools.partial(signed, places=_places(norm))
        numbers(ax, told, norm, COLOURS, write)
    else:
        dots(ax, told, norm, COLOURS)
    ax.set_title(f"{each.sweep}, {each.direction}\n{_of_pairs(each)}")
    step = -(-len(each.rows) // MOST_LABELS)
    ax.set_yticks(range(0, len(each.rows), step), each.rows[::step])
    slanted = not each.columns[0].startswith("H0")
    names = [short_name(name, 14) for name in each.columns]
    ax.set_xticks(range(len(names)), names, rotation=90 if slanted else 0)
    return drawn


def knockouts(result: PatchResult) -> Page | None:
    """What the answer loses where the last position does not see a group, by layers."""
    title = "When does the last position have to look where?"
    every = [m for m in result.maps if m.sweep == KNOCKOUT]
    if not every:
        return None
    reading = (
        "The attention of the last position to some positions is cut in "
        f"{counted(result.window, 'layer')} in a row, in every head: the share of the answer's "
        "difference that is lost, mean over pairs with its 95 % interval. Dashed: what the other "
        "positions of the same pairs and layers lose on average, beside the largest effect. Of a "
        "template the five largest; a star: clean and corrupted prompts differ there; brackets: "
        "pairs do. Colours are of roles, the same in every panel; markers tell words of one role."
    )
    shown = every[:MOST_PANELS]
    rows = rows_of(len(shown))[0]
    page = new_page(_caption(result), title, reading, width=9.6, body=2.9 * rows)
    for ax, each in zip(facets(page, len(shown), sharey=True), shown, strict=True):
        _curves(ax, each)
    return page


def _curves(ax: Axes, each: PatchMap) -> None:
    """One line a group of positions, over windows of layers."""
    size = np.nan_to_num(np.nanmax(np.abs(np.nan_to_num(each.effect)), axis=0))
    chosen = sorted(np.argsort(-size, kind="stable")[: len(LINES)].tolist())
    x = np.arange(len(each.rows))
    roles = _roles(each.columns)
    for place, column in enumerate(chosen):
        colour = LINES[ROLES.index(roles[column])]
        marker = MARKERS[[roles[i] for i in chosen[:place]].count(roles[column])]
        value, low, high, beside = (
            drawable(100 * part[:, column])
            for part in (each.effect, each.low, each.high, each.control)
        )
        if not np.isfinite(value).any():
            continue
        ax.fill_between(x, low, high, color=colour, alpha=0.18, lw=0)
        name = short_name(each.columns[column], 16)
        ax.plot(x, value, f"{marker}-", color=colour, ms=3.5, lw=1.3, label=name)
        if column == int(size.argmax()):
            ax.plot(x, beside, "--", color=colour, lw=1.0, label=f"all but {name}")
    ax.axhline(0, color=GREY, lw=0.7)
    step = -(-len(each.rows) // 8)
    ax.set_xticks(x[::step], each.rows[::step])
    ax.set_xlabel("layers that are cut")
    ax.set_ylabel("share of the answer lost, %")
    ax.set_title(_of_pairs(each))
    ax.legend(fontsize=6, frameon=False, loc="upper right")


def _roles(columns: Sequence[str]) -> list[str]:
    """The role of each column: its name, or of a template's words what their stars say."""
    if columns[0] in ROLES:
        return [*columns]
    stars = [i for i, name in enumerate(columns) if name.endswith("*")]
    first = stars[0] if stars else len(columns)
    found = ["before" if i < first else "between" for i in range(len(columns))]
    for i in stars:
        found[i] = "first change" if i == first else "other changes"
    return [*found[:-1], "last"]


def screen(result: PatchResult) -> Page | None:
    """Estimates against exact effects, one point a place that was patched."""
    title = "What does a gradient say of a patch, and what does the patch do?"
    every = [m for m in result.maps if m.screen is not None]
    if not every:
        return None
    reading = (
        "One point a place: the first-order estimate across, the exact effect up, mean over pairs, "
        "in % of the answer's difference. Filled: put first by the estimates; open: drawn at "
        "random. On the dashed line both agree. The box: over the places drawn at random, with 95 "
        "% intervals over places."
    )
    shown = every[:MOST_PANELS]
    rows, columns = rows_of(len(shown))
    page = new_page(
        _caption(result), title, reading, width=max(5.2, 3.3 * columns), body=3.9 * rows, below=0.22
    )
    for ax, each in zip(facets(page, len(shown)), shown, strict=True):
        _agreement(page, ax, each)
    first = Line2D([], [], color=MEASURED.colour, marker="o", ls="", ms=5, label="put first")
    drawn = Line2D(
        [], [], color=NOISE.colour, marker="o", mfc="none", ls="", ms=6, label="drawn at random"
    )
    page.legend([first, drawn])
    return page


def _agreement(page: Page, ax: Axes, each: PatchMap) -> None:
    """One sweep's estimates against its exact effects."""
    assert each.screen is not None
    found = each.screen
    x, y = (drawable(100 * part).ravel() for part in (found.estimate, each.effect))
    for mask, face, edge, size in (
        (found.first, MEASURED.colour, MEASURED.colour, 16),
        (found.drawn, "none", NOISE.colour, 34),
    ):
        kept = (mask.ravel() > 0) & np.isfinite(x) & np.isfinite(y)
        ax.scatter(
            x[kept], y[kept], s=size, linewidths=0.9, zorder=3, facecolors=face, edgecolors=edge
        )
    square(ax, x[np.isfinite(y)], y)
    ax.set_xlabel("estimate, %")
    ax.set_ylabel("exact effect, %")
    boxed_title(
        ax,
        f"{each.sweep}, {each.direction}",
        [
            f"Spearman {estimate_text(found.agreement.spearman, '{:.2f}'.format)}",
            f"slope {estimate_text(found.agreement.slope, '{:.2f}'.format)}",
        ],
    )
    order = np.argsort(-np.nan_to_num(np.abs(y), nan=-1.0))[:4]
    there = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    width = each.effect.shape[1]
    names = [
        (int(np.flatnonzero(there == i)[0]), each.name(int(i) // width, int(i) % width))
        for i in order
        if i in there
    ]
    page.labels.append((ax, x[there], y[there], names))


FIGURES = MappingProxyType(
    {
        "patch_positions": positions,
        "patch_heads": heads,
        "patch_paths": paths,
        "patch_knockout": knockouts,
        "patch_screen": screen,
    }
)
