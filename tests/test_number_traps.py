"""Where JAX computes something else than one would write down (trap by trap)."""

import functools
import re
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import jaxalign
from jaxalign.numerics import jit, scheme_named
from jaxalign.numerics.dot import dot
from jaxalign.numerics.input_rounding import int8_tokens, llm_int8
from jaxalign.numerics.qtensor import QTensor, unpack
from jaxalign.numerics.quantize import divide, quantize
from jaxalign.numerics.scheme import WeightFormat

# The claims are about bits, so about the programs that users have.
pytestmark = pytest.mark.usefixtures("users_programs")


def test_quotients_are_divided_and_not_multiplied_by_a_reciprocal():
    rng = np.random.default_rng(0)
    x, s = rng.standard_normal((512, 256)).astype("f4"), rng.random((512, 1)).astype("f4") + 0.1
    assert (x / s != x * (1 / s)).any(), "numpy tells them apart"
    assert np.array_equal(jit(divide)(x, s), x / s)
    scale = np.abs(x).max(1) / np.float32(127)
    codes, ours = jit(int8_tokens)(jnp.asarray(x))
    assert np.array_equal(ours, scale)
    assert np.array_equal(codes, np.round(x / scale[:, None]).astype(np.int8))


def test_factors_of_llm_int8_are_multiplied_in_its_order():
    """``x · (127 · (1 / row))`` and ``(x · 127) · (1 / row)`` part at ties."""
    step = np.arange(8, 16, dtype=np.float32)[:, None] / 512
    x = step * np.concatenate([np.arange(64) + 0.5, [127]]).astype(np.float32)
    inverse = np.float32(1) / x.max(1, keepdims=True)
    factor = np.float32(127) * inverse
    assert (np.round(x * factor) != np.round(x * np.float32(127) * inverse)).any()
    codes, _, _ = jit(llm_int8)(jnp.asarray(x))
    assert np.array_equal(codes, np.round(x * factor).astype(np.int8))


def test_f16_keeps_subnormal_numbers():
    """``lax.reduce_precision`` flushes what is below 6.1e-5 to zero; weights are that small."""
    values = np.array([6e-8, 1e-6, 3e-5, 6.1e-5, -2.5e-5], np.float32)
    packed = QTensor(
        np.ones((5, 1), np.int8), values[None].T[:1], format=WeightFormat("int8", levels=127)
    )
    for value in values:
        w = replace(packed, scale=jnp.full((1, 1), value))
        ours = jit(lambda w: dot(jnp.eye(5, dtype=jnp.float16), w))(w)
        assert (np.asarray(ours) == np.float16(value)).all()
    _, _, outliers = jit(llm_int8)(jnp.array([[8.0, 1e-6], [1e-6, 1e-6]]))
    assert outliers[1, 0] == np.float16(1e-6)
    sources = [path.read_text() for path in Path(jaxalign.__file__).parent.rglob("*.py")]
    assert not [text for text in sources if re.search(r"lax\.reduce_precision\(", text)]


def test_float8_codes_of_large_numbers_are_finite():
    """A cast to e4m3fn makes NaN of 465; a scale of fewer levels than it has values gets there."""
    assert np.isnan(jnp.float32(465).astype(jnp.float8_e4m3fn).astype(jnp.float32))
    w = jnp.linspace(-1, 1, 64).reshape(-1, 1)
    packed = jit(functools.partial(quantize, form=WeightFormat("e4m3fn", levels=512.0)))(w)
    assert np.isfinite(packed.codes.astype(jnp.float32)).all()
    assert np.abs(unpack(packed)).max() == np.float32(448 / 512)


def test_int8_products_are_summed_in_32_bits_exactly():
    """int8 · int8 is int8 unless asked otherwise, and f32 sums stop being exact at 2^24."""
    rng = np.random.default_rng(0)
    x, w = rng.integers(100, 128, (16, 4096)), rng.integers(100, 128, (4096, 16))
    x[:, 0] = 127  # so that the scale of every token is 1, and the codes are x
    packed = QTensor(
        jnp.asarray(w, jnp.int8),
        jnp.ones((1, 16)),
        format=scheme_named("int8").weights,
        inputs="int8-token",
    )
    ours = jit(dot)(jnp.asarray(x, jnp.float32), packed)
    exact = (x @ w).astype(np.float32)
    assert exact.min() > 2**24
    assert np.array_equal(ours, exact)
    assert (x.astype(np.float32) @ w.astype(np.float32) != exact).any(), "f32 sums miss it"
    static = replace(packed, inputs="int8-static", input_scale=jnp.float32(1))
    assert np.array_equal(jit(dot)(jnp.asarray(x, jnp.float32), static), exact)
