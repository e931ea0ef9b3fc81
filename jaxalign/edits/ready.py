"""Ready-made batches of edits."""

from __future__ import annotations

import numpy as np

from jaxalign.edits.heads import HeadEdit
from jaxalign.edits.site import Edit
from jaxalign.errors import InputError, require_type
from jaxalign.shapes import Bool


def head_ablation_masks(num_layers: int, num_heads: int) -> Bool[np.ndarray, "M L 1 1 H"]:
    """One edit a head, layer by layer: ``M = L·H`` masks; ``InputError`` where there are none."""
    for name, count in (("num_layers", num_layers), ("num_heads", num_heads)):
        require_type(name, count, (int, np.integer), "a number of layers or heads")
        if count < 1:
            raise InputError(
                f"{name} is {count}, and there is nothing to replace", "give 1 or more"
            )
    rows = np.eye(num_layers * num_heads, dtype=bool)
    return rows.reshape(-1, num_layers, 1, 1, num_heads)


def zero_ablation(num_layers: int, num_heads: int) -> Edit:
    """Every head replaced by zero in turn: a batch of ``M = L·H`` edits, layer by layer.

    Args:
        num_layers, num_heads: of the model, at least 1.

    Raises:
        InputError: there are no heads.

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
