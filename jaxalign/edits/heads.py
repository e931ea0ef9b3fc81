"""Edits of attention heads: what stands in the place of what heads add to the stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import ClassVar, Literal, get_args

import jax.numpy as jnp
from flax import struct
from jax import lax

from jaxalign.edits.declare import Declared, acts, shared
from jaxalign.edits.runs import Pick
from jaxalign.edits.site import Kind, Site
from jaxalign.numerics.dot import dense, dot
from jaxalign.numerics.qtensor import QTensor
from jaxalign.shapes import Array, Bool, Float, Int, Leaf, lead

HeadMode = Literal["true", "edge-align"]
HEAD_MODES: tuple[HeadMode, ...] = get_args(HeadMode)


@struct.dataclass
class HeadEdit(Site):
    """Replace the contributions of attention heads, all positions or some.

    Heads are query heads: where several share keys and values, each still has its own ``z`` and
    ``W_O``. A contribution is what ``W_O`` writes, before a post norm where the model has one.

    A true head adds ``c[l,i] = z[l,i] @ W_O[l,i]`` to the residual stream; replacing heads moves
    the projected output by ``Σ (value − c)`` over the replaced heads, summed in f32 and rounded
    once. In ``edge-align`` mode a "head" is a block of ``D/H`` coordinates of the projected output,
    bias included (kept for parity with published results; these are not attention heads).

    Masked terms are chosen with ``where``, not multiplied by 0 and 1: an activation outside the
    mask that is not finite must not leak in, and what is not edited must keep its bits.

    Attributes:
        mask: bool ``[L, B|1, S|1, H]``: which heads are replaced. A batch of M edits: ``[M, …]``.
        value: ``[L, B|1, S|1, H|1, D|1]`` (edge-align ``[…, D/H|1]``): what stands in their place.
        mode: "true" or "edge-align".
    """

    point: ClassVar[str] = "attn_out"
    kind: ClassVar[Kind] = "replace"

    mask: Leaf = acts("L B|1 S|1 H", chooses=True)
    value: Leaf = shared("L B|1 S|1 H|1 D|1")
    mode: str = struct.field(pytree_node=False, default="true")

    def declared(self) -> Iterator[Declared]:
        """As declared, but that a value of an edge-align head is ``D/H`` wide."""
        for each in super().declared():
            if each.name == "value" and self.mode == "edge-align":
                each = replace(each, axes=(*each.axes[:-1], "C|1"))
            yield each

    def problem(self, sizes: dict[str, int], windows: Sequence[int | None] = ()) -> str | None:
        """Edge-align needs blocks of one width."""
        width, heads = sizes["D"], sizes["H"]
        if self.mode == "edge-align" and width % heads:
            return f"edge-align cuts {width} coordinates into {heads} equal blocks"
        return None

    def apply(
        self,
        x: Float[Array, "*rows B S D"],
        inputs: Float[Array, "*rows B S H h"] | None = None,
        weights: Float[Array, "A D"] | QTensor | None = None,
    ) -> Float[Array, "*rows B S D"]:
        """The projected attention output ``x`` after the edit (``Site.apply``).

        Args:
            x: ``attn_out``.
            inputs: each head's ``z``.
            weights: ``W_O``.
        """
        if self.mode == "edge-align":
            return _replace_blocks(x, self.mask, self.value)
        assert inputs is not None
        z = inputs
        mask = lead(self.mask[..., None], z)
        given = jnp.where(mask, lead(jnp.asarray(self.value, jnp.float32), z), 0).sum(axis=-2)
        return _move(x, given - _project(mask, z, weights), mask.any(axis=-2))

    def apply_runs(
        self,
        x: Float[Array, "N S D"],
        pick: Pick,
        inputs: Float[Array, "N S H h"] | None,
        weights: Float[Array, "A D"] | QTensor | None,
    ) -> Float[Array, "N S D"]:
        """As ``Site.apply_runs``, values gathered one head at a time: see ``_each_head``.

        Args:
            x: ``attn_out`` of each run.
            pick: gathers each run's masks and values.
            inputs: each head's ``z``.
            weights: ``W_O``.
        """
        mask = pick("mask")

        def edited(x: Array, z: Array) -> Array:
            if self.mode == "edge-align":
                return _replace_blocks(x, mask, pick("value"))
            removed = -_project(mask[..., None], z, weights)
            moved = _each_head(mask, lambda i: self._value(pick, i), removed)
            return _move(x, moved, mask.any(axis=-1, keepdims=True))

        assert inputs is not None
        return lax.cond(mask.any(), edited, lambda x, z: x, x, inputs)

    def fork_runs(
        self,
        x: Float[Array, "N S D"],
        pick: Pick,
        inputs: Float[Array, "N S H h"],
        weights: Float[Array, "A D"] | QTensor | None,
        contributions: Float[Array, "H B Q D"] | None,
    ) -> Float[Array, "N S D"]:
        """As ``Site.fork_runs``: what the clean heads add is known, so nothing is projected.

        Args:
            x, pick, inputs, weights: as in ``apply_runs``, ``x`` and ``inputs`` of the clean run.
            contributions: what each head of the clean runs adds, at the positions that are known
                (``Runs.place``).
        """
        if self.mode == "edge-align":
            return self.apply_runs(x, pick, inputs, weights)
        mask = pick("mask")
        prompt, place = pick.runs.prompt[:, None], pick.runs.place
        place = jnp.arange(x.shape[1])[None] if place is None else place

        def change(i: Array) -> Array:
            assert contributions is not None
            return self._value(pick, i) - contributions[i, prompt, place]

        def edited(x: Array) -> Array:
            moved = _each_head(mask, change, jnp.zeros(x.shape, jnp.float32))
            return _move(x, moved, mask.any(axis=-1, keepdims=True))

        return lax.cond(mask.any(), edited, lambda x: x, x)

    @property
    def reads_contributions(self) -> bool:
        """``fork_runs`` takes a true head's contribution away."""
        return self.mode == "true"

    def _value(self, pick: Pick, i: Int[Array, "N _"]) -> Float[Array, "N _ _"]:
        """What each run puts in place of its head ``i``, in f32."""
        i = i if self.value.shape[3] > 1 else jnp.zeros_like(i)
        return pick("value", i).astype(jnp.float32)


