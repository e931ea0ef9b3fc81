"""Many edited runs at once. The wave: a row is born where its edit first changes something.

An edit in layer ``l`` cannot change anything before layer ``l``. So the clean run goes through the
model layer by layer, and at each layer it forks: the rows whose edits begin there start as copies
of the clean row. Every row born so far passes through the next layer in one large batch. In a
parallel-residual block a newborn row shares even that layer's MLP with the clean row. In the last
layer only each prompt's last real position goes on after its keys and values, and only that
position meets the unembedding.

The plain path, ``jax.vmap`` of ``forward`` over the rows' masks, computes the same and is kept:
it is the definition, and it compiles faster where all rows begin at the first layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.edit import Edit, edit_residual
from jaxalign.model.config import ModelConfig
from jaxalign.model.decoder import (
    check_dtype,
    edit_attention,
    embed,
    feed_forward,
    forward,
    num_layers,
    read_heads,
    real_positions,
    unembed,
)
from jaxalign.model.layers import at_position, layer_norm
from jaxalign.model.params import Params
from jaxalign.numerics.rounding import round_activation
from jaxalign.numerics.scheme import F32, Scheme
from jaxalign.shapes import Array, Float, Int, Lengths, Tokens

Readout = Callable[[Float[Array, "B V"]], Any]

# Logits of all rows at once would outgrow every activation (V is 100 times D); this many bytes
# of them are alive at a time.
LOGIT_BYTES = 1 << 28


@dataclass(frozen=True)
class WavePlan:
    """At which step each row begins and which steps it touches; hashable, so static under ``jit``.

    Attributes:
        touched: for each group of rows, for each row, the steps it edits in order (step 0 is the
            embedding, step ``l + 1`` block ``l``). Within a group rows begin in order.
    """

    touched: tuple[tuple[tuple[int, ...], ...], ...]

    def born(self, step: int) -> list[_Segment]:
        """The rows that begin at ``step``, as runs of consecutive rows of a group."""
        segments = []
        for group, rows in enumerate(self.touched):
            here = [i for i, steps in enumerate(rows) if steps and steps[0] == step]
            if here:
                segments.append(_Segment(group, here[0], here[-1] + 1))
        return segments

    def touches(self, segment: _Segment, step: int) -> bool:
        """Whether any row of the segment edits ``step``."""
        rows = self.touched[segment.group][segment.start : segment.stop]
        return any(step in steps for steps in rows)

    def layer_rows(self, layers: int) -> int:
        """How many passes of one row through one block the wave makes, the clean row's included.

        A row's birth layer costs nothing but its fork (parallel residual).
        """
        births = [steps[0] for rows in self.touched for steps in rows if steps]
        return layers + sum(layers - birth for birth in births)


class _Segment(NamedTuple):
    group: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


def schedule(edits: Sequence[Edit]) -> WavePlan:
    """The wave's plan for batches of edits whose masks are concrete arrays.

    Raises:
        ValueError: the rows of a batch do not begin in order; says where.
    """
    touched = []
    for group, edit in enumerate(edits):
        rows = tuple(tuple(np.flatnonzero(row).tolist()) for row in edit.steps())
        births = [steps[0] if steps else np.inf for steps in rows]
        if births != sorted(births):
            where = next(i for i in range(1, len(births)) if births[i] < births[i - 1])
            raise ValueError(
                f"edits[{group}]: row {where} begins before row {where - 1}; "
                "sort the rows by the first step they touch"
            )
        touched.append(rows)
    return WavePlan(tuple(touched))


def sweep(
    params: Params,
    tokens: Tokens,
    lengths: Lengths,
    config: ModelConfig,
    edits: Sequence[Edit],
    readout: Readout,
    *,
    plan: WavePlan | None = None,
    scheme: Scheme = F32,
) -> list[Any]:
    """Run the model under every edit and read out each prompt's last logits.

    Works inside ``jit`` and ``grad``. Row 0 of every result is the clean run of the same call: in
    16-bit floats only rows of one call may be compared.

    Args:
        params: in the scheme's dtype.
        tokens: ``[B, S]``, padded on the right.
        lengths: ``[B]`` real tokens.
        config: the architecture (static).
        edits: batches of edits (``edit.Edit``); each shares its values among its rows.
        readout: from f32 logits ``[B, V]`` at the last real position to a pytree of ``[B, …]``.
        plan: ``schedule(edits)`` for the wave; None for the plain path.
        scheme: the precision (static).

    Returns:
        For each batch of edits the readout with a leading axis ``[1 + M_g, …]``.

    Raises:
        ValueError: parameters of another dtype than the scheme's, or an edit with ``attn_add``.

    Example:
        >>> masks = head_ablation_masks(config.num_layers, config.num_heads)
        >>> zero = Edit(head=HeadEdit(masks, jnp.zeros((config.num_layers, 1, 1, 1, 1))))
        >>> answer = lambda logits: logit_difference(logits, targets)
        >>> [m] = sweep(params, tokens, lengths, config, [zero], answer, plan=schedule([zero]))
        >>> importance = m[:1] - m[1:]  # [L·H, B]
    """
    check_dtype(params, scheme)
    if any(edit.attn_add is not None for edit in edits):
        raise ValueError("attn_add has no mask, so rows cannot choose it: give it to forward")
    edits = jax.tree.map(jnp.asarray, list(edits))
    if plan is None:
        return [_plain(params, tokens, lengths, config, edit, readout, scheme) for edit in edits]
    return _wave(params, tokens, lengths, config, edits, readout, plan, scheme)


def _plain(
    params: Params,
    tokens: Tokens,
    lengths: Lengths,
    config: ModelConfig,
    edit: Edit,
    readout: Readout,
    scheme: Scheme,
) -> Any:
    """``vmap`` over the rows of one batch of edits, with a row before them that edits nothing."""

    def with_clean(mask: Array) -> Array:
        return jnp.concatenate([jnp.zeros_like(mask[:1]), mask])

    head = edit.head and replace(edit.head, mask=with_clean(edit.head.mask))
    residual = edit.residual and replace(edit.residual, mask=with_clean(edit.residual.mask))
    rows = replace(edit, head=head, residual=residual)

    def run(row: Edit) -> Array:
        out = forward(
            params,
            tokens,
            config,
            lengths=lengths,
            scheme=scheme,
            edit=row,
            capture=("final_norm",),
        )
        return at_position(out.activations["final_norm"], lengths - 1)[:, 0]

    final = jax.vmap(run, in_axes=(rows.row_axes(),))(rows)
    return _read(params, final, readout)


def _wave(
    params: Params,
    tokens: Tokens,
    lengths: Lengths,
    config: ModelConfig,
    edits: Sequence[Edit],
    readout: Readout,
    plan: WavePlan,
    scheme: Scheme,
) -> list[Any]:
    real = real_positions(lengths, tokens.shape[1])
    clean = embed(params, tokens, scheme, real)[None]
    alive = plan.born(0)
    x = _fork(clean, alive)
    x = _edit_rows(x, alive, plan, 0, lambda rows, segment: _patch(rows, edits, segment, 0, None))
    layers = num_layers(params)
    for layer in range(layers):
        weights = jax.tree.map(lambda leaf, layer=layer: leaf[layer], params.blocks)
        # int8's scale sees every position of an example, so only unrounded runs may skip them.
        shortcut = layer == layers - 1 and not scheme.rounds_activations
        query = lengths - 1 if shortcut else None
        newborn = plan.born(layer + 1)
        alive = alive + newborn
        x = _wave_block(x, weights, edits, plan, layer, alive, newborn, config, scheme, real, query)
    normed = layer_norm(x, params.final_norm, config.norm_eps)
    if scheme.rounds_activations:
        normed = at_position(round_activation(normed, "final_norm", scheme, real), lengths - 1)
    values = _read(params, normed[..., 0, :], readout)
    return [jax.tree.map(lambda v, i=rows: v[i], values) for rows in _rows_of(plan, alive)]


def _wave_block(
    x: Float[Array, "R B S D"],
    weights: Any,
    edits: Sequence[Edit],
    plan: WavePlan,
    layer: int,
    alive: list[_Segment],
    newborn: list[_Segment],
    config: ModelConfig,
    scheme: Scheme,
    real: Array,
    query: Int[Array, " B"] | None,
) -> Float[Array, "R2 B Q D"]:
    """One block for all rows: those alive pass through it, those born here fork inside it."""
    if query is not None:
        real = jnp.ones((query.shape[0], 1), bool)
    z, attn_out = read_heads(x, weights, config, scheme, real, query)
    skip = x if query is None else at_position(x, query)
    z, attn_out, skip_all = (_fork(a, newborn) for a in (z, attn_out, skip))

    def edit_segment(rows: Array, segment: _Segment, z_rows: Array) -> Array:
        edit = _layer_edit(edits, segment, layer, query)
        return edit_attention(rows, z_rows, weights, edit)

    starts = _starts(alive)
    edited = _edit_rows(
        attn_out,
        alive,
        plan,
        layer + 1,
        lambda rows, segment: edit_segment(
            rows, segment, z[starts[segment] : starts[segment] + segment.size]
        ),
    )
    if config.parallel_residual:
        mlp_out = _fork(feed_forward(skip, weights, config, scheme, real), newborn)
        y = (mlp_out + edited) + skip_all
    else:
        middle = edited + skip_all
        y = feed_forward(middle, weights, config, scheme, real) + middle
    y = round_activation(y, "resid", scheme, real)
    return _edit_rows(
        y,
        alive,
        plan,
        layer + 1,
        lambda rows, segment: _patch(rows, edits, segment, layer + 1, query),
    )


def _fork(a: Float[Array, "R *rest"], newborn: list[_Segment]) -> Float[Array, "R2 *rest"]:
    """Append a copy of the clean row for each row that is born."""
    count = sum(segment.size for segment in newborn)
    if not count:
        return a
    return jnp.concatenate([a, jnp.broadcast_to(a[:1], (count, *a.shape[1:]))])


def _starts(alive: list[_Segment]) -> dict[_Segment, int]:
    """Where each segment's rows lie; the clean row is row 0."""
    sizes = [segment.size for segment in alive]
    return dict(zip(alive, np.cumsum([1, *sizes[:-1]]).tolist() if sizes else [], strict=True))


