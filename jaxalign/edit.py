"""What a run changes. One mechanism for every experiment: an ``Edit`` is an array argument.

An edit names sites of the model and holds optional arrays for each. A site left ``None`` costs
nothing; a site given but masked out everywhere changes no bit. A site that an engine does not apply
is refused by name (``refuse_unapplied``). To add one, give ``Edit`` a field; have ``Edit.touched``
say which steps of the model it touches; carry its arrays through ``masks``, ``map_masks``,
``row_axes`` and ``check_shapes``; apply it in ``model.decoder.block`` and, for the wave, in
``run_edits`` and ``wave``; and only then name it in the ``applied`` of ``forward`` and ``sweep``.

A *batch of edits* is an ``Edit`` whose masks carry a leading axis of rows; values are shared by
its rows. ``jax.vmap`` over ``edit.row_axes()`` and ``sweep.sweep`` both read it that way.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxalign.numerics.dot import dense, dot
from jaxalign.numerics.qtensor import QTensor
from jaxalign.shapes import Array, Bool, Float, Leaf, lead

HEAD_MODES = ("true", "edge-align")


@struct.dataclass
class HeadEdit:
    """Replace the contributions of attention heads, all positions or some.

    Heads are query heads: where several share keys and values, each still has its own ``z`` and
    ``W_O``. A contribution is what ``W_O`` writes, before a post norm where the model has one.

    A true head adds ``c[l,i] = z[l,i] @ W_O[l,i]`` to the residual stream; replacing heads moves
    the projected output by ``Σ (value − c)`` over the replaced heads, summed in f32 and rounded
    once. In ``edge-align`` mode a "head" is a block of ``D/H`` coordinates of the projected output,
    bias included (kept for parity with published results; these are not attention heads).

    Attributes:
        mask: bool ``[L, B|1, S|1, H]``: which heads are replaced. A batch of M edits: ``[M, …]``.
        value: ``[L, B|1, S|1, H, D]`` (edge-align ``[…, H, D/H]``): what stands in their place.
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

    def touched(self, batch: int) -> Bool[Array, "M B steps"]:
        """Which steps of the model each row touches on each of ``batch`` prompts.

        Step 0 is the embedding, step ``l + 1`` is block ``l``.

        Raises:
            ValueError: neither head nor residual masks are given.
        """
        parts = []
        if self.head is not None:
            layers = jnp.asarray(self.head.mask).any(axis=(3, 4))  # [M, L, B|1]
            parts.append(jnp.pad(layers, ((0, 0), (1, 0), (0, 0))))
        if self.residual is not None:
            parts.append(jnp.asarray(self.residual.mask).any(axis=3))
        if not parts:
            raise ValueError("a batch of edits needs a mask: give head or residual masks [M, …]")
        spread = [jnp.broadcast_to(p, (*p.shape[:2], batch)).swapaxes(1, 2) for p in parts]
        return functools.reduce(jnp.logical_or, spread)

    def masks(self) -> list[Any]:
        """The masks of the sites that are given."""
        return [site.mask for site in (self.head, self.residual) if site is not None]

    @property
    def rows(self) -> int:
        """``M``, how many rows a batch of edits has."""
        return self.masks()[0].shape[0]

    def with_clean(self) -> Edit:
        """This batch of edits with a row before it that edits nothing."""

        def lengthened(mask: Any) -> Array:
            return jnp.concatenate([jnp.zeros_like(mask[:1]), mask])

        return self.map_masks(lengthened)

    def map_masks(self, change: Callable[[Any], Any]) -> Edit:
        """This edit with the mask of each site that is given changed."""
        head = self.head and replace(self.head, mask=change(self.head.mask))
        residual = self.residual and replace(self.residual, mask=change(self.residual.mask))
        return replace(self, head=head, residual=residual)

    def row_axes(self) -> Any:
        """``in_axes`` of ``jax.vmap`` over the rows of this batch of edits."""
        head = None if self.head is None else HeadEdit(0, None, self.head.mode)
        residual = None if self.residual is None else ResidualEdit(0, None)
        return Edit(head=head, residual=residual, attn_add=None)


def refuse_unapplied(edit: Edit, applied: Sequence[str], engine: str) -> None:
    """Refuse an edit with a site that would be dropped, so that no edited row comes back clean.

    Args:
        edit: what a run, or each row of a batch of runs, changes.
        applied: names of the sites that ``engine`` applies.
        engine: what is to run the edit, for the message.

    Raises:
        ValueError: a site is given that is not among ``applied``; names it.
    """
    given = [field.name for field in fields(edit) if getattr(edit, field.name) is not None]
    if dropped := [name for name in given if name not in applied]:
        raise ValueError(
            f"{engine} does not apply edit.{', edit.'.join(dropped)}, only {', '.join(applied)}"
        )


