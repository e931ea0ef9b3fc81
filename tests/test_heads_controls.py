"""Claims about the heads study's controls and screen, on arrays and made-up results."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from synthetic_result import made_up_statistics, make_result

import jaxalign
from jaxalign.engine.budget import operations_per_row, plan_chunks
from jaxalign.errors import InputError
from jaxalign.model.decoder import forward
from jaxalign.numerics.scheme import F32
from jaxalign.studies.heads import HeadsOptions, edited
from jaxalign.studies.heads.programs import Question, contributions
from jaxalign.studies.heads.table import screen


@pytest.fixture(scope="module")
def model():
    return jaxalign.load("demo")


@pytest.fixture
def moved(model, monkeypatch):
    """What ``vector_run`` puts in the heads' places, by its seeds: ``[draws, L, B, S, H, D]``."""
    tokens, lengths = model.encode(["The capital of France is", "The opposite of hot is"])
    z = forward(model.params, tokens, model.config, lengths=lengths, capture=("z",)).activations[
        "z"
    ]
    shape = (*z.shape[:3], model.config.num_heads, model.config.head_size)
    high = z.reshape(shape)
    low = high * (1 + 0.1 * np.random.default_rng(0).standard_normal(shape).astype(np.float32))
    caught = []
    monkeypatch.setattr(
        edited, "sharded_sweep", lambda *args, **_: caught.extend(args[5]) or _answers(args[5])
    )
    masks = np.ones((1, shape[0], 2, 1, shape[3]), bool)

    def run(seeds):
        caught.clear()
        edited.vector_run.fun(
            model.params,
            model.params,
            Question(tokens, lengths, lengths, lengths),
            high,
            masks,
            low,
            np.array(seeds, np.uint32),
            config=model.config,
            scheme=F32,
            head_mode="true",
            draws=3,
        )
        return np.stack([np.asarray(edit.sites[0].value) for edit in caught])

    own = np.asarray(contributions(model.params, low, "true"))
    return run, own, np.asarray(contributions(model.params, high, "true"))


def _answers(edits):
    class Answers:
        logit_diff = jnp.zeros((2, 2))

    return [Answers() for _ in edits]


def test_a_random_vector_is_as_long_as_the_repair_it_stands_for(moved):
    run, own, high = moved
    distance = np.linalg.norm(high - own, axis=-1)
    for value in run([[0, 0], [0, 1]]):
        np.testing.assert_allclose(np.linalg.norm(value - own, axis=-1), distance, rtol=1e-4)
        # In no direction of its own: not that of the repair.
        cosine = ((value - own) * (high - own)).sum(-1) / np.maximum(distance**2, 1e-30)
        assert abs(cosine.mean()) < 0.05


def test_prompts_draws_and_seeds_have_vectors_of_their_own_whatever_call_they_are_in(moved):
    run, own, _ = moved
    ways = run([[0, 0], [0, 1]]) - own
    assert np.array_equal(run([[0, 7], [0, 1]])[:, :, 1] - own[:, 1], ways[:, :, 1])
    assert not np.allclose(ways[0], ways[1])
    unit = ways / np.linalg.norm(ways, axis=-1, keepdims=True)
    assert abs((unit[0, :, 0] * unit[0, :, 1]).sum(-1).mean()) < 0.05
    assert not np.allclose(run([[1, 0], [1, 1]]) - own, ways)


def test_a_call_computes_no_more_than_it_is_given(model):
    config, rows = model.config, 289
    each = operations_per_row(config, 16)
    assert plan_chunks(config, rows, 16, 1e12, most_operations=10.5 * rows * each) == (10, rows)
    assert plan_chunks(config, rows, 16, 1e12, most_operations=40.5 * each) == (1, 40)
    assert plan_chunks(config, rows, 16, 1e12, most_operations=0.0, least_rows=7) == (1, 7)
    assert plan_chunks(config, rows, 16, 1e12) == (64, rows)


