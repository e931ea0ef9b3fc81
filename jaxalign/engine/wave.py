"""The wave: every edited run starts where its edit first changes something.

An edit in layer ``l`` cannot change anything before layer ``l``. So one clean run of each prompt
goes up the model, and an edited run is *born* at the first step it touches: as a copy of the clean
run, with its edit, inside that layer. Where all edits act behind the attention, the copy shares the
clean run's attention in that layer, and in a parallel-residual block its MLP, too. In the last
layer only each prompt's last real position is then computed after its keys and values.

All runs stand in one line, sorted by birth, so those alive are a prefix of it. A layer walks over
that prefix in blocks: a block is a batch whose activations stay in cache, and all blocks of all
layers have one shape, so the layers share one compiled body whatever the edits are. The clean runs
stand first in the line and go through the same products as the edited ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from jaxalign.edits import batch as batches
from jaxalign.edits.points import BEHIND_ATTENTION, INSIDE_MLP
from jaxalign.edits.runs import Runs
from jaxalign.edits.site import Edit
from jaxalign.engine.inputs import Inputs
from jaxalign.engine.line import EditedRuns, line_up
from jaxalign.model.config import ModelConfig
from jaxalign.model.decoder import (
    add_to_stream,
    block,
    embed,
    head_contributions,
    layer_windows,
    num_layers,
)
from jaxalign.model.layers import (
    Pass,
    at_position,
    attend,
    keys_values,
    normalize,
    project_heads,
    queries,
)
from jaxalign.model.params import Block
from jaxalign.numerics.activation_rounding import round_activation
from jaxalign.runtime.compile import default_platform
from jaxalign.shapes import Array, Float, Int

# On a CPU a block's widest activation, the MLP's, stays in cache beside a layer's weights; fewer
# positions than the least leave the matrix product short of work (measured in benchmarks/LOG.md).
BLOCK_BYTES = 1 << 23
LEAST_POSITIONS = 512
# A GPU has no such cache to win, only work to hand out: fewer positions leave it idle, and more are
# filler, since a layer is walked in whole blocks. Measured on an H200 (Pythia-70M's shape, 64 × 16
# tokens): 4096 positions 0.0315 s, 16 384 0.038 s, 65 536 0.073 s. Of 129 thousand positions that
# the six layers need, such blocks compute 147, 197 and 393 thousand (``walked_positions``).
GPU_POSITIONS = 4096

Carry = TypeVar("Carry")
Place = int | Int[Array, ""]


def block_positions(config: ModelConfig) -> int:
    """About how many positions a block holds, on the platform that programs run on."""
    if default_platform() == "gpu":
        return GPU_POSITIONS
    return max(LEAST_POSITIONS, BLOCK_BYTES // (4 * config.intermediate_size))


def block_size(batch: int, length: int, config: ModelConfig) -> int:
    """Runs in a block: whole batches as far as they fit, or a part of one.

    Args:
        batch: ``B``, prompts.
        length: ``S``, positions.
        config: the architecture.
    """
    most = max(1, block_positions(config) // length)
    if most >= batch:
        return most // batch * batch
    return -(-batch // -(-batch // most))


def walked_positions(alive: Sequence[int], length: int, size: int) -> int:
    """Positions that a wave's layers compute, filler at the ends of their blocks included.

    Args:
        alive: how many runs are born before each layer.
        length: ``S``, positions of a run.
        size: runs in a block.
    """
    return length * sum(-(-count // size) * size for count in alive)


@dataclass(frozen=True, kw_only=True)
class _Wave:
    """The line of runs and what every layer needs to walk it.

    Attributes:
        runs: sorted by birth, with ``size`` more behind the last one.
        alive: int ``[L + 2]``, how many runs are born before each step.
        size: runs in a block.
        last: int ``[B]``, each prompt's last real position.
        run: the pass; ``real`` is ``[B, S]``.
        single_step: whether no run is edited after the step that it is born at.
    """

    runs: Runs
    alive: Array
    size: int
    last: Array
    run: Pass
    single_step: bool

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

    def of(self, block: Runs, window: Array | None) -> Pass:
        """The pass of some runs through one layer."""
        assert self.run.real is not None
        return replace(self.run, real=self.run.real[block.prompt], window=window)

    def layer(
        self,
        x: Float[Array, "N S D"],
        weights: Block,
        edits: Sequence[Edit],
        step: Array,
        window: Array | None,
    ) -> Float[Array, "N S D"]:
        """All runs through one block; those born in it start from the clean runs.

        Args:
            x: the residual stream of every run.
            weights: of the block.
            edits: stacks of edits, the arrays of this block.
            step: of the block, ``l + 1``.
            window: of the block's attention.
        """
        config = self.run.config
        rooms = -(-len(self.last) // self.size)  # blocks that hold clean runs
        shape = (rooms * self.size, *x.shape[1:])
        heads = (*shape[:2], config.num_heads, config.head_size)
        empty = [lax.empty(heads, x.dtype)] + [lax.empty(shape, x.dtype)] * 3

        def live(at: Array, runs: Runs, carry: tuple[Array, list[Array]]) -> Any:
            after, clean = carry
            rows = self.cut(x, at)
            mine = EditedRuns([] if self.single_step else edits, runs)
            y, parts = block(rows, weights, self.of(runs, window), mine)
            found = parts["z"], parts["attn_out"], parts["mlp_out"], rows
            # The clean runs' blocks come last, so they overwrite what others leave here.
            room = jnp.minimum(at, (rooms - 1) * self.size)
            return _put(after, y, at), [_put(a, b, room) for a, b in zip(clean, found, strict=True)]

        # Blocks read x and write a copy: reading what is being written, XLA copies it every time.
        x, clean = self.walk(0, self.alive[step], live, (x, empty))
        z, attn_out, mlp_out, skip = clean
        contributions = _contributions(z, weights, edits)

        def born(at: Array, runs: Runs, x: Array) -> Array:
            own, mine, prompt = self.of(runs, window), EditedRuns(edits, runs), runs.prompt
            if not _behind_attention(edits):
                return _put(x, block(skip[prompt], weights, own, mine)[0], at)
            edited = mine.fork(attn_out, z, weights.attention.out, contributions)
            known = None if _computes_mlp(edits) else mlp_out[prompt]
            y, _ = add_to_stream(skip[prompt], edited, weights, own, mine, known)
            return _put(x, y, at)

        return self.walk(self.alive[step], self.alive[step + 1], born, x)

    def last_layer(
        self,
        x: Float[Array, "N S D"],
        weights: Block,
        edits: Sequence[Edit],
        step: Array,
        window: Array | None,
    ) -> Float[Array, "N 1 D"]:
        """The last block, which only each prompt's last real position leaves.

        Args:
            x, weights, edits, step, window: as in ``layer``; the edits act behind the attention.
        """
        query = self.last[self.runs.prompt]
        skip = at_position(x, query)
        run = replace(self.run, real=None, window=window)
        norm, config = weights.attention_norm, run.config
        q = queries(normalize(skip, norm, config), query[:, None], weights.attention, run)

        def read(at: Array, runs: Runs, z: Array) -> Array:
            k, v = keys_values(normalize(self.cut(x, at), norm, config), weights.attention, run)
            last = self.last[runs.prompt]
            return _put(z, attend(self.cut(q, at), k, v, last[:, None], run), at)

        z = self.walk(0, self.alive[step], read, jnp.zeros_like(q))
        attn_out = project_heads(z, weights.attention)

        def touch(at: Array, runs: Runs, attn_out: Array) -> Array:
            mine = EditedRuns(edits, runs, self.last[runs.prompt])
            given = self.cut(attn_out, at), self.cut(z, at), weights.attention.out
            return _put(attn_out, mine.apply_at("attn_out", *given), at)

        if not self.single_step:
            attn_out = self.walk(0, self.alive[step], touch, attn_out)
        clean = len(self.last)
        contributions = _contributions(z[:clean], weights, edits)
        clean_out, clean_z, clean_skip = attn_out[:clean], z[:clean], skip[:clean]

        def born(at: Array, runs: Runs, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            attn_out, skip = carry
            mine = EditedRuns(edits, runs, self.last[runs.prompt])
            edited = mine.fork(clean_out, clean_z, weights.attention.out, contributions)
            return _put(attn_out, edited, at), _put(skip, clean_skip[runs.prompt], at)

        attn_out, skip = self.walk(self.alive[step], self.alive[step + 1], born, (attn_out, skip))
        return add_to_stream(skip, attn_out, weights, run, EditedRuns(edits, self.runs, query))[0]


def _put(a: Array, block: Array, at: Place) -> Array:
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


def _contributions(z: Array, weights: Block, edits: Sequence[Edit]) -> Array | None:
    """What each head of the clean runs adds, where a site asks for it."""
    if any(site.reads_contributions for edit in edits for site in edit.sites):
        return head_contributions(z, weights.attention.out)
    return None


def wave(inputs: Inputs, single_step: bool) -> Float[Array, "rows B D"]:
    """The final norm's output at each prompt's last real position, under every edit.

    Args:
        inputs: model, prompts and batches of edits.
        single_step: promises that no row edits a step after the first one it touches.

    Returns:
        ``[1 + ΣM, B, D]``: the clean run, then the rows of each batch of edits in turn.
    """
    params, config, scheme = inputs.params, inputs.config, inputs.scheme
    (batch, length), layers = inputs.tokens.shape, num_layers(params)
    stacks, places = batches.stack(inputs.edits)
    runs, alive, place = line_up(inputs.edits, places, batch, layers)
    # No block is larger than the line: all beyond it would be filler.
    size = min(block_size(batch, length, config), len(runs.prompt))
    last = inputs.lengths - 1
    # The last block may reach past the last run.
    runs = jax.tree.map(lambda a: jnp.pad(a, (0, size)), runs)
    line = _Wave(
        runs=runs, alive=alive, size=size, last=last, run=inputs.run, single_step=single_step
    )
    clean = embed(params, inputs.tokens, inputs.run)
    x = _put(lax.empty((len(runs.prompt), *clean.shape[1:]), clean.dtype), clean, 0)
    early = [stack.at_embedding() for stack in stacks]
    if any(stack.sites for stack in early):

        def born(at: Array, block: Runs, x: Array) -> Array:
            mine = EditedRuns(early, block)
            return _put(x, mine.apply_at("resid", clean[block.prompt]), at)

        x = line.walk(alive[0], alive[1], born, x)
    arrays = [stack.layered() for stack in stacks]
    steps = params.blocks, arrays, jnp.arange(1, layers + 1), layer_windows(config)

    def through(layer: Callable[..., Array], x: Array, cut: Callable[[Array], Array]) -> Array:
        weights, own, step, window = jax.tree.map(cut, steps)
        edits = [stack.layer(mine) for stack, mine in zip(stacks, own, strict=True)]
        return layer(x, weights, edits, step, window)

    def layer(number: Array, x: Array) -> Array:
        cut = lambda a: lax.dynamic_index_in_dim(a, number, keepdims=False)  # noqa: E731
        return through(line.layer, x, cut)

    # int8's scale sees every position of an example, and so do queries: only edits behind the
    # attention of unrounded runs may skip positions.
    everywhere = scheme.rounds_activations or not _behind_attention(stacks)
    x = lax.fori_loop(0, layers if everywhere else layers - 1, layer, x)
    if not everywhere:
        x = through(line.last_layer, x, lambda a: a[-1])
    normed = normalize(x, params.final_norm, config)
    if everywhere:
        assert inputs.run.real is not None
        normed = round_activation(normed, "final_norm", scheme, inputs.run.real[runs.prompt])
    late = EditedRuns(stacks, runs, None if everywhere else last[runs.prompt])
    normed = late.apply_at("final_norm", normed)
    if everywhere:
        normed = at_position(normed, last[runs.prompt])
    return normed[place, 0]
