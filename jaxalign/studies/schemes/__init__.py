"""Precision schemes side by side: what each costs, what it changes, what noise would change."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxalign.studies.schemes.options import SchemesOptions
from jaxalign.studies.schemes.result import SchemesResult, read_1, read_2
from jaxalign.studies.schemes.study import run
from jaxalign.studies.schemes.table import details, table
from jaxalign.study.study import Study


def _figures() -> Mapping[str, Callable[[SchemesResult], Any]]:
    from jaxalign.studies.schemes.figures import FIGURES

    return FIGURES


SCHEMES = Study(
    name="schemes",
    question="What each precision scheme costs and changes, beside what noise alone changes.",
    options=SchemesOptions,
    result=SchemesResult,
    run=run,
    table=table,
    details=details,
    figures=_figures,
    examples=("--model demo", "--model demo --schemes f16,nf4,awq-g64 --device gpu"),
    version=3,
    older={"jaxalign.schemes/1": read_1, "jaxalign.schemes/2": read_2},
)

__all__ = ["SCHEMES", "SchemesOptions", "SchemesResult"]
