"""The figures of a damage study: where the damage is, and what a budget buys."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullFormatter

from jaxalign.plots.maps import MAX_NUMBERS, NUMBERED, PLAIN, cells, numbers, size_map
from jaxalign.plots.page import GREY, INK, Page, new_page, say
from jaxalign.plots.scales import drawable
from jaxalign.plots.scatter import boxed_title
from jaxalign.plots.words import p_text, precision_name, significant
from jaxalign.studies.plan.result import ComponentDamage, PlanResult
from jaxalign.study.measure import KL

# Okabe & Ito's palette; marker and dashes say the same where colour is lost.
UNIFORM = ("#CC79A7", "^")
GREEDY, LAYERS, PLAN = ("#0072B2", "o", "-"), ("#D55E00", "s", (0, (5, 1.5))), ("#009E73", "D")
LEAST_RANGE = 1.25  # of a scale around 1, so that equal things look equal


def damage_map(result: PlanResult) -> Page:
    """KL of every matrix, site, layer and head alone, and what noise of that size does."""
    scheme = precision_name(result.scheme)
    parts = [*result.damage.of("matrix"), *result.damage.of("site")]
    names = list(dict.fromkeys(c.name for c in parts if c.layer is not None))
    layers = result.damage.of("layer")
    matrices = _grid([*parts, *layers], [*names, ""])
    heads = result.damage.of("head")
    reading = (
        f"Each cell is the f32 model with that part alone in {scheme}: how far the next token's "
        "distribution moves, KL at the prompt's last position, averaged over all prompts. Right: "
        "the same over what random noise of equal Frobenius norm does in the same part; above 1 "
        "the errors' direction does harm, not only their size. In brackets: not to be told from "
        "draws of noise, p corrected for the number of parts."
    )
    rows, wide = matrices.shape
    columns = max((int(c.name) + 1 for c in heads), default=0)
    cell = NUMBERED if rows * max(wide, columns) <= MAX_NUMBERS else PLAIN
    widths = [w for w in (wide, columns, wide) if w]
    width = max(6.4, sum(max(1.6, w * (cell[0] + 0.04)) for w in widths) + 1.2)
    title = f"Where does {scheme} do its damage?"
    page = new_page(
        result.caption(), title, reading, width=width, body=max(rows, 4) * cell[1] + 1.7
    )
    axes = page.figure.subplots(1, len(widths), squeeze=False, width_ratios=widths)[0]
    power = _power(matrices)
    labels = [*(name.replace("_", " ") for name in names), "layer"]
    _kl_map(page.figure, axes[0], matrices, power, "One matrix, or a layer")
    if heads:
        grid = _grid(heads, [str(i) for i in range(columns)])
        _kl_map(page.figure, axes[1], grid, power, "One head's share")
        axes[1].set_xlabel("head")
    _ratio_map(page.figure, axes[-1], [*parts, *layers], [*names, ""])
    for ax in (axes[0], axes[-1]):
        ax.set_xticks(range(wide), labels, rotation=45, ha="right", rotation_mode="anchor")
    axes[0].set_ylabel("layer")
    return page


def _grid(parts: list[ComponentDamage], names: list[str]) -> np.ndarray:
    """KL by layer and name."""
    layers = 1 + max(c.layer for c in parts if c.layer is not None)
    grid = np.full((layers, len(names)), np.nan)
    for c in parts:
        if c.layer is not None and c.kl.value is not None:
            grid[c.layer, names.index(c.name)] = c.kl.value
    return drawable(grid)


def _power(values: np.ndarray) -> int:
    """The power of a thousand in whose units most of these values are short to write."""
    positive = values[np.isfinite(values) & (values > 0)]
    return 3 * math.floor(math.log10(np.median(positive)) / 3) if positive.size else 0


def _power_text(power: int) -> str:
    """A power of ten, typeset."""
    return "10" + str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _kl_map(figure: Figure, ax: Axes, kl: np.ndarray, power: int, title: str) -> None:
    ax.set_title(title)
    unit = f"{_power_text(power)} {KL.unit}" if power else KL.unit
    size_map(figure, ax, kl / 10.0**power, f"{KL.name} ({unit})")


def _ratio_map(figure: Figure, ax: Axes, parts: list[ComponentDamage], names: list[str]) -> None:
    ax.set_title("Against noise of its size")
    ratio = np.full((1 + max(c.layer or 0 for c in parts), len(names)), np.nan)
    sure = np.zeros(ratio.shape, bool)
    for c in parts:
        if c.layer is not None and c.ratio.value is not None:
            at = c.layer, names.index(c.name)
            ratio[at], sure[at] = c.ratio.value, c.verdict in ("more than noise", "less than noise")
    ratio = drawable(ratio)
    positive = ratio[np.isfinite(ratio) & (ratio > 0)]
    if not positive.size:
        say(ax, "No noise was drawn.")
        return
    spread = max(LEAST_RANGE, float(np.exp(np.abs(np.log(positive)).max())))
    norm, cmap = LogNorm(1 / spread, spread, clip=True), matplotlib.colormaps["PuOr_r"]
    bar = cells(figure, ax, ratio, norm, cmap, "KL over KL of noise")
    ticks = [t for t in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0) if 1 / spread <= t <= spread]
    bar.set_ticks(ticks, labels=[significant(t, 1) for t in ticks])
    bar.ax.minorticks_off()
    if ratio.size <= MAX_NUMBERS:
        numbers(ax, np.where(sure, ratio, np.nan), norm, cmap, significant)
        numbers(ax, np.where(sure, np.nan, ratio), norm, cmap, lambda v: f"({significant(v)})")


def plan_curve(result: PlanResult) -> Page:
    """Validated KL against bits a weight, of greedy choices, whole layers and random ones."""
    scheme = precision_name(result.scheme)
    reading = (
        f"All matrices of the blocks in {scheme}, but for what is kept in 16 bit within a budget; "
        "KL from f32 on prompts that had no part in choosing (all in 16 bit: 0). Bar: 95 % "
        "interval over prompts. Triangles: every matrix in one format of at most the plan's size. "
        "p: of random choices how often one within the same budget is as good as the plan; of the "
        "format that the choosing prompts picked, of no difference from the plan."
    )
    page = new_page(
        result.caption(),
        "What does a budget of bits buy?",
        reading,
        width=5.6,
        body=3.6,
        below=0.22,
    )
    ax = page.figure.subplots()
    bits = np.array([point.bits for point in result.curve])
    random = drawable([point.random for point in result.curve])
    low, high = np.percentile(random, [2.5, 97.5], axis=1)
    shown = random.max(axis=1) > 0  # everything in 16 bit is f32 itself
    ax.fill_between(bits[shown], low[shown], high[shown], color=GREY, alpha=0.25, lw=0, zorder=1)
    ax.plot(bits[shown], random.mean(axis=1)[shown], color=GREY, lw=1.2, zorder=2)
    for name, (colour, marker, dashes) in (("greedy", GREEDY), ("layers", LAYERS)):
        kl = drawable([getattr(point, name) for point in result.curve])
        ax.plot(
            bits[kl > 0], kl[kl > 0], color=colour, marker=marker, ls=dashes, ms=4, mec=INK,
            mew=0.3, zorder=3,
        )  # fmt: skip
    _uniform_points(ax, result)
    _plan_point(ax, result)
    if shown.any():
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(
            FuncFormatter(lambda value, _: _power_text(round(math.log10(value))))
        )
        ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("bits a weight of the block matrices, scales counted")
    ax.set_ylabel(f"{KL.name} from f32 ({KL.unit})")
    plan = result.plan
    lines = (
        *_against_uniform(result),
        f"{plan.choice('plan').bits:.2f} bits: {plan.verdict}, {p_text(plan.random.p_kl)}",
        f"kept: {', '.join(_kept(result)) or 'nothing'}",
    )
    boxed_title(ax, f"{scheme}, validated on {len(_validating(result))} prompts", lines)
    page.legend(_legend())
    return page


def _against_uniform(result: PlanResult) -> list[str]:
    if not result.plan.uniform or result.plan.uniform_verdict is None:
        return []
    best = result.plan.uniform[0]
    p = "" if best.plan_less_it.p is None else f", {p_text(best.plan_less_it.p)}"
    name = f"{precision_name(best.scheme)} at {best.bits:.2f} bits"
    return [f"{result.plan.uniform_verdict} ({name}){p}"]


def _uniform_points(ax: Axes, result: PlanResult) -> None:
    """Every uniform format; the one that the choosing prompts picked filled."""
    colour, marker = UNIFORM
    for place, each in enumerate(result.plan.uniform):
        value = float(drawable([each.kl.value])[0])
        if value > 0:
            face = colour if place == 0 else "white"
            ax.plot(
                each.bits, value, marker, color=colour, mfc=face, ms=5 if place else 6, zorder=4
            )


def _validating(result: PlanResult) -> tuple[int, ...]:
    return result.validating


def _kept(result: PlanResult) -> list[str]:
    names = [f"L{unit.layer} {'+'.join(unit.matrices)}" for unit in result.plan.kept]
    return names if len(names) <= 4 else [*names[:3], f"and {len(names) - 3} more"]


def _plan_point(ax: Axes, result: PlanResult) -> None:
    plan = result.plan.choice("plan")
    value, low, high = drawable([plan.kl.value, plan.kl.low, plan.kl.high])
    if not value > 0:
        return
    colour, marker = PLAN
    bars = [[value - low], [high - value]] if low <= value <= high else None
    ax.errorbar(
        plan.bits, value, yerr=bars, color=colour, marker=marker, ms=6, mec=INK, mew=0.5,
        capsize=2, zorder=5,
    )  # fmt: skip


def _legend() -> list[Line2D | Patch]:
    def line(look: tuple[Any, ...], label: str) -> Line2D:
        colour, marker, dashes = look
        return Line2D([], [], color=colour, marker=marker, ls=dashes, ms=4, label=label)

    return [
        line((*PLAN, ""), "the plan"),
        line((*UNIFORM, ""), "uniform"),
        line(GREEDY, "greedy"),
        line(LAYERS, "whole layers"),
        Line2D([], [], color=GREY, lw=1.2, label="random"),
        Patch(color=GREY, alpha=0.25, lw=0, label="95 % of random"),
    ]


FIGURES: MappingProxyType[str, Callable[[PlanResult], Page]] = MappingProxyType(
    {"plan_damage_map": damage_map, "plan_curve": plan_curve}
)
