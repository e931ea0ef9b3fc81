"""Claims about what a repair is said to win: by its own curves, against each of its controls."""

from dataclasses import replace

import numpy as np
import pytest
from synthetic_result import make_result

from jaxalign.studies.heads.analysis import summarize
from jaxalign.studies.heads.findings import CONTROLS, RANKINGS
from jaxalign.studies.heads.rankings import control_steps
from jaxalign.studies.heads.result import RepairResult

ORDERS, STEPS, PROMPTS = 6, 4, 12
HEADS = tuple((0, head) for head in range(STEPS))
K = control_steps(STEPS)


def repairs(curve, **controls):
    """Repairs of prompts whose margin falls from 2 to 1, with curves that win these shares back."""
    noise = np.random.default_rng(0).uniform(-0.05, 0.05, (PROMPTS, ORDERS, len(K)))
    noise[1::2] = -noise[::2]  # so that its mean over prompts is 0

    def control(name, i):
        return 1.0 + controls.get(name, 0.2) + noise[i]

    return [
        RepairResult(
            prompt=f"p{i}",
            task="IOI",
            precision="f16",
            logit_diff_f32=2.0,
            logit_diff_quantized=1.0,
            curves={name: np.full(STEPS, 1.0 + curve) for name in RANKINGS},
            heads=dict.fromkeys(RANKINGS, HEADS),
            steps=K,
            random=control("random", i),
            same_layers={name: control("same_layers", i) for name in RANKINGS},
            vectors={name: control("vectors", i) for name in RANKINGS},
        )
        for i in range(PROMPTS)
    ]


def judged(curve, reordered=0.0, **controls):
    """The tests; ``reordered`` is what another order of roundings changes of the margin."""
    result = make_result(
        precisions=("f16",), tasks=("IOI",), repair=False, prompts_per_task=PROMPTS
    )

    def with_noise(prompt):
        low = prompt.precisions["f16"]
        again = replace(low.reordered, logit_diff=low.logit_diff + reordered)
        return replace(prompt, precisions={"f16": replace(low, reordered=again)})

    prompts = [with_noise(prompt) for prompt in result.prompts]
    found = summarize(prompts, repairs(curve, **controls), ("f16",), 0).repair
    assert {(test.ranking, test.control) for test in found} == {
        (ranking, control) for ranking in RANKINGS for control in CONTROLS
    }
    return found


@pytest.mark.parametrize(
    ("curve", "random", "verdict"),
    [
        (0.9, 0.2, "beats it"),
        (0.2, 0.9, "worse"),
        (0.5, 0.5, "no better"),
        (2.0, 0.8, "worse"),  # beyond f32 is as far from it as before
    ],
)
def test_a_verdict_says_which_of_the_two_comes_closer_to_f32(curve, random, verdict):
    for test in judged(curve, random=random, same_layers=random, vectors=random):
        closed = 1 - abs(1 - curve)
        assert test.verdict == ("below noise" if closed == 0 else verdict), test
        assert (test.difference.low > 0) == (verdict == "beats it")


@pytest.mark.parametrize(
    ("name", "control"),
    [("random", CONTROLS[0]), ("same_layers", CONTROLS[1]), ("vectors", CONTROLS[2])],
)
def test_each_control_is_judged_by_its_own_curves(name, control):
    for test in judged(0.5, **{name: 0.9}):
        assert test.verdict == ("worse" if test.control == control else "beats it")


def test_what_another_order_of_roundings_changes_as_much_beats_nothing():
    assert all(test.verdict == "beats it" for test in judged(0.5, reordered=0.4))
    below = judged(0.5, reordered=0.6)
    assert all(test.verdict == "below noise" for test in below)
    assert all(test.noise == pytest.approx(0.6) for test in below)


def test_p_values_are_corrected_for_all_tests_of_the_study():
    tests = judged(0.5, random=0.45, same_layers=0.5)
    raw = np.array([test.difference.p for test in tests])
    corrected = np.array([test.difference.p_adjusted for test in tests])
    assert (corrected >= raw).all()
    assert corrected.max() > 0.05 > corrected.min()


def test_what_a_curve_closes_is_how_much_nearer_to_f32_it_ends_up():
    for test in judged(0.75, random=0.25):
        assert test.gap == pytest.approx(1.0)
        assert test.closed == pytest.approx(0.75)
        if test.control == CONTROLS[0]:
            assert test.control_closed == pytest.approx(0.25, abs=0.02)
            assert test.difference.value == pytest.approx(0.5, abs=0.02)
