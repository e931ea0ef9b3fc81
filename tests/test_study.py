"""The heads study against an independent replay of its definitions in PyTorch."""

import dataclasses
import json

import numpy as np
import pytest
from pythia_shape import tiny_checkpoint
from scipy import stats as scipy_stats

import jaxalign
from jaxalign.checkpoints.hub import BUNDLED
from jaxalign.engine.budget import bytes_per_call, bytes_per_row
from jaxalign.model import count
from jaxalign.numerics import F16, INT8_SIM
from jaxalign.prompts import PromptSet, PromptText, tokenize
from jaxalign.studies.heads import HeadsOptions, heads_study
from jaxalign.studies.heads.edge_align import forward_passes
from jaxalign.studies.heads.findings import CONTROLS, RANKINGS
from jaxalign.studies.heads.rankings import RANDOM_ORDERS, SAME_LAYERS, VECTORS, choose_donors

torch = pytest.importorskip("torch")
import torch_replay  # noqa: E402 - needs torch

PROMPTS = PromptSet(
    {
        "factual": (
            PromptText("The capital of France is", " Paris", " Rome"),
            PromptText("The capital of Italy is", " Rome", " Paris"),
            PromptText("The opposite of hot is", " cold"),
        ),
        "ioi": (
            PromptText("When Anna and Tom went to the shop, Tom gave a book to", " Anna", " Tom"),
            PromptText("When Tom and Anna went to the shop, Anna gave a book to", " Tom", " Anna"),
        ),
    },
    ("It was a quiet day.", "She opened the window and looked out.", "The train is late again"),
)
MODES = ("true", "edge-align")
K = 12  # all heads
REPLAYED = 4  # of them, in the replay


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    size = json.loads((BUNDLED / "config.json").read_text())["vocab_size"]
    return tiny_checkpoint(
        tmp_path_factory.mktemp("tiny"),
        vocab_size=size,
        tokenizer=BUNDLED / "tokenizer.json",
        seed=4,
    )


@pytest.fixture(scope="module")
def model(folder):
    return jaxalign.load(str(folder))


@pytest.fixture(scope="module")
def studies(model):
    """With true heads, f16 and int8-sim; with edge-align's, int8-sim alone."""
    every = {"max_repair_k": K, "use_all_prompts": True}
    true = HeadsOptions(schemes=(F16, INT8_SIM), repaired=("f16", "int8-sim"), **every)
    blocks = HeadsOptions(
        schemes=(INT8_SIM,), repaired=("int8-sim",), head_mode="edge-align", **every
    )
    return dict(
        zip(MODES, (heads_study(model, PROMPTS, how) for how in (true, blocks)), strict=True)
    )


@pytest.fixture(scope="module")
def witness(folder, model):
    params, config = torch_replay.load(folder)
    prompts, reference, _ = tokenize(PROMPTS, model.tokenizer, model.config)
    return params, config, prompts, reference


@pytest.mark.parametrize("mode", MODES)
def test_zero_and_mean_importance_equal_the_replay(studies, witness, mode):
    params, config, prompts, reference = witness
    means = torch_replay.reference_means(params, config, reference, head_mode=mode)
    for prompt, ours in zip(prompts, studies[mode].prompts, strict=True):
        for values, found in ((None, ours.zero_importance), (means, ours.mean_importance)):
            expected = torch_replay.importance(
                params, config, list(prompt.tokens), prompt.target, values, head_mode=mode
            )
            np.testing.assert_allclose(found, expected, atol=1e-4)
            assert np.abs(expected).max() > 1e-2


@pytest.mark.parametrize("mode", MODES)
def test_resample_importance_equals_the_replay_with_the_same_donors(studies, witness, mode):
    params, config, prompts, _ = witness
    donors = choose_donors(prompts, HeadsOptions.seed)
    assert (donors.partners > 0).any()
    for i, (prompt, ours) in enumerate(zip(prompts, studies[mode].prompts, strict=True)):
        assert ours.resample_partners == donors.partners[i]
        if not donors.partners[i]:
            assert ours.resample_importance is None
            continue
        replayed = {}
        for j in {*donors.draws[i].tolist()}:
            assert prompts[j].task == prompt.task
            assert len(prompts[j].tokens) == len(prompt.tokens)
            given = torch_replay.contributions(
                params, config, list(prompts[j].tokens), head_mode=mode
            )
            replayed[j] = torch_replay.importance(
                params, config, list(prompt.tokens), prompt.target, given, head_mode=mode
            )
        draws = [replayed[j] for j in donors.draws[i]]
        np.testing.assert_allclose(ours.resample_importance, np.mean(draws, axis=0), atol=1e-4)


