"""Claims about ``heads --screen``: what races, what is exact, what it costs, what it says."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from synthetic_result import make_result
from tiny_run import refusal, write_model, write_prompts

import jaxalign
from jaxalign import InputError
from jaxalign.measures.screen import agreement
from jaxalign.measures.stats import generator
from jaxalign.model.decoder import forward
from jaxalign.studies.heads import HEADS, HeadsOptions, screening
from jaxalign.studies.heads.calls import Runner
from jaxalign.studies.heads.edge_align import edge_align
from jaxalign.studies.heads.figures import OF_A_SCREEN
from jaxalign.studies.heads.findings import Screen
from jaxalign.studies.heads.programs import attributed
from jaxalign.studies.heads.race import (
    BUDGET,
    interleaved,
    leading,
    mean_estimate,
    survivors,
)
from jaxalign.studies.heads.table import screen as table
from jaxalign.study.calls import Call

LAYERS, HEADS_A_LAYER, FINALISTS = 12, 12, 20
PLACES = [
    *("France", "Germany", "Japan", "Egypt", "Spain", "Italy", "Greece", "China", "India"),
    *("Russia", "Cuba", "Peru", "Chile", "Iran", "Iraq", "Norway"),
]


# The race, on arrays.


def test_at_most_two_of_three_heads_drop_out_in_a_round():
    for heads, finalists in ((270, 16), (48, 16), (48, 47), (12, 1)):
        left = survivors(heads, finalists)
        assert left[-1] == finalists
        assert all(b >= a / 3 - 1 for a, b in zip((heads, *left), left, strict=False))


def test_every_beginning_of_the_order_has_its_share_of_each_task():
    tasks = ["a"] * 30 + ["b"] * 10
    order = interleaved(tasks, generator(0, "order"))
    assert sorted(order) == list(range(40))
    for end in range(4, 41):
        share = sum(tasks[i] == "b" for i in order[:end])
        assert abs(share - end / 4) <= 1.5


def test_a_mean_is_exact_where_first_order_is():
    draw = np.random.default_rng(0)
    exact = draw.normal(size=(30, 5))
    found = mean_estimate(exact, np.arange(2), exact)
    np.testing.assert_allclose(found.mean, exact.mean(axis=0))
    np.testing.assert_allclose(found.error, 0, atol=1e-12)


def test_without_first_order_a_mean_is_the_mean_of_what_ran():
    exact = np.random.default_rng(0).normal(size=(30, 5))
    ran = np.array([3, 1, 20])
    found = mean_estimate(exact, ran, None)
    np.testing.assert_allclose(found.mean, exact[ran].mean(axis=0))
    spread = exact[ran].std(axis=0, ddof=1) / np.sqrt(3)
    np.testing.assert_allclose(found.error, spread * np.sqrt(0.9))
    assert mean_estimate(exact, np.arange(30), None).error.max() == 0


def test_first_order_makes_means_better_and_errors_honest():
    draw = np.random.default_rng(1)
    first = draw.normal(size=(60, 200))
    exact = 0.8 * first + 0.3 * draw.normal(size=first.shape)
    order = draw.permutation(60)[:8]
    helped, alone = (mean_estimate(exact, order, x) for x in (first, None))
    misses = [np.abs(one.mean - exact.mean(axis=0)) for one in (helped, alone)]
    assert misses[0].mean() < 0.6 * misses[1].mean()
    assert 0.6 < np.sqrt((misses[0] ** 2).mean()) / np.sqrt((helped.error**2).mean()) < 1.4


def test_a_head_that_is_uncertain_gets_the_benefit_of_the_doubt():
    exact = np.array([[2.0, 0.0, 0.1, -1.0], [2.0, 1.0, 0.1, -1.0], [0, 0, 0, 0]])
    found = mean_estimate(exact, np.array([0, 1]), None)
    assert leading(found, 3).tolist() == [0, 1, 3]
    assert leading(replace(found, mean=found.mean * [np.nan, 1, 1, 1]), 3).tolist() == [1, 2, 3]


# The study.


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A model of 144 heads and 32 prompts of two tasks."""
    folder = tmp_path_factory.mktemp("screen")
    model = write_model(
        folder / "model",
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS_A_LAYER,
        hidden_size=96,
    )
    texts = {
        "capitals": [{"prompt": f"The capital of {p} is", "target": " Paris"} for p in PLACES],
        "rivers": [{"prompt": f"The river in {p} is", "target": " Rome"} for p in PLACES],
        "reference": ["The day was long", "It was a good day"],
    }
    return model, write_prompts(folder / "prompts.json", texts)


OPTIONS = HeadsOptions(schemes=(), repaired=(), ablations=("zero",), use_all_prompts=True)


@pytest.fixture(scope="module")
def studies(given):
    """The exact study, and the screened one."""
    model, prompts = jaxalign.load(str(given[0])), jaxalign.read_prompts(given[1])
    screened = replace(OPTIONS, screen=FINALISTS)
    return [HEADS(model, prompts, one, progress=False) for one in (OPTIONS, screened)]


