"""Ready-made batches of edits."""

from __future__ import annotations

import numpy as np

from jaxalign.edits.anywhere import Replace
from jaxalign.edits.edges import blinded
from jaxalign.edits.heads import HeadEdit
from jaxalign.edits.points import POINTS
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


def patch_masks(point: str, value: tuple[int, ...], apart: str) -> Bool[np.ndarray, "M *point"]:
    """One row a place: a layer, and what is taken apart in it.

    Args:
        point: a name of ``edits.points.POINTS``.
        value: the shape of the point's value.
        apart: letters of its axes, of which each place has its own: ``"S"`` positions, ``"HS"``
            heads and positions, ``""`` whole layers.

    Raises:
        InputError: the point has no such axis.
    """
    axes = POINTS[point].axes
    if strange := [letter for letter in apart if letter not in axes or letter in "BL"]:
        raise InputError(
            f"{point} has no axis {strange[0]!r} to take apart",
            f"name some of {', '.join(axis for axis in axes if axis not in ('B', 'L', 'L+1'))}",
        )
    alone = [axis in (*apart, "L", "L+1") for axis in axes]
    shape = [size if own else 1 for own, size in zip(alone, value, strict=True)]
    rows = np.eye(int(np.prod(shape)), dtype=bool)
    return rows.reshape(-1, *shape)


def residual_patch_masks(num_layers: int, length: int) -> Bool[np.ndarray, "M steps 1 S 1"]:
    """One edit a step and position: ``M = (L + 1)·S`` masks, step by step from the embedding.

    Row ``step·S + position`` replaces the residual stream there; step 0 is the embedding, step
    ``l + 1`` is after block ``l``: the mask of ``Replace("resid", …)``.

    Args:
        num_layers: ``L`` of the model.
        length: ``S``, positions of the prompts.
    """
    return patch_masks("resid", (num_layers + 1, 1, length, 1), "S")


def knock_out(edges: Bool[np.ndarray, "*rows L #B #H #Q #S"]) -> Edit:
    """Cut attention from some positions to others (attention knock-out, Geva et al. 2023, section
    6, arXiv 2304.14767): their scores are −∞, so that the rest of a position's sources share all
    of its attention.

    To take edges away and leave the others as they are, scale the pattern instead:
    ``Scale("pattern", -edges)``.

    Args:
        edges: bool: which edges, from the position ``Q`` that attends to the source ``S``. For one
            run; a batch of M edits has ``M`` in front.

    Raises:
        InputError: another shape or dtype, or a position would have no source left, so that its
            attention is not defined. A run whose layers see a window alone refuses the same there.

    Example:
        >>> edges = np.zeros((1, 6, 1, 1, 5, 5), bool)
        >>> edges[0, 2:4, ..., 4, 1] = True  # in layers 2 and 3 the last position does not see 1
        >>> edit = jaxalign.knock_out(edges)
    """
    edges = np.asarray(edges)
    if edges.ndim < 5 or edges.dtype != bool:
        raise InputError(
            f"edges are {edges.dtype}{list(edges.shape)}, expected bool [L, B, H, Q, S], or M in "
            "front of it",
            "give axes that all share as 1",
        )
    if found := blinded(edges, max(edges.shape[-2:])):
        raise InputError(
            f"position {found[1]} has every source knocked out, and then its attention is not "
            "defined",
            "leave it one, or scale the pattern: Scale('pattern', -edges)",
        )
    value = np.full((edges.shape[-5], 1, 1, 1, 1), -np.inf, np.float32)
    return Edit(Replace("scores", edges, value))