@pytest.mark.parametrize("kind", ["zero", "mean"])
def test_importance_inside_int8_equals_the_replay_with_its_own_means(studies, witness, kind):
    """The low-precision model is ablated itself: its clean run, its means."""
    params, config, prompts, reference = witness
    how = {"head_mode": "true", "int8": True}
    compared = different = 0
    for prompt, ours in zip(prompts, studies["true"].prompts, strict=True):
        found = ours.precisions["int8-sim"].importance[kind]

        def replay(p, prompt=prompt):
            means = torch_replay.reference_means(p, config, reference, **how)
            values = None if kind == "zero" else means.astype(next(iter(p.values())).numpy().dtype)
            asked = p, config, list(prompt.tokens), prompt.target, values
            return torch_replay.importance(*asked, **how)

        expected, same = stable(params, replay)
        np.testing.assert_allclose(found[same], expected[same], rtol=2e-3, atol=2e-5)
        compared += same.sum()
        high = getattr(ours, f"{kind}_importance")
        different += (np.abs(found - high) > 1e-4 * np.abs(high).max()).sum()
    assert compared >= 0.7 * len(prompts) * found.size
    assert different > 0.5 * len(prompts) * found.size, "this is not importance in f32"


def stable(params, call):
    """What ``call`` gives, and where it is the same in f64: elsewhere an int8 code flipped."""
    found = call(params)
    exact = call({name: value.double() for name, value in params.items()})
    return found, np.abs(found - exact) <= 2e-4 * np.abs(exact) + 1e-7


@pytest.mark.parametrize("mode", MODES)
def test_int8_drift_equals_the_replay(studies, witness, mode):
    params, config, prompts, _ = witness
    compared = 0
    for prompt, ours in zip(prompts, studies[mode].prompts, strict=True):
        found = ours.precisions["int8-sim"]
        fields = {"relative": found.drift, "cosine": found.cosine}
        fields |= {"relative_all": found.drift_all, "cosine_all": found.cosine_all}
        for name, values in fields.items():
            expected, same = stable(
                params,
                lambda p, name=name, prompt=prompt: getattr(
                    torch_replay.drift(p, config, list(prompt.tokens), head_mode=mode), name
                ),
            )
            np.testing.assert_allclose(values[same], expected[same], rtol=1e-3, atol=1e-6)
            compared += same.sum()
    assert compared >= 0.8 * len(prompts) * 4 * found.drift.size


@pytest.mark.parametrize("mode", MODES)
def test_int8_repair_curves_equal_the_replay(studies, witness, mode):
    params, config, prompts, _ = witness
    repairs = [r for r in studies[mode].repairs if r.precision == "int8-sim"]
    compared = 0
    for prompt, ours in zip(prompts, repairs, strict=True):
        for ranking, order in ours.heads.items():
            heads = list(order[:REPLAYED])
            expected, same = stable(
                params,
                lambda p, heads=heads, prompt=prompt: torch_replay.repair_curve(
                    p, config, list(prompt.tokens), prompt.target, heads, head_mode=mode
                ),
            )
            curve = ours.curves[ranking][:REPLAYED]
            np.testing.assert_allclose(curve[same], expected[same], rtol=1e-3, atol=1e-5)
            compared += same.sum()
    assert compared >= 0.8 * len(prompts) * 4 * REPLAYED


@pytest.mark.parametrize("mode", MODES)
def test_first_order_prediction_equals_the_replay(studies, witness, mode):
    params, config, prompts, _ = witness
    for prompt, ours in zip(prompts, studies[mode].prompts, strict=True):
        account = ours.precisions["int8-sim"].first_order
        change = torch_replay.first_order(
            params, config, list(prompt.tokens), prompt.target, head_mode=mode
        )
        # The replay predicts the step from f32 to int8; we predict the way back.
        error = np.abs(account.predicted + change).max()
        assert error <= 5e-3 * np.abs(change).max()
        assert account.absolute_sum == pytest.approx(np.abs(account.predicted).sum(), rel=1e-4)
        assert account.signed_sum == pytest.approx(account.predicted.sum(), abs=1e-6)
        assert account.bound_held == (abs(account.degradation) <= account.absolute_sum)


def test_f16_drift_is_what_pytorch_finds_in_f16(folder, studies, witness):
    transformers = pytest.importorskip("transformers")
    _, config, prompts, _ = witness
    runs = {}
    for dtype in (torch.float32, torch.float16):
        net = transformers.GPTNeoXForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation="eager"
        ).eval()
        caught = []
        for block in net.gpt_neox.layers:
            block.attention.dense.register_forward_hook(
                lambda module, given, out, caught=caught: caught.append(
                    (given[0][0, -1].float(), module.weight.detach().float())
                )
            )
        with torch.no_grad():
            for prompt in prompts:
                net(torch.tensor([prompt.tokens]))
        H = config["num_attention_heads"]
        runs[dtype] = np.array(
            [
                [
                    (z.reshape(H, -1)[i] @ w.T.reshape(H, -1, w.shape[0])[i]).numpy()
                    for i in range(H)
                ]
                for z, w in caught
            ]
        )
    exact, low = runs[torch.float32], runs[torch.float16]
    theirs = np.linalg.norm(low - exact, axis=-1) / np.linalg.norm(exact, axis=-1)
    ours = np.array([p.precisions["f16"].drift for p in studies["true"].prompts])
    # Two f16 programs round in other orders, so heads agree in distribution, not one by one.
    assert np.median(ours) == pytest.approx(np.median(theirs), rel=0.25)
    assert 1e-5 < np.median(ours) < 1e-2


