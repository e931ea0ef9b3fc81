"""The rows of a damage study in one pass: each starts where it first differs from the clean run.

All rows stand in one line, sorted by the step they first change, and the clean run is row 0. The
model is walked once, layer by layer; in layer ``l`` the rows alive so far go through it one after
another, each a whole batch of prompts with its own choice of that layer's matrices. A row that is
born there reads the clean run.

This is no ``Edit``: an edit replaces activations, and its rows share the weights. Rows that differ
in their weights share the unpacked matrices of a layer, and nothing else.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from jaxalign.edit import Edit
from jaxalign.measures.metrics import kl_divergence, logit_difference
from jaxalign.model.config import ModelConfig
from jaxalign.model.decoder import block, embed, layer_windows, real_positions, unembed
from jaxalign.model.layers import at_position, normalize
from jaxalign.model.matrices import MATRICES, matrix_name
from jaxalign.model.params import Block, Params
from jaxalign.numerics.activation_rounding import round_activation
from jaxalign.numerics.scheme import Scheme
from jaxalign.runtime.compile import jit
from jaxalign.shapes import Array, Bool, Float, Int, Lengths, Tokens
from jaxalign.studies.plan.components import Parts, Rows
from jaxalign.study.calls import deal_prompts
from jaxalign.study.weight_noise import low_matrices


def run_rows(
    high: Params,
    low: Params,
    tokens: Tokens,
    lengths: Lengths,
    targets: Int[Array, " B"],
    rows: Rows,
    first: Int[Array, " R"],
    config: ModelConfig,
    scheme: Scheme,
    parts: Parts,
) -> tuple[Float[Array, "R B"], Float[Array, "R B"]]:
    """The metric of every row and its divergence from row 0, at each prompt's last position.

    Args:
        high: f32 parameters.
        low: the parameters whose matrices a row may take, packed or not.
        tokens: ``[B, S]``, padded on the right; ``lengths`` real ones.
        targets: the answers' first tokens.
        rows: row 0 changes nothing, the others stand in the order of ``first``.
        first: ``rows.first()``, 0 for row 0; rows past ``L + 2`` are filler and never run.
        config, scheme, parts: static.

    Returns:
        ``m = logit(target) − max(other logits)`` and ``KL(row 0 ‖ row)`` in nats.
    """
    real = real_positions(lengths, tokens.shape[1])
    plain = replace(scheme, int8_sites=())
    start, rounded = (embed(high, tokens, config, each, real) for each in (plain, scheme))
    x = jnp.where(rows.embed[:, None, None, None], rounded[None], start[None])
    passes = tuple(
        functools.partial(_pass, config=config, scheme=replace(scheme, int8_sites=sites), real=real)
        for sites in parts.variants
    )

    def layer(x: Array, given: Any) -> tuple[Array, None]:
        step, weights, lows, window, matrices, heads, variant = given
        clean, target = x[0], low_matrices(weights, lows, config)

        def visit(r: Array, x: Array) -> Array:
            own = jnp.where(first[r] == step, clean, x[r])
            mixed = mix(weights, target, matrices[r], heads[r], parts.names, config)
            return x.at[r].set(lax.switch(variant[r], passes, own, mixed, window))

        return lax.fori_loop(0, (first <= step).sum(), visit, x), None

    by_layer = (jnp.moveaxis(a, 1, 0) for a in (rows.matrices, rows.heads, rows.variant))
    steps = 1 + jnp.arange(config.num_layers)
    x, _ = lax.scan(layer, x, (steps, high.blocks, low.blocks, layer_windows(config), *by_layer))
    return _read(high, x, lengths, targets, rows, first, config, scheme)


def _pass(
    x: Array,
    weights: Block,
    window: Array | None,
    *,
    config: ModelConfig,
    scheme: Scheme,
    real: Bool[Array, "B S"],
) -> Array:
    return block(x, weights, Edit(), config, scheme, real, window)[0]


def _read(
    high: Params,
    x: Float[Array, "R B S D"],
    lengths: Lengths,
    targets: Int[Array, " B"],
    rows: Rows,
    first: Int[Array, " R"],
    config: ModelConfig,
    scheme: Scheme,
) -> tuple[Array, Array]:
    real = real_positions(lengths, x.shape[2])

    def logits(r: Array) -> Array:
        own = jnp.where(first[r] > config.num_layers, x[0], x[r])
        normed = normalize(own, high.final_norm, config)
        rounded = round_activation(normed, "final_norm", scheme, real)
        last = at_position(jnp.where(rows.final[r], rounded, normed), lengths - 1)[:, 0]
        return unembed(high, last, config)

    clean = logits(jnp.int32(0))

    def visit(r: Array, read: tuple[Array, Array]) -> tuple[Array, Array]:
        own = logits(r)
        m, kl = logit_difference(own, targets), kl_divergence(clean, own)
        return read[0].at[r].set(m), read[1].at[r].set(kl)

    nothing = jnp.zeros((len(first), len(targets)))
    count = (first <= config.num_layers + 2).sum()
    return lax.fori_loop(0, count, visit, (nothing, nothing))


def mix(
    high: Block,
    low: dict[str, Array],
    chosen: Bool[Array, " N"],
    heads: Bool[Array, " H"],
    names: tuple[str, ...],
    config: ModelConfig,
) -> Block:
    """A layer with the chosen matrices, and the chosen heads' shares of others, from ``low``.

    A head's share are its columns of ``query``, those of the key and value head that it reads,
    and its rows of ``out``.

    Args:
        high: one layer's parameters in f32, without the axis of the layers.
        low: the same layer's matrices in a scheme, by name, f32.
        chosen: which matrices are the scheme's, in the order of ``names``.
        heads: whose shares are the scheme's.
        names: of the matrices that ``chosen`` is about.
        config: the architecture.

    Raises:
        KeyError: ``model.matrices`` does not have a parameter of ``high``.
    """

    def leaf(path: Any, w: Array) -> Array:
        name = matrix_name(path)
        if name is None or name not in low:
            return w
        taken = jnp.broadcast_to(chosen[names.index(name)], (1,) * w.ndim)
        if (axis := MATRICES[name].heads) is not None:
            taken = taken | _share(axis, heads, w, config)
        return jnp.where(taken, low[name], w)

    return jax.tree_util.tree_map_with_path(leaf, high)


def _share(axis: int, heads: Bool[Array, " H"], w: Array, config: ModelConfig) -> Array:
    """Where heads' shares of a matrix whose ``axis`` runs over heads are, with axes of size 1.

    A key and value head is shared by the query heads that read it.
    """
    count = w.shape[axis] // config.head_size
    taken = jnp.repeat(heads.reshape(count, -1).any(axis=1), config.head_size)
    return jnp.expand_dims(taken, [i for i in range(w.ndim) if i != axis])


@functools.partial(jit, static_argnames=("config", "scheme", "parts", "mesh"))
def run_compiled(
    high: Params,
    low: Params,
    tokens: Tokens,
    lengths: Lengths,
    targets: Int[Array, " B"],
    rows: Rows,
    first: Int[Array, " R"],
    *,
    config: ModelConfig,
    scheme: Scheme,
    parts: Parts,
    mesh: Mesh | None = None,
) -> tuple[Float[Array, "R B"], Float[Array, "R B"]]:
    """``run_rows``, compiled; the arguments and the result are its own.

    Args:
        high, low, tokens, lengths, targets, rows, first, config, scheme, parts: of ``run_rows``.
        mesh: whose devices share the prompts (static).
    """

    def run(high: Any, low: Any, rows: Any, first: Any, *given: Any) -> tuple[Array, Array]:
        return run_rows(high, low, *given, rows, first, config, scheme, parts)

    return deal_prompts(mesh, run, (high, low, rows, first), (tokens, lengths, targets), axis=1)
