"""Do the same heads matter: the headline's numbers, computed again with numpy and scipy alone."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from synthetic_result import make_result

from jaxalign.measures.estimates import ALL_TASKS
from jaxalign.studies.heads.agreement import agreement


@pytest.fixture(scope="module")
def prompts():
    """Of a made-up study whose nf4 moves importance more than noise does."""
    rng = np.random.default_rng(3)

    def moved(prompt):
        low = prompt.precisions["nf4"]
        importance = {
            kind: values + rng.normal(0, 0.2, values.shape)
            for kind, values in low.importance.items()
        }
        return replace(prompt, precisions={"nf4": replace(low, importance=importance)})

    return tuple(map(moved, make_result(precisions=("nf4",), repair=False).prompts))


def profiles(prompts, kind):
    """f32's, the precision's and every noise draw's importance, ``[P, L·H]``."""
    size = len(prompts)
    high = np.array([p.importance(kind) for p in prompts]).reshape(size, -1)
    low = np.array([p.precisions["nf4"].importance[kind] for p in prompts]).reshape(size, -1)
    noise = np.array([p.precisions["nf4"].noise.importance[kind] for p in prompts])
    return high, low, [noise[:, draw].reshape(size, -1) for draw in range(noise.shape[1])]


def rank(a, b):
    return stats.spearmanr(a, b).statistic


def by_prompt(measure):
    return lambda a, b: np.mean([measure(x, y) for x, y in zip(a, b, strict=True)])


def of_means(measure):
    return lambda a, b: measure(a.mean(axis=0), b.mean(axis=0))


def shared(k):
    def count(a, b):
        return len({*np.argsort(-np.abs(a))[:k]} & {*np.argsort(-np.abs(b))[:k]})

    return count


MEASURES = {
    "pearson": (of_means(lambda a, b: np.corrcoef(a, b)[0, 1]), np.arctanh),
    "spearman": (of_means(rank), np.arctanh),
    "prompt_pearson": (by_prompt(lambda a, b: np.corrcoef(a, b)[0, 1]), np.arctanh),
    "prompt_spearman": (by_prompt(rank), np.arctanh),
    "relative_error": (
        of_means(lambda a, b: np.linalg.norm(b - a) / np.linalg.norm(a)),
        np.log,
    ),
    "top5": (of_means(shared(5)), None),
    "top10": (of_means(shared(10)), None),
}


@pytest.mark.parametrize("kind", ["zero", "mean"])
@pytest.mark.parametrize("name", MEASURES)
def test_a_measure_and_its_noise_are_those_of_the_definition(prompts, name, kind):
    measure, near_normal = MEASURES[name]
    found = getattr(agreement(prompts, ALL_TASKS, "nf4", kind, 0), name)
    high, low, noise = profiles(prompts, kind)
    assert found.value == pytest.approx(measure(high, low), rel=1e-6)
    assert len(found.noise) == 5
    assert found.noise == pytest.approx([measure(high, draw) for draw in noise], rel=1e-6)
    if near_normal is None:
        assert found.p is None
        return
    draws = near_normal(np.array(found.noise))
    t = abs(near_normal(found.value) - draws.mean()) / (draws.std(ddof=1) * np.sqrt(1 + 1 / 5))
    assert found.p == pytest.approx(2 * stats.t.sf(t, 4), rel=1e-6)


def test_the_head_that_changes_most_is_named_with_its_change(prompts):
    found = agreement(prompts, ALL_TASKS, "nf4", "zero", 0)
    high, low, _ = profiles(prompts, "zero")
    change = (low - high).mean(axis=0)
    head = found.largest[0] * prompts[0].zero_importance.shape[1] + found.largest[1]
    assert head == np.abs(change).argmax()
    assert found.largest_change.value == pytest.approx(change[head])
    assert found.largest_change.low < change[head] < found.largest_change.high


def test_intervals_hold_the_value_and_the_one_over_heads_is_the_wider(prompts):
    found = agreement(prompts, ALL_TASKS, "nf4", "zero", 0)
    for one in (found.pearson, found.spearman):
        (low, high), (lower, higher) = one.over_prompts, one.over_heads
        assert lower < one.value < higher
        assert higher - lower > high - low
        assert one.chance_p < 0.01


def test_a_precision_without_this_ablation_has_no_agreement(prompts):
    without = tuple(
        replace(
            p,
            precisions={
                "nf4": replace(
                    p.precisions["nf4"],
                    importance={"zero": p.precisions["nf4"].importance["zero"]},
                )
            },
        )
        for p in prompts
    )
    assert agreement(without, ALL_TASKS, "nf4", "mean", 0) is None
    assert agreement(without, ALL_TASKS, "nf4", "zero", 0) is not None
