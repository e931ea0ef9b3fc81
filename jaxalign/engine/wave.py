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
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxalign.edits import batch as batches
from jaxalign.edits.runs import Runs
from jaxalign.edits.site import Edit
from jaxalign.engine.inputs import Inputs
from jaxalign.engine.line import EditedRuns, births, columns, line_up
from jaxalign.engine.packing import pack
from jaxalign.engine.suffix import WHOLE, Suffixes
from jaxalign.engine.walk import BEGIN, PREFIX, Clean, Layer, Line, put
from jaxalign.model.config import ModelConfig
from jaxalign.model.decoder import embed, layer_windows, num_layers
from jaxalign.model.layers import normalize
from jaxalign.numerics.activation_rounding import round_activation
from jaxalign.runtime.compile import default_platform
from jaxalign.shapes import Array, Float

T = TypeVar("T")

# On a CPU a block's widest activation, the MLP's, stays in cache beside a layer's weights; fewer
# positions than the least leave the matrix product short of work (measured in benchmarks/LOG.md).
BLOCK_BYTES = 1 << 23
LEAST_POSITIONS = 512
# A GPU has no such cache to win, only work to hand out: fewer positions leave it idle, and more are
# filler, since a layer is walked in whole blocks. Measured on an H200 (Pythia-70M's shape, 64 × 16
# tokens): 4096 positions 0.0315 s, 16 384 0.038 s, 65 536 0.073 s. Of 129 thousand positions that
# the six layers need, such blocks compute 147, 197 and 393 thousand (``walked_positions``).
GPU_POSITIONS = 4096