def known(result, prompt):
    """Which heads are exact on a prompt of a screened study."""
    screen = result.screen
    places = [result.prompts[i].prompt for i in screen.prompts]
    return screen.exact if prompt.prompt in places else np.zeros_like(screen.exact)


def test_what_is_exact_has_the_values_of_the_exact_study_and_all_else_is_null(studies):
    for whole, own in zip(*(result.prompts for result in studies), strict=True):
        exact = known(studies[1], own)
        assert (np.isfinite(own.zero_importance) == exact).all()
        np.testing.assert_allclose(
            own.zero_importance[exact], whole.zero_importance[exact], atol=2e-5
        )


@pytest.mark.slow
def test_low_precision_ablates_the_exact_heads_and_repairs_all(given):
    model, prompts = jaxalign.load(str(given[0])), jaxalign.read_prompts(given[1])
    low = {"schemes": ("bf16",), "repaired": ("bf16",), "noise_draws": 3}
    options = replace(
        OPTIONS, **low, ablations=("zero", "mean"), screen=FINALISTS, max_repair_k=FINALISTS + 9
    )
    result = HEADS(model, prompts, options, progress=False)
    exact = result.screen.exact
    for prompt in result.prompts:
        own, low = known(result, prompt), prompt.precisions["bf16"]
        maps = [prompt.mean_importance, *low.importance.values(), low.reordered.importance]
        for found in (*maps, *low.noise.importance["mean"]):
            assert (np.isfinite(found) == own).all()
        assert (np.isfinite(low.first_order.restored) == exact).all()
        assert np.isfinite(low.drift).all()
        assert np.isfinite(low.noise.logit_diff).all()
    # Heads are ranked by their estimates where they are not exact.
    assert {*result.repairs[0].heads["zero_importance"]} - {*result.screen.top}
    assert all(np.isfinite(c).all() for r in result.repairs for c in r.curves.values())
    for row in (*result.statistics.agreement, *result.statistics.correlations):
        if row.task == "all":
            assert (row.heads, row.prompts) == (exact.sum(), len(result.screen.prompts))


def test_top_and_sample_are_marked_and_the_sample_dropped_out(studies):
    screen = studies[1].screen
    assert len(screen.top) == FINALISTS
    assert not {*screen.top} & {*screen.sampled}
    assert screen.exact.sum() == FINALISTS + len(screen.sampled)
    assert len(screen.sampled) <= FINALISTS / 2
    means = [np.mean([p.zero_importance[head] for p in kept(studies[1])]) for head in screen.top]
    assert (np.diff(np.abs(means)) <= 0).all()


def kept(result):
    return [result.prompts[i] for i in result.screen.prompts]


def test_agreement_is_that_of_the_sample(studies):
    screen = studies[1].screen
    exact = np.mean([p.zero_importance for p in kept(studies[1])], axis=0)
    pairs = [(screen.estimate[head], exact[head]) for head in screen.sampled]
    own = agreement(*np.array(pairs).T, generator(0, "screen agreement"))
    assert screen.agreement.worst_miss == pytest.approx(own.worst_miss)
    assert screen.agreement.spearman.value == pytest.approx(own.spearman.value)
    bar = min(abs(exact[head]) for head in screen.top[:10])
    assert screen.missed == sum(abs(value) > bar for _, value in pairs)
    assert screen.missed <= screen.missed_at_most <= LAYERS * HEADS_A_LAYER - FINALISTS


def test_it_costs_at_most_a_fifth_and_every_pass_is_counted(studies):
    exact, screened = studies
    screen, L, H, P = screened.screen, LAYERS, HEADS_A_LAYER, len(exact.prompts)
    sweep = P * (L + sum(L - 1 - layer for layer in range(L) for _ in range(H)))
    assert screen.exact_layer_rows == sweep
    assert screen.layer_rows <= BUDGET * sweep
    assert screen.operations <= BUDGET * screen.exact_operations
    assert screen.cost > BUDGET / 2
    # The log counts the race by itself; the backward pass is the clean run's.
    assert screen.first_order is not None
    wave = [c for c in screened.provenance.calls if c.phase.startswith("screen")]
    assert sum(c.rows > 1 for c in wave) == len(wave) >= 2
    assert screen.layer_rows > 3 * P * L


def test_a_dropped_head_is_estimated_from_fewer_prompts_than_a_leading_one(studies):
    screen = studies[1].screen
    assert np.isfinite(screen.estimate).all()
    first, last = screen.ran.min(), screen.ran.max()
    assert 2 <= first < last <= len(screen.prompts)
    assert all(screen.ran[head] == last for head in screen.top)


def test_estimates_follow_exact_means(studies):
    exact, screen = np.mean([p.zero_importance for p in studies[0].prompts], axis=0), studies[1]
    found = agreement(screen.screen.estimate.ravel(), exact.ravel(), generator(0, "all"))
    assert found.spearman.value > 0.5
    assert found.spearman.low > 0