def _edit_rows(
    a: Float[Array, "R *rest"],
    alive: list[_Segment],
    plan: WavePlan,
    step: int,
    apply: Callable[[Array, _Segment], Array],
) -> Float[Array, "R *rest"]:
    """``a`` with ``apply`` on the rows of the segments that touch ``step``."""
    touched = [segment for segment in alive if plan.touches(segment, step)]
    if not touched:
        return a
    starts = _starts(alive)
    parts, done = [], 0
    for segment in touched:
        start = starts[segment]
        rows = a[start : start + segment.size]
        parts += [a[done:start], apply(rows, segment)]
        done = start + segment.size
    return jnp.concatenate([*parts, a[done:]])


def _at_query(a: Array, axis: int, query: Array | None) -> Array:
    """An edit's array ``[…, B|1, S|1, …]`` at the queried positions (``axis`` is ``B``'s)."""
    if query is None or a.shape[axis + 1] == 1:
        return a
    shape = list(a.shape)
    shape[axis] = query.shape[0]
    index = query.reshape(-1, *[1] * (a.ndim - axis - 1))
    return jnp.take_along_axis(jnp.broadcast_to(a, shape), index[(None,) * axis], axis=axis + 1)


def _layer_edit(edits: Sequence[Edit], segment: _Segment, layer: int, query: Array | None) -> Edit:
    rows = slice(segment.start, segment.stop)
    edit = edits[segment.group].take(rows).at_layer(layer, row_axis=True)
    head = edit.head and replace(
        edit.head,
        mask=_at_query(edit.head.mask, 1, query),
        value=_at_query(edit.head.value, 0, query),
    )
    add = None if edit.attn_add is None else _at_query(edit.attn_add, 0, query)
    return Edit(head=head, attn_add=add)


