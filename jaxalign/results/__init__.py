"""The result of a heads study: typed objects, and the JSON file that keeps them."""

from jaxalign.results.average import comparable, mean_maps
from jaxalign.results.edge_align import edge_align
from jaxalign.results.estimates import NOTHING, Estimate, estimate, number
from jaxalign.results.file import FORMAT, read, write
from jaxalign.results.types import (
    RANKINGS,
    Correlation,
    FirstOrder,
    FirstOrderTest,
    HeadsResult,
    PrecisionResult,
    PromptResult,
    RepairResult,
    RepairTest,
    Statistics,
    TaskMean,
)

__all__ = [
    "FORMAT",
    "NOTHING",
    "RANKINGS",
    "Correlation",
    "Estimate",
    "FirstOrder",
    "FirstOrderTest",
    "HeadsResult",
    "PrecisionResult",
    "PromptResult",
    "RepairResult",
    "RepairTest",
    "Statistics",
    "TaskMean",
    "comparable",
    "edge_align",
    "estimate",
    "mean_maps",
    "number",
    "read",
    "write",
]
