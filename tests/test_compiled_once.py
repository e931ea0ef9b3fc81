"""Work around a study's programs compiles few programs of its own, and computes the same."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled_work import COMPILED
from pythia_shape import tiny_config

import jaxalign
from jaxalign.checkpoints.families import config_from_hf
from jaxalign.edits import Edit, HeadEdit, head_ablation_masks
from jaxalign.edits.batch import touched, touches_one_step
from jaxalign.model.params import cast, compiled_cast
from jaxalign.numerics import check_canary, scheme_named
from jaxalign.runtime.compile import compiler_options
from jaxalign.study import weight_noise

CONFIG = config_from_hf(tiny_config())


@pytest.fixture(scope="module")
def params():
    return jaxalign.init_params(jax.random.key(0), CONFIG)


@contextlib.contextmanager
def compiled():
    """How many programs are compiled in this context."""
    found, listening = [], True

    def listen(event, seconds, **named):
        if listening and event == COMPILED:
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    listening = False


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.mark.usefixtures("users_programs")
@pytest.mark.parametrize("name", ["f16", "int8-sim", "int8", "int4-g8", "int4-sym-g8", "fp8-e4m3"])
def test_parameters_of_a_scheme_are_one_program_with_the_bits_of_many(params, name):
    scheme = scheme_named(name)
    compiler_options()  # which asks the compiler, once a process
    with compiled() as programs:
        found = compiled_cast(params, scheme)
    assert len(programs) <= 1
    expected = cast(params, scheme)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    assert bits(found) == bits(expected)
    if scheme.compute_dtype == "float32":  # what stays is no copy
        assert found.embed is params.embed


def test_weight_noise_of_all_schemes_is_one_program(params):
    key = jax.random.key(1)
    before = weight_noise._with_noise._jitted._cache_size()
    for name in ("int4-g8", "int8", "f16"):
        low = cast(params, scheme_named(name))
        moved = weight_noise.noisy_params(params, low, key, config=CONFIG)
        plain = weight_noise.noisy(params, low, key, CONFIG)
        for ours, theirs in zip(jax.tree.leaves(moved), jax.tree.leaves(plain), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=1e-8)
    assert weight_noise._with_noise._jitted._cache_size() == before + 1


def test_asking_whether_rows_touch_one_step_compiles_nothing():
    edit = Edit(HeadEdit(head_ablation_masks(3, 4), np.zeros((3, 1, 1, 1, 1), np.float32)))
    with compiled() as programs:
        assert touches_one_step([edit], 5)
    assert not programs
    np.testing.assert_array_equal(touched(edit, 5, np), touched(edit, 5, jnp))


@pytest.mark.usefixtures("users_programs")
def test_canary_compiles_two_programs():
    with compiled() as programs:
        check_canary()
    assert len(programs) <= 2


def test_a_readout_is_read_as_it_is_at_each_sweep(params):
    """A function may read what has changed since the last call, so no program of it is kept."""
    tokens, lengths = jnp.array([[1, 2, 3, 4]]), jnp.array([4])
    masks = head_ablation_masks(CONFIG.num_layers, CONFIG.num_heads)[:2]
    edit = Edit(HeadEdit(masks, np.zeros((CONFIG.num_layers, 1, 1, 1, 1), np.float32)))
    wanted = {"token": 5}

    def answer(logits):
        return logits[:, wanted["token"]]

    found = {}
    for token in (5, 9, 5):
        wanted["token"] = token
        [values] = jaxalign.sweep(params, tokens, lengths, CONFIG, [edit], answer)
        found.setdefault(token, []).append(np.asarray(values))
    assert np.array_equal(*found[5])
    assert not np.array_equal(found[5][0], found[9][0])
    [both] = jaxalign.sweep(params, tokens, lengths, CONFIG, [edit], lambda logits: logits)
    np.testing.assert_allclose(found[9][0], both[..., 9], atol=1e-5)