def _patch(
    rows: Array, edits: Sequence[Edit], segment: _Segment, step: int, query: Array | None
) -> Array:
    residual = edits[segment.group].residual
    if residual is None:
        return rows
    mask = residual.mask[segment.start : segment.stop, step]
    at_step = replace(
        residual, mask=_at_query(mask, 1, query), value=_at_query(residual.value[step], 0, query)
    )
    return edit_residual(rows, at_step)


def _rows_of(plan: WavePlan, alive: list[_Segment]) -> list[np.ndarray]:
    """For each batch of edits, where the clean row and its rows lie among the wave's rows."""
    starts = _starts(alive)
    places = []
    for group, rows in enumerate(plan.touched):
        # A row that edits nothing was never born: it is the clean row.
        place = np.zeros(1 + len(rows), np.int32)
        for segment, start in starts.items():
            if segment.group == group:
                place[1 + segment.start : 1 + segment.stop] = start + np.arange(segment.size)
        places.append(place)
    return places


def _read(params: Params, final: Float[Array, "R B D"], readout: Readout) -> Any:
    """Unembed and read out, a few rows at a time; all blocks of rows have the same shape."""
    vocab = params.embed.shape[0]
    rows, batch, width = final.shape
    blocks = max(1, -(-rows * batch * vocab * 4 // LOGIT_BYTES))
    size = -(-rows // blocks)
    padded = jnp.pad(final, ((0, blocks * size - rows), (0, 0), (0, 0)))

    def read(block: Float[Array, "N B D"]) -> Any:
        return jax.vmap(readout)(unembed(params, block))

    values = jax.lax.map(read, padded.reshape(blocks, size, batch, width))
    return jax.tree.map(lambda v: v.reshape(blocks * size, *v.shape[2:])[:rows], values)
