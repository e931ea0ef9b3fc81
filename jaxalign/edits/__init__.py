"""What a run changes: sites, and batches of edits made of them. No model is known here."""

from jaxalign.edits.attention import AttentionAdd
from jaxalign.edits.declare import acts, per_row, shared
from jaxalign.edits.heads import HEAD_MODES, HeadEdit, HeadMode
from jaxalign.edits.ready import head_ablation_masks, residual_patch_masks, zero_ablation
from jaxalign.edits.residual import ResidualEdit
from jaxalign.edits.site import Edit, Site

__all__ = [
    "HEAD_MODES",
    "AttentionAdd",
    "Edit",
    "HeadEdit",
    "HeadMode",
    "ResidualEdit",
    "Site",
    "acts",
    "head_ablation_masks",
    "per_row",
    "residual_patch_masks",
    "shared",
    "zero_ablation",
]
