"""Generation, greedy or sampled, with a cache of keys and values.

A key's place in the cache is its position, so a query at position ``p`` sees the places up to ``p``
and nothing that padding left behind them. Prompts of several lengths are therefore continued side
by side, and the key of each new token overwrites one of the padding.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from jaxalign.edits.site import NOTHING, Edit
from jaxalign.errors import InputError
from jaxalign.model.attention import attend, keys_values, project_heads, queries
from jaxalign.model.checks import check_dtype, check_edit, check_positions
from jaxalign.model.config import ModelConfig
from jaxalign.model.decoder import add_to_stream, embed, layer_windows, logits_at, real_positions
from jaxalign.model.layers import Pass, at_position, normalize
from jaxalign.model.params import Params
from jaxalign.numerics.scheme import F32, Scheme, as_scheme
from jaxalign.runtime.compile import jit
from jaxalign.shapes import Array, ArrayLeaf, Float, Int, Lengths, Tokens


@struct.dataclass
class Cache:
    """What a model remembers of its prompts.

    Attributes:
        keys, values: ``[L, B, T, K, h]``, by position; ``T`` positions in all.
        lengths: int ``[B]``, tokens seen so far: the position of the next one.
    """

    keys: ArrayLeaf
    values: ArrayLeaf
    lengths: ArrayLeaf


# New tokens so far; whether a prompt has ended; its new tokens' number; they; the logits of the
# next; the cache.
State = tuple[Array, Array, Array, Array, Array, Cache]


@struct.dataclass
class Generated:
    """New tokens: int ``[B, N]``, and how many each prompt has, its end token among them."""

    tokens: ArrayLeaf
    lengths: ArrayLeaf


def _extend(
    params: Params,
    tokens: Int[Array, "B Q"],
    positions: Int[Array, "B Q"],
    cache: Cache,
    run: Pass,
    edit: Edit,
) -> tuple[Float[Array, "B Q D"], Cache]:
    """The final norm's output of new positions, and the cache with them in it."""
    config, edit = run.config, jax.tree.map(jnp.asarray, edit)
    assert run.real is not None

    def layer(x: Array, given: tuple[Any, ...]) -> tuple[Array, tuple[Array, Array]]:
        weights, keys, values, window, arrays = given
        own, here = replace(run, window=window), edit.layer(arrays).at_positions(positions)
        normed = normalize(x, weights.attention_norm, config)
        q = queries(normed, positions, weights.attention, own, here)
        k, v = keys_values(normed, weights.attention, own, positions, here)
        place = jnp.arange(len(x))[:, None], positions
        keys, values = keys.at[place].set(k), values.at[place].set(v)
        z = here.apply_at("z", attend(q, keys, values, positions, own, here))
        attn_out = project_heads(z, weights.attention, own.real)
        edited = here.apply_at("attn_out", attn_out, z, weights.attention.out)
        y, _ = add_to_stream(x, edited, weights, own, here)
        return y, (keys, values)

    first = edit.at_embedding().at_positions(positions)
    x = first.apply_at("resid", embed(params, tokens, run, positions))
    layers = params.blocks, cache.keys, cache.values, layer_windows(config), edit.layered()
    x, (keys, values) = lax.scan(layer, x, layers)
    lengths = cache.lengths + run.real.sum(axis=1, dtype=cache.lengths.dtype)
    last = edit.at_end().at_positions(positions)
    normed = last.apply_at("final_norm", normalize(x, params.final_norm, config))
    return normed, Cache(keys, values, lengths)


def prefill(
    params: Params,
    tokens: Tokens,
    lengths: Lengths,
    config: ModelConfig,
    *,
    positions: int,
    scheme: Scheme | str = F32,
    edit: Edit = NOTHING,
) -> tuple[Float[Array, "B V"], Cache]:
    """Read prompts: the logits of the token after each, and a cache to go on with.

    Args:
        params: in the scheme's dtype.
        tokens: ``[B, S]``, padded on the right.
        lengths: ``[B]`` real tokens.
        config: the architecture (static).
        positions: ``T``, how many the cache has room for (static).
        scheme: the precision or its name (static).
        edit: what to change, with ``T`` in the place of ``S``.

    Raises:
        InputError: a scheme that rounds over a whole example, which a cache cannot know; more
            positions than the model knows.
        ValueError: parameters of another dtype than the scheme's, or an edit that does not fit.
    """
    check_positions(positions, config)
    check_edit(edit, config, (len(tokens), positions))
    scheme = check_dtype(params, scheme)
    if scheme.rounds_activations:
        raise InputError(
            f"scheme {scheme.name!r} rounds over all positions of an example, and a cache has "
            "only those so far",
            "generate with a scheme that rounds weights, or tokens one by one",
        )
    batch, size = tokens.shape
    shape = (config.num_layers, batch, positions, config.num_kv_heads, config.head_size)
    empty = jnp.zeros(shape, params.dtype)
    everywhere = jnp.broadcast_to(jnp.arange(size), tokens.shape)
    cache = Cache(empty, empty, jnp.zeros_like(lengths))
    run = Pass(config, scheme, real_positions(lengths, size))
    normed, cache = _extend(params, tokens, everywhere, cache, run, edit)
    last = lengths - 1
    logits = logits_at(last[:, None], params, at_position(normed, last), config, edit)
    return logits[:, 0], cache


