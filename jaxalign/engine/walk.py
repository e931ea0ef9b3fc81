"""A line of runs on its way through the model, a layer at a time, in blocks that stay in cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from jaxalign.edits.points import BEHIND_ATTENTION, INSIDE_MLP
from jaxalign.edits.runs import Runs
from jaxalign.edits.site import Edit
from jaxalign.engine.line import EditedRuns
from jaxalign.model.attention import attend, keys_values, project_heads, queries
from jaxalign.model.decoder import add_to_stream, block, head_contributions
from jaxalign.model.layers import Pass, normalize
from jaxalign.model.params import Block
from jaxalign.model.prefix import Prefix
from jaxalign.shapes import Array, Float, Int

Carry = TypeVar("Carry")
Place = int | Int[Array, ""]
# What runs that begin in a layer or at a position read of the clean runs, by name: the block's
# parts (``decoder.block``), and the stream before it (``skip``).
Clean = dict[str, Array]
BEGIN = ("z", "attn_out", "mlp_out", "skip")
PREFIX = ("keys", "values")


@dataclass(frozen=True)
class Layer:
    """What all lines are given on their way through one block.

    Attributes:
        weights: of the block.
        step: of the block, ``l + 1``.
        window: of the block's attention; None for all positions.
    """

    weights: Block
    step: Array
    window: Array | None


@dataclass(frozen=True, kw_only=True)
class Line:
    """Runs and what every layer needs to walk them.

    Attributes:
        runs: sorted by birth, with ``size`` more behind the last one.
        alive: int ``[L + 2]``, how many runs are born before each step.
        size: runs in a block.
        read: int ``[B, P]``, the positions of each prompt that are read out in the end.
        run: the pass; ``real`` is ``[B, S]``.
        single_step: whether no run is edited after the step that it is born at.
        positions: int ``[B, Q]``, where the runs of each prompt stand; None for all of ``S``, in
            the line that holds the clean runs, too.
        kept: what is kept of the clean runs in each layer.
    """

    runs: Runs
    alive: Array
    size: int
    read: Array
    run: Pass
    single_step: bool
    positions: Array | None = None
    kept: tuple[str, ...] = BEGIN

    def walk(
        self, start: Place, stop: Place, visit: Callable[[Array, Runs, Carry], Carry], carry: Carry
    ) -> Carry:
        """Visit the blocks between two places, from the last one down to the clean runs'.

        Args:
            start, stop: places in the line.
            visit: from the place of a block, its runs and the carry to the next carry.
            carry: what the first visit is given.
        """
        count = (stop - start + self.size - 1) // self.size

        def body(i: Array, carry: Carry) -> Carry:
            at = start + (count - 1 - i) * self.size
            block = jax.tree.map(lambda a: self.cut(a, at), self.runs)
            return visit(at, block, carry)

        return lax.fori_loop(0, count, body, carry)

    def cut(self, a: Array, at: Place) -> Array:
        """The block at a place of the line."""
        return lax.dynamic_slice_in_dim(a, at, self.size)

    def of(self, block: Runs, window: Array | None, clean: Clean) -> Pass:
        """The pass of a block of runs through one layer.

        Args:
            block: the runs.
            window: of the layer's attention.
            clean: ``keys`` and ``values`` of the clean runs, where positions before these are left
                out.
        """
        if self.positions is None:
            assert self.run.real is not None
            return replace(self.run, real=self.run.real[block.prompt], window=window)
        prompts = len(self.positions)
        part = min(prompts, self.size)  # a block holds whole rows, or a part of one

        def own(a: Array) -> Array:
            first = 0 if part == prompts else block.prompt[0]
            return lax.dynamic_slice_in_dim(a, first, part)

        prefix = Prefix(own(clean["keys"]), own(clean["values"]), self.positions[block.prompt])
        return replace(self.run, real=None, window=window, prefix=prefix)

    def edited(self, edits: Sequence[Edit], block: Runs) -> EditedRuns:
        """The edits of a block of runs at all of their positions."""
        positions = None if self.positions is None else self.positions[block.prompt]
        return EditedRuns(edits, block, positions)

    def edited_where_read(self, edits: Sequence[Edit], block: Runs) -> EditedRuns:
        """The edits of a block of runs at the positions that are read out."""
        return EditedRuns(edits, block, self.read[block.prompt])

    def at_read(self, x: Float[Array, "N Q D"]) -> Float[Array, "N P D"]:
        """The runs' values at the positions that are read out, of those that stand in this line."""
        own = self.own_read
        own = own if self.positions is None else jnp.maximum(own, 0)
        return jnp.take_along_axis(x, own[self.runs.prompt][..., None], axis=-2)

    @property
    def own_read(self) -> Int[Array, "B P"]:
        """Where the positions that are read out stand among this line's; negative before them."""
        return self.read if self.positions is None else self.read - self.positions[:, :1]

    def here(self, a: Float[Array, "B S *unit"]) -> Float[Array, "B Q *unit"]:
        """What stands at this line's positions."""
        if self.positions is None:
            return a
        return a[jnp.arange(len(self.positions))[:, None], self.positions]

    def layer(
        self,
        x: Float[Array, "N S D"],
        edits: Sequence[Edit],
        layer: Layer,
        clean: Clean | None = None,
    ) -> tuple[Float[Array, "N S D"], Clean]:
        """All runs through one block; those born in it start from the clean runs.

        Args:
            x: the residual stream of every run.
            edits: stacks of edits, the arrays of this block.
            layer: the block.
            clean: what another line has kept of the clean runs; None where they stand in this one.

        Returns:
            The stream after the block, and what is kept of the clean runs, at all positions.
        """
        known, weights, step, window = clean or {}, layer.weights, layer.step, layer.window

        def live(at: Array, runs: Runs, carry: tuple[Array, Clean]) -> tuple[Array, Clean]:
            after, kept = carry
            rows = self.cut(x, at)
            mine = self.edited([] if self.single_step else edits, runs)
            y, parts = block(rows, weights, self.of(runs, window, known), mine)
            return put(after, y, at), self._keep(kept, parts | {"skip": rows}, at)

        room = self._room(x, self.kept) if clean is None else {}
        # Blocks read x and write a copy: reading what is being written, XLA copies it every time.
        x, kept = self.walk(0, self.alive[step], live, (x, room))
        clean = kept if clean is None else clean
        z, attn_out, mlp_out, skip = (self.here(clean[name]) for name in BEGIN)
        contributions = _contributions(z, weights.attention.out, edits)

        def born(at: Array, runs: Runs, x: Array) -> Array:
            own, mine = self.of(runs, window, clean), self.edited(edits, runs)
            prompt = runs.prompt
            if not _behind_attention(edits):
                return put(x, block(skip[prompt], weights, own, mine)[0], at)
            edited = mine.fork(attn_out, z, weights.attention.out, contributions)
            known = None if _computes_mlp(edits) else mlp_out[prompt]
            y, _ = add_to_stream(skip[prompt], edited, weights, own, mine, known)
            return put(x, y, at)

        return self.walk(self.alive[step], self.alive[step + 1], born, x), clean

    def last_layer(
        self,
        x: Float[Array, "N S D"],
        edits: Sequence[Edit],
        layer: Layer,
        clean: Clean | None = None,
    ) -> tuple[Float[Array, "N P D"], Clean]:
        """The last block, which only the positions leave that are read out.

        Args:
            x, edits, layer, clean: as in ``layer``.

        Returns:
            The stream after the block, and what is kept of the clean runs: the stream before it,
            keys and values at all positions, the rest at those that are read out.
        """
        weights, step, window = layer.weights, layer.step, layer.window
        behind = _behind_attention(edits)
        stream = x[: len(self.read)] if clean is None else self.here(clean["stream"])
        alive = self.alive[step]
        if not behind:  # what is born here goes all the way

            def born(at: Array, runs: Runs, x: Array) -> Array:
                return put(x, stream[runs.prompt], at)

            x = self.walk(alive, self.alive[step + 1], born, x)
            alive = self.alive[step + 1]
        run = replace(self.run, real=None, window=window)
        norm, config = weights.attention_norm, run.config
        mine, query = self.edited_where_read(edits, self.runs), self.read[self.runs.prompt]
        skip = self.at_read(x)
        normed = normalize(skip, norm, config)
        q = queries(normed, query, weights.attention, run, mine)

        def read(at: Array, runs: Runs, carry: tuple[Array, Clean]) -> tuple[Array, Clean]:
            z, kept = carry
            own = replace(self.of(runs, window, clean or {}), real=None)
            positions = None if own.prefix is None else own.prefix.positions
            normed, all_mine = normalize(self.cut(x, at), norm, config), self.edited(edits, runs)
            k, v = keys_values(normed, weights.attention, own, positions, all_mine)
            mine, asking = self.edited_where_read(edits, runs), self.read[runs.prompt]
            found = mine.apply_at("z", attend(self.cut(q, at), k, v, asking, own, mine))
            return put(z, found, at), self._keep(kept, {"keys": k, "values": v}, at)

        room = self._room(x, [name for name in self.kept if name in PREFIX])
        z, kept = self.walk(0, alive, read, (jnp.zeros_like(q), room))
        attn_out = project_heads(z, weights.attention)

        def touch(at: Array, runs: Runs, attn_out: Array) -> Array:
            given = self.cut(attn_out, at), self.cut(z, at), weights.attention.out
            return put(
                attn_out, self.edited_where_read(edits, runs).apply_at("attn_out", *given), at
            )

        if not (self.single_step and behind):
            attn_out = self.walk(0, alive, touch, attn_out)
        if clean is None:
            parts = {"z": z, "attn_out": attn_out, "skip": skip}
            clean = {name: a[: len(self.read)] for name, a in parts.items()} | kept
            clean["stream"] = stream
        if behind:
            attn_out, skip = self._begin_last(attn_out, skip, edits, layer, clean)
        return add_to_stream(skip, attn_out, weights, run, mine)[0], clean

    def _begin_last(
        self,
        attn_out: Float[Array, "N P D"],
        skip: Float[Array, "N P D"],
        edits: Sequence[Edit],
        layer: Layer,
        clean: Clean,
    ) -> tuple[Float[Array, "N P D"], Float[Array, "N P D"]]:
        """``attn_out`` and the stream before the block, with the runs that are born in the last."""
        out, step = layer.weights.attention.out, layer.step
        contributions = _contributions(clean["z"], out, edits)

        def born(at: Array, runs: Runs, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            attn_out, skip = carry
            mine = self.edited_where_read(edits, runs)
            edited = mine.fork(clean["attn_out"], clean["z"], out, contributions)
            return put(attn_out, edited, at), put(skip, clean["skip"][runs.prompt], at)

        return self.walk(self.alive[step], self.alive[step + 1], born, (attn_out, skip))

    @property
    def _rooms(self) -> int:
        """How many blocks hold clean runs."""
        return -(-len(self.read) // self.size)

    def _room(self, x: Array, names: Sequence[str]) -> Clean:
        """Room for what is kept of the clean runs."""
        config = self.run.config
        heads = {"z": config.num_heads, "keys": config.num_kv_heads, "values": config.num_kv_heads}

        def room(name: str) -> Array:
            unit = (heads[name], config.head_size) if name in heads else x.shape[2:]
            return lax.empty((self._rooms * self.size, x.shape[1], *unit), x.dtype)

        return {name: room(name) for name in names}

    def _keep(self, kept: Clean, parts: Clean, at: Array) -> Clean:
        """What is kept, with a block's: the clean runs' blocks come last and overwrite others'."""
        room = jnp.minimum(at, (self._rooms - 1) * self.size)
        return {name: put(a, parts[name], room) for name, a in kept.items()}


def put(a: Array, block: Array, at: Place) -> Array:
    """``a`` with a block at a place of the line."""
    return lax.dynamic_update_slice_in_dim(a, block, at, 0)


def _behind_attention(edits: Sequence[Edit]) -> bool:
    """Whether all sites act behind the attention of their block."""
    return all(site.point in BEHIND_ATTENTION for edit in edits for site in edit.sites)


def _computes_mlp(edits: Sequence[Edit]) -> bool:
    """Whether any site acts inside the MLP, or reads what stands there to change what it writes."""
    return any(
        site.point in INSIDE_MLP or (site.point == "mlp_out" and site.reads_inputs)
        for edit in edits
        for site in edit.sites
    )


def _contributions(z: Array, w_out: Any, edits: Sequence[Edit]) -> Array | None:
    """What each head of the clean runs adds, where a site asks for it."""
    if any(site.reads_contributions for edit in edits for site in edit.sites):
        return head_contributions(z, w_out)
    return None
