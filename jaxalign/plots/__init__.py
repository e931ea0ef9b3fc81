"""The figures of a heads study. They see a result, never a run.

``draw_all`` writes every figure as PNG (200 dpi) and as SVG with real text. The same result gives
the same bytes, whatever the user's own matplotlib settings are. A figure that has nothing to show
is written all the same, with a sentence that says why.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType

from jaxalign.plots import heads, maps, repair, tasks
from jaxalign.plots.page import Page, styled, write
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

__all__ = ["FIGURES", "draw_all"]


def draw_all(result: HeadsResult, folder: Path) -> list[Path]:
    """Write every figure of ``FIGURES`` to ``folder``, each as PNG and SVG.

    Args:
        result: the study.
        folder: made where it is missing; files of the same names are replaced, each whole or not
            at all.

    Returns:
        The paths written, PNG before SVG, in the order of ``FIGURES``.

    Raises:
        InputError: the folder cannot be written.
    """
    paths: list[Path] = []
    with styled():
        for name, draw in FIGURES.items():
            paths += write(draw(result).settled(), Path(folder), name)
    return paths
