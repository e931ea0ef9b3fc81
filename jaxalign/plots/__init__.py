"""The figures of a heads study. They see a result, never a run.

``draw_all`` writes every figure as PNG (200 dpi) and as SVG with real text. The same result gives
the same bytes, whatever the user's own matplotlib settings are. A figure that has nothing to show
is written all the same, with a sentence that says why.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from types import MappingProxyType

from jaxalign.plots import heads, maps, repair, tasks, training
from jaxalign.plots.page import KINDS, Page, styled, write
from jaxalign.plots.process import ask, asked, drawing_process
from jaxalign.results import HeadsResult

FIGURES: MappingProxyType[str, Callable[[HeadsResult], Page]] = MappingProxyType(
    {
        "fig1_importance_vs_drift": heads.importance_vs_drift,
        "fig2_zero_vs_mean_ablation": heads.zero_vs_mean_ablation,
        "fig3_task_specificity": tasks.task_specificity,
        "fig4_circuit_repair": repair.circuit_repair,
        "fig5_task_degradation": tasks.task_degradation,
        "fig6_head_map": maps.head_map,
        "fig7_first_order": heads.first_order,
    }
)

__all__ = ["FIGURES", "draw_all", "draw_training", "drawing_process"]


def draw_all(
    result: HeadsResult, folder: Path, second: subprocess.Popen[bytes] | None = None
) -> list[Path]:
    """Write every figure of ``FIGURES`` to ``folder``, each as PNG and SVG.

    Args:
        result: the study.
        folder: made where it is missing; files of the same names are replaced, each whole or not
            at all.
        second: from ``drawing_process``; draws every second figure. Used up afterwards.

    Returns:
        The paths written, PNG before SVG, in the order of ``FIGURES``.

    Raises:
        InputError: the folder cannot be written.
    """
    folder = Path(folder)
    names = list(FIGURES)
    theirs = names[1::2] if second else []
    if second:
        ask(second, result, folder, theirs)
    _draw(result, folder, [name for name in names if name not in theirs])
    if second and second.wait() != 0:  # whatever went wrong there is met again, and raised, here
        _draw(result, folder, theirs)
    return [folder / f"{name}.{kind}" for name in names for kind in KINDS]


def draw_training(checkpoints: training.Checkpoints, folder: Path) -> list[Path]:
    """Write the figure of studies over training checkpoints, PNG and SVG.

    Raises:
        InputError: the folder cannot be written.
    """
    with styled():
        return write(training.training(checkpoints).settled(), Path(folder), "training")


def _draw(result: HeadsResult, folder: Path, names: Iterable[str]) -> None:
    with styled():
        for name in names:
            write(FIGURES[name](result).settled(), folder, name)


def serve() -> None:
    """What a ``drawing_process`` does: draw what it is asked for, once."""
    _draw(*asked())
