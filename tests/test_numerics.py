"""Numbers: every rounding that the program states is made, and no other."""

import functools
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.edits import Edit, HeadEdit, head_ablation_masks
from jaxalign.engine import sweep
from jaxalign.errors import InputError
from jaxalign.measures.metrics import Answer
from jaxalign.model import ModelConfig, cast, forward, init_params
from jaxalign.model.layers import layer_norm
from jaxalign.model.params import Norm
from jaxalign.numerics import (
    BF16,
    F16,
    F32,
    PrecisionError,
    Scheme,
    check_canary,
    dot,
    fake_quantize_int8,
    jit,
    scheme_named,
)
from jaxalign.runtime import compile
from jaxalign.runtime.compile import ROUNDING_OPTIONS, compiler_options, wanted_options
from jaxalign.runtime.environment import describe
from jaxalign.runtime.products import use_products

# The claims are about bits, so about the programs that users have.
pytestmark = pytest.mark.usefixtures("users_programs")


def test_canary_passes_under_our_jit():
    check_canary()
    assert compiler_options("cpu") == ROUNDING_OPTIONS


def test_options_for_speed_are_the_platforms_own_and_those_for_rounding_are_everywhere():
    on_gpu = wanted_options("gpu")
    assert on_gpu.items() - ROUNDING_OPTIONS.items() == {("xla_gpu_enable_triton_gemm", False)}
    assert wanted_options("cpu") == ROUNDING_OPTIONS
    assert ROUNDING_OPTIONS.items() <= on_gpu.items()


def test_programs_are_compiled_with_the_options_of_the_platform_they_run_on(monkeypatch):
    asked = []
    real = jax.jit

    def noted(fun, **kwargs):
        asked.append(kwargs.get("compiler_options"))
        return real(fun, **kwargs)

    platform = "cpu"
    monkeypatch.setattr(compile, "default_platform", lambda: platform)
    # No GPU here: what its options would be is enough.
    monkeypatch.setattr(compile, "compiler_options", compile.wanted_options)
    monkeypatch.setattr(jax, "jit", noted)
    program = compile.jit(lambda x: x + 1)
    assert program(1) == 2
    platform = "gpu"  # as after select_device("gpu")
    assert program(1) == 2
    assert program(1) == 2
    assert asked == [wanted_options("cpu"), wanted_options("gpu")]


def test_an_option_that_this_jaxlib_lacks_is_left_out(monkeypatch):
    monkeypatch.setitem(compile.ROUNDING_OPTIONS, "xla_no_such_option", True)
    compile._known_options.cache_clear()
    try:
        known = compiler_options("cpu")
    finally:
        compile._known_options.cache_clear()
    assert "xla_no_such_option" not in known
    assert known["xla_allow_excess_precision"] is False


def test_environment_records_the_options_of_the_device():
    recorded = describe(jax.devices("cpu")[0])["compiler_options"]
    assert recorded == compiler_options("cpu")


def test_canary_trips_where_excess_precision_is_allowed():
    loose = functools.partial(jax.jit, compiler_options={"xla_allow_excess_precision": True})
    with pytest.raises(PrecisionError, match="skips roundings"):
        check_canary(loose)


def test_canary_trips_on_the_library_fusion_alone():
    strict = functools.partial(jax.jit, compiler_options={"xla_allow_excess_precision": False})
    if jax.default_backend() != "cpu":
        pytest.skip("the fusion exists on CPU only")
    with pytest.raises(PrecisionError, match="rounded_softmax"):
        check_canary(strict)


def coarse(bits):
    """A jit whose f32 programs read inputs with so many bits after the point."""
    grain = np.float32(2.0 ** (23 - bits) + 1)  # Dekker's splitting

    def compile_with(program):
        def run(*arrays):
            arrays = [jnp.asarray(a) for a in arrays]
            if all(a.dtype == np.float32 for a in arrays):
                arrays = [grain * a - (grain * a - a) for a in arrays]
            return program(*arrays)

        return run

    return compile_with


@pytest.mark.parametrize("bits", [7, 10], ids=["bf16", "TF32"])
@pytest.mark.parametrize("products", ["highest", "bf16x6"])
def test_canary_trips_on_f32_products_that_are_not_what_they_say(products, bits):
    with (
        use_products(products),
        pytest.raises(PrecisionError, match=f"are not f32 .*{products} promises 1e-06"),
    ):
        check_canary(coarse(bits))


