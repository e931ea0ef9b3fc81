"""Claims about the test of damage against noise of its size."""

import jax
import numpy as np
import pytest
from pythia_shape import tiny_config

from jaxalign.checkpoints.families import config_from_hf
from jaxalign.measures.stats import corrected, one_more_draw_p
from jaxalign.model import cast, init_params
from jaxalign.numerics.scheme import scheme_named
from jaxalign.prompts import Prompt, PromptText
from jaxalign.studies.plan.calls import Bench
from jaxalign.studies.plan.components import parts_of, rows_of
from jaxalign.studies.plan.noise_test import verdicts
from jaxalign.study.weight_noise import noisy_params

SCHEME = scheme_named("int4-g16")


def test_the_p_value_is_that_of_one_more_draw_of_a_normal_sample():
    """In units of 1/√KL the test is Student's, two-sided, with the draw's own variance counted."""
    draws = np.array([[1.0, 2.0, 3.0, 4.0]]) ** -2.0
    at = np.array([2.5 + 3.1824463 * np.sqrt(5 / 3) * np.sqrt(1.25)]) ** -2.0
    assert one_more_draw_p(at, draws)[0] == pytest.approx(0.05, abs=1e-6)
    assert one_more_draw_p(np.array([2.5**-2.0]), draws)[0] == pytest.approx(1)


def test_there_is_no_test_without_draws_that_vary():
    assert np.isnan(one_more_draw_p(np.ones(2), np.ones((2, 2)))).all()  # two draws
    assert np.isnan(one_more_draw_p(np.ones(1), np.ones((1, 9)))).all()
    assert np.isnan(one_more_draw_p(np.zeros(1), np.zeros((1, 9)))).all()
    assert one_more_draw_p(np.zeros(1), np.arange(1.0, 10)[None])[0] == 0
    assert verdicts(np.ones(1), np.ones((1, 2)))[0][2] == ""


def test_verdicts_come_from_the_corrected_p():
    """One in twenty of raw p-values is below 0.05 where nothing is there; no verdict is given."""
    rng = np.random.default_rng(0)
    draws, own = (
        np.exp(0.2 * rng.standard_normal((200, 20))),
        np.exp(0.2 * rng.standard_normal(200)),
    )
    own[:2] = 20, 1 / 20
    found = verdicts(own, draws)
    raw = np.array([p for p, _, _ in found])
    assert (raw[2:] < 0.05).sum() >= 4
    assert [word for _, _, word in found[:2]] == ["more than noise", "less than noise"]
    assert {word for _, _, word in found[2:]} == {"like noise"}
    np.testing.assert_allclose([p for _, p, _ in found], corrected(raw))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_noise_in_the_place_of_a_component_is_a_false_positive_as_rarely_as_promised(seed):
    """A fresh draw of noise as "the scheme", against 20 others, in every part of a random model.

    Raw p-values are below 0.05 in 5 % of tests; corrected ones give a verdict anywhere in a map in
    5 % of maps. 60 maps of 42 parts a seed.
    """
    config = config_from_hf(tiny_config(num_hidden_layers=4))
    params = jax.tree.map(
        lambda a: a + 0.1 * jax.random.normal(jax.random.key(a.size + seed), a.shape),
        init_params(jax.random.key(seed), config),
    )
    low, rng = cast(params, SCHEME), np.random.default_rng(seed)
    asked = [
        Prompt(PromptText("", ""), "task", tuple(rng.integers(0, 97, 6).tolist()), 1)
        for _ in range(12)
    ]
    bench = Bench(params, config, SCHEME, parts_of(params, config, SCHEME), asked, 1e9)
    rows = rows_of(bench.parts.components(), bench.parts)
    keys = [jax.random.fold_in(jax.random.key(seed), draw) for draw in range(120)]
    drawn = [noisy_params(params, low, key, config=config) for key in keys]
    kl = np.array([bench.measure(noise, rows).kl.mean(axis=1) for noise in drawn]).T
    raw, maps = [], []
    for _ in range(60):
        order = rng.permutation(120)
        found = verdicts(kl[:, order[0]], kl[:, order[1:21]])
        raw += [p for p, _, _ in found]
        maps.append(any(word != "like noise" for _, _, word in found))
    assert len(raw) == 60 * len(kl)
    assert np.mean(np.array(raw) < 0.05) < 0.065
    # Of 60 maps with a rate of 5 %, 8 or more have a verdict once in a hundred.
    assert sum(maps) <= 7
