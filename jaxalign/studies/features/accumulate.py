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
LEAST, MOST = 32, 1024  # tokens of a block
PIECE = 32  # tokens of a window that are summed in a row: sums within a piece are not compensated

Sums = dict[str, Array]


def feature_sums(
    dictionary: Dictionary,
    x: Float[Array, "B S D"],
    y: Float[Array, "B S D"],
    counted: Bool[Array, "B S"],
    segment: Int[Array, " B"],
    segments: int,
) -> Sums:
    """Add up what every feature does in f32 and in another precision, in each segment of the texts.

    Sums are f32: of tokens of a piece of a window in a row, of pieces compensated (Neumaier 1974),
    so that their error does not grow with the number of tokens.

    Args:
        dictionary: what reads the activations.
        x: activations in f32 of ``B`` windows.
        y: of the same tokens in the other precision, of any float dtype.
        counted: tokens that count.
        segment: of each window, 0 to ``segments - 1``.
        segments: how many there are (static).

    Returns:
        The fields of ``moments.Moments`` by name, their first axis the segments.
    """
    windows, length = counted.shape
    # Pieces of equal length, the last one of each window filled up with tokens that do not count.
    parts = -(-length // min(length, PIECE))
    piece = -(-length // parts)
    own = jnp.repeat(segment, parts)
    at_once = max(1, min(block_rows(dictionary.features) // piece, len(own)))

    def pieces(value: Array) -> Array:
        wide = [(0, 0), (0, parts * piece - length), *[(0, 0)] * (value.ndim - 2)]
        return jnp.pad(value, wide).reshape(windows * parts, piece, *value.shape[2:])

    given = pieces(x), pieces(y), pieces(counted)

    def add(number: Array, state: tuple[Sums, Sums, Sums]) -> tuple[Sums, Sums, Sums]:
        first = number * at_once
        # The last block begins early enough to be whole; pieces before it are not counted again.
        start = jnp.minimum(first, len(own) - at_once)
        take = functools.partial(lax.dynamic_slice_in_dim, start_index=start, slice_size=at_once)
        xs, ys, real = map(take, given)
        real = real & (start + jnp.arange(at_once) >= first)[:, None]
        sums, largest = _added(dictionary, xs, ys, real)
        places = take(own)

        def of_piece(i: Array, state: tuple[Sums, Sums, Sums]) -> tuple[Sums, Sums, Sums]:
            one = [{name: value[i] for name, value in part.items()} for part in (sums, largest)]
            return _with(state, places[i], *one)

        return lax.fori_loop(0, at_once, of_piece, state)

    state = _nothing(dictionary, segments)
    total, lost, largest = lax.fori_loop(0, -(-len(own) // at_once), add, state)
    return {name: value + lost[name] for name, value in total.items()} | largest


def block_rows(features: int) -> int:
    """How many tokens are encoded at once.

    Args:
        features: of the dictionary.
    """
    values = VALUES.get(default_platform(), VALUES_ELSEWHERE)
    return min(max(values // features, LEAST), MOST)


def _added(dictionary: Dictionary, x: Array, y: Array, real: Array) -> tuple[Sums, Sums]:
    """Sums over the tokens of each piece that are real, and the largest activations."""
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    (a, here), (b, there) = encode_decode(dictionary, x), encode_decode(dictionary, y)
    a, b = (jnp.where(real[..., None], value, 0) for value in (a, b))
    d = b - a

    def over(value: Array) -> Array:
        return value.astype(jnp.float32).sum(axis=1)

    def kept(value: Array) -> Array:
        return over(jnp.where(real[..., None], value, 0))

    def squares(value: Array) -> Array:
        return over(jnp.where(real, (value**2).sum(axis=-1), 0))

    sums = {
        "tokens": over(real),
        "a": over(a),
        "d": over(d),
        "aa": over(a * a),
        "dd": over(d * d),
        "ad": over(a * d),
        "fired": over(a > 0),
        "low_fired": over(b > 0),
        "both": over((a > 0) & (b > 0)),
        "x": kept(x),
        "low_x": kept(y),
        "xx": squares(x),
        "low_xx": squares(y),
        "missed": squares(x - here),
        "low_missed": squares(y - there),
        "moved": squares(there - here),
    }
    return sums, {"top": a.max(axis=1), "low_top": b.max(axis=1)}


def _nothing(dictionary: Dictionary, segments: int) -> tuple[Sums, Sums, Sums]:
    """Sums of no tokens, what rounding took from them, and largest activations."""
    one = jnp.zeros((1, 1, dictionary.width))
    shapes = jax.eval_shape(lambda: _added(dictionary, one, one, jnp.ones((1, 1), bool)))

    def zeros(part: Any) -> Sums:
        return {name: jnp.zeros((segments, *value.shape[1:])) for name, value in part.items()}

    return zeros(shapes[0]), zeros(shapes[0]), zeros(shapes[1])


def _with(
    state: tuple[Sums, Sums, Sums], place: Array, sums: Sums, largest: Sums
) -> tuple[Sums, Sums, Sums]:
    """The state with a piece's sums added to those of its segment."""
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