def test_means_over_positions_need_a_head_that_is_replaced_by_one():
    with pytest.raises(InputError, match="none replaces a head"):
        HeadsOptions(mean_positions="all", ablations=("zero",))
    HeadsOptions(mean_positions="all", ablations=("zero", "mean"))


@pytest.mark.parametrize("ablations", [("mean",), (), ("zero", "zero"), ("zero", "patch")])
def test_ablations_are_some_of_the_three_and_zero_is_among_them(ablations):
    with pytest.raises(InputError, match="ablation"):
        HeadsOptions(ablations=ablations)


@pytest.mark.slow
def test_of_many_precisions_the_screen_shows_those_that_change_importance_most():
    names = tuple(f"p{i}" for i in range(7))
    result = make_result(precisions=names, repair=False, num_layers=3, prompts_per_task=2)
    worst = "p3"

    def spoiled(prompt):
        low = prompt.precisions[worst]
        turned = {kind: -values for kind, values in low.importance.items()}
        return replace(
            prompt, precisions=prompt.precisions | {worst: replace(low, importance=turned)}
        )

    prompts = tuple(map(spoiled, result.prompts))
    found = replace(result, prompts=prompts, statistics=made_up_statistics(prompts, (), names, 0))
    text = screen(found)
    assert f"\n{worst}: other heads matter (r -" in text
    shown = sum(f"\n{name}: " in text for name in names)
    assert 1 < shown < len(names)
    assert f"\n{len(names) - shown} more precisions, which change importance less" in text


@pytest.mark.parametrize(
    ("precisions", "shape"), [(1, (32, 40)), pytest.param(9, (6, 8), marks=pytest.mark.slow)]
)
def test_the_screen_is_one_screen(precisions, shape):
    layers, heads = shape
    names = tuple(f"gptq-actorder-g{64 + i}" for i in range(precisions))
    result = make_result(precisions=names, num_layers=layers, num_heads=heads, prompts_per_task=2)
    for notes in (0, 9):
        given = tuple(f"a note that is {'very ' * 40}long" for _ in range(notes))
        where = replace(result.provenance, notes=given)
        lines = screen(replace(result, provenance=where)).splitlines()
        assert len(lines) <= 35
        assert max(map(len, lines)) <= 100


def test_one_prompt_has_no_verdict_on_the_screen():
    result = make_result(precisions=("nf4",), tasks=("IOI",), prompts_per_task=1, num_layers=3)
    text = screen(result)
    assert "nf4: one prompt is a picture, no finding" in text
    assert not any(words in text for words in ("heads matter (r", "beats", "Told from chance"))


def test_answers_and_lead_stand_beside_those_of_the_noise():
    result = make_result(precisions=("nf4",), num_layers=2, num_heads=3)
    [mean] = [m for m in result.statistics.task_means if (m.task, m.precision) == ("all", "nf4")]
    noise = np.array([p.precisions["nf4"].noise.logit_diff for p in result.prompts]).T
    high = np.array([p.logit_diff for p in result.prompts])
    np.testing.assert_allclose(mean.noise, (noise - high).mean(axis=1), rtol=1e-5, atol=1e-6)
    assert mean.noise_kept == tuple((noise > 0).sum(axis=1))
    assert f"of {mean.prompts} ({np.mean(mean.noise_kept):.0f})" in screen(result)
    assert f"({np.mean(mean.noise):+.2f})" in screen(result)


def test_a_heads_own_record_has_its_own_noise():
    result = make_result(precisions=("nf4",), num_layers=2, num_heads=3)
    rows = [row for row in result.records() if row["prompt"] == result.prompts[0].prompt]
    assert len(rows) == 6
    draws = result.prompts[0].precisions["nf4"].noise.importance["zero"]
    for row in rows:
        assert row["nf4.noise.importance.zero"] == draws[:, row["layer"], row["head"]].tolist()
