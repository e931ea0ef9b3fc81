"""Packed matrices stand where arrays stood, and say so when they cannot."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.edits import Edit, HeadEdit, head_ablation_masks
from jaxalign.engine import sweep
from jaxalign.errors import InputError
from jaxalign.measures.metrics import Answer
from jaxalign.model import ModelConfig, cast
from jaxalign.model.params import param_shapes
from jaxalign.numerics import F32, jit, scheme_named
from jaxalign.numerics.dot import dense, dot
from jaxalign.numerics.input_rounding import llm_int8
from jaxalign.numerics.invariants import check
from jaxalign.numerics.qtensor import QTensor, pack_nibbles, unpack, unpack_nibbles
from jaxalign.numerics.quantize import quantize

PACKED = ("int4-g32", "int4-sym-g32", "w4a16-g32", "nf4", "fp4", "nf4-dq", "hqq-g32")
PACKED += ("nvfp4", "mxfp4", "fp8-block")
ROUNDED = ("int8", "w8a8", "llm-int8", "fp8-e4m3", "fp8-e5m2")


@functools.cache
def packed(name):
    scheme = scheme_named(name)
    w = np.random.default_rng(0).normal(0, 0.05, (64, 24)).astype(np.float32)
    return replace(jax.jit(quantize, static_argnums=1)(w, scheme.weights), inputs=scheme.inputs)


@pytest.mark.parametrize("name", PACKED + ROUNDED)
def test_what_quantize_gives_passes_its_own_check(name):
    q = packed(name)
    assert check(q, "w") is q
    assert q.shape == (64, 24)
    assert q.size == 64 * 24


def spoilt(name, **fields):
    q = packed(name)
    return replace(q, **{k: v(q) if callable(v) else v for k, v in fields.items()})


def put(field, value):
    return lambda q: getattr(q, field).at[0, 3].set(value)


@pytest.mark.parametrize(
    ("q", "words"),
    [
        (lambda: spoilt("nf4", codes=lambda q: q.codes.astype(jnp.int8)), "codes' dtype is int8"),
        (lambda: spoilt("int8", codes=lambda q: q.codes.astype(jnp.uint8)), "dtype is uint8"),
        (lambda: spoilt("nf4", codes=lambda q: q.codes[:, 0]), "codes have shape"),
        (lambda: spoilt("nf4", codes=lambda q: q.codes[:, :0]), "which holds none"),
        (lambda: spoilt("nf4", codes=lambda q: q.codes[:20]), "w: a linear layer has 40 inputs"),
        (lambda: spoilt("nf4", scale=lambda q: q.scale.T), "scale's shape is"),
        (lambda: spoilt("nf4", scale=lambda q: q.scale.astype(jnp.int32)), "scale's dtype"),
        (lambda: spoilt("nf4", scale=put("scale", jnp.nan)), r"scale\[0, 3\] is nan"),
        (lambda: spoilt("int4-g32", scale=put("scale", jnp.inf)), r"scale\[0, 3\] is inf"),
        (lambda: spoilt("nf4", scale=put("scale", 0)), "the scale of weight"),
        (lambda: spoilt("nvfp4", scale=put("scale", 0)), "the scale of weight"),
        (lambda: spoilt("mxfp4", scale=put("scale", 0.75)), "a scale is 0.75, expected a power"),
        (lambda: spoilt("mxfp4", scale=put("scale", -1)), "a scale is -1.0, expected a power"),
        (lambda: spoilt("fp8-block", scale=lambda q: q.scale[:, :1]), "scale's shape is"),
        (lambda: spoilt("int4-g32", scale=put("scale", 0)), "the scale of weight"),
        (lambda: spoilt("int4-g32", zero=put("zero", jnp.nan)), r"zero\[0, 3\] is nan"),
        (lambda: spoilt("int4-g32", zero=None), "the presence of zero points is False"),
        (lambda: spoilt("nf4", zero=lambda q: q.scale), "the presence of zero points is True"),
        (lambda: spoilt("int4-g32", zero=lambda q: q.zero[:1]), "zero points' shape"),
        (lambda: spoilt("int4-g32", group_of=jnp.full(64, 2)), "group_of names groups 2 to 2"),
        (lambda: spoilt("int4-g32", group_of=jnp.full(64, -1)), "group_of names groups -1 to -1"),
        (lambda: spoilt("int4-g32", group_of=jnp.zeros(24, int)), "group_of's shape"),
        (lambda: spoilt("int4-g32", group_of=jnp.zeros(64)), "group_of's dtype"),
        (lambda: spoilt("nf4", input_divisor=jnp.zeros(64)), r"input_divisor\[0\] is 0.0"),
        (lambda: spoilt("nf4", input_divisor=jnp.ones(63)), "input_divisor's shape"),
        (
            lambda: spoilt("nf4", inputs="int8-token"),
            "int8-token inputs meet is nf4",
        ),
        (lambda: spoilt("int8", inputs="int7"), "rounded by 'int7'"),
        (lambda: spoilt("int8", inputs="int8-static"), "input_scale is missing"),
        (lambda: spoilt("int8", input_scale=jnp.ones(())), "input_scale is given"),
        (lambda: spoilt("fp8-e4m3", codes=lambda q: q.codes.at[0].set(jnp.nan)), "24 codes are"),
    ],
)
def test_a_packed_matrix_that_cannot_be_so_is_refused(q, words):
    with pytest.raises(InputError, match=words):
        check(q(), "w")


def test_a_scale_of_zero_may_stand_before_zeros():
    w = jnp.ones((128, 3)).at[:64, 1].set(0)
    q = quantize(w, scheme_named("nf4").weights)
    assert q.scale[0, 1] == 0
    assert (unpack(check(q, "w"))[:64, 1] == 0).all()


@pytest.mark.parametrize("name", ["int4-g32", "int8"])
def test_layers_of_packed_matrices_are_scanned_mapped_and_indexed_like_arrays(name):
    scheme = scheme_named(name)
    rng = np.random.default_rng(1)
    w = jnp.asarray(rng.normal(0, 0.05, (3, 64, 64)), jnp.float32)
    stack = jax.jit(jax.vmap(lambda w: quantize(w, scheme.weights)))(w)
    stack = replace(stack, inputs=scheme.inputs)
    layers = [jax.tree.map(lambda a, i=i: a[i], stack) for i in range(3)]
    x = jnp.asarray(rng.standard_normal((5, 64)), jnp.float32)

    def loop(x, w):
        return dot(x, w), None

    scanned = jit(lambda x, w: jax.lax.scan(loop, x, w)[0])(x, stack)
    one = jit(dot)
    one_by_one = functools.reduce(one, layers, x)
    assert np.allclose(scanned, one_by_one, rtol=1e-5, atol=1e-6)
    mapped = jit(jax.vmap(dot, in_axes=(None, 0)))(x, stack)
    assert np.allclose(mapped, [one(x, w) for w in layers], rtol=1e-5, atol=1e-6)
    assert np.array_equal(unpack(stack)[1], unpack(layers[1]))


def test_act_order_groups_are_those_that_group_of_names():
    q = packed("int4-g32")
    order = np.random.default_rng(0).permutation(64)
    codes = np.asarray(unpack_nibbles(q.codes, 0))[order]
    shuffled = replace(
        q,
        codes=pack_nibbles(jnp.asarray(codes), 0),
        group_of=jnp.asarray(order // 32, jnp.int32),
    )
    assert np.array_equal(unpack(check(shuffled, "w")), np.asarray(unpack(q))[order])


def inputs():
    return jnp.asarray(np.random.default_rng(3).standard_normal((5, 64)), jnp.float32)


def test_inputs_of_a_layer_are_divided_where_its_weights_ask_for_it():
    q = replace(packed("nf4"), input_divisor=jnp.linspace(0.5, 2, 64))
    x = inputs()
    assert np.allclose(dot(x, q), (x / q.input_divisor[None]) @ unpack(q), atol=1e-5)


def test_static_inputs_are_rounded_by_the_scale_that_was_given():
    q = replace(packed("int8"), inputs="int8-static", input_scale=jnp.float32(0.02))
    x = inputs()
    rounded = jnp.clip(jnp.round(x / 0.02), -127, 127) * 0.02
    assert np.allclose(jit(dot)(x, check(q, "w")), rounded @ unpack(q), atol=1e-5)
    assert not np.allclose(rounded, x, atol=0.01), "a static scale clips"


@pytest.mark.parametrize("name", ROUNDED)
def test_rounded_inputs_cost_little_but_something(name):
    q = packed(name)
    x = inputs().at[2, 7].set(20)
    exact = x @ unpack(q)
    error = jnp.linalg.norm(jit(dot)(x, q) - exact) / jnp.linalg.norm(exact)
    assert 1e-5 < error < (0.2 if name == "fp8-e5m2" else 0.05)


def test_outliers_are_those_of_an_example_and_neither_padding_nor_neighbours():
    q = packed("llm-int8")
    x = np.random.default_rng(4).standard_normal((2, 3, 6, 64)).astype(np.float32)
    x[:, 1, :, 5], x[:, :, 4:, 9] = 40, 1e3
    real = np.arange(6)[None] < np.array([4, 4, 4])[:, None]
    x, real = jnp.asarray(x), jnp.asarray(real)
    together, one = jit(dot)(x, q, real)[:, :, :4], jit(dot)
    for row in range(2):
        for prompt in range(3):
            alone = one(x[row, prompt, :4], q)
            assert np.array_equal(together[row, prompt], alone)
    _, _, outliers = llm_int8(x, real)
    assert (np.asarray(outliers[:, [0, 2]]) == 0).all()
    assert (np.asarray(outliers[:, 1, :4, 5]) == 40).all()


CONFIG = ModelConfig(64, 2, 4, 64, 128, rotary_dims=4)


@functools.cache
def program(engine, scheme):
    edit = Edit(HeadEdit(head_ablation_masks(2, 4), np.zeros((2, 1, 1, 1, 1), np.float32)))
    lengths, tokens = np.array([5, 7]), np.arange(14).reshape(2, 7)

    def run(params):
        answer = Answer(jnp.asarray(lengths), jnp.asarray(lengths + 1))
        asked = jnp.asarray(tokens), jnp.asarray(lengths)
        [found] = sweep(params, *asked, CONFIG, [edit], answer, engine=engine, scheme=scheme)
        return jax.tree.leaves(found)

    return jit(run)


def metrics(params, scheme, plan):
    return program(plan, scheme.run)(params)


@pytest.fixture(scope="module")
def params():
    """Random in every leaf, with normed inputs above LLM.int8's threshold."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        size, middle = (4, 4) if path[-1].name == "scale" else (0.1, 0)
        return jnp.asarray(rng.normal(middle, size, leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, param_shapes(CONFIG))


@pytest.mark.parametrize(
    "name", [*(pytest.param(n, marks=pytest.mark.slow) for n in ("int4-g32", "nf4")), "llm-int8"]
)
def test_the_wave_of_packed_weights_is_what_vmap_computes(name, params):
    scheme = scheme_named(name)
    low = cast(params, scheme)
    for matrix in (low.blocks.attention.query, low.blocks.mlp.down):
        check(matrix, name)
    wave, plain = (metrics(low, scheme, plan) for plan in ("wave", "vmap"))
    close = 2e-3 if scheme.inputs else 1e-5
    assert all(np.allclose(a, b, rtol=close, atol=close) for a, b in zip(wave, plain, strict=True))
    if scheme.inputs is None:
        unpacked = jax.tree.map(dense, low, is_leaf=lambda a: isinstance(a, QTensor))
        same = metrics(unpacked, F32, "vmap")
        assert all(np.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(wave, same, strict=True))
    exact = metrics(params, F32, "vmap")
    assert not np.allclose(wave[0], exact[0], atol=1e-4), "four bits are told apart from f32"