def test_all_heads_restored_give_the_same_margin_in_any_order(studies):
    for repair in studies["true"].repairs:
        ends = [
            *repair.curves.values(),
            *repair.random,
            *np.concatenate([*repair.same_layers.values()]),
        ]
        assert repair.steps[-1] == K
        assert np.ptp([each[-1] for each in ends]) == 0, "equal rows of one call: to the bit"
        curves = np.array([*repair.curves.values()])
        assert np.ptp(curves[:, 0]) > 0
        assert abs(curves[0, -1] - repair.logit_diff_quantized) > 0


def test_repairs_that_repeat_another_are_not_computed_and_have_its_bits(
    model, studies, monkeypatch
):
    def as_they_are(masks):
        rows = np.arange(len(masks))[:, None]
        return masks, np.broadcast_to(rows, masks.shape[::2][:2])

    monkeypatch.setattr("jaxalign.studies.heads.repair.distinct", as_they_are)
    options = HeadsOptions(
        schemes=(F16, INT8_SIM),
        repaired=("f16", "int8-sim"),
        max_repair_k=K,
        use_all_prompts=True,
    )
    every = heads_study(model, PROMPTS, options)
    for ours, wanted in zip(studies["true"].repairs, every.repairs, strict=True):
        assert np.array_equal(ours.random, wanted.random)
        assert all(np.array_equal(ours.curves[name], wanted.curves[name]) for name in ours.curves)
    rows = [run.provenance.layer_rows for run in (studies["true"], every)]
    assert rows[0] < rows[1]


@pytest.mark.slow
def test_memory_budget_changes_chunks_but_not_numbers(model, studies):
    # Room for the weights, the shared replacement values and forty rows of sixteen positions.
    needed = (
        2 * 4 * count(model.params)
        + bytes_per_call(model.config, 16)
        + 4 * 6 * 12 * 16 * 32
        + 40 * bytes_per_row(model.config, 16)
    )
    tight = HeadsOptions(schemes=(), repaired=(), use_all_prompts=True, memory_gb=needed / 1e9)
    small = heads_study(model, PROMPTS, tight)
    large = studies["true"]
    calls = [
        sum(call.times for call in run.provenance.calls if call.precision == "f32")
        for run in (small, large)
    ]
    assert calls[0] > 2 * calls[1]
    for a, b in zip(small.prompts, large.prompts, strict=True):
        scale = np.abs(b.zero_importance).max()
        np.testing.assert_allclose(a.zero_importance, b.zero_importance, atol=2e-5 * scale)
        np.testing.assert_allclose(a.mean_importance, b.mean_importance, atol=2e-5 * scale)


def test_every_number_of_the_result_stands_beside_its_control(studies):
    result = studies["true"]
    assert {r.precision for r in result.repairs} == {"f16", "int8-sim"}
    for repair in result.repairs:
        steps = len(repair.steps)
        assert repair.random.shape == (RANDOM_ORDERS, steps)
        for controls, drawn in ((repair.same_layers, SAME_LAYERS), (repair.vectors, VECTORS)):
            assert {name: own.shape for name, own in controls.items()} == dict.fromkeys(
                RANKINGS, (drawn, steps)
            )
        assert set(repair.curves) == set(RANKINGS)
    for row in result.statistics.correlations:
        for estimate in (row.pearson, row.spearman, row.all_pearson, row.given_size):
            missing = [part is None for part in dataclasses.astuple(estimate)]
            assert not any(missing) or all(missing), "a correlation without interval or p-value"
            if row.task == "all" and row.importance == "zero":
                for low, high in (estimate.over_prompts, estimate.over_heads):
                    assert -1 <= low < high <= 1
                assert 0 < estimate.p <= estimate.p_adjusted <= 1
    tests = result.statistics.repair
    assert {test.control for test in tests} == set(CONTROLS)
    for row in tests:
        low, high = row.difference.low, row.difference.high
        told_apart = row.difference.p_adjusted < 0.05 and not low <= 0 <= high
        below = abs(row.closed) <= row.noise
        assert (row.verdict == "below noise") == below
        assert below or (row.verdict != "no better") == told_apart
    f16 = [row for row in result.statistics.agreement if row.precision == "f16"]
    floored = [row for row in f16 if row.replacement != "resample"]
    assert floored
    assert all(row.pearson.noise and row.relative_error.p is not None for row in floored)
    assert all(row.pearson.reordered is not None for row in f16 if row.replacement == "zero")
    assert all(row.top5.chance == 25 / 12 for row in result.statistics.agreement)


