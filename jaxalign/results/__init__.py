"""The result of a heads study: typed objects, and the JSON file that keeps them."""

from jaxalign.results.average import comparable, mean_maps
from jaxalign.results.file import SCHEMA, check, read, write
from jaxalign.results.record import FORMAT, digits, from_json, number, to_json
from jaxalign.results.schemes import (
    NoiseFloor,
    SchemeRow,
    SchemesResult,
    read_schemes,
    write_schemes,
)
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
    "NoiseFloor",
    "PrecisionResult",
    "PromptResult",
    "RepairResult",
    "RepairTest",
    "SchemeRow",
    "SchemesResult",
    "Statistics",
    "TaskMean",
    "check",
    "comparable",
    "digits",
    "from_json",
    "mean_maps",
    "number",
    "read",
    "read_schemes",
    "to_json",
    "write",
    "write_schemes",
]
