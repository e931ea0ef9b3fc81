"""The figures of a heads study. They see a result, never a run."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

from jaxalign.plots.page import Page
from jaxalign.studies.heads.figures import dots, maps, repair, screen, tasks, training
from jaxalign.studies.heads.result import HeadsResult

FIGURES: MappingProxyType[str, Callable[[HeadsResult], Page]] = MappingProxyType(
    {
        "fig1_importance_vs_drift": dots.importance_vs_drift,
        "fig2_zero_vs_mean_ablation": dots.zero_vs_mean_ablation,
        "fig3_task_specificity": tasks.task_specificity,
        "fig4_circuit_repair": repair.circuit_repair,
        "fig5_task_degradation": tasks.task_degradation,
        "fig6_head_map": maps.head_map,
        "fig7_first_order": dots.first_order,
    }
)
# Of a screened study, beside those; None of any other.
OF_A_SCREEN: MappingProxyType[str, Callable[[HeadsResult], Page | None]] = MappingProxyType(
    {"fig8_estimate_vs_exact": screen.estimate_against_exact}
)
# Of several results, one a checkpoint of the model's training.
OVER_TRAINING: MappingProxyType[str, Callable[[training.Checkpoints], Page]] = MappingProxyType(
    {"training": training.training}
)

__all__ = ["FIGURES", "OF_A_SCREEN", "OVER_TRAINING"]
