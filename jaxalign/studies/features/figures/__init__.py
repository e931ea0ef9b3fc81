"""The figures of a features study, by file name."""

from collections.abc import Callable
from types import MappingProxyType

from jaxalign.plots.page import Page
from jaxalign.studies.features.figures import closer, floors
from jaxalign.studies.features.result import FeaturesResult

FIGURES: MappingProxyType[str, Callable[[FeaturesResult], Page]] = MappingProxyType(
    {
        "features1_survival": floors.survival,
        "features2_dose": floors.dose,
        "features3_ratios": floors.ratios,
        "features4_by_peak": floors.by_peak,
        "features5_rates": floors.rates,
        "features6_effects": closer.effects,
        "features7_deficit": closer.deficit,
        "features8_predictors": closer.predictors,
        "features9_scatter": closer.scatter,
        "features10_cards": closer.cards,
    }
)
