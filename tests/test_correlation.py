"""Correlations over heads: against scipy, against depth, and against nothing at all."""

import itertools

import numpy as np
import pytest
from scipy import stats as scipy_stats

from jaxalign.measures import correlation, stats
from jaxalign.measures.correlation import (
    HeadEstimate,
    correlate_means,
    permutation_p,
    prepared,
    strata_of,
)

LAYERS, HEADS, PROMPTS = 6, 8, 12
GROUPS = np.repeat(np.arange(LAYERS), HEADS)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_over_all_heads_it_is_scipys(rng):
    x, y = rng.standard_normal((2, PROMPTS, 20))
    for rank, theirs in ((False, scipy_stats.pearsonr), (True, scipy_stats.spearmanr)):
        found = correlate_means(x, y, rng, rank=rank)
        expected = theirs(x.mean(axis=0), y.mean(axis=0))
        assert found.value == pytest.approx(expected[0])
        assert found.p == pytest.approx(expected[1], abs=0.03)


def test_inside_layers_it_is_the_correlation_of_what_the_layers_means_leave(rng):
    x, y = rng.standard_normal((2, PROMPTS, LAYERS * HEADS))
    left = [
        (means := each.mean(axis=0)) - np.repeat(means.reshape(LAYERS, HEADS).mean(axis=1), HEADS)
        for each in (x, y)
    ]
    found = correlate_means(x, y, rng, groups=GROUPS)
    assert found.value == pytest.approx(np.corrcoef(*left)[0, 1])
    ranked = correlate_means(x, y, rng, groups=GROUPS, rank=True)
    ranks = [
        scipy_stats.rankdata(each.mean(axis=0).reshape(LAYERS, HEADS), axis=1).ravel()
        for each in (x, y)
    ]
    assert ranked.value == pytest.approx(np.corrcoef(*ranks)[0, 1])


def test_a_partial_correlation_is_that_of_two_regressions_residuals(rng):
    x, y, z = rng.standard_normal((3, PROMPTS, 30))
    mean_x, mean_y, mean_z = (each.mean(axis=0) for each in (x, y, z))
    left = [each - np.polyval(np.polyfit(mean_z, each, 1), mean_z) for each in (mean_x, mean_y)]
    found = correlate_means(x, y, rng, given=z)
    assert found.value == pytest.approx(np.corrcoef(*left)[0, 1])


def test_depth_alone_is_found_over_all_heads_and_not_inside_layers():
    """Both sides grow with depth and have nothing else in common."""
    rng = np.random.default_rng(1)
    inside, across = [], []
    for _ in range(60):
        x, y = 2 * GROUPS + rng.standard_normal((2, PROMPTS, LAYERS * HEADS)) * 4
        across.append(correlate_means(x, y, rng).p)
        inside.append(correlate_means(x, y, rng, groups=GROUPS).p)
    assert max(across) < 0.05
    assert np.mean(np.array(inside) < 0.05) < 0.15
    assert scipy_stats.kstest(inside, "uniform").pvalue > 1e-3


def test_a_third_value_that_drives_both_is_found_without_it_and_not_given_it():
    rng = np.random.default_rng(2)
    alone, given = [], []
    for _ in range(60):
        z = rng.standard_normal((1, LAYERS * HEADS)) * np.ones((PROMPTS, 1))
        x, y = z + rng.standard_normal((2, PROMPTS, LAYERS * HEADS))
        alone.append(correlate_means(x, y, rng, groups=GROUPS).p)
        given.append(correlate_means(x, y, rng, groups=GROUPS, given=z).p)
    assert max(alone) < 0.05
    assert np.mean(np.array(given) < 0.05) < 0.15


def test_where_layers_are_small_the_p_value_counts_every_exchange(rng):
    a, b = rng.standard_normal((2, 6))
    groups = np.array([0, 0, 0, 1, 1, 1])
    null = [
        a @ b[[*first, *(3 + np.array(second))]]
        for first in itertools.permutations(range(3))
        for second in itertools.permutations(range(3))
    ]
    expected = np.mean(np.abs(null) >= abs(a @ b) - 1e-12)
    found = permutation_p(a, b, strata_of(groups), rng)
    assert found == expected
    assert found >= 1 / 36


def test_the_interval_over_heads_covers_what_other_heads_have():
    """Heads are drawn with a correlation of 0.6; the interval over prompts knows these only."""
    rng = np.random.default_rng(3)
    covered = {"over_prompts": 0, "over_heads": 0}
    for _ in range(100):
        a, noise = rng.standard_normal((2, 40))
        b = 0.6 * a + 0.8 * noise
        x, y = np.stack([a, b])[:, None] + 0.3 * rng.standard_normal((2, PROMPTS, 40))
        found = correlate_means(x, y, rng, test=False)
        for name in covered:
            low, high = getattr(found, name)
            covered[name] += low <= 0.6 <= high
    assert covered["over_heads"] >= 85
    assert covered["over_prompts"] <= 60


def test_layers_may_differ_in_how_many_heads_are_left(rng):
    groups = np.array([0, 0, 0, 1, 1, 1, 1, 2])
    x, y = rng.standard_normal((2, PROMPTS, 8))
    found = correlate_means(x, y, rng, groups=groups)
    left = [
        (means := each.mean(axis=0)) - np.array([means[groups == g].mean() for g in groups])
        for each in (x, y)
    ]
    assert found.value == pytest.approx(np.corrcoef(*left)[0, 1])
    assert found.p is not None


def test_what_is_constant_or_one_prompt_has_no_estimate(rng):
    nothing = HeadEstimate()
    assert correlate_means(np.ones((4, 8)), rng.standard_normal((4, 8)), rng) == nothing
    assert correlate_means(*rng.standard_normal((2, 1, 8)), rng) == nothing
    assert correlate_means(*rng.standard_normal((2, 4, 2)), rng) == nothing


def test_permutations_are_as_many_as_the_module_says(rng, monkeypatch):
    monkeypatch.setattr(stats, "PERMUTATIONS", 50)
    x = rng.standard_normal((10, 40))
    assert correlate_means(x, 2 * x + 0.01, rng).p == pytest.approx(1 / 51)


def test_permutations_of_strata_of_two_sizes_are_those_of_all_orders(monkeypatch):
    rng = np.random.default_rng(12)
    groups = np.repeat([0, 1], [6, 5])
    strata = strata_of(groups)
    a = prepared(rng.normal(size=11), strata, rank=False)
    b = prepared(a + rng.normal(size=11), strata, rank=False)
    parts = [
        np.array([a[own] @ b[list(order)] for order in itertools.permutations(own)])
        for own in (range(6), range(6, 11))
    ]
    null = np.abs(parts[0][:, None] + parts[1])
    exact = (null >= abs(a @ b) - 1e-9).mean()
    found = permutation_p(a, b, strata, np.random.default_rng(0))
    assert 0.005 < exact < 0.2, "one stratum alone gives less"
    assert found == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 10_000))
    monkeypatch.setattr(correlation, "AT_ONCE", 1000)
    assert permutation_p(a, b, strata, np.random.default_rng(0)) == found, "whatever is at once"