def test_noise_is_another_model_in_every_draw_and_moves_importance(studies):
    for prompt in studies["true"].prompts:
        noise = prompt.precisions["f16"].noise
        draws = noise.importance["zero"]
        assert draws.shape == (5, 3, 4)
        assert len({draw.tobytes() for draw in draws}) == 5
        moved = np.abs(draws - prompt.zero_importance).max()
        assert 0 < moved < 0.05 * np.abs(prompt.zero_importance).max()
        assert len({*noise.logit_diff.tolist()}) == 5
        assert prompt.precisions["int8-sim"].noise is None, "no weight moves"


def test_the_other_engine_rounds_f16_in_another_order_and_means_the_same(studies):
    same = []
    for prompt in studies["true"].prompts:
        low = prompt.precisions["f16"]
        own, again = low.importance["zero"], low.reordered.importance
        same.append(np.corrcoef(own.ravel(), again.ravel())[0, 1])
        assert abs(low.logit_diff - low.reordered.logit_diff) < 0.05
        assert prompt.precisions["int8-sim"].reordered is None
    assert np.mean(same) > 0.99


def test_a_random_vector_is_as_long_as_the_repair_and_no_repair(studies):
    """Moving heads away from f32 by as much does not bring the margin nearer to it."""
    for repair in (r for r in studies["true"].repairs if r.precision == "int8-sim"):
        gap = abs(repair.logit_diff_f32 - repair.logit_diff_quantized)
        moved = np.abs(np.stack([*repair.vectors.values()]) - repair.logit_diff_quantized)
        restored = np.abs(np.stack([*repair.curves.values()]) - repair.logit_diff_quantized)
        assert 0 < np.median(moved) < 10 * max(gap, restored.max())


def test_forward_passes_are_those_of_the_one_at_a_time_program(studies):
    P, given, heads = len(studies["true"].prompts), 5, 12
    importance, steps = 1 + heads * (2 + 4), 3
    repairs = 4 * K + (RANDOM_ORDERS + 4 * (SAME_LAYERS + VECTORS)) * steps
    precisions = 2 * (importance + heads + repairs)
    # f16 alone has another order of roundings, and five models with noise.
    precisions += heads + 5 * (1 + 2 * heads)
    expected = given + 3 + P * (importance + precisions)
    assert forward_passes(studies["true"]) == expected


def test_prompts_the_model_answers_wrongly_are_dropped_task_by_task(model, studies):
    prompts, _, _ = tokenize(PROMPTS, model.tokenizer, model.config)
    assert not any(p.validated for p in studies["true"].prompts), "a random model knows no answers"
    # Give one prompt the token that the model does prefer.
    import jax.numpy as jnp

    ids = jnp.array([prompts[0].tokens])
    best = int(jaxalign.forward(model.params, ids, model.config).logits[0, -1].argmax())
    text = model.tokenizer.decode([best])
    if tuple(model.tokenizer.encode(text, add_special_tokens=False).ids[:1]) != (best,):
        pytest.skip("the preferred token does not survive decoding")
    right = dataclasses.replace(PROMPTS.tasks["factual"][0], target=text)
    tasks = PROMPTS.tasks | {"factual": (right, *PROMPTS.tasks["factual"][1:])}
    kept = heads_study(
        model, dataclasses.replace(PROMPTS, tasks=tasks), HeadsOptions(schemes=(), repaired=())
    )
    assert [p.prompt for p in kept.prompts if p.task == "FactualRecall"] == [right.prompt]
    assert sum(p.task == "IOI" for p in kept.prompts) == 2
    notes = " ".join(kept.provenance.notes)
    assert "FactualRecall: few prompts, 1 of 3 answered by the model" in notes
    assert "IOI: the model answers none of 2 prompts, so all are kept" in notes


def test_pooled_correlation_is_scipys_of_the_prompt_means(studies):
    result = studies["true"]
    importance = np.mean([p.zero_importance for p in result.prompts], axis=0).ravel()
    drift = np.mean([p.precisions["f16"].drift for p in result.prompts], axis=0).ravel()
    [row] = [
        c
        for c in result.statistics.correlations
        if (c.task, c.precision, c.importance, c.drift) == ("all", "f16", "zero", "relative")
    ]
    assert row.all_pearson.value == pytest.approx(
        scipy_stats.pearsonr(importance, drift)[0], abs=1e-4
    )
    assert row.all_spearman.value == pytest.approx(
        scipy_stats.spearmanr(importance, drift)[0], abs=0.03
    )