def check_shapes(
    edit: Edit, layers: int, tokens: tuple[int, ...], heads: int, width: int, *, rows: bool = False
) -> None:
    """Check an edit's arrays against a run, before broadcasting or indexing hides a misfit.

    Args:
        layers, heads, width: ``L``, ``H``, ``D`` of the model.
        tokens: ``(B, S)``.
        rows: whether masks carry the axis ``M`` of a batch of edits.

    Raises:
        ValueError: an array has another shape than the run's; names it and both shapes.
    """
    wanted: dict[str, tuple[Any, tuple[int, ...]]] = {}
    if edit.head is not None:
        if edit.head.mode == "edge-align" and width % heads:
            raise ValueError(f"edge-align cuts {width} coordinates into {heads} equal blocks")
        part = width if edit.head.mode == "true" else width // heads
        wanted["head.mask"] = edit.head.mask, (layers, *tokens, heads)
        wanted["head.value"] = edit.head.value, (layers, *tokens, heads, part)
    if edit.residual is not None:
        wanted["residual.mask"] = edit.residual.mask, (layers + 1, *tokens)
        wanted["residual.value"] = edit.residual.value, (layers + 1, *tokens, width)
    if edit.attn_add is not None:
        wanted["attn_add"] = edit.attn_add, (layers, *tokens, width)
    for name, (array, (steps, *sizes)) in wanted.items():
        has_rows = rows and name.endswith("mask")
        shape = jnp.shape(array)[1 if has_rows else 0 :]
        fits = len(shape) == 1 + len(sizes) and shape[0] == steps
        # Every head has its own place in a mask; all else may stand for all.
        whole = 1 if name == "head.mask" else 0
        least = [1] * (len(sizes) - whole) + list(sizes[len(sizes) - whole :])
        if not fits or any(n not in pair for n, *pair in zip(shape[1:], least, sizes, strict=True)):
            shown = [str(n) if n == one else f"{n}|1" for one, n in zip(least, sizes, strict=True)]
            axes = ", ".join(["M"] * has_rows + [str(steps), *shown])
            raise ValueError(f"edit.{name} has shape {jnp.shape(array)}, expected [{axes}]")


def head_ablation_masks(num_layers: int, num_heads: int) -> Bool[np.ndarray, "M L 1 1 H"]:
    """One edit a head, layer by layer: ``M = L·H`` masks."""
    rows = np.eye(num_layers * num_heads, dtype=bool)
    return rows.reshape(-1, num_layers, 1, 1, num_heads)


def zero_ablation(num_layers: int, num_heads: int) -> Edit:
    """Every head replaced by zero in turn: a batch of ``M = L·H`` edits, layer by layer.

    Example:
        >>> jaxalign.zero_ablation(6, 8).rows
        48
    """
    masks = head_ablation_masks(num_layers, num_heads)
    return Edit(head=HeadEdit(masks, np.zeros((num_layers, 1, 1, 1, 1), np.float32)))


def residual_patch_masks(num_layers: int, length: int) -> Bool[np.ndarray, "M steps 1 S"]:
    """One edit a step and position: ``M = (L + 1)·S`` masks, step by step from the embedding.

    Row ``step·S + position`` replaces the residual stream there; step 0 is the embedding, step
    ``l + 1`` is after block ``l``.
    """
    rows = np.eye((num_layers + 1) * length, dtype=bool)
    return rows.reshape(-1, num_layers + 1, 1, length)


def edit_heads(
    attn_out: Float[Array, "*rows B S D"],
    z: Float[Array, "*rows B S H h"],
    w_out: Float[Array, "A D"] | QTensor,
    edit: HeadEdit,
) -> Float[Array, "*rows B S D"]:
    """The projected attention output of one layer after ``edit`` (arrays of that layer).

    Masked terms are chosen with ``where``, not multiplied by 0 and 1: a non-finite activation
    outside the mask must not leak in, and what is not edited must keep its bits.
    """
    if edit.mode == "edge-align":
        return _edit_blocks(attn_out, z.shape[-2], edit)
    mask = lead(edit.mask[..., None], z)
    given = jnp.where(mask, lead(jnp.asarray(edit.value, jnp.float32), z), 0).sum(axis=-2)
    kept_out = jnp.where(mask, z, 0)
    removed = dot(kept_out.reshape(*kept_out.shape[:-2], -1), dense(w_out, z.dtype))
    return _move(attn_out, given - removed, mask.any(axis=-2))


def _edit_blocks(attn_out: Array, heads: int, edit: HeadEdit) -> Array:
    blocks = attn_out.reshape(*attn_out.shape[:-1], heads, -1)
    value = lead(jnp.asarray(edit.value, jnp.float32).astype(attn_out.dtype), blocks)
    mask = lead(edit.mask[..., None], blocks)
    return jnp.where(mask, value, blocks).reshape(attn_out.shape)


def _move(attn_out: Array, by: Array, where: Array) -> Array:
    """Add in f32, round once, and only where something is edited."""
    moved = (attn_out.astype(jnp.float32) + by).astype(attn_out.dtype)
    return jnp.where(where, moved, attn_out)


def edit_residual(
    x: Float[Array, "*rows B S D"], edit: ResidualEdit
) -> Float[Array, "*rows B S D"]:
    """The residual stream after ``edit`` (arrays of one step)."""
    value = jnp.asarray(edit.value).astype(x.dtype)
    return jnp.where(lead(edit.mask[..., None], x), lead(value, x), x)
