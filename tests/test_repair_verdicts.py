"""Claims about what a repair is said to win: by its own curves, against its random orders."""

import numpy as np
import pytest
from synthetic_result import make_result

from jaxalign.studies.heads.analysis import summarize
from jaxalign.studies.heads.findings import RANKINGS
from jaxalign.studies.heads.result import RepairResult

ORDERS, STEPS, PROMPTS = 6, 4, 12
HEADS = tuple((0, head) for head in range(STEPS))


def repairs(curve, random):
    """Repairs of prompts whose margin falls from 2 to 1, with curves that win these shares back."""
    noise = np.random.default_rng(0).uniform(-0.05, 0.05, (PROMPTS, ORDERS, STEPS))
    noise[1::2] = -noise[::2]  # so that its mean over prompts is 0
    return [
        RepairResult(
            prompt=f"p{i}",
            task="IOI",
            precision="f16",
            logit_diff_f32=2.0,
            logit_diff_quantized=1.0,
            curves={name: np.full(STEPS, 1.0 + curve) for name in RANKINGS},
            heads=dict.fromkeys(RANKINGS, HEADS),
            random=1.0 + random + noise[i],
        )
        for i in range(PROMPTS)
    ]


def judged(curve, random):
    result = make_result(precisions=("f16",), tasks=("IOI",), repair=False)
    found = summarize(result.prompts, repairs(curve, random), ("f16",), 0).repair
    assert {test.ranking for test in found} == {*RANKINGS}
    return found


@pytest.mark.parametrize(
    ("curve", "random", "verdict"),
    [
        (0.9, 0.2, "beats random"),
        (0.2, 0.9, "worse than random"),
        (0.5, 0.5, "no better than random"),
        (2.0, 0.8, "worse than random"),  # beyond f32 is as far from it as before
    ],
)
def test_a_verdict_says_which_of_the_two_comes_closer_to_f32(curve, random, verdict):
    for test in judged(curve, random):
        assert test.verdict == verdict, test
        assert (test.difference.low > 0) == (verdict == "beats random")


def test_what_a_curve_closes_is_how_much_nearer_to_f32_it_ends_up():
    for test in judged(0.75, 0.25):
        assert test.gap == pytest.approx(1.0)
        assert test.closed == pytest.approx(0.75)
        assert test.random_closed == pytest.approx(0.25, abs=0.02)
        assert test.difference.value == pytest.approx(0.5, abs=0.02)
