"""Activation patching, knock-outs and paths: which places of a prompt carry the answer."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxalign.prompts import PAIRS
from jaxalign.studies.patch.options import PatchOptions
from jaxalign.studies.patch.result import PatchResult
from jaxalign.studies.patch.study import run
from jaxalign.studies.patch.table import details, table
from jaxalign.study.study import Study


def _figures() -> Mapping[str, Callable[[PatchResult], Any]]:
    from jaxalign.studies.patch.figures import FIGURES

    return FIGURES


PATCH = Study(
    name="patch",
    question="Which layers, positions and heads of a prompt carry the answer, beside a control.",
    options=PatchOptions,
    result=PatchResult,
    run=run,
    table=table,
    details=details,
    figures=_figures,
    prompts=PAIRS,
    examples=(
        "--model demo",
        "--model demo --sweep heads-positions,pattern --direction denoising,noising",
        "--model demo --prompts pairs.csv --sweep resid,heads --screen 20",
    ),
)

__all__ = ["PATCH", "PatchOptions", "PatchResult"]
