"""Ready-made batches of edits."""

from __future__ import annotations

import numpy as np

from jaxalign.edits.heads import HeadEdit
from jaxalign.edits.site import Edit
from jaxalign.errors import require_type
from jaxalign.shapes import Bool


def head_ablation_masks(num_layers: int, num_heads: int) -> Bool[np.ndarray, "M L 1 1 H"]:
    """One edit a head, layer by layer: ``M = L·H`` masks."""
    for name, count in (("num_layers", num_layers), ("num_heads", num_heads)):
        require_type(name, count, (int, np.integer), "a number of layers or heads")
    rows = np.eye(num_layers * num_heads, dtype=bool)
    return rows.reshape(-1, num_layers, 1, 1, num_heads)


def zero_ablation(num_layers: int, num_heads: int) -> Edit:
    """Every head replaced by zero in turn: a batch of ``M = L·H`` edits, layer by layer.

    Example:
        >>> [heads] = jaxalign.zero_ablation(6, 8).sites
        >>> heads.mask.shape
        (48, 6, 1, 1, 8)
    """
    masks = head_ablation_masks(num_layers, num_heads)
    return Edit(HeadEdit(masks, np.zeros((num_layers, 1, 1, 1, 1), np.float32)))


def residual_patch_masks(num_layers: int, length: int) -> Bool[np.ndarray, "M steps 1 S"]:
    """One edit a step and position: ``M = (L + 1)·S`` masks, step by step from the embedding.

    Row ``step·S + position`` replaces the residual stream there; step 0 is the embedding, step
    ``l + 1`` is after block ``l``.
    """
    rows = np.eye((num_layers + 1) * length, dtype=bool)
    return rows.reshape(-1, num_layers + 1, 1, length)
