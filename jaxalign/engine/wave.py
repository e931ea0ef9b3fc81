"""The wave: every edited run starts in the layer and at the position that its edit first changes.

An edit in layer ``l`` cannot change anything before layer ``l``. So one clean run of each prompt
goes up the model, and an edited run is *born* at the first step it touches: as a copy of the clean
run, with its edit, inside that layer. Where all edits act behind the attention, the copy shares the
clean run's attention in that layer, and in a parallel-residual block its MLP, too. In the last
layer only each prompt's last real position is then computed after its keys and values.

All runs stand in one line, sorted by birth, so those alive are a prefix of it. A layer walks over
that prefix in blocks: a block is a batch whose activations stay in cache, and all blocks of all
layers have one shape, so the layers share one compiled body whatever the edits are. The clean runs
stand first in the line and go through the same products as the edited ones.

An edit that acts from position ``p`` on changes nothing before ``p`` either. Rows that are edited
late in their prompts (``engine.suffix``) can stand in a line of their own, whose runs hold the last
positions only, several to a bin (``engine.packing``), and read the clean run's keys and values
before them (``model.prefix``): a row of layer ``l`` and position ``p`` costs ``(L − l) · (S − p)``
in place of ``L · S``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxalign.edits.runs import Runs
from jaxalign.engine.inputs import Inputs
from jaxalign.engine.line import EditedRuns
from jaxalign.engine.parts import Part, parts_of
from jaxalign.engine.suffix import WHOLE, Suffixes
from jaxalign.engine.walk import Clean, Layer, Line, put
from jaxalign.model.decoder import embed, layer_windows, num_layers
from jaxalign.model.layers import normalize
from jaxalign.numerics.activation_rounding import round_activation
from jaxalign.shapes import Array, Float


def _begin(part: Part, clean: Float[Array, "B S D"]) -> Float[Array, "N Q D"]:
    """The stream of a line before the first block, with the runs that are born there."""
    line = part.line
    here = line.here(clean)
    x = lax.empty((len(line.runs.prompt), *here.shape[1:]), here.dtype)
    if line.kept:
        x = put(x, clean, 0)
    early = [stack.at_embedding() for stack in part.stacks]
    if not any(stack.sites for stack in early):
        return x

    def born(at: Array, block: Runs, x: Array) -> Array:
        return put(x, EditedRuns(early, block).apply_at("resid", block.of_clean(here)), at)

    return line.walk(line.alive[0], line.alive[1], born, x)


def wave(
    inputs: Inputs, single_step: bool, suffixes: Suffixes = WHOLE
) -> Float[Array, "rows *steps B P D"]:
    """The final norm's output at the positions that are read, under every edit.

    Args:
        inputs: model, prompts, batches of edits, and what is read.
        single_step: promises that no row edits a step after the first one it touches.
        suffixes: how many of the prompts' last positions each row's runs hold: promises that none
            is edited before them. All of them by default.

    Returns:
        ``[1 + ΣM, B, P, D]``: the clean run, then the rows of each batch of edits in turn. With
        ``every_layer`` ``[1 + ΣM, L + 1, B, P, D]``: the final norm of the stream before and after
        every block, the last of them what the model says.
    """
    params, config = inputs.params, inputs.config
    layers = num_layers(params)
    parts = parts_of(inputs, single_step, suffixes)
    clean = embed(params, inputs.tokens, inputs.run)
    streams = [_begin(part, clean) for part in parts]
    arrays = [[stack.layered() for stack in part.stacks] for part in parts]
    steps = params.blocks, arrays, jnp.arange(1, layers + 1), layer_windows(config)

    def through(
        visit: Callable[..., tuple[Array, Clean]], streams: list[Array], cut: Callable[[Any], Any]
    ) -> list[Array]:
        weights, own, step, window = jax.tree.map(cut, steps)
        layer = Layer(weights, step, window)
        after, known = [], None
        for part, mine, x in zip(parts, own, streams, strict=True):
            edits = [stack.layer(a) for stack, a in zip(part.stacks, mine, strict=True)]
            y, known = visit(part.line, x, edits, layer, known)
            after.append(y)
        return after

    def seen(streams: list[Array], step: Any) -> Array:
        return _rows(parts, [p.line.at_read(x) for p, x in zip(parts, streams, strict=True)], step)

    def next_layer(number: Array, carry: tuple[list[Array], Any]) -> tuple[list[Array], Any]:
        streams, lens = carry
        cut = lambda a: lax.dynamic_index_in_dim(a, number, keepdims=False)  # noqa: E731
        streams = through(Line.layer, streams, cut)
        if inputs.every_layer:
            lens = lax.dynamic_update_index_in_dim(lens, seen(streams, number + 1), number + 1, 0)
        return streams, lens

    lens: Any = ()
    if inputs.every_layer:
        first = seen(streams, 0)
        lens = put(lax.empty((layers + 1, *first.shape), first.dtype), first[None], 0)
    # int8's scale sees every position of an example, so none may be left out.
    everywhere = inputs.scheme.rounds_activations
    steps_alike = layers if everywhere else layers - 1
    streams, lens = lax.fori_loop(0, steps_alike, next_layer, (streams, lens))
    if not everywhere:
        streams = through(Line.last_layer, streams, lambda a: a[-1])
    final = _rows(parts, [_end(p, x, inputs) for p, x in zip(parts, streams, strict=True)], layers)
    if not inputs.every_layer:
        return final
    lens = normalize(lens[:-1], params.final_norm, config)
    return jnp.moveaxis(jnp.concatenate([lens, final[None]]), 0, 1)


def _rows(
    parts: Sequence[Part], values: Sequence[Array], step: int | Array
) -> Float[Array, "rows B P D"]:
    """The rows' values in the wave's order after a step; the clean run's for what is not born yet.

    Args:
        parts: of the wave, that of the clean runs first.
        values: of the runs that leave each part, ``[runs, P, D]``.
        step: 0 the embedding, ``l + 1`` block ``l``.
    """
    whole = parts[0]
    found = []
    for part, value in zip(parts, values, strict=True):
        place = part.place
        if isinstance(step, int) and step > 0 and part is whole:
            found.append(value[place])  # in the end all are born that ever will be
            continue
        there = ((place >= 0) & (place < part.line.end.alive[step + 1]))[..., None]
        there = there if part.reads is None else there & part.reads
        clean = values[0][whole.place[:1]]
        found.append(jnp.where(there[..., None], value[jnp.maximum(place, 0)], clean))
    if len(found) == 1:
        return found[0]
    return jnp.concatenate(found)[np.argsort(np.concatenate([part.order for part in parts]))]


def _end(part: Part, x: Float[Array, "N Q D"], inputs: Inputs) -> Float[Array, "runs P D"]:
    """The final norm's output of a line's runs at the positions that are read."""
    line, runs = part.line, part.line.runs
    normed = normalize(x, inputs.params.final_norm, inputs.config)
    if not inputs.scheme.rounds_activations:  # the last block has left those positions alone
        return EditedRuns(part.stacks, line.end.runs).apply_at("final_norm", normed)
    assert inputs.run.real is not None
    normed = round_activation(normed, "final_norm", inputs.scheme, inputs.run.real[runs.prompt])
    return line.at_read(EditedRuns(part.stacks, runs).apply_at("final_norm", normed))
