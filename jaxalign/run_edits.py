"""Edits as they concern runs that stand in a line, where each run is one row of one batch.

Batches of one shape are stacked, so that however many there are they share one compiled body. What
a run puts in place is picked when its turn comes, head by head: a loop is as long as the most heads
that one of the runs replaces, which is one where every head is ablated in turn, and none where none
of them edits anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jax.sharding import PartitionSpec

from jaxalign.edit import Edit, HeadEdit
from jaxalign.numerics.dot import dense, dot
from jaxalign.numerics.qtensor import QTensor
from jaxalign.shapes import Array, Bool, Float, Int, Leaf


@struct.dataclass
class Runs:
    """Runs in line, ``[N]`` each: the clean run of each prompt, then the edited ones by birth.

    Attributes:
        stack: which stack of edits; -1 for a clean run.
        row: which row of that stack.
        value: which of the stack's values it puts in place.
        prompt: which prompt.
    """

    stack: Leaf
    row: Leaf
    value: Leaf
    prompt: Leaf


def stack_edits(edits: Sequence[Edit]) -> tuple[list[Edit], list[tuple[int, int, int]]]:
    """Batches of edits of one shape as one, layer axis first.

    Returns:
        The stacks, masks ``[L, ΣM, B|1, S|1, …]`` and values ``[L, G, B|1, S|1, …]`` (residual
        edits ``[L + 1, …]``); and for each batch its stack, its first row and its value there.
    """
    stacks: dict[Any, list[Edit]] = {}
    places = []
    for edit in edits:
        masks = [mask.shape[1:] for mask in edit.masks()]
        values = [(a.value.shape, a.value.dtype) for a in (edit.head, edit.residual) if a]
        shape = jax.tree.structure(edit), str((masks, values))
        alike = stacks.setdefault(shape, [])
        places.append((list(stacks).index(shape), sum(e.rows for e in alike), len(alike)))
        alike.append(edit)
    return [_stacked(alike) for alike in stacks.values()], places


def _stacked(alike: Sequence[Edit]) -> Edit:
    def site(name: str) -> Any:
        sites = [getattr(edit, name) for edit in alike]
        if sites[0] is None:
            return None
        mask = jnp.concatenate([one.mask for one in sites])
        value = jnp.stack([one.value for one in sites], axis=1)
        return replace(sites[0], mask=jnp.moveaxis(mask, 1, 0), value=value)

    return Edit(head=site("head"), residual=site("residual"))


@struct.dataclass
class RunEdits:
    """One step's stacks of edits, and the runs that they are asked about.

    Attributes:
        stacks: masks ``[R, B|1, S|1, …]``, values ``[G, B|1, S|1, …]``.
        runs: ``N`` of them.
        query: int ``[N]``, the one position of each run that is wanted; None for all.
    """

    stacks: Sequence[Edit]
    runs: Runs
    query: Leaf | None = None

    def on_attention(
        self, attn_out: Float[Array, "N S D"], z: Float[Array, "N S H h"], w_out: Array | QTensor
    ) -> Float[Array, "N S D"]:
        """The runs' projected attention output after their edits (``edit.edit_heads``)."""
        for number, stack in enumerate(self.stacks):
            if stack.head is None:
                continue
            mask = self._mask(number, stack.head.mask)

            def edited(
                attn_out: Array, z: Array, mask: Array = mask, head: HeadEdit = stack.head
            ) -> Array:
                if head.mode == "edge-align":
                    return self._blocks(attn_out, mask, head)
                removed = jnp.where(mask[..., None], z, 0)
                moved = -dot(removed.reshape(*removed.shape[:-2], -1), dense(w_out, z.dtype))
                moved = _each_head(mask, lambda i: self._head_value(head, i), moved)
                return _move(attn_out, moved, mask.any(axis=-1, keepdims=True))

            attn_out = lax.cond(mask.any(), edited, lambda attn_out, z: attn_out, attn_out, z)
        return attn_out

    def on_clean_attention(
        self, attn_out: Float[Array, "B S D"], contributions: Float[Array, "H B S D"] | None
    ) -> Float[Array, "N S D"]:
        """The clean runs' projected attention output after the edits of runs born from them.

        Args:
            contributions: what each head of the clean runs adds, in f32, so that nothing is
                projected; None where no stack edits true heads.
        """
        prompt = self.runs.prompt
        edited = attn_out[prompt]
        position = jnp.arange(attn_out.shape[1])[None]
        moved, moves = jnp.zeros(edited.shape, jnp.float32), jnp.zeros((len(prompt), 1, 1), bool)
        for number, stack in enumerate(self.stacks):
            if stack.head is None:
                continue
            mask, head = self._mask(number, stack.head.mask), stack.head
            if head.mode == "edge-align":
                edited = self._blocks(edited, mask, head)
                continue

            def change(i: Array, head: HeadEdit = head) -> Array:
                assert contributions is not None
                return self._head_value(head, i) - contributions[i, prompt[:, None], position]

            moved = _each_head(mask, change, moved)
            moves = moves | mask.any(axis=-1, keepdims=True)
        return edited if contributions is None else _move(edited, moved, moves)

    def on_stream(self, x: Float[Array, "N S D"]) -> Float[Array, "N S D"]:
        """The runs' residual stream after their edits (``edit.edit_residual``)."""
        for number, stack in enumerate(self.stacks):
            if stack.residual is not None:
                value = self._values(stack.residual.value).astype(x.dtype)
                mask = self._mask(number, stack.residual.mask)
                x = jnp.where(mask[..., None], value, x)
        return x

    def _mask(self, number: int, mask: Array) -> Bool[Array, "N s *H"]:
        """A stack's mask for each run; False for runs of another stack."""
        member = self.runs.stack == number
        picked = mask[(jnp.where(member, self.runs.row, 0)[:, None], *self._place(mask))]
        return _whole(picked & member.reshape(-1, *[1] * (picked.ndim - 1)))

    def _values(self, value: Array) -> Array:
        """What each run puts in place, ``[N, S|1, …]``, all heads."""
        which = jnp.minimum(self.runs.value, len(value) - 1)[:, None]
        return value[(which, *self._place(value))]

    def _head_value(self, head: HeadEdit, i: Int[Array, "N _"]) -> Float[Array, "N s _"]:
        """What each run puts in place of its head ``i``, in f32."""
        value = head.value
        which = jnp.minimum(self.runs.value, len(value) - 1)[:, None]
        i = i if value.shape[3] > 1 else jnp.zeros_like(i)
        return value[(which, *self._place(value), i)].astype(jnp.float32)

    def _place(self, a: Array) -> tuple[Array, Array]:
        """Prompt and position of each run in an array ``[…, B|1, S|1, …]`` of a stack."""
        batch, length = a.shape[1:3]
        prompt = self.runs.prompt[:, None]
        position = jnp.arange(length)[None] if self.query is None else self.query[:, None]
        return (
            prompt if batch > 1 else jnp.zeros_like(prompt),
            position if length > 1 else jnp.zeros((1, 1), int),
        )

    def _blocks(self, attn_out: Array, mask: Array, head: HeadEdit) -> Array:
        """Edge-align's blocks of the projected output, chosen whole."""
        blocks = attn_out.reshape(*attn_out.shape[:-1], mask.shape[-1], -1)
        value = self._values(head.value).astype(jnp.float32).astype(attn_out.dtype)
        return jnp.where(mask[..., None], value, blocks).reshape(attn_out.shape)


