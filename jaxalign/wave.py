"""The wave: every edited run starts where its edit first changes something.

An edit in layer ``l`` cannot change anything before layer ``l``. So one clean run of each prompt
goes up the model, and an edited run is *born* at the first step it touches: as a copy of the clean
run, with its edit, inside that layer. In a parallel-residual block it shares even that layer's MLP
with the clean run. In the last layer only each prompt's last real position goes on after its keys
and values.

All runs stand in one line, sorted by birth, so those alive are a prefix of it. A layer walks over
that prefix in blocks: a block is a batch whose activations stay in cache, and all blocks of all
layers have one shape, so the layers share one compiled body whatever the edits are. The clean runs
stand first in the line and go through the same products as the edited ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxalign.edit import Edit, ResidualEdit
from jaxalign.model.config import ModelConfig
from jaxalign.model.decoder import (
    add_to_stream,
    embed,
    head_contributions,
    layer_windows,
    num_layers,
    read_heads,
    real_positions,
)
from jaxalign.model.layers import (
    at_position,
    attend,
    keys_values,
    normalize,
    project_heads,
    queries,
)
from jaxalign.model.params import Block, Params
from jaxalign.numerics.activation_rounding import round_activation
from jaxalign.numerics.scheme import Scheme
from jaxalign.run_edits import RunEdits, Runs, line_up, stack_edits
from jaxalign.shapes import Array, Float, Lengths, Tokens

# A block's widest activation, the MLP's, stays in cache beside a layer's weights; fewer positions
# than the least leave the matrix product short of work (measured in benchmarks/LOG.md).
BLOCK_BYTES = 1 << 23
LEAST_POSITIONS = 512


def block_positions(config: ModelConfig) -> int:
    """About how many positions a block holds."""
    return max(LEAST_POSITIONS, BLOCK_BYTES // (4 * config.intermediate_size))


def block_size(batch: int, length: int, config: ModelConfig) -> int:
    """Runs in a block: whole batches as far as they fit, or a part of one."""
    most = max(1, block_positions(config) // length)
    if most >= batch:
        return most // batch * batch
    return -(-batch // -(-batch // most))


@dataclass(frozen=True)
class _Line:
    """The line of runs and what every layer needs to walk it.

    Attributes:
        size: runs in a block.
        real: bool ``[B, S]``; last: int ``[B]``, each prompt's last real position.
        touch_later: whether a run may edit a step after the one it is born at.
    """

    runs: Runs
    alive: Array
    size: int
    real: Array
    last: Array
    config: ModelConfig
    scheme: Scheme
    touch_later: bool

    def walk(self, start: Any, stop: Any, visit: Callable[..., Any], carry: Any) -> Any:
        """Visit the blocks between two places, from the last one down to the clean runs'."""
        count = (stop - start + self.size - 1) // self.size

        def body(i: Array, carry: Any) -> Any:
            at = start + (count - 1 - i) * self.size
            block = jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, at, self.size), self.runs)
            return visit(at, block, carry)

        return lax.fori_loop(0, count, body, carry)

    def add(
        self, attn_out: Array, mlp_out: Array | None, skip: Array, weights: Block, real: Array
    ) -> tuple[Array, Array]:
        """The stream after a block and its MLP's output; ``mlp_out`` where it is known."""
        return add_to_stream(skip, attn_out, mlp_out, weights, self.config, self.scheme, real)

    def layer(
        self,
        x: Float[Array, "N S D"],
        weights: Block,
        edits: Sequence[Edit],
        step: Array,
        window: Array | None,
    ) -> Float[Array, "N S D"]:
        """All runs through one block; those born in it fork inside."""
        rooms = -(-len(self.last) // self.size)  # blocks that hold clean runs
        heads = (self.config.num_heads, self.config.head_size)
        shape = (rooms * self.size, *x.shape[1:])
        empty = [lax.empty((*shape[:2], *heads), x.dtype)] + [lax.empty(shape, x.dtype)] * 3

        def live(at: Array, block: Runs, carry: Any) -> Any:
            after, clean = carry
            rows = lax.dynamic_slice_in_dim(x, at, self.size)
            real = self.real[block.prompt]
            z, attn_out = read_heads(rows, weights, self.config, self.scheme, real, window)
            mine = RunEdits(edits if self.touch_later else [], block)
            edited = mine.on_attention(attn_out, z, weights.attention.out)
            y, mlp_out = self.add(edited, None, rows, weights, real)
            y = mine.on_stream(y)
            # The clean runs' blocks come last, so they overwrite what others leave here.
            room = jnp.minimum(at, (rooms - 1) * self.size)
            return _put(after, y, at), [
                _put(a, b, room) for a, b in zip(clean, (z, attn_out, mlp_out, rows), strict=True)
            ]

        # Blocks read x and write a copy: reading what is being written, XLA copies it every time.
        x, clean = self.walk(0, self.alive[step], live, (x, empty))
        z, attn_out, mlp_out, skip = clean
        contributions = _contributions(z, weights, edits)

        def born(at: Array, block: Runs, x: Array) -> Array:
            real = self.real[block.prompt]
            mine = RunEdits(edits, block)
            edited = mine.on_clean_attention(attn_out, contributions)
            y, _ = self.add(edited, mlp_out[block.prompt], skip[block.prompt], weights, real)
            return _put(x, mine.on_stream(y), at)

        return self.walk(self.alive[step], self.alive[step + 1], born, x)

    def last_layer(
        self,
        x: Float[Array, "N S D"],
        weights: Block,
        edits: Sequence[Edit],
        step: Array,
        window: Array | None,
    ) -> Float[Array, "N 1 D"]:
        """The last block, which only each prompt's last real position leaves."""
        query = self.last[self.runs.prompt]
        skip = at_position(x, query)
        norm, config = weights.attention_norm, self.config
        q = queries(normalize(skip, norm, config), query[:, None], weights.attention, config)

        def read(at: Array, block: Runs, z: Array) -> Array:
            rows, own = (lax.dynamic_slice_in_dim(a, at, self.size) for a in (x, q))
            k, v = keys_values(normalize(rows, norm, config), weights.attention, config)
            last, scale, cap = self.last[block.prompt], config.score_scale, config.attention_cap
            return _put(z, attend(own, k, v, last[:, None], scale, cap, window), at)

        z = self.walk(0, self.alive[step], read, jnp.zeros_like(q))
        attn_out = project_heads(z, weights.attention)

        def touch(at: Array, block: Runs, attn_out: Array) -> Array:
            edited, own = (lax.dynamic_slice_in_dim(a, at, self.size) for a in (attn_out, z))
            mine = RunEdits(edits, block, self.last[block.prompt])
            return _put(attn_out, mine.on_attention(edited, own, weights.attention.out), at)

        if self.touch_later:
            attn_out = self.walk(0, self.alive[step], touch, attn_out)
        clean = len(self.last)
        contributions = _contributions(z[:clean], weights, edits)
        clean_out, clean_skip = attn_out[:clean], skip[:clean]

        def born(at: Array, block: Runs, carry: Any) -> Any:
            attn_out, skip = carry
            mine = RunEdits(edits, block, self.last[block.prompt])
            edited = mine.on_clean_attention(clean_out, contributions)
            return _put(attn_out, edited, at), _put(skip, clean_skip[block.prompt], at)

        attn_out, skip = self.walk(self.alive[step], self.alive[step + 1], born, (attn_out, skip))
        y, _ = self.add(attn_out, None, skip, weights, jnp.ones((len(x), 1), bool))
        return RunEdits(edits, self.runs, query).on_stream(y)


def _put(a: Array, block: Array, at: Any) -> Array:
    return lax.dynamic_update_slice_in_dim(a, block, at, 0)


def _steps(residual: ResidualEdit | None, which: Any) -> ResidualEdit | None:
    return residual and ResidualEdit(residual.mask[which], residual.value[which])


def _contributions(z: Array, weights: Block, edits: Sequence[Edit]) -> Array | None:
    """What each head of the clean runs adds, where an edit of true heads asks for it."""
    if any(edit.head is not None and edit.head.mode == "true" for edit in edits):
        return head_contributions(z, weights.attention.out)
    return None


def wave(
    params: Params,
    tokens: Tokens,
    lengths: Lengths,
    edits: Sequence[Edit],
    config: ModelConfig,
    scheme: Scheme,
    touch_later: bool,
) -> Float[Array, "rows B D"]:
    """The final norm's output at each prompt's last real position, under every edit.

    Args:
        touch_later: False promises that no row edits a step after the first one it touches.

    Returns:
        ``[1 + ΣM, B, D]``: the clean run, then the rows of each batch of edits in turn.
    """
    batch, layers = len(tokens), num_layers(params)
    real = real_positions(lengths, tokens.shape[1])
    stacks, places = stack_edits(edits)
    runs, alive, place = line_up(edits, places, batch, layers)
    size = block_size(batch, tokens.shape[1], config)
    # The last block may reach past the last run.
    runs = jax.tree.map(lambda a: jnp.pad(a, (0, size)), runs)
    line = _Line(runs, alive, size, real, lengths - 1, config, scheme, touch_later)
    clean = embed(params, tokens, config, scheme, real)
    x = _put(lax.empty((len(runs.prompt), *clean.shape[1:]), clean.dtype), clean, 0)
    if any(stack.residual is not None for stack in stacks):
        first = [Edit(residual=_steps(stack.residual, 0)) for stack in stacks]

        def born(at: Array, block: Runs, x: Array) -> Array:
            return _put(x, RunEdits(first, block).on_stream(clean[block.prompt]), at)

        x = line.walk(alive[0], alive[1], born, x)
    # The stream's first step is the embedding.
    after = [replace(stack, residual=_steps(stack.residual, slice(1, None))) for stack in stacks]
    steps = (params.blocks, after, jnp.arange(1, layers + 1), layer_windows(config))

    def layer(number: Any, x: Array) -> Array:
        step = jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, number, keepdims=False), steps)
        return line.layer(x, *step)

    # int8's scale sees every position of an example, so only unrounded runs may skip them.
    x = lax.fori_loop(0, layers if scheme.rounds_activations else layers - 1, layer, x)
    if not scheme.rounds_activations:
        x = line.last_layer(x, *jax.tree.map(lambda a: a[-1], steps))
    normed = normalize(x, params.final_norm, config)
    if scheme.rounds_activations:
        normed = round_activation(normed, "final_norm", scheme, real[runs.prompt])
        normed = at_position(normed, (lengths - 1)[runs.prompt])
    return normed[place, 0]
