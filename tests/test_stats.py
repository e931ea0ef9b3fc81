"""Statistics against scipy, and against what they must say when nothing is there."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from jaxalign.measures import stats
from jaxalign.measures.metrics import head_drift, logit_difference
from jaxalign.prompts import Prompt, PromptText
from jaxalign.studies.heads.average import mean_maps
from jaxalign.studies.heads.rankings import (
    DRAWS,
    RANDOM_ORDERS,
    SAME_LAYERS,
    choose_donors,
    distinct,
    random_orders,
    repair_orders,
    same_layer_orders,
    top_k_masks,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_correlations_equal_scipy_row_by_row(rng):
    x, y = rng.standard_normal((2, 5, 30))
    y[:, :10] = x[:, :10] = 1.5  # ties
    for row in range(5):
        assert stats.pearson(x, y)[row] == pytest.approx(scipy_stats.pearsonr(x[row], y[row])[0])
        spearman = stats.pearson(stats.ranks(x), stats.ranks(y))[row]
        assert spearman == pytest.approx(scipy_stats.spearmanr(x[row], y[row])[0])


def test_correlation_of_something_constant_is_not_defined(rng):
    assert np.isnan(stats.pearson(np.ones(8), rng.standard_normal(8)))


def test_an_interval_leaves_out_a_fortieth_at_each_end_and_what_is_not_finite():
    samples = np.concatenate([np.arange(1001.0), [np.nan, np.inf]])
    assert stats.interval(samples) == (25.0, 975.0)


def test_bootstrap_interval_of_a_mean_agrees_with_scipy(rng):
    x = rng.standard_normal(40) + 3
    value, low, high = stats.mean_interval(x, rng, samples=5000)
    expected = scipy_stats.bootstrap((x,), np.mean, method="percentile", rng=rng)
    assert value == pytest.approx(x.mean())
    assert (low, high) == pytest.approx(tuple(expected.confidence_interval), abs=0.05)


def test_p_values_are_uniform_when_nothing_is_there():
    rng = np.random.default_rng(5)
    sign = [stats.sign_flip_p(rng.standard_normal(12), rng, 500) for _ in range(200)]
    draw = [stats.beyond_draws(x[0], x[1:]) for x in rng.standard_normal((200, 6))]
    for p in (sign, draw):
        assert scipy_stats.kstest(p, "uniform").pvalue > 1e-3
        assert min(p) > 0


def test_a_value_far_from_its_draws_is_told_from_them_and_draws_without_spread_tell_nothing(rng):
    draws = rng.standard_normal(5)
    assert stats.beyond_draws(30.0, draws) < 0.001
    assert np.isnan(stats.beyond_draws(1.0, np.ones(5)))
    assert np.isnan(stats.beyond_draws(1.0, draws[:2]))


def test_a_strong_effect_is_seen(rng):
    assert stats.sign_flip_p(np.full(20, 0.1), rng) < 0.001


def test_many_columns_are_tested_as_each_alone(rng):
    x = rng.standard_normal((14, 300)) + np.linspace(0, 1.5, 300)
    x[9:, 7] = np.nan  # prompts that have no value there
    x[1:, 8] = np.nan
    low, high = stats.mean_intervals(x, stats.generator(0))
    p = stats.sign_flip_ps(x, stats.generator(0))
    for column in (0, 7, 150, 299):
        own = x[np.isfinite(x[:, column]), column]
        _, *ends = stats.mean_interval(own, stats.generator(1))
        assert [low[column], high[column]] == pytest.approx(ends, abs=0.12)
        assert p[column] == pytest.approx(stats.sign_flip_p(own, stats.generator(1)), abs=0.03)
    assert np.isnan([low[8], high[8], p[8]]).all()
    assert p[299] < 0.001 < p[0]


def test_named_streams_are_independent_and_repeatable():
    draws = [stats.generator(3, *names).random(4) for names in (("a",), ("b",), ("a",))]
    assert np.array_equal(draws[0], draws[2])
    assert not np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], stats.generator(4, "a").random(4))


def test_rankings_are_the_four_of_the_study(rng):
    importance, drift, predicted = rng.standard_normal((3, 2, 6))
    drift = np.abs(drift)
    predicted[0, 3] = np.nan
    orders = repair_orders(importance, drift, predicted)
    assert orders["zero_importance"][0].tolist() == np.argsort(-importance[0]).tolist()
    assert orders["drift"][1].tolist() == np.argsort(-drift[1]).tolist()
    assert orders["importance_x_drift"][1].tolist() == np.argsort(-(importance * drift)[1]).tolist()
    assert orders["first_order"][0][-1] == 3, "what is not finite comes last"


def test_random_orders_are_drawn_anew_for_each_prompt(rng):
    random = random_orders(3, 6, rng)
    assert random.shape == (RANDOM_ORDERS, 3, 6)
    assert (np.sort(random) == np.arange(6)).all()
    for same in (random[:, 0], random[0]):
        assert len({tuple(order) for order in same.tolist()}) > 1


def test_heads_of_the_same_layers_are_as_many_of_each_layer_at_every_step(rng):
    order = rng.permuted(np.tile(np.arange(12), (5, 1)), axis=-1)
    mixed = same_layer_orders(order, 4, rng)
    assert mixed.shape == (SAME_LAYERS, 5, 12)
    assert (np.sort(mixed) == np.arange(12)).all()
    assert np.array_equal(mixed // 4, np.broadcast_to(order // 4, mixed.shape))
    # Head by head each other head of the layer is as likely.
    many = np.concatenate([same_layer_orders(order[:1], 4, rng)[:, 0, 0] for _ in range(300)])
    counts = np.bincount(many % 4, minlength=4)
    assert scipy_stats.chisquare(counts).pvalue > 1e-4


def test_top_k_masks_hold_the_first_k_heads_of_each_prompt():
    orders = np.array([[[3, 0, 1, 2], [1, 2, 3, 0]], [[0, 1, 2, 3], [0, 1, 2, 3]]])
    masks = top_k_masks(orders, (1, 2, 3), num_layers=2)
    assert masks.shape == (2 * 3, 2, 2, 1, 2)
    flat = masks[:, :, :, 0].transpose(0, 2, 1, 3).reshape(6, 2, 4)
    for order in range(2):
        for k in range(1, 4):
            for prompt in range(2):
                chosen = np.flatnonzero(flat[order * 3 + k - 1, prompt])
                assert set(chosen) == set(orders[order, prompt, :k])


def test_a_mask_that_repeats_an_earlier_one_is_emptied_and_says_which_it_repeats():
    orders = np.random.default_rng(0).permuted(np.tile(np.arange(4), (6, 3, 1)), axis=-1)
    masks = top_k_masks(orders, range(1, 5), num_layers=2)  # [24, 2, 3, 1, 2]
    kept, first = distinct(masks)
    for prompt in range(3):
        own = masks[:, :, prompt].reshape(24, -1)
        assert np.array_equal(own[first[:, prompt]], own), "each row is the one that it repeats"
        begun = kept[:, :, prompt].any(axis=(1, 2, 3))
        assert begun.sum() == len(np.unique(own, axis=0)) < 24
        assert np.array_equal(np.flatnonzero(begun), np.unique(first[:, prompt]))
        assert np.array_equal(kept[begun][:, :, prompt], masks[begun][:, :, prompt])


def test_donors_are_other_prompts_of_the_task_and_length():
    kinds = [("a", 4)] * 6 + [("b", 4), ("a", 5), ("b", 4)]
    prompts = [
        Prompt(PromptText("x", "y"), task, tuple(range(i, i + size)), 0)
        for i, (task, size) in enumerate(kinds)
    ]
    donors = choose_donors(prompts, 0)
    assert donors.partners.tolist() == [5] * 6 + [1, 0, 1]
    for i, row in enumerate(donors.draws):
        assert len(row) == DRAWS
        if donors.partners[i] >= DRAWS:
            assert len(set(row)) == DRAWS, "enough partners, so none twice"
        for j in row:
            assert prompts[j].task == prompts[i].task
            assert len(prompts[j].tokens) == len(prompts[i].tokens)
            assert (j != i) == (donors.partners[i] > 0)


def test_a_prompt_of_the_same_tokens_is_no_donor():
    """It has the same activations, and would make every importance 0."""
    texts = [("a", (1, 2)), ("a", (1, 2)), ("a", (1, 3)), ("b", (5, 6)), ("b", (5, 6))]
    prompts = [Prompt(PromptText("", ""), task, tokens, 0) for task, tokens in texts]
    donors = choose_donors(prompts, 0)
    assert donors.partners.tolist() == [1, 1, 2, 0, 0]
    for i, row in enumerate(donors.draws):
        same = {prompts[j].tokens == prompts[i].tokens for j in row}
        assert same == {donors.partners[i] == 0}


def test_logit_difference_is_against_the_best_other_token():
    logits = np.array([[1.0, 5.0, 4.0], [2.0, 0.0, 9.0], [8.0, 0.5, 1.0]], np.float32)
    import jax.numpy as jnp

    found = logit_difference(jnp.asarray(logits), jnp.array([1, 0, 0]))
    assert found.tolist() == [1.0, -7.0, 7.0]


def test_drift_ignores_padding_and_is_zero_where_a_norm_is():
    import jax.numpy as jnp

    rng = np.random.default_rng(0)
    base, moved = rng.standard_normal((2, 2, 4, 3, 5)).astype(np.float32)
    base[0, :, 1] = 0
    lengths = np.array([4, 2])
    moved[1, 2:] = np.nan
    found = head_drift(jnp.asarray(moved), jnp.asarray(base), jnp.asarray(lengths))
    for b, n in enumerate(lengths):
        for head in range(3):
            x, y = moved[b, n - 1, head], base[b, n - 1, head]
            norm = np.linalg.norm(y)
            expected = np.linalg.norm(x - y) / norm if norm else 0
            assert found.last[b, head] == pytest.approx(expected, rel=1e-5)
            whole = moved[b, :n, head].ravel(), base[b, :n, head].ravel()
            if norm:
                cosine = np.dot(*whole) / np.prod([np.linalg.norm(w) for w in whole])
                assert found.cosine_all[b, head] == pytest.approx(cosine, abs=1e-5)
    assert found.last[0, 1] == found.cosine_last[0, 1] == found.all[0, 1] == 0
    assert bool(found.finite.all())


def test_a_prompt_that_overflowed_drops_out_and_a_head_that_did_is_not_averaged():
    maps = np.arange(4 * 6, dtype=float).reshape(4, 2, 3)
    other = maps**2
    maps[1] = np.nan  # the whole prompt
    maps[2, 1, 2] = np.inf  # one head of one prompt
    first, second = mean_maps(maps, other)
    kept = [0, 2, 3]
    for found, given in ((first, maps), (second, other)):
        assert np.isnan(found[1, 2])
        assert found[0, 0] == given[kept, 0, 0].mean()
    assert all(
        np.isnan(mean).all() for mean in mean_maps(np.full((3, 2, 2), np.nan), maps[:3, :, :2])
    )


def test_corrected_p_values_hold_the_rate_of_false_discoveries(rng):
    """Of 20 tests with nothing in them, some passes uncorrected in 64 %, corrected in 5 %."""
    p = rng.uniform(size=(2000, 20))
    raw = (p < 0.05).any(axis=1).mean()
    corrected = np.mean([(stats.corrected(row) < 0.05).any() for row in p])
    assert raw > 0.5
    assert 0.03 < corrected < 0.07


def test_a_test_that_could_not_be_made_is_not_counted():
    p = np.array([0.01, np.nan, 0.04])
    np.testing.assert_allclose(stats.corrected(p), [0.02, np.nan, 0.04])
