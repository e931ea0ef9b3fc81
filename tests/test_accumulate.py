"""Sums of features in blocks: equal to two passes in f64, within a bounded memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_dictionaries import random_dictionary

from jaxalign.dictionaries import KINDS, Dictionary, decode, encode
from jaxalign.dictionaries.dictionary import SCALINGS
from jaxalign.studies.features import accumulate
from jaxalign.studies.features.accumulate import feature_sums
from jaxalign.studies.features.moments import Moments

D = 12
sums = jax.jit(feature_sums, static_argnames=("segments",))


def in_two_passes(d, x, y, counted, segment, segments):
    """The same in f64, from all features of all tokens at once."""
    segment = np.repeat(segment, counted.shape[1])
    x, y, counted = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1]), counted.reshape(-1)
    wide = lambda value: np.asarray(value, np.float64)  # noqa: E731
    a, b = encode(d, jnp.asarray(x)), encode(d, jnp.asarray(y))
    here, there = wide(decode(d, a, jnp.asarray(x))), wide(decode(d, b, jnp.asarray(y)))
    # A change is the difference of two f32 numbers, as the product of the study reads it.
    a, b, change = wide(a), wide(b), wide(b - a)
    x, y = wide(x), wide(y)
    each = {
        "tokens": np.ones(len(x)), "x": x, "low_x": y,
        "a": a, "d": change, "aa": a**2, "dd": change**2, "ad": a * change,
        "fired": a > 0, "low_fired": b > 0, "both": (a > 0) & (b > 0),
        "xx": (x**2).sum(1), "low_xx": (y**2).sum(1), "missed": ((x - here) ** 2).sum(1),
        "low_missed": ((y - there) ** 2).sum(1), "moved": ((there - here) ** 2).sum(1),
    }  # fmt: skip
    own = [counted & (segment == place) for place in range(segments)]
    found = {name: np.stack([wide(v)[real].sum(0) for real in own]) for name, v in each.items()}
    for name, value in (("top", a), ("low_top", b)):
        found[name] = np.stack([value[real].max(0, initial=0) for real in own])
    return found


def close(found, expected, rtol):
    assert found.keys() == expected.keys() == Moments.__dataclass_fields__.keys()
    # Of a signed sum the error is a share of what was added, and not of what is left of it.
    size = {name: np.sqrt(expected[name * 2]) for name in ("a", "d", "x")}
    root = np.sqrt(expected["tokens"])[:, None]
    added = {"a": size["a"] * root, "d": size["d"] * root, "ad": size["a"] * size["d"]}
    added |= dict.fromkeys(("x", "low_x"), size["x"][:, None] * root)
    for name, value in expected.items():
        scale = added.get(name, 0)
        error = np.abs(found[name] - value)
        assert (error <= rtol * np.maximum(np.abs(value), scale) + 1e-30).all(), name


@pytest.mark.parametrize(
    ("kind", "scaling"),
    [*((kind, "none") for kind in KINDS), *(("topk", scaling) for scaling in SCALINGS[1:])],
)
def test_sums_of_blocks_are_those_of_all_tokens(kind, scaling, monkeypatch):
    monkeypatch.setattr(accumulate, "VALUES", {"cpu": 1})  # 32 tokens a block
    d, rng = random_dictionary(kind, scaling=scaling), np.random.default_rng(0)
    x = (2 * rng.standard_normal((7, 45, D)) + 0.5).astype(np.float32)
    y = (x + rng.standard_normal(x.shape)).astype(np.float32)
    counted, segment = rng.random((7, 45)) < 0.8, np.array([0, 2, 0, 1, 4, 4, 5])  # none of 3
    found = sums(d, x, y, counted, segment, segments=6)
    close(found, in_two_passes(d, x, y, counted, segment, 6), 1e-4)  # products round otherwise
    assert not any(np.asarray(value)[3].any() for value in found.values())


def test_fewer_tokens_than_a_block_and_none_that_count():
    d, x = random_dictionary(), np.ones((1, 5, D), np.float32)
    where, every = np.zeros(1, np.int32), np.ones((1, 5), bool)
    found = sums(d, x, 2 * x, every, where, segments=1)
    close(found, in_two_passes(d, x, 2 * x, every, where, 1), 1e-5)
    assert not any(np.asarray(v).any() for v in sums(d, x, x, ~every, where, segments=1).values())


def test_sums_of_a_hundred_thousand_tokens_are_those_of_two_passes_in_f64(monkeypatch):
    """Of a feature that fires on 20 tokens, one whose mean is 30 times its spread, and others."""
    monkeypatch.setattr(accumulate, "VALUES", {"cpu": 1})  # 3125 blocks
    tokens, width = 100_000, 8
    rng = np.random.default_rng(0)
    x = rng.standard_normal((tokens, width)).astype(np.float32)
    x[:, 0] = 0
    x[rng.choice(tokens, 20, replace=False), 0] = rng.uniform(0.1, 9, 20)
    x[:, 1] = 3 + 0.1 * x[:, 1]
    y = (x + 1e-3 * rng.standard_normal(x.shape)).astype(np.float32)
    eye, none = np.eye(width, dtype=np.float32), np.zeros(width, np.float32)
    d = Dictionary(encoder=eye, decoder=0.9 * eye, encoder_bias=none, decoder_bias=none)
    windows = x.reshape(1000, 100, width), y.reshape(1000, 100, width)
    given = d, *windows, np.ones((1000, 100), bool), np.zeros(1000, np.int32)
    found, expected = sums(*given, segments=1), in_two_passes(*given, 1)
    assert expected["fired"][0, 0] == 20
    close(found, expected, 1e-6)
    n, a, aa = (np.asarray(found[name], np.float64)[0] for name in ("tokens", "a", "aa"))
    spread = aa / n - (a / n) ** 2
    np.testing.assert_allclose(spread[0], (np.maximum(x[:, 0].astype(float), 0)).var(), rtol=1e-6)
    # Where the mean is 30 times the spread, the variance has 900 times the error of its sums.
    np.testing.assert_allclose(spread[1], x[:, 1].astype(float).var(), rtol=2e-4)


@pytest.mark.usefixtures("users_programs")
def test_a_large_dictionary_and_many_tokens_need_no_more_than_a_block():
    width, features, tokens, segments = 512, 32768, 100_000, 64

    def shape(*axes, dtype=np.float32):
        return jax.ShapeDtypeStruct(axes, dtype)

    for kind in ("relu", "topk"):
        d = Dictionary(
            encoder=shape(width, features), decoder=shape(features, width),
            encoder_bias=shape(features), decoder_bias=shape(width),
            kind=kind, k=64 if kind == "topk" else None,
        )  # fmt: skip
        given = (
            shape(1000, tokens // 1000, width),
            shape(1000, tokens // 1000, width, dtype=jnp.bfloat16),
            shape(1000, tokens // 1000, dtype=bool), shape(1000, dtype=np.int32),
        )  # fmt: skip
        program = jax.jit(functools.partial(feature_sums, segments=segments))
        used = program.lower(d, *given).compile().memory_analysis()
        assert used.temp_size_in_bytes < 0.8e9, kind
        whole = used.temp_size_in_bytes + used.argument_size_in_bytes + used.output_size_in_bytes
        assert whole < 2e9, kind
