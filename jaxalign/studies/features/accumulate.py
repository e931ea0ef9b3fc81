"""Sums over tokens of what a dictionary's features do in two precisions, block by block.

All features of all tokens would take gigabytes, and every sum a pass over main memory. A block of
tokens is encoded, added up and forgotten while it lies in the processor's cache.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxalign.dictionaries.dictionary import Dictionary, encode_decode
from jaxalign.runtime.compile import default_platform
from jaxalign.shapes import Array, Bool, Float, Int

LARGEST = ("top", "low_top")  # of which the largest is kept, and not the sum
# Activations of a block by platform, 16 MB on a CPU: measured fastest from 8192 features to 32768,
# where fewer tokens a block make the products slower and more of them leave the cache. A GPU has
# no such cache and needs larger products to be busy (not measured).
VALUES = {"cpu": 1 << 22}
VALUES_ELSEWHERE = 1 << 26
LEAST, MOST = 32, 1024  # tokens of a block: sums within one are not compensated

Sums = dict[str, Array]


def feature_sums(
    dictionary: Dictionary,
    x: Float[Array, "T D"],
    y: Float[Array, "T D"],
    counted: Bool[Array, " T"],
    segment: Int[Array, " T"],
    segments: int,
) -> Sums:
    """Add up what every feature does in f32 and in another precision, in each segment of the texts.

    Sums are f32: of tokens within a block in a row, of blocks compensated (Neumaier 1974), so that
    their error does not grow with the number of tokens.

    Args:
        dictionary: what reads the activations.
        x: activations in f32.
        y: of the same tokens in the other precision, of any float dtype.
        counted: tokens that count.
        segment: of each token, 0 to ``segments - 1``; fastest where equal ones follow one another.
        segments: how many there are (static).

    Returns:
        The fields of ``moments.Moments`` by name, their first axis the segments.
    """
    tokens = len(x)
    rows = min(block_rows(dictionary.features), tokens)

    def add(number: Array, state: tuple[Sums, Sums, Sums]) -> tuple[Sums, Sums, Sums]:
        first = number * rows
        # The last block begins early enough to be whole; tokens before it are not counted again.
        start = jnp.minimum(first, tokens - rows)
        take = functools.partial(lax.dynamic_slice_in_dim, start_index=start, slice_size=rows)
        real = take(counted) & (start + jnp.arange(rows) >= first)
        own = take(segment)
        by_feature, by_token = _values(dictionary, take(x), take(y))

        def of_segment(place: Array, state: tuple[Sums, Sums, Sums]) -> tuple[Sums, Sums, Sums]:
            sums, largest = _added(by_feature, by_token, real & (own == place))
            return _with(state, place, sums, largest)

        # Mostly one segment.
        return lax.fori_loop(own.min(), own.max() + 1, of_segment, state)

    state = _nothing(dictionary, segments)
    total, lost, largest = lax.fori_loop(0, -(-tokens // rows), add, state)
    return {name: value + lost[name] for name, value in total.items()} | largest


def block_rows(features: int) -> int:
    """How many tokens are encoded at once.

    Args:
        features: of the dictionary.
    """
    values = VALUES.get(default_platform(), VALUES_ELSEWHERE)
    return min(max(values // features, LEAST), MOST)


def _values(dictionary: Dictionary, x: Array, y: Array) -> tuple[Sums, Sums]:
    """Of a block's tokens: activations of features, and what has one value or vector a token."""
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    (a, here), (b, there) = encode_decode(dictionary, x), encode_decode(dictionary, y)

    def squares(value: Array) -> Array:
        return (value**2).sum(axis=-1)

    return {"a": a, "b": b}, {
        "tokens": jnp.ones(len(x)),
        "x": x,
        "low_x": y,
        "xx": squares(x),
        "low_xx": squares(y),
        "missed": squares(x - here),
        "low_missed": squares(y - there),
        "moved": squares(there - here),
    }


def _added(by_feature: Sums, by_token: Sums, real: Array) -> tuple[Sums, Sums]:
    """Sums over the tokens that are real, and the largest activations."""

    def over(value: Array) -> Array:
        where = real.reshape(-1, *(1,) * (value.ndim - 1))
        return jnp.where(where, value.astype(jnp.float32), 0).sum(axis=0)

    a, b = by_feature["a"], by_feature["b"]
    d = b - a
    sums = {
        **{name: over(value) for name, value in by_token.items()},
        "a": over(a),
        "d": over(d),
        "aa": over(a * a),
        "dd": over(d * d),
        "ad": over(a * d),
        "fired": over(a > 0),
        "low_fired": over(b > 0),
        "both": over((a > 0) & (b > 0)),
    }
    top, low_top = (jnp.where(real[:, None], value, 0).max(axis=0) for value in (a, b))
    return sums, {"top": top, "low_top": low_top}


def _nothing(dictionary: Dictionary, segments: int) -> tuple[Sums, Sums, Sums]:
    """Sums of no tokens, what rounding took from them, and largest activations."""
    D, features = dictionary.width, dictionary.features
    like = {"a": jnp.zeros((1, features)), "b": jnp.zeros((1, features))}
    shapes = jax.eval_shape(
        lambda: _added(like, _values(dictionary, *(jnp.zeros((1, D)),) * 2)[1], jnp.ones(1, bool))
    )

    def zeros(part: Any) -> Sums:
        return {name: jnp.zeros((segments, *value.shape)) for name, value in part.items()}

    return zeros(shapes[0]), zeros(shapes[0]), zeros(shapes[1])


def _with(
    state: tuple[Sums, Sums, Sums], place: Array, sums: Sums, largest: Sums
) -> tuple[Sums, Sums, Sums]:
    """The state with a block's sums added to those of a segment."""
    total, lost, top = (dict(part) for part in state)
    for name, value in sums.items():
        before = total[name][place]
        now = before + value
        # What of either summand the sum has no bits for.
        missing = jnp.where(
            jnp.abs(before) >= jnp.abs(value), (before - now) + value, (value - now) + before
        )
        total[name] = total[name].at[place].set(now)
        lost[name] = lost[name].at[place].add(missing)
    for name, value in largest.items():
        top[name] = top[name].at[place].max(value)
    return total, lost, top
