"""What a run changes: sites, and batches of edits made of them. No model is known here."""

from jaxalign.edits.anywhere import Add, Replace, Scale
from jaxalign.edits.declare import acts, common, per_row, shared
from jaxalign.edits.heads import HEAD_MODES, HeadEdit, HeadMode
from jaxalign.edits.points import POINTS
from jaxalign.edits.ready import (
    head_ablation_masks,
    knock_out,
    residual_patch_masks,
    zero_ablation,
)
from jaxalign.edits.site import Edit, Site
from jaxalign.edits.splice import Splice
from jaxalign.edits.weights import MATRIX_NAMES, MatrixName, WeightEdit

__all__ = [
    "HEAD_MODES",
    "MATRIX_NAMES",
    "POINTS",
    "Add",
    "Edit",
    "HeadEdit",
    "HeadMode",
    "MatrixName",
    "Replace",
    "Scale",
    "Site",
    "Splice",
    "WeightEdit",
    "acts",
    "common",
    "head_ablation_masks",
    "knock_out",
    "per_row",
    "residual_patch_masks",
    "shared",
    "zero_ablation",
]
