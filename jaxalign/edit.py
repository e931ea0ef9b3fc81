"""What a run changes. One mechanism for every experiment: an ``Edit`` is an array argument.

An edit names sites of the model and holds optional arrays for each. A site left ``None`` costs
nothing; a site given but masked out everywhere changes no bit. To add a site, give ``Edit`` a
field, apply it at its place in ``model.decoder.block`` and say in ``Edit.steps`` which step of the
model it first touches: the sweep, ``vmap`` and ``grad`` then work with it.

A *batch of edits* is an ``Edit`` whose masks carry a leading axis of rows; values are shared by
its rows. ``jax.vmap`` over ``edit.row_axes()`` and ``sweep.sweep`` both read it that way.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxalign.numerics.dot import dot
from jaxalign.shapes import Array, Bool, Float, Leaf, lead

HEAD_MODES = ("true", "edge-align")


@struct.dataclass
class HeadEdit:
    """Replace the contributions of attention heads, all positions or some.

    A true head adds ``c[l,i] = z[l,i] @ W_O[l,i]`` to the residual stream; replacing heads moves
    the projected output by ``Σ (value − c)`` over the replaced heads, summed in f32 and rounded
    once. In ``edge-align`` mode a "head" is a block of ``h`` coordinates of the projected output,
    bias included (kept for parity with published results; these are not attention heads).

    Attributes:
        mask: bool ``[L, B|1, S|1, H]``: which heads are replaced. A batch of M edits: ``[M, …]``.
        value: ``[L, B|1, S|1, H, D]`` (edge-align ``[…, H, h]``): what stands in their place.
        mode: "true" or "edge-align".
    """

    mask: Leaf
    value: Leaf
    mode: str = struct.field(pytree_node=False, default="true")


@struct.dataclass
class ResidualEdit:
    """Replace the residual stream, for example by another run's (activation patching).

    Attributes:
        mask: bool ``[L + 1, B|1, S|1]``: index 0 is the stream after the embedding, ``l + 1`` the
            stream after block ``l``. A batch of M edits: ``[M, …]``.
        value: ``[L + 1, B|1, S|1, D]``.
    """

    mask: Leaf
    value: Leaf


@struct.dataclass
class Edit:
    """Everything one run changes, by site.

    Attributes:
        head: replacement of head contributions.
        residual: replacement of the residual stream.
        attn_add: ``[L, B|1, S|1, D]`` added to the attention output (steering; its gradient at
            zero is the gradient with respect to every head's contribution).
    """

    head: HeadEdit | None = None
    residual: ResidualEdit | None = None
    attn_add: Leaf | None = None

    def steps(self) -> np.ndarray:
        """Which steps of the model each row touches: bool ``[M, L + 1]``.

        Step 0 is the embedding, step ``l + 1`` is block ``l``. Masks must be concrete.
        """
        touched: list[np.ndarray] = []
        if self.head is not None:
            mask = np.asarray(self.head.mask)
            layers = mask.any(axis=tuple(range(2, mask.ndim)))
            touched.append(np.pad(layers, ((0, 0), (1, 0))))
        if self.residual is not None:
            mask = np.asarray(self.residual.mask)
            touched.append(np.asarray(mask.any(axis=tuple(range(2, mask.ndim)))))
        if not touched:
            raise ValueError("a batch of edits needs a mask: give head or residual masks [M, …]")
        return np.logical_or.reduce(touched)

    def row_axes(self) -> Any:
        """``in_axes`` of ``jax.vmap`` over the rows of this batch of edits."""
        head = None if self.head is None else HeadEdit(0, None, self.head.mode)
        residual = None if self.residual is None else ResidualEdit(0, None)
        return Edit(head=head, residual=residual, attn_add=None)

    def take(self, rows: slice) -> Edit:
        """Some rows of this batch of edits."""
        head = self.head and replace(self.head, mask=self.head.mask[rows])
        residual = self.residual and replace(self.residual, mask=self.residual.mask[rows])
        return replace(self, head=head, residual=residual)

    def at_layer(self, layer: int, row_axis: bool = False) -> Edit:
        """The arrays that block ``layer`` needs, without their layer axis.

        Args:
            layer: which block; the residual stream's entry is the one after that block.
            row_axis: True when the masks carry a leading axis of rows.
        """
        pick = (slice(None), layer) if row_axis else (layer,)
        after = (*pick[:-1], layer + 1)
        head = self.head and replace(
            self.head, mask=self.head.mask[pick], value=self.head.value[layer]
        )
        residual = self.residual and replace(
            self.residual, mask=self.residual.mask[after], value=self.residual.value[layer + 1]
        )
        add = None if self.attn_add is None else self.attn_add[layer]
        return Edit(head=head, residual=residual, attn_add=add)


def head_ablation_masks(num_layers: int, num_heads: int) -> Bool[np.ndarray, "M L 1 1 H"]:
    """One edit a head, layer by layer: ``M = L·H`` masks."""
    rows = np.eye(num_layers * num_heads, dtype=bool)
    return rows.reshape(-1, num_layers, 1, 1, num_heads)


def edit_heads(
    attn_out: Float[Array, "*rows B S D"],
    z: Float[Array, "*rows B S H h"],
    w_out: Float[Array, "A D"],
    edit: HeadEdit,
) -> Float[Array, "*rows B S D"]:
    """The projected attention output of one layer after ``edit`` (arrays of that layer).

    Masked terms are chosen with ``where``, not multiplied by 0 and 1: a non-finite activation
    outside the mask must not leak in, and what is not edited must keep its bits.
    """
    if edit.mode == "edge-align":
        blocks = attn_out.reshape(z.shape)
        value = lead(jnp.asarray(edit.value, jnp.float32).astype(attn_out.dtype), blocks)
        mask = lead(edit.mask[..., None], blocks)
        return jnp.where(mask, value, blocks).reshape(attn_out.shape)
    mask = lead(edit.mask[..., None], z)
    given = jnp.where(mask, lead(jnp.asarray(edit.value, jnp.float32), z), 0).sum(axis=-2)
    kept_out = jnp.where(mask, z, 0)
    removed = dot(kept_out.reshape(*kept_out.shape[:-2], -1), w_out)
    moved = (attn_out.astype(jnp.float32) + (given - removed)).astype(attn_out.dtype)
    return jnp.where(mask.any(axis=-2), moved, attn_out)


def edit_residual(
    x: Float[Array, "*rows B S D"], edit: ResidualEdit
) -> Float[Array, "*rows B S D"]:
    """The residual stream after ``edit`` (arrays of one step)."""
    value = jnp.asarray(edit.value).astype(x.dtype)
    return jnp.where(lead(edit.mask[..., None], x), lead(value, x), x)