def _project(mask: Array, z: Array, weights: Array | QTensor | None) -> Array:
    """What the masked heads add, ``Σ z W_O``, in f32."""
    assert weights is not None
    kept = jnp.where(mask, z, 0)
    return dot(kept.reshape(*kept.shape[:-2], -1), dense(weights, z.dtype))


def _replace_blocks(attn_out: Array, mask: Array, value: Array) -> Array:
    """Edge-align's blocks of the projected output, chosen whole."""
    blocks = attn_out.reshape(*attn_out.shape[:-1], mask.shape[-1], -1)
    value = lead(jnp.asarray(value, jnp.float32).astype(attn_out.dtype), blocks)
    return jnp.where(lead(mask[..., None], blocks), value, blocks).reshape(attn_out.shape)


def _move(attn_out: Array, by: Array, where: Array) -> Array:
    """Add in f32, round once, and only where something is edited."""
    moved = (attn_out.astype(jnp.float32) + by).astype(attn_out.dtype)
    return jnp.where(where, moved, attn_out)


def _each_head(
    mask: Bool[Array, "N #S H"],
    change: Callable[[Array], Array],
    total: Float[Array, "N S D"],
) -> Float[Array, "N S D"]:
    """``total`` plus the change of each replaced head, from the first head to the last.

    Values are gathered one head at a time. The loop runs as often as the largest number of heads
    that any run of the block replaces: once for single-head ablation, never if nothing is edited.

    Args:
        mask: which heads each run replaces.
        change: from a head of each run, int ``[N, S|1]``, to what replacing that head adds.
        total: f32, what the changes are added to.
    """
    place = jnp.cumsum(mask, axis=-1)

    def add(j: Array, total: Array) -> Array:
        chosen = mask & (place == j + 1)  # each run's j-th
        some = chosen.any(axis=-1)[..., None]
        return total + jnp.where(some, change(chosen.argmax(axis=-1)), 0)

    return lax.fori_loop(0, place[..., -1].max(), add, total)
