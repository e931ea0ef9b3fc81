"""f32 products by tensor cores: asked of XLA where chosen, refused where there are none."""

from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxalign
from jaxalign.edits import Edit, HeadEdit, head_ablation_masks
from jaxalign.engine import sweep
from jaxalign.errors import InputError
from jaxalign.measures.metrics import Answer
from jaxalign.model import ModelConfig, cast, init_params
from jaxalign.numerics import F16, F32, PrecisionError, dot
from jaxalign.prompts import PromptSet
from jaxalign.runtime import canary
from jaxalign.runtime.products import (
    PRESETS,
    chosen_products,
    precision_for,
    refuse_missing,
    use_products,
)

CONFIG = ModelConfig(64, 2, 4, 32, 64, rotary_dims=4)
HIGHEST = (jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST)


def products_of(jaxpr):
    """The precision and the dtype of the operands of every matrix product in a jaxpr."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation.params["precision"], equation.invars[0].aval.dtype.name
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from products_of(inner)


def traced(scheme):
    """A wave of every head, traced."""
    params = cast(init_params(jax.random.key(0), CONFIG), scheme)
    edit = Edit(HeadEdit(head_ablation_masks(2, 4), jnp.ones((2, 1, 1, 4, 32))))
    lengths = jnp.array([5, 7])

    def run(p):
        tokens, answer = jnp.zeros((2, 7), int), Answer(lengths, lengths)
        return sweep(p, tokens, lengths, CONFIG, [edit], answer, scheme=scheme)

    return jax.make_jaxpr(run)(params)


@pytest.mark.parametrize("products", PRESETS)
def test_every_f32_product_of_a_sweep_is_computed_as_chosen(products):
    with use_products(products):
        found = set(products_of(traced(F32).jaxpr))
    assert found == {(PRESETS[products], "float32")}


def test_products_of_16_bit_arrays_stay_as_they_are():
    with use_products("tf32x3"):
        found = set(products_of(traced(F16).jaxpr))
        assert precision_for(jnp.ones(2), jnp.ones(2, jnp.float16)) is jax.lax.Precision.HIGHEST
    assert {precision for precision, dtype in found if dtype == "float16"} == {HIGHEST}


def test_f32_is_true_f32_whatever_else_jax_is_told():
    with jax.default_matmul_precision("tensorfloat32"):
        assert set(products_of(traced(F32).jaxpr)) == {(HIGHEST, "float32")}
    assert set(products_of(traced(F32).jaxpr)) == {(HIGHEST, "float32")}


@pytest.mark.parametrize(
    ("products", "parts", "times"), [("tf32x3", "tf32", 3), ("bf16x6", "bf16", 6)]
)
def test_a_gpu_is_asked_for_the_algorithm_by_name(products, parts, times):
    """Lowered for CUDA, which needs none: what XLA would be given."""
    x = jax.ShapeDtypeStruct((8, 8), jnp.float32)
    with use_products(products):
        lowered = jax.jit(lambda a, b: dot(a, b)).trace(x, x)
        text = lowered.lower(lowering_platforms=("cuda",)).as_text()
    assert f"lhs_precision_type = {parts}" in text
    assert f"num_primitive_operations = {times}" in text


def test_choice_ends_with_its_context_and_is_kept_by_what_compiles_ahead():
    program = jaxalign.jit(lambda x: jnp.full(x.shape, len(chosen_products())))
    x = np.zeros(3, np.float32)
    with ThreadPoolExecutor(1) as pool:
        with use_products("bf16x6"):
            program.ahead(pool, x)  # traced by another thread
            assert chosen_products() == "bf16x6"
            inside = program(x)
        assert chosen_products() == "highest"
        outside = program(x)
    assert inside.tolist() == [len("bf16x6")] * 3
    assert outside.tolist() == [len("highest")] * 3


def test_a_choice_within_a_choice_is_the_inner_one():
    with use_products("tf32x3"):
        with use_products("highest"):
            assert chosen_products() == "highest"
            assert precision_for(jnp.ones(2)) is jax.lax.Precision.HIGHEST
        assert chosen_products() == "tf32x3"


def test_unknown_products_are_refused_by_name():
    with pytest.raises(InputError, match=r"'f64' are unknown.*highest or tf32x3 or bf16x6"):
        use_products("f64").__enter__()
    with pytest.raises(InputError, match="--products 'f64' is unknown"):
        jaxalign.HeadsOptions(products="f64")


def test_study_refuses_products_that_its_device_does_not_have():
    few = PromptSet({"t": jaxalign.read_prompts().tasks["factual"][:1]}, ("The day was long",))
    model = jaxalign.load("demo")
    for products in PRESETS:  # bf16x6, too, which JAX's CPU takes and computes in plain f32
        with pytest.raises(InputError, match=f"{products} are made by .* runs on cpu.*highest"):
            jaxalign.heads_study(model, few, jaxalign.HeadsOptions(products=products))
    refuse_missing("highest", "cpu")
    refuse_missing("tf32x3", "gpu")


def test_products_that_a_device_cannot_compute_are_named():
    with use_products("tf32x3"), pytest.raises(PrecisionError, match="no f32 products by tf32x3"):
        canary.check_canary()


def test_canary_is_asked_once_for_each_platform_and_kind_of_products(monkeypatch):
    asked = []
    monkeypatch.setattr(
        canary, "check_canary", lambda: asked.append((canary.default_platform(), chosen_products()))
    )
    canary._checked.cache_clear()
    try:
        for _ in range(2):
            canary.require_exact_compilation()
        monkeypatch.setattr(canary, "default_platform", lambda: "gpu")
        for products in ("highest", "tf32x3", "tf32x3"):
            canary.require_exact_compilation(products)
    finally:
        canary._checked.cache_clear()
    assert asked == [("cpu", "highest"), ("gpu", "highest"), ("gpu", "tf32x3")]
