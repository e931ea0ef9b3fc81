"""The result of a heads study: typed objects, and the JSON file that keeps them."""

from jaxalign.results.average import comparable, mean_maps
from jaxalign.results.file import SCHEMA, check, read, write
from jaxalign.results.record import FORMAT, digits, from_json, number, to_json
from jaxalign.results.types import (
    RANKINGS,
    Correlation,
    Estimate,
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
    "RANKINGS",
    "SCHEMA",
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
    "check",
    "comparable",
    "digits",
    "from_json",
    "mean_maps",
    "number",
    "read",
    "to_json",
    "write",
]
