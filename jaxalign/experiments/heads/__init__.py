"""Attention heads: importance, drift between precisions, repair."""

from jaxalign.experiments.heads.options import Options
from jaxalign.experiments.heads.study import heads_study

__all__ = ["Options", "heads_study"]