def test_canary_allows_the_error_that_products_promise():
    """TF32 in three parts errs by 1.6e-6 on an H200: too much for "highest", what "tf32x3" says."""
    slightly = coarse(16)
    with pytest.raises(PrecisionError, match="highest promises"):
        check_canary(slightly)

    def by_f32(program):  # a CPU has no TF32
        true = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
        return slightly(lambda *a: true(*a) if len(a) == 2 else program(*a))

    with use_products("tf32x3"):
        check_canary(by_f32)


def multiplications(jaxpr):
    """The output dtypes of all elementwise products in a jaxpr and in those inside it."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("mul", "integer_pow", "square"):
            yield from (out.aval.dtype for out in equation.outvars)
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from multiplications(inner)


@pytest.mark.parametrize("engine", ["wave", "vmap"])
@pytest.mark.parametrize("scheme", [F16, BF16], ids=lambda s: s.name)
def test_model_multiplies_16_bit_numbers_in_matrix_products_only(scheme, engine):
    """A CPU with f16 arithmetic rounds a product and a sum once, and no option forbids it."""
    config = ModelConfig(64, 2, 4, 64, 128, rotary_dims=4)
    params = cast(init_params(jax.random.key(0), config), scheme)
    masks = head_ablation_masks(2, 4)
    edit = Edit(HeadEdit(masks, jnp.ones((2, 1, 1, 4, 64))))
    lengths = jnp.array([5, 7])

    def run(p):
        tokens = jnp.zeros((2, 7), int)
        answer = Answer(lengths, lengths)
        return sweep(p, tokens, lengths, config, [edit], answer, engine=engine, scheme=scheme)

    found = set(multiplications(jax.make_jaxpr(run)(params).jaxpr))
    assert np.dtype("float32") in found
    assert not found & {np.dtype(scheme.compute_dtype)}


@pytest.mark.parametrize(
    "scheme", [F16, pytest.param(BF16, marks=pytest.mark.slow)], ids=lambda s: s.name
)
def test_compiled_model_keeps_the_roundings_of_the_eager_one(scheme):
    config = ModelConfig(64, 2, 4, 64, 128, rotary_dims=4)
    params = jax.tree.map(
        lambda a: a + 0.1 * jax.random.normal(jax.random.key(a.size), a.shape),
        init_params(jax.random.key(0), config),
    )
    tokens = jnp.arange(24).reshape(2, 12)
    low = cast(params, scheme)

    def logits(p, scheme=scheme):
        return forward(p, tokens, config, scheme=scheme).logits

    exact = logits(params, F32)
    with jax.disable_jit():
        eager = logits(low)
    drift = jnp.linalg.norm(eager - exact)
    ours = jnp.linalg.norm(jit(logits)(low) - eager)
    assert ours < 0.25 * drift, "compilation moves the result by as much as the precision does"


def emulate(x, real):
    """The spec in numpy, one example at a time, f32 throughout."""
    out = x.copy()
    for n in range(len(x)):
        largest = np.abs(x[n][real[n]]).max(initial=0)
        if largest == 0 or not np.isfinite(largest):
            continue
        scale = np.maximum(largest / np.float32(127), np.finfo(np.float32).tiny)
        inverse = np.float32(1) / scale
        scaled = x[n] * inverse
        whole = np.trunc(scaled)
        up = np.where(np.abs(scaled - whole) >= 0.5, np.sign(scaled), 0).astype(np.float32)
        out[n] = np.clip(whole + up, -127, 127) * scale
    return out


def test_int8_rounding_equals_numpy_to_the_bit():
    rng = np.random.default_rng(3)
    x = (rng.standard_normal((64, 7, 33)) * 10.0 ** rng.integers(-6, 6, (64, 1, 1))).astype("f4")
    x[0] = 0
    x[1] = 1e-44  # subnormal: the scale stops at the smallest normal number
    x[2, 0, 0] = np.inf
    x[3, 0, 0] = np.nan
    x[4] = np.arange(7 * 33, dtype=np.float32).reshape(7, 33) / 2  # ties, where 127 is the scale
    x[4, 0, 0] = 127
    real = np.ones((64, 7), bool)
    real[10:20, 4:] = False
    ours = jit(fake_quantize_int8)(jnp.asarray(x), jnp.asarray(real))
    expected = emulate(x, real)
    tiny = np.finfo(np.float32).tiny
    whole = np.arange(len(x)) != 1
    assert np.array_equal(np.asarray(ours)[whole], expected[whole], equal_nan=True)
    # XLA may flush the subnormal example to zero, numpy does not; either is below one step.
    assert np.abs(ours[1]).max() <= tiny


def test_int8_ties_round_away_from_zero():
    x = jnp.array([[[127.0, 0.5, -0.5, 1.5, 2.5, -2.5, 0.49999997]]])
    rounded = fake_quantize_int8(x, jnp.ones((1, 1), bool))
    assert rounded.tolist() == [[[127.0, 1.0, -1.0, 2.0, 3.0, -3.0, 0.0]]]


def test_int8_scale_sees_neither_padding_nor_neighbours():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 6, 8)).astype(np.float32)
    real = np.arange(6)[None] < np.array([4, 6, 2])[:, None]
    alone = fake_quantize_int8(jnp.asarray(x[:1, :4]), jnp.ones((1, 4), bool))
    loud = np.where(real[..., None], x, 1e6).astype(np.float32)
    loud[1] *= 1000
    together = fake_quantize_int8(jnp.asarray(loud), jnp.asarray(real))
    assert np.array_equal(alone[0], together[0, :4])


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_products_of_16_bit_floats_are_summed_in_f32(dtype):
    x = jnp.concatenate([jnp.full((1, 1), 2048.0), jnp.ones((1, 512))], axis=1).astype(dtype)
    y = dot(x, jnp.ones((513, 1), dtype))
    assert y.dtype == jnp.float32
    assert y.item() == 2560.0, "a 16-bit sum would stop growing at 2048"


def test_layer_norm_of_f16_is_the_f32_norm_rounded_once():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 64)).astype(np.float16)
    norm = Norm(*(jnp.asarray(rng.standard_normal((2, 64)), jnp.float16)))
    wide = Norm(norm.scale.astype(jnp.float32), norm.bias.astype(jnp.float32))
    once = jit(lambda x, norm: layer_norm(x, norm, 1e-5))(jnp.asarray(x, jnp.float32), wide).astype(
        jnp.float16
    )
    ours = jit(lambda x, norm: layer_norm(x, norm, 1e-5))(jnp.asarray(x), norm)
    assert ours.dtype == jnp.float16
    assert np.array_equal(once, ours)


def test_unknown_scheme_suggests_the_nearest():
    with pytest.raises(InputError, match="int8-sim"):
        scheme_named("int8sim")
    assert scheme_named("f16") is F16


def test_scheme_with_an_unknown_site_is_refused():
    with pytest.raises(InputError, match="keys"):
        Scheme("mine", int8_sites=("keys",))


def test_a_program_compiled_ahead_is_not_compiled_again():
    traced = []

    def run(x, *, power):
        traced.append(x.shape)
        return x**power

    program = jit(run, static_argnames=("power",))
    with ThreadPoolExecutor(1) as pool:
        program.ahead(pool, jax.ShapeDtypeStruct((3,), np.float32), power=2)
    assert traced == [(3,)]
    values = np.arange(3, dtype=np.float32)
    assert program(values, power=2).tolist() == [0, 1, 4]
    assert traced == [(3,)], "the call took what was compiled ahead"
    assert program(values, power=3).tolist() == [0, 1, 8]
    assert program(np.arange(2, dtype=np.float32), power=2).tolist() == [0, 1]
    assert traced == [(3,), (3,), (2,)], "other arguments compile as always"


def test_a_failure_to_compile_ahead_is_told_by_the_call_that_needs_it():
    def run(x):
        raise ValueError("cannot be traced")

    program = jit(run)
    with ThreadPoolExecutor(1) as pool:
        program.ahead(pool, jax.ShapeDtypeStruct((3,), np.float32))
    with pytest.raises(ValueError, match="cannot be traced"):
        program(np.zeros(3, np.float32))


def test_a_program_whose_compilation_ahead_was_cancelled_compiles_when_it_is_called():
    """A study that is interrupted cancels what it had not begun; a later one needs it."""
    program, begun = jit(lambda x: 2 * x), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(begun.wait)
        program.ahead(pool, jax.ShapeDtypeStruct((3,), np.float32))
        pool.shutdown(wait=False, cancel_futures=True)
        begun.set()
    np.testing.assert_array_equal(program(jnp.ones(3)), 2 * np.ones(3))
    with ThreadPoolExecutor(1) as pool:
        program.ahead(pool, jax.ShapeDtypeStruct((3,), np.float32))
    np.testing.assert_array_equal(program(jnp.ones(3)), 2 * np.ones(3))
