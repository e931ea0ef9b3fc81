"""Features of sparse dictionaries across precisions, beside what other changes as large do.

In Python: ``FEATURES(model, read_texts("texts.jsonl"), FeaturesOptions(sae=("folder",)))``.
"""

from collections.abc import Callable, Mapping
from typing import Any

from jaxalign.prompts import TEXTS
from jaxalign.studies.features.details import details
from jaxalign.studies.features.options import FeaturesOptions
from jaxalign.studies.features.result import FeaturesResult
from jaxalign.studies.features.study import run
from jaxalign.studies.features.table import table
from jaxalign.study.study import Study


def _figures() -> Mapping[str, Callable[[FeaturesResult], Any]]:
    from jaxalign.studies.features.figures import FIGURES

    return FIGURES


FEATURES = Study(
    name="features",
    question="Which features of a sparse dictionary survive quantization, beside what noise does.",
    options=FeaturesOptions,
    result=FeaturesResult,
    run=run,
    table=table,
    details=details,
    figures=_figures,
    examples=(
        "--model demo",
        "--model demo --schemes int8,nf4,int4-g64 --group-noise --pruning",
        "--model smollm2 --sae results/sae/resid.15 --texts wiki.test.raw",
    ),
    prompts=TEXTS,
)

__all__ = ["FEATURES", "FeaturesOptions", "FeaturesResult"]