def block_positions(config: ModelConfig) -> int:
    """About how many positions a block holds, on the platform that programs run on."""
    if default_platform() == "gpu":
        return GPU_POSITIONS
    return max(LEAST_POSITIONS, BLOCK_BYTES // (4 * config.intermediate_size))


def block_size(batch: int, length: int, config: ModelConfig, *, whole_rows: bool = False) -> int:
    """Runs in a block: whole batches as far as they fit, or a part of one.

    Args:
        batch: ``B``, prompts.
        length: positions of a run.
        config: the architecture.
        whole_rows: a part of a batch divides it, so that no block has the end of one row and the
            beginning of another.
    """
    most = max(1, block_positions(config) // length)
    if most >= batch:
        return most // batch * batch
    if whole_rows:
        return max(size for size in range(1, most + 1) if batch % size == 0)
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
class _Part:
    """The rows of a wave whose runs stand in one line.

    Attributes:
        line: their runs, or bins of them.
        stacks: their edits.
        place: int ``[rows, B]``, where the run of each row and prompt stands among those that leave
            the line; negative for one that is never born, of which there are none in the line of
            the clean runs.
        order: which rows of the wave they are.
        reads: ``[rows, B, P]``, whether a row's run has the position that is read; None for all.
    """

    line: Line
    stacks: list[Edit]
    place: Array
    order: np.ndarray
    reads: Array | None = None


def _ended(runs: T, size: int) -> T:
    """Runs with a block more behind them, since the last block may reach past the last run."""
    return jax.tree.map(lambda a: jnp.pad(a, [(0, size)] + [(0, 0)] * (a.ndim - 1)), runs)


def _whole(
    inputs: Inputs, edits: list[Edit], rows: np.ndarray, single_step: bool, kept: tuple[str, ...]
) -> _Part:
    """The clean runs and the rows whose runs hold all positions.

    Args:
        inputs: model, prompts, and what is read.
        edits: batches of edits of these rows.
        rows: which rows of the wave they are.
        single_step: promises that no row edits a step after the first one it touches.
        kept: what is kept of the clean runs.
    """
    batch, length = inputs.tokens.shape
    stacks, places = batches.stack(edits)
    runs, alive, place = line_up(edits, places, batch, num_layers(inputs.params))
    # No block is larger than the line: all beyond it would be filler.
    size = min(block_size(batch, length, inputs.config), len(runs.prompt))
    line = Line(
        runs=_ended(runs, size),
        alive=alive,
        size=size,
        read=inputs.read,
        run=inputs.run,
        single_step=single_step,
        kept=kept,
    )
    return _Part(line=line, stacks=stacks, place=place, order=np.concatenate([[0], rows]))


def _binned(
    inputs: Inputs,
    edits: list[Edit],
    rows: np.ndarray,
    single_step: bool,
    sizes: np.ndarray,
    known: Sequence[int] | None,
) -> _Part:
    """The rows whose runs hold the last positions of their prompts.

    Args:
        inputs, edits, rows, single_step: as for ``_whole``.
        sizes: how many positions each row holds.
        known: the step that each row begins at, where it is known while the program is made.
    """
    batch, layers, config = len(inputs.tokens), num_layers(inputs.params), inputs.config
    stacks, places = batches.stack(edits)
    birth = jnp.concatenate([births(edit, batch, layers) for edit in edits])
    read, capacity = inputs.read, int(sizes.max())
    packed = pack(columns(edits, places), sizes, known, birth, inputs.lengths, read, layers)
    shared = known is None and len(packed.runs.row) < len(rows) * batch
    begin = jnp.maximum(inputs.lengths - capacity, 0)

    def line(runs: Runs, alive: Array, positions: int, **settings: Any) -> Line:
        size = min(block_size(batch, positions, config, whole_rows=True), len(runs.prompt))
        # A row begins with its bin, and where others decide when, it may be edited later.
        once = single_step and not shared
        return Line(
            runs=_ended(runs, size), alive=alive, size=size, read=read, run=inputs.run,
            single_step=once, kept=(), **settings,
        )  # fmt: skip

    leaving = line(packed.leaving, packed.leaving_alive, read.shape[1])
    bins = line(
        packed.runs,
        packed.alive,
        capacity,
        held=begin[:, None] + jnp.arange(capacity)[None],
        taken=_ended(packed.taken, leaving.size),
        leaving=leaving,
    )
    return _Part(line=bins, stacks=stacks, place=packed.place, order=rows, reads=packed.reads)


def _parts(inputs: Inputs, single_step: bool, suffixes: Suffixes) -> list[_Part]:
    """The rows of a wave by the line that they stand in; that of the clean runs first."""
    length = inputs.tokens.shape[1]
    counts = [batches.rows(edit) for edit in inputs.edits]
    sizes = np.array([n for each in suffixes.sizes for n in each] or [length] * sum(counts), int)
    begins = np.cumsum([0, *counts])

    def of(chosen: np.ndarray) -> tuple[list[Edit], np.ndarray]:
        """Batches of edits of the chosen rows, and which rows of the wave they are."""
        found = []
        for edit, start, count in zip(inputs.edits, begins, counts, strict=False):
            mine = np.flatnonzero(chosen[start : start + count])
            if len(mine):
                all_of = len(mine) == count
                found.append(edit if all_of else batches.take_rows(edit, jnp.asarray(mine)))
        return found, 1 + np.flatnonzero(chosen)

    late = sizes < length
    if not late.any():
        return [_whole(inputs, *of(~late), single_step, BEGIN)]
    known = None if suffixes.births is None else np.array(suffixes.births)[late].tolist()
    return [
        _whole(inputs, *of(~late), single_step, BEGIN + PREFIX),
        _binned(inputs, *of(late), single_step, sizes[late], known),
    ]


def _begin(part: _Part, clean: Float[Array, "B S D"]) -> Float[Array, "N Q D"]:
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
    parts = _parts(inputs, single_step, suffixes)
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
    parts: Sequence[_Part], values: Sequence[Array], step: int | Array
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


def _end(part: _Part, x: Float[Array, "N Q D"], inputs: Inputs) -> Float[Array, "runs P D"]:
    """The final norm's output of a line's runs at the positions that are read."""
    line, runs = part.line, part.line.runs
    normed = normalize(x, inputs.params.final_norm, inputs.config)
    if not inputs.scheme.rounds_activations:  # the last block has left those positions alone
        return EditedRuns(part.stacks, line.end.runs).apply_at("final_norm", normed)
    assert inputs.run.real is not None
    normed = round_activation(normed, "final_norm", inputs.scheme, inputs.run.real[runs.prompt])
    return line.at_read(EditedRuns(part.stacks, runs).apply_at("final_norm", normed))
