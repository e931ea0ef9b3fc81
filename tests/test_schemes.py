"""Schemes: their names, what they share, what they cost, and round-to-nearest by its formulas."""

import functools
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import jaxalign
from jaxalign.errors import InputError
from jaxalign.model import cast, forward
from jaxalign.model.size import mean_bits
from jaxalign.numerics import F16, F32, INT8_SIM, Scheme, as_scheme, jit, scheme_named
from jaxalign.numerics.invariants import check
from jaxalign.numerics.qtensor import code_values, unpack
from jaxalign.numerics.quantize import quantize
from jaxalign.numerics.scheme import EXAMPLES, WHOLE_NUMBERS, as_schemes
from jaxalign.numerics.storage import packed_bits
from jaxalign.studies.heads.options import HeadsOptions
from jaxalign.studies.plan import PlanOptions
from jaxalign.studies.schemes import SchemesOptions


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
        ("int2-g64", 2 + (16 + 2) / 64),
        ("int3-sym-g64", 3 + 16 / 64),
        ("int5-g64", 5 + (16 + 5) / 64),
        ("int8-g32", 8 + (16 + 8) / 32),
    ],
)
def test_bits_of_a_weight_count_its_share_of_scale_and_zero_point(name, bits):
    assert packed_bits(4096, 4096, scheme_named(name).weights) == bits * 4096**2


def awq_formulas(w, group, symmetric, bits):
    """llm-awq's round-to-nearest in numpy: codes, scales, zero points, values; outputs first."""
    x, most = w.reshape(-1, group), 2**bits - 1
    if symmetric:
        half = 2 ** (bits - 1)
        scale = np.maximum(np.abs(x).max(1, keepdims=True), np.float32(1e-5)) / np.float32(half - 1)
        codes, zero = np.clip(np.round(x / scale), -half, half - 1), np.float32(0)
    else:
        high, low = x.max(1, keepdims=True), x.min(1, keepdims=True)
        scale = np.maximum(high - low, np.float32(1e-5)) / np.float32(most)
        zero = np.clip(-np.round(low / scale), 0, most)
        codes = np.clip(np.round(x / scale) + zero, 0, most)
    return codes.reshape(w.shape), scale, zero, ((codes - zero) * scale).reshape(w.shape)


@pytest.mark.parametrize("bits", WHOLE_NUMBERS)
@pytest.mark.parametrize("group", [32, 256])
@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
def test_rounding_to_whole_codes_equals_its_formulas_to_the_bit(symmetric, group, bits):
    w = np.random.default_rng(group).standard_normal((64, 256)).astype(np.float32)
    w[0], w[1], w[2, :5] = 0, 3.5, [7, 0.5, 1.5, -2.5, -7]  # constant rows; ties
    name = f"int{bits}{'-sym' if symmetric else ''}-{'channel' if group == 256 else f'g{group}'}"
    packed = jit(functools.partial(quantize, form=scheme_named(name).weights))(jnp.asarray(w.T))
    codes, scale, zero, values = awq_formulas(w, group, symmetric, bits)
    ours = np.asarray(code_values(packed)).T
    shift = -128 if bits == 8 and not symmetric else 0  # 8-bit codes are stored signed
    assert np.array_equal(ours - shift, codes)
    assert np.array_equal(np.asarray(packed.scale).T.reshape(-1, 1), scale)
    assert symmetric or np.array_equal(np.asarray(packed.zero).T.reshape(-1, 1) - shift, zero)
    assert np.array_equal(np.asarray(jit(unpack)(packed)).T, values)
    assert packed.codes.nbytes == w.size // (2 if bits <= 4 else 1)
    assert packed.shape == w.T.shape
    check(packed, name)
    assert len(np.unique(codes)) <= 2**bits


def test_int8_in_groups_rounds_weights_alone_and_int8_their_inputs_too():
    assert scheme_named("int8").inputs == "int8-token"
    for name in ("int8-g64", "int8-channel", "int8-sym-g64"):
        assert scheme_named(name).inputs is None


@pytest.mark.parametrize("bits", WHOLE_NUMBERS)
def test_more_bits_are_nearer_to_the_weights(bits):
    w = jnp.asarray(np.random.default_rng(0).standard_normal((128, 8)), jnp.float32)
    for kind in ("", "-sym"):
        few, more = (
            float(jnp.abs(unpack(quantize(w, scheme_named(f"int{n}{kind}-g32").weights)) - w).max())
            for n in (bits, min(bits + 1, 8))
        )
        assert more < few or bits == 8


def test_a_scheme_is_taken_by_its_name_and_another_type_is_refused_by_name():
    assert as_scheme("nf4") == as_scheme(scheme_named("nf4")) == scheme_named("nf4")
    assert as_schemes(["nf4", F16]) == (scheme_named("nf4"), F16)
    with pytest.raises(InputError, match=r"scheme is 4 \(an int\)"):
        as_scheme(4)
    with pytest.raises(InputError, match=r"schemes is nf4 \(a str\), expected a tuple"):
        as_schemes("nf4")
    with pytest.raises(InputError, match="unknown precision scheme 'nf5'"):
        as_schemes(("nf5",))


def test_functions_and_options_take_the_name_of_a_scheme():
    model = jaxalign.load("demo")
    tokens, low = jnp.array([[5, 6, 7]]), cast(model.params, "int3-g64")
    named, given = (
        forward(low, tokens, model.config, scheme=scheme).logits
        for scheme in ("int3-g64", scheme_named("int3-g64"))
    )
    assert np.array_equal(named, given)
    assert mean_bits(model.config, "int3-g64") == 3 + 19 / 64
    with pytest.raises(InputError, match="unknown precision scheme"):
        forward(low, tokens, model.config, scheme="int1-g64")
    with pytest.raises(ValueError, match="computes in float16"):
        forward(low, tokens, model.config, scheme="f16")
    assert SchemesOptions(schemes=("nf4", "f16")).schemes == (scheme_named("nf4"), F16)
    assert PlanOptions(scheme="nf4").scheme == scheme_named("nf4")
    assert HeadsOptions(schemes=["nf4"], repaired=()).schemes == (scheme_named("nf4"),)
    with pytest.raises(InputError, match="is 3"):
        PlanOptions(scheme=3)


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
