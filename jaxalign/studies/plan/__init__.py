"""Where a scheme does its damage, and what to keep in 16 bit within a budget."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxalign.studies.plan.options import PlanOptions
from jaxalign.studies.plan.recipes import recipes_beside
from jaxalign.studies.plan.result import PlanResult, read_1, read_2
from jaxalign.studies.plan.study import run
from jaxalign.studies.plan.table import details, table
from jaxalign.study.study import Study


def _figures() -> Mapping[str, Callable[[PlanResult], Any]]:
    from jaxalign.studies.plan.figures import FIGURES

    return FIGURES


PLAN = Study(
    name="plan",
    question="Where quantization does its damage, and what to keep in 16 bit within a budget.",
    options=PlanOptions,
    result=PlanResult,
    run=run,
    table=table,
    details=details,
    figures=_figures,
    examples=("--model demo --scheme nf4 --budget 5.0bits", "--budget 12MB"),
    version=3,
    older={"jaxalign.plan/1": read_1, "jaxalign.plan/2": read_2},
    beside=recipes_beside,
)

__all__ = ["PLAN", "PlanOptions", "PlanResult"]
