"""Alignment of two dictionaries or two sets of activations, beside chance and two seeds."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxalign.studies.align.options import AlignOptions
from jaxalign.studies.align.result import AlignResult
from jaxalign.studies.align.table import details, table
from jaxalign.study.kind import ResultKind


def _figures() -> Mapping[str, Callable[[AlignResult], Any]]:
    from jaxalign.studies.align.figures import FIGURES

    return FIGURES


ALIGN = ResultKind(
    name="align",
    result=AlignResult,
    table=table,
    details=details,
    figures=_figures,
)

__all__ = ["ALIGN", "AlignOptions", "AlignResult"]