def test_the_screen_says_first_how_many_are_exact_and_how_well_estimates_agree(studies):
    exact, screened = (table(result).splitlines() for result in studies)
    assert f"{int(studies[1].screen.exact.sum())} of 144 heads exact" in screened[1]
    assert screened[2].startswith("estimates")
    assert "screen:" not in "\n".join(exact)
    assert max(map(len, screened)) <= 100
    assert len(screened) <= 35


def test_a_file_has_the_screen_and_a_file_of_version_3_has_none(studies, tmp_path):
    path = tmp_path / "experiment.json"
    HEADS.write(studies[1], path)
    again = HEADS.read(path)
    assert again.screen.top == studies[1].screen.top
    np.testing.assert_allclose(again.screen.estimate, studies[1].screen.estimate, rtol=1e-6)
    content = json.loads(path.read_text())
    assert content["format"] == "jaxalign.heads/4"
    del content["screen"]
    path.write_text(json.dumps(content | {"format": "jaxalign.heads/3"}))
    assert HEADS.read(path).screen is None


def test_only_a_screened_study_has_the_figure_of_estimates(studies, tmp_path):
    exact, screened = (OF_A_SCREEN["fig8_estimate_vs_exact"](result) for result in studies)
    assert exact is None
    drawn = screened.settled()
    assert [len(ax.collections) > 0 for ax in drawn.figure.axes[:2]] == [True, True]


def test_edge_aligns_format_has_no_place_for_estimates(studies):
    with pytest.raises(InputError, match="screened"):
        edge_align(studies[1])


@pytest.mark.slow
def test_first_order_is_the_slope_of_scaling_a_head_away(given):
    model = jaxalign.load(str(given[0]))
    tokens = jnp.array([[5, 9, 200, 31]], jnp.int32)

    by = np.zeros((LAYERS, 1, 1, HEADS_A_LAYER, 1), np.float32)
    by[3, ..., 5, :] = 0.01

    def margin(by):
        edit = jaxalign.Edit(jaxalign.Scale("z", by=by))
        out = forward(model.params, tokens, model.config, edit=edit, last_only=True)
        return float(out.logits[0, 7] - out.logits[0, 8])

    slope = (margin(by) - margin(-by)) / 0.02

    def steered(added):
        edit = jaxalign.Edit(jaxalign.Add("attn_out", np.ones((LAYERS, 1, 1, 1)), value=added))
        out = forward(model.params, tokens, model.config, edit=edit, capture=("z",), last_only=True)
        return out.logits[0, 7] - out.logits[0, 8], out.activations["z"]

    gradient, z = jax.grad(steered, has_aux=True)(jnp.zeros((LAYERS, 1, 4, 96)))
    state = z[:, 0].reshape(LAYERS, 4, HEADS_A_LAYER, -1)
    found = attributed(model.params, state, gradient[:, 0], head_mode="true")
    assert found[3, 5] == pytest.approx(slope, rel=0.02)


# What is refused, and when a screen is suggested.


def test_too_few_prompts_and_heads_are_refused_in_one_line(given, tmp_path, monkeypatch):
    few = json.loads(given[1].read_text())
    few["capitals"], few["rivers"] = few["capitals"][:3], few["rivers"][:2]
    path = write_prompts(tmp_path / "few.json", few)
    small = ("--use-all-prompts", "--schemes", "f16", "--output", tmp_path / "out.json")
    common = ("heads", "--model", given[0], *small)
    assert "144 heads" in refusal(*common, "--prompts", given[1], "--screen", 144)
    assert "--screen" in refusal(*common, "--prompts", given[1], "--screen", 0)
    monkeypatch.setattr(Call, "compute", lambda call: pytest.fail("computed"))
    assert "5 prompts in all" in refusal(*common, "--prompts", path, "--screen", 5)


def test_a_screen_is_suggested_only_where_the_exact_sweep_is_long(given, monkeypatch):
    model = jaxalign.load(str(given[0]))
    runner = Runner(model, HeadsOptions(ablations=("zero",)))

    batch = SimpleNamespace(shape=(4, 16), index=(0, 1, 2))
    sweep = SimpleNamespace(layer_rows=10**9, rows=145, batch=batch)
    monkeypatch.setattr(screening, "machine_rate", lambda: 1e10)
    said = screening.suggestion(runner, [sweep], 1)
    assert "--screen 16" in said
    assert "144 heads on 3 prompts" in said
    assert screening.suggestion(runner, [sweep], 10**6) == ""
    assert screening.suggestion(runner, [], 1) == ""


def test_a_result_without_a_sample_says_so():
    result = make_result()
    heads = [(0, n) for n in range(8)]
    maps = np.zeros((6, 8))
    bare = Screen(
        top=tuple(heads), sampled=(), prompts=(0, 1), estimate=maps, error=maps, ran=maps,
        first_order=None, agreement=agreement(np.zeros(0), np.zeros(0), generator(0)),
        missed=0, missed_at_most=40, layer_rows=1, exact_layer_rows=5, operations=1.0,
        exact_operations=5.0,
    )  # fmt: skip
    lines = table(replace(result, screen=bare)).splitlines()
    assert "8 of 48 heads exact on 2 of 10 prompts, 40 estimated; 20%" in lines[1]
    assert "too few" in lines[2]
