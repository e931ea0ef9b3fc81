"""Whatever a user gives of another type is refused by the argument's name."""

import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import jaxalign
from jaxalign.errors import InputError, require_type
from jaxalign.prompts import one_prompt
from jaxalign.studies.registry import STUDIES


@pytest.fixture(scope="module")
def model():
    return jaxalign.load("demo")


@pytest.fixture(autouse=True)
def as_users_have_it():
    """Shapes in signatures are checked in tests alone; users have our own words."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


TOKENS = jnp.ones((1, 3), jnp.int32)
CASES = {
    "load": (lambda m: jaxalign.load(7), "model is 7 (an int), expected a name, a folder"),
    "load a list": (lambda m: jaxalign.load(["demo"]), "model is a list, expected a name"),
    "revision": (lambda m: jaxalign.load("demo", 3), "revision is 3 (an int)"),
    "load, dtype": (lambda m: jaxalign.load("demo", dtype=jnp.int8), "dtype is int8, and"),
    "load, no dtype": (lambda m: jaxalign.load("demo", dtype="fp9"), "dtype is fp9, and"),
    "memory": (lambda m: jaxalign.load("demo", memory_gb="4"), "memory_gb is 4 (a str)"),
    "forward, a model": (
        lambda m: jaxalign.forward(m, TOKENS, m.config),
        "params is a Model, expected the parameters of a model, model.params",
    ),
    "forward, config": (
        lambda m: jaxalign.forward(m.params, TOKENS, m),
        "config is a Model, expected the architecture, model.config",
    ),
    "forward, scheme": (
        lambda m: jaxalign.forward(m.params, TOKENS, m.config, scheme=16),
        "scheme is 16 (an int), expected a scheme or its name",
    ),
    "forward, edit": (
        lambda m: jaxalign.forward(m.params, TOKENS, m.config, edit=[1]),
        "edit is a list, expected an Edit",
    ),
    "sweep, readout": (
        lambda m: jaxalign.sweep(m.params, TOKENS, jnp.array([3]), m.config, [], 3),
        "readout is 3 (an int), expected a function of logits",
    ),
    "sweep, params": (
        lambda m: jaxalign.sweep({}, TOKENS, jnp.array([3]), m.config, [], abs),
        "params is a dict, expected the parameters",
    ),
    "cast": (lambda m: jaxalign.cast(m, "nf4"), "params is a Model"),
    "zero_ablation": (lambda m: jaxalign.zero_ablation(m, 8), "num_layers is a Model"),
    "read_prompts": (lambda m: jaxalign.read_prompts(["a"]), "path is a list, expected the path"),
    "read": (lambda m: jaxalign.read(None), "path is None (a NoneType), expected the path"),
    "heads_study, a name": (
        lambda m: jaxalign.heads_study("demo", jaxalign.read_prompts()),
        "model is demo (a str), expected a model, from jaxalign.load",
    ),
    "heads_study, prompts": (
        lambda m: jaxalign.heads_study(m, ["The capital of France is"]),
        "prompts is a list, expected prompts, from jaxalign.read_prompts",
    ),
    "no layers": (lambda m: jaxalign.zero_ablation(0, 8), "num_layers is 0, and there is nothing"),
    "one_prompt": (lambda m: one_prompt(5, " x"), "prompt is 5 (an int), expected a text"),
    "options of another study": (
        lambda m: STUDIES["plan"](m, jaxalign.read_prompts(), jaxalign.HeadsOptions()),
        "options is a HeadsOptions, expected a PlanOptions",
    ),
}


@pytest.mark.parametrize("kind", CASES)
def test_a_wrong_type_is_refused_by_the_arguments_name(model, kind):
    call, said = CASES[kind]
    with pytest.raises(InputError) as refused:
        call(model)
    assert said in str(refused.value)


def test_true_is_no_number():
    with pytest.raises(InputError, match=r"count is True \(a bool\), expected a count"):
        require_type("count", True, (int,), "a count")
    require_type("count", 3, (int, np.integer), "a count")


def test_schemes_may_be_named_wherever_they_are_options():
    options = jaxalign.HeadsOptions(schemes=("nf4", jaxalign.F16), repaired=("nf4",))
    assert [scheme.name for scheme in options.schemes] == ["nf4", "f16"]
    with pytest.raises(InputError, match="expected a tuple of schemes"):
        jaxalign.HeadsOptions(schemes="nf4,f16", repaired=())
    assert STUDIES["plan"].options(scheme="nf4").scheme == options.schemes[0]
    with pytest.raises(InputError, match="unknown precision scheme 'nf5'"):
        jaxalign.HeadsOptions(schemes=("nf5",))
    with pytest.raises(InputError, match="schemes is 4"):
        jaxalign.HeadsOptions(schemes=(4,))
