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
    """Runs, or bins of them, and what every layer needs to walk them.

    Attributes:
        runs: sorted by birth, with ``size`` more behind the last one; with bins these.
        alive: int ``[L + 2]``, how many runs, or bins, are born before each step.
        size: runs, or bins, in a block.
        read: int ``[B, P]``, the positions of each prompt that are read out in the end.
        run: the pass; ``real`` is ``[B, S]``.
        single_step: whether no run is edited after the step that it is born at.
        kept: what is kept of the clean runs in each layer; nothing where they stand in another
            line.
        held: of bins, int ``[B, C]``, the last positions of each prompt, which any of them holds.
        taken: of bins, int ``[runs, P]``, where the positions that are read out stand among those
            of all bins.
        leaving: of bins, the line of the runs themselves, of the positions that are read out.
    """

    runs: Runs
    alive: Array
    size: int
    read: Array
    run: Pass
    single_step: bool
    kept: tuple[str, ...] = BEGIN
    held: Array | None = None
    taken: Array | None = None
    leaving: Line | None = None

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
            clean: ``keys`` and ``values`` of the clean runs, which bins see before their own.
        """
        if not block.binned:
            assert self.run.real is not None
            return replace(self.run, real=self.run.real[block.prompt], window=window)
        assert block.position is not None
        assert block.first is not None
        prompts = len(self.read)
        part = min(prompts, self.size)  # a block holds bins of all prompts, or of some of them

        def own(a: Array) -> Array:
            first = 0 if part == prompts else block.prompt[0, 0]
            return lax.dynamic_slice_in_dim(a, first, part)

        prefix = Prefix(own(clean["keys"]), own(clean["values"]), block.position, block.first)
        return replace(self.run, real=None, window=window, prefix=prefix)

    @property
    def end(self) -> Line:
        """The line of the runs at the positions that are read out."""
        if self.leaving is not None:
            return self.leaving
        position = self.read[self.runs.prompt]
        return replace(self, runs=self.runs.replace(position=position))  # type: ignore[attr-defined]

    def at_read(self, x: Float[Array, "N Q *unit"]) -> Float[Array, "runs P *unit"]:
        """The runs' values at the positions that are read out."""
        if self.taken is not None:
            return x.reshape(-1, *x.shape[2:])[self.taken]
        return jax.vmap(lambda x, read: x[read])(x, self.read[self.runs.prompt])

    def here(self, a: Float[Array, "B S *unit"]) -> Float[Array, "B Q *unit"]:
        """What stands at the positions that any of the runs has."""
        if self.held is None:
            return a
        return a[jnp.arange(len(self.held))[:, None], self.held]

    def layer(
        self,
        x: Float[Array, "N Q D"],
        edits: Sequence[Edit],
        layer: Layer,
        clean: Clean | None = None,
    ) -> tuple[Float[Array, "N Q D"], Clean]:
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
            mine = EditedRuns([] if self.single_step else edits, runs)
            y, parts = block(rows, weights, self.of(runs, window, known), mine)
            return put(after, y, at), self._keep(kept, parts | {"skip": rows}, at)

        room = self._room(x, self.kept) if clean is None else {}
        # Blocks read x and write a copy: reading what is being written, XLA copies it every time.
        x, kept = self.walk(0, self.alive[step], live, (x, room))
        clean = kept if clean is None else clean
        z, attn_out, mlp_out, skip = (self.here(clean[name]) for name in BEGIN)
        contributions = _contributions(z, weights, edits)

        def born(at: Array, runs: Runs, x: Array) -> Array:
            own, mine = self.of(runs, window, clean), EditedRuns(edits, runs)
            before = runs.of_clean(skip)
            if not _behind_attention(edits):
                return put(x, block(before, weights, own, mine)[0], at)
            edited = mine.fork(attn_out, z, weights, own, contributions)
            known = None if _computes_mlp(edits) else runs.of_clean(mlp_out)
            y, _ = add_to_stream(before, edited, weights, own, mine, known)
            return put(x, y, at)

        return self.walk(self.alive[step], self.alive[step + 1], born, x), clean

    def last_layer(
        self,
        x: Float[Array, "N Q D"],
        edits: Sequence[Edit],
        layer: Layer,
        clean: Clean | None = None,
    ) -> tuple[Float[Array, "runs P D"], Clean]:
        """The last block, which only the positions leave that are read out.

        Args:
            x, edits, layer, clean: as in ``layer``.

        Returns:
            The stream after the block, and what is kept of the clean runs: the stream before it,
            keys and values at all positions, the rest at those that are read out.
        """
        weights, step, end = layer.weights, layer.step, self.end
        behind = _behind_attention(edits)
        stream = x[: len(self.read)] if clean is None else self.here(clean["stream"])
        alive, begun = self.alive[step], end.alive[step]
        if not behind:  # what is born here goes all the way

            def born(at: Array, runs: Runs, x: Array) -> Array:
                return put(x, runs.of_clean(stream), at)

            x = self.walk(alive, self.alive[step + 1], born, x)
            alive, begun = self.alive[step + 1], end.alive[step + 1]
        z, kept = self._attend_last(x, edits, layer, alive, clean)
        skip = self.at_read(x)
        attn_out = project_heads(z, weights.attention)

        def touch(at: Array, runs: Runs, attn_out: Array) -> Array:
            given = end.cut(attn_out, at), end.cut(z, at), weights.attention.out
            return put(attn_out, EditedRuns(edits, runs).apply_at("attn_out", *given), at)

        if not (self.single_step and behind):
            attn_out = end.walk(0, begun, touch, attn_out)
        if clean is None:
            parts = {"z": z, "attn_out": attn_out, "skip": skip}
            clean = {name: a[: len(self.read)] for name, a in parts.items()} | kept
            clean["stream"] = stream
        if behind:
            attn_out, skip = end._begin_last(attn_out, skip, edits, layer, clean)
        run = replace(self.run, real=None, window=layer.window)
        mine = EditedRuns(edits, end.runs)
        return add_to_stream(skip, attn_out, weights, run, mine)[0], clean

    def _attend_last(
        self,
        x: Float[Array, "N Q D"],
        edits: Sequence[Edit],
        layer: Layer,
        alive: Array,
        clean: Clean | None,
    ) -> tuple[Float[Array, "runs P H h"], Clean]:
        """What the heads of the last block read at the positions that are read out, and the keys
        and values that are kept of the clean runs.

        Args:
            x: the stream before the block.
            edits, layer, clean: as in ``layer``.
            alive: how many runs, or bins, go through it.
        """
        weights, end, config = layer.weights, self.end, self.run.config

        def visit(at: Array, runs: Runs, carry: tuple[Array, Clean]) -> tuple[Array, Clean]:
            z, kept = carry
            own = replace(self.of(runs, layer.window, clean or {}), real=None)
            normed = normalize(self.cut(x, at), weights.attention_norm, config)
            mine = EditedRuns(edits, runs)
            k, v = keys_values(normed, weights.attention, own, runs.position, mine)
            if not runs.binned:  # of bins all positions ask: of each run another one is read
                runs = jax.tree.map(lambda a: self.cut(a, at), end.runs)
                assert runs.position is not None
                normed = jnp.take_along_axis(normed, runs.position[..., None], axis=1)
                mine = EditedRuns(edits, runs)
            assert runs.position is not None
            q = queries(normed, runs.position, weights.attention, own, mine)
            found = mine.apply_at("z", attend(q, k, v, runs.position, own, mine))
            return put(z, found, at), self._keep(kept, {"keys": k, "values": v}, at)

        positions = x.shape[1] if self.runs.binned else self.read.shape[1]
        z = jnp.zeros((len(x), positions, config.num_heads, config.head_size), x.dtype)
        room = self._room(x, [name for name in self.kept if name in PREFIX])
        z, kept = self.walk(0, alive, visit, (z, room))
        return (z if self.taken is None else self.at_read(z)), kept

    def _begin_last(
        self,
        attn_out: Float[Array, "N P D"],
        skip: Float[Array, "N P D"],
        edits: Sequence[Edit],
        layer: Layer,
        clean: Clean,
    ) -> tuple[Float[Array, "N P D"], Float[Array, "N P D"]]:
        """``attn_out`` and the stream before the block, with the runs that are born in the last."""
        weights, step = layer.weights, layer.step
        contributions = _contributions(clean["z"], weights, edits)
        run = replace(self.run, real=None)

        def born(at: Array, runs: Runs, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            attn_out, skip = carry
            mine = EditedRuns(edits, runs)
            edited = mine.fork(clean["attn_out"], clean["z"], weights, run, contributions)
            return put(attn_out, edited, at), put(skip, runs.of_clean(clean["skip"]), at)

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


def _acts_at(point: str, edits: Sequence[Edit]) -> bool:
    """Whether any site acts at a point."""
    return any(site.point == point for edit in edits for site in edit.sites)


def _contributions(z: Array, weights: Block, edits: Sequence[Edit]) -> Array | None:
    """What each head of the clean runs adds, where a site asks for it and it is still true."""
    asked = any(site.reads_contributions for edit in edits for site in edit.sites)
    if asked and not _acts_at("z", edits):
        return head_contributions(z, weights.attention.out)
    return None
