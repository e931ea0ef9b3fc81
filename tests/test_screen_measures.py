"""What the agreement of a screen's estimates with exact values says, and when it says nothing."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from jaxalign.errors import InputError
from jaxalign.measures.screen import Agreement, agreement, missed_at_most
from jaxalign.measures.stats import generator


def rng() -> np.random.Generator:
    return generator(0, "test")


def test_a_scaled_copy_has_rank_correlation_one_and_its_scale_as_slope():
    exact = np.array([0.5, -1.0, 2.0, 0.25, 3.0, -0.75, 1.5, 0.0])
    found = agreement(exact / 2, exact, rng())
    assert found.items == 8
    assert found.spearman.value == pytest.approx(1)
    assert found.spearman.p < 0.01
    assert (found.slope.value, found.slope.low, found.slope.high) == pytest.approx((2, 2, 2))
    assert (found.worst_miss, found.worst, found.largest) == (1.5, 4, 3.0)


def test_values_are_those_of_scipy_and_intervals_hold_them():
    draw = np.random.default_rng(1)
    estimated = draw.normal(size=30)
    exact = 0.7 * estimated + 0.5 * draw.normal(size=30)
    found = agreement(estimated, exact, rng())
    assert found.spearman.value == pytest.approx(scipy_stats.spearmanr(estimated, exact).statistic)
    assert found.slope.value == pytest.approx(scipy_stats.linregress(estimated, exact).slope)
    for one in (found.spearman, found.slope):
        assert one.low < one.value < one.high


def test_unrelated_values_are_told_from_nothing_no_more_often_than_chance():
    draw = np.random.default_rng(2)
    told = [
        agreement(draw.normal(size=12), draw.normal(size=12), rng()).spearman.p < 0.05
        for _ in range(60)
    ]
    assert sum(told) <= 8  # 3 expected; more than 8 once in 200 times


@pytest.mark.parametrize(
    ("estimated", "exact"),
    [([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]), ([1.0] * 6, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])],
)
def test_four_items_or_no_variation_say_nothing_but_the_worst_miss(estimated, exact):
    found = agreement(np.array(estimated), np.array(exact), rng())
    assert found.spearman.value is None
    assert found.slope.value is None
    assert found.worst_miss == max(abs(np.array(estimated) - exact))


def test_no_items_are_no_agreement():
    assert agreement(np.zeros(0), np.zeros(0), rng()) == Agreement(items=0)


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(InputError, match="not finite"):
        agreement(np.zeros(2), np.array([1.0, np.nan]), rng())


def test_the_bound_on_what_was_missed_is_the_hypergeometric_one():
    assert missed_at_most(sampled=200, missed=3, dropped=200) == 3  # everything was looked at
    assert missed_at_most(sampled=0, missed=0, dropped=7) == 7  # nothing was
    bound = missed_at_most(sampled=20, missed=1, dropped=200)
    below, above = (scipy_stats.hypergeom(200, bad, 20).cdf(1) for bad in (bound, bound + 1))
    assert below > 0.05 >= above