def step(
    params: Params,
    token: Int[Array, " B"],
    cache: Cache,
    config: ModelConfig,
    *,
    scheme: Scheme | str = F32,
    edit: Edit = NOTHING,
) -> tuple[Float[Array, "B V"], Cache]:
    """Read one more token of each prompt: the logits of the next, and the cache with it.

    Args:
        params: in the scheme's dtype.
        token: int ``[B]``.
        cache: of the tokens before it.
        config: the architecture (static).
        scheme: the precision or its name (static).
        edit: what to change, with the cache's ``T`` positions in the place of ``S``.
    """
    positions = cache.lengths[:, None]
    run = Pass(config, as_scheme(scheme), jnp.ones_like(positions, bool))
    normed, cache = _extend(params, token[:, None], positions, cache, run, edit)
    return logits_at(positions, params, normed, config, edit)[:, 0], cache


def generate(
    params: Params,
    tokens: Tokens,
    lengths: Lengths,
    config: ModelConfig,
    *,
    steps: int,
    end: Sequence[int] = (),
    fill: int = 0,
    scheme: Scheme | str = F32,
    edit: Edit = NOTHING,
    temperature: float = 0.0,
    seed: int = 0,
) -> Generated:
    """Continue greedily, the likeliest next token, over and over, until an end token or ``steps``;
    or, at a temperature, by tokens drawn from ``softmax(logits / temperature)``.

    Args:
        params: in the scheme's dtype.
        tokens: ``[B, S]``, padded on the right.
        lengths: ``[B]`` real tokens.
        config: the architecture (static).
        steps: new tokens at most (static).
        end: tokens that end a text (static).
        fill: what stands behind an end token (static).
        scheme: the precision or its name (static).
        edit: what to change, in the prompts and in what is generated: an axis of positions has
            ``S + steps`` of them, or 1 for all.
        temperature: 0 takes the likeliest token, 1 draws as the model says.
        seed: of the draws; a prompt's depend on its place in the batch, too.

    Raises:
        InputError: no step, a temperature that is negative or not finite, or a scheme that rounds
            over a whole example.
        ValueError: parameters of another dtype than the scheme's.

    Example:
        >>> tokens, lengths = model.encode(["The capital of France is"])
        >>> generate(model.params, tokens, lengths, model.config, steps=3).tokens.shape
        (1, 3)
    """
    if steps < 1:
        raise InputError(f"steps is {steps}", "generate one token or more")
    if not 0 <= temperature < math.inf:
        raise InputError(f"temperature is {temperature}", "give 0 (greedy) or a positive number")
    return _generate(
        params,
        tokens,
        lengths,
        config=config,
        steps=steps,
        end=tuple(end),
        fill=fill,
        scheme=as_scheme(scheme),
        edit=edit,
        draws=None if temperature == 0 else (jax.random.key(seed), jnp.float32(temperature)),
    )


@functools.partial(jit, static_argnames=("config", "steps", "end", "fill", "scheme"))
def _generate(
    params: Params,
    tokens: Tokens,
    lengths: Lengths,
    *,
    config: ModelConfig,
    steps: int,
    end: tuple[int, ...],
    fill: int,
    scheme: Scheme,
    edit: Edit,
    draws: tuple[Array, Array] | None,
) -> Generated:
    room = tokens.shape[1] + steps
    how: dict[str, Any] = {"scheme": scheme, "edit": edit}
    logits, cache = prefill(params, tokens, lengths, config, positions=room, **how)
    # No token is -1: without an end token nothing ends.
    ends = jnp.array(end or (-1,), tokens.dtype)
    new = jnp.full((len(tokens), steps), fill, tokens.dtype)

    def chosen(count: Array, logits: Array) -> Array:
        if draws is None:
            return logits.argmax(axis=-1)
        key, temperature = draws
        return jax.random.categorical(jax.random.fold_in(key, count), logits / temperature)

    def going(state: State) -> Array:
        count, done, *_ = state
        return (count < steps) & ~done.all()

    def go(state: State) -> State:
        count, done, written, new, logits, cache = state
        token = jnp.where(done, fill, chosen(count, logits)).astype(new.dtype)
        new = lax.dynamic_update_slice_in_dim(new, token[:, None], count, axis=1)
        written = written + (~done).astype(written.dtype)
        done = done | (token[:, None] == ends[None]).any(axis=1)
        logits, cache = step(params, token, cache, config, **how)
        return count + 1, done, written, new, logits, cache

    done = jnp.zeros(len(tokens), bool)
    state = jnp.array(0), done, jnp.zeros_like(lengths), new, logits, cache
    _, _, written, new, _, _ = lax.while_loop(going, go, state)
    return Generated(new, written)