def _each_head(
    mask: Bool[Array, "N #S H"],
    change: Callable[[Array], Array],
    total: Float[Array, "N S D"],
) -> Float[Array, "N S D"]:
    """``total`` and what each replaced head changes, first to last; the others add nothing."""
    place = jnp.cumsum(mask, axis=-1)

    def add(j: Array, total: Array) -> Array:
        chosen = mask & (place == j + 1)  # each run's j-th
        some = chosen.any(axis=-1)[..., None]
        return total + jnp.where(some, change(chosen.argmax(axis=-1)), 0)

    return lax.fori_loop(0, place[..., -1].max(), add, total)


def _whole(mask: Array) -> Array:
    """A mask of which every device of a mesh holds all heads.

    Masks decide how long loops are. Devices whose loops differ must not exchange anything to find
    out, and they would, if a mask were spread like the heads that it chooses from.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return mask
    return lax.with_sharding_constraint(mask, PartitionSpec())


def _move(attn_out: Array, by: Array, where: Array) -> Array:
    """Add in f32, round once, and only where something is edited."""
    moved = (attn_out.astype(jnp.float32) + by).astype(attn_out.dtype)
    return jnp.where(where, moved, attn_out)


def births(edit: Edit, batch: int, layers: int) -> Int[Array, "M B"]:
    """The step that each row first touches; one past the last for a row that edits nothing."""
    touched = edit.touched(batch)  # [M, B, L + 1]
    return jnp.where(touched.any(axis=-1), touched.argmax(axis=-1), layers + 1)


def line_up(
    edits: Sequence[Edit], places: Sequence[tuple[int, int, int]], batch: int, layers: int
) -> tuple[Runs, Array, Array]:
    """Sort the runs of some batches of edits by the first step that they touch.

    Args:
        edits, places: as ``stack_edits`` takes and gives them.

    Returns:
        The runs; ``alive`` ``[L + 2]``, how many are born before each step (step 0 is the
        embedding, ``l + 1`` block ``l``; a run that edits nothing is never born); and ``place``
        ``[1 + ΣM, B]``, where the run of each row and prompt stands, clean row first (the clean
        run's place for one that is never born).
    """
    born = [jnp.full((1, batch), -1)] + [births(edit, batch, layers) for edit in edits]
    columns = [np.zeros((batch, 3), int) - [1, 0, 0]]
    for edit, (stack, first, value) in zip(edits, places, strict=True):
        rows = np.repeat(first + np.arange(edit.rows), batch)
        columns.append(np.stack(np.broadcast_arrays(stack, rows, value), axis=1))
    birth = jnp.concatenate(born)
    order = jnp.argsort(birth.reshape(-1), stable=True)
    place = jnp.argsort(order).reshape(birth.shape)
    stack, row, value = jnp.asarray(np.concatenate(columns).T, jnp.int32)[:, order]
    runs = Runs(stack, row, value, (order % batch).astype(jnp.int32))
    alive = (birth[None] < jnp.arange(layers + 2)[:, None, None]).sum(axis=(1, 2))
    return runs, alive, jnp.where(birth <= layers, place, place[:1])
