"""Schemes: their names, what they share, what they cost, and round-to-nearest by its formulas."""

import functools
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.errors import InputError
from jaxalign.numerics import F16, F32, INT8_SIM, Scheme, jit, scheme_named
from jaxalign.numerics.qtensor import unpack, unpack_nibbles
from jaxalign.numerics.quantize import quantize
from jaxalign.numerics.scheme import EXAMPLES
from jaxalign.numerics.storage import packed_bits


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_scheme_is_found_by_its_name(name):
    assert scheme_named(name).name == name


def test_a_name_states_group_and_compute_dtype():
    scheme = scheme_named("int4-sym-g32@f16")
    assert (scheme.weights.group, scheme.compute_dtype) == (32, "float16")
    assert scheme_named("awq-channel").weights.group is None
    assert scheme_named("nf4@bf16").compute_dtype == "bfloat16"
    assert scheme_named("f32") is F32


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("int8sim", "int8-sim"),
        ("NF4", "nf4"),
        ("int4", "int4-g128, int4-channel"),
        ("int4-g0", "int4-g128"),
        ("int4-128", "int4-g128"),
        ("awq", "awq-g128"),
        ("nf4-g128", "nf4, which takes no group size"),
        ("nf4@f64", "@f32 or @f16 or @bf16"),
        ("int4-g64@", "int4-g128"),
        ("f16@bf16", "f16, which packs no weights"),
        ("", "f32, f16, bf16"),
        ("@f16", "f16"),
    ],
)
def test_an_unknown_name_is_answered_with_what_would_do(name, remedy):
    with pytest.raises(InputError, match="unknown precision scheme") as error:
        scheme_named(name)
    assert remedy in error.value.remedy


def test_a_group_that_does_not_divide_is_refused():
    with pytest.raises(InputError, match="48 inputs, which groups of 32 do not divide"):
        quantize(jnp.ones((48, 2)), scheme_named("int4-g32").weights)


def test_schemes_that_compute_alike_share_their_programs():
    names = ("int4-g128", "awq-g128", "gptq-g128", "gptq-actorder-g128", "nf4", "fp8-e4m3", "int8")
    assert {scheme_named(name).run for name in names} == {F32}
    assert scheme_named("nf4@f16").run == F16
    assert INT8_SIM.run == INT8_SIM
    assert scheme_named("llm-int8").run not in (F32, INT8_SIM)
    mine = Scheme("mine", int8_sites=("resid",))
    assert mine.run.name == "f32+int8-sim"
    for name in (*EXAMPLES, "nf4@bf16", "llm-int8@f16"):
        scheme = scheme_named(name)
        assert scheme.run.rounds_activations == scheme.rounds_activations
        assert scheme.run.compute_dtype == scheme.compute_dtype
        assert scheme.run.int8_sites == scheme.int8_sites


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("nf4", 4.5),
        ("nf4-dq", 4 + 8 / 64 + 32 / 64 / 256),
        ("int4-g128", 4 + (16 + 4) / 128),
        ("int4-sym-g32", 4 + 16 / 32),
        ("int4-channel", 4 + 20 / 4096),
        ("hqq-g64", 4 + 32 / 64),
        ("int8", 8 + 32 / 4096),
    ],
)
def test_bits_of_a_weight_count_its_share_of_scale_and_zero_point(name, bits):
    assert packed_bits(4096, 4096, scheme_named(name).weights) == bits * 4096**2


def awq_formulas(w, group, symmetric):
    """llm-awq's round-to-nearest in numpy: codes, scales, zero points, values; outputs first."""
    x = w.reshape(-1, group)
    if symmetric:
        scale = np.maximum(np.abs(x).max(1, keepdims=True), np.float32(1e-5)) / np.float32(7)
        codes, zero = np.clip(np.round(x / scale), -8, 7), np.float32(0)
    else:
        high, low = x.max(1, keepdims=True), x.min(1, keepdims=True)
        scale = np.maximum(high - low, np.float32(1e-5)) / np.float32(15)
        zero = np.clip(-np.round(low / scale), 0, 15)
        codes = np.clip(np.round(x / scale) + zero, 0, 15)
    return codes.reshape(w.shape), scale, zero, ((codes - zero) * scale).reshape(w.shape)


@pytest.mark.parametrize("group", [32, 128, 256])
@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
def test_int4_rounding_equals_its_formulas_to_the_bit(symmetric, group):
    w = np.random.default_rng(group).standard_normal((64, 256)).astype(np.float32)
    w[0], w[1], w[2, :5] = 0, 3.5, [7, 0.5, 1.5, -2.5, -7]  # constant rows; ties
    name = f"int4{'-sym' if symmetric else ''}-{'channel' if group == 256 else f'g{group}'}"
    packed = jit(functools.partial(quantize, form=scheme_named(name).weights))(jnp.asarray(w.T))
    codes, scale, zero, values = awq_formulas(w, group, symmetric)
    ours = np.asarray(unpack_nibbles(packed.codes, 0)).T.astype(np.float32)
    assert np.array_equal(ours - 8 if symmetric else ours, codes)
    assert np.array_equal(np.asarray(packed.scale).T.reshape(-1, 1), scale)
    assert symmetric or np.array_equal(np.asarray(packed.zero).T.reshape(-1, 1), zero)
    assert np.array_equal(np.asarray(jit(unpack)(packed)).T, values)


def test_the_page_of_schemes_has_every_scheme_with_the_bits_that_it_has():
    page = (Path(__file__).parent.parent / "docs" / "schemes.md").read_text()
    table = page.split("## All of them")[1].split("\n## ")[0]
    rows = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("| `")]
    stated = {}
    for names, _, _, bits, *_ in rows:
        found, bits = re.findall(r"`([^`]+)`", names), bits.split(",")
        stated |= dict(zip(found, bits if len(bits) > 1 else bits * len(found), strict=True))
    assert set(EXAMPLES) <= set(stated)
    for name, bits in stated.items():
        scheme = scheme_named(name)
        dtype = np.dtype(jnp.dtype(scheme.compute_dtype)).itemsize * 8
        exact = packed_bits(4096, 4096, scheme.weights) / 4096**2 if scheme.weights else dtype
        assert float(bits) == pytest.approx(exact, abs=6e-4), name
