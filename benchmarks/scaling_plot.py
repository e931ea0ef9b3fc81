"""The plot of ``scaling``: time and memory against prompts, prompt length and shape, log–log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from benchmarks.record import RESULTS
from jaxalign.plots.page import DPI, GREY, INK, PALE, styled, wrapped, write
from jaxalign.plots.words import significant

FOLDER = RESULTS / "figures"
TITLE = "Does cost grow as the operations do, and does memory stay within its budget?"
COLUMNS = {
    "prompts": ("prompts", "prompts (70m, 16 tokens each)"),
    "tokens": ("tokens", "tokens of a prompt (70m, 16 prompts)"),
    "shape": ("weights_gb", "shape, by its weights (16 prompts of 16)"),
}
DOT, LINE = "#3b528b", "#5ec962"  # viridis, as the other figures


def draw(record: dict[str, Any], folder: Path = FOLDER) -> list[Path]:
    """Write the plot as PNG and SVG; returns the paths."""
    with styled():
        figure = Figure(figsize=(8.4, 5.6), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(2, len(COLUMNS), sharey="row")
        for column, name in enumerate(COLUMNS):
            _time(axes[0, column], record, name)
            _memory(axes[1, column], record, name)
        axes[0, 0].set_ylabel("seconds")
        axes[1, 0].set_ylabel("peak memory of the process, GB")
        figure.suptitle(TITLE, x=0.01, ha="left", weight="bold", size=10.5)
        lines = wrapped(_caption(record), 8.0, 6.5)
        figure.supxlabel("\n".join(lines), x=0.01, ha="left", size=6.5, color=GREY)
        return write(figure, folder, "scaling")


def _caption(record: dict[str, Any]) -> str:
    machine = f"{record['processor']}, {record['cores']} cores, {record['device']}"
    return (
        "Every head's importance by zero ablation, f32, random weights and prompts; each point in "
        "a process of its own, best time after compilation. Line: the fewest operations of an "
        f"exact wave at the measured matrix peak of {record['peak_gflops']:.0f} GFLOP/s. Dashes: "
        "the memory budget, larger where the weights alone would fill it. "
        f"{machine}, jax {record['versions']['jax']}, commit {record['commit']}."
    )


def _points(record: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [point for point in record["axes"][name] if "seconds" in point]


def _time(ax: Axes, record: dict[str, Any], name: str) -> None:
    points, key = _points(record, name), COLUMNS[name][0]
    x = [point[key] for point in points]
    floor = [point["gflop"] / record["peak_gflops"] for point in points]
    ax.plot(x, floor, color=LINE, zorder=2)
    ax.scatter(
        x, [point["seconds"] for point in points], c=DOT, s=22, edgecolors=INK, lw=0.4, zorder=3
    )
    fit = record["fits"][name]
    said = "" if fit["exponent"] is None else f"time ∝ operations^{fit['exponent']:.2f}"
    if fit["low"] is not None:
        said += f"  [{fit['low']:.2f}, {fit['high']:.2f}]"
    ax.set_title(said)
    _scales(ax, points, name)


def _memory(ax: Axes, record: dict[str, Any], name: str) -> None:
    points, key = _points(record, name), COLUMNS[name][0]
    x = [point[key] for point in points]
    ax.plot(x, [point["memory_gb"] for point in points], color=GREY, ls=(0, (4, 2)), lw=0.8)
    ax.scatter(
        x, [point["peak_gb"] for point in points], c=DOT, s=22, edgecolors=INK, lw=0.4, zorder=3
    )
    ax.set_xlabel(COLUMNS[name][1])
    _scales(ax, points, name)


def _scales(ax: Axes, points: list[dict[str, Any]], name: str) -> None:
    """Log scales; every point's own size as its tick, and the model's under a shape."""
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.grid(color=PALE, lw=0.5)
    ticks = [point[COLUMNS[name][0]] for point in points]
    names = [f"{p['size']}" if name == "shape" else str(p[name]) for p in points]
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticklabels(names)
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: significant(value, 1)))
    ax.yaxis.set_minor_formatter(NullFormatter())
