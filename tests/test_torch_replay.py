"""The two PyTorch witnesses against transformers, each other, and the definitions."""

import numpy as np
import pytest
from pythia_shape import tiny_checkpoint

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import torch_replay as replay  # noqa: E402  (both need torch)

TOKENS = [5, 17, 42, 3, 88, 61, 9]
OTHER = [11, 70, 2, 55, 23, 90, 14]
TARGET = 33
VARIANTS = {
    "published spelling": {},
    "sequential residual": {"use_parallel_residual": False},
    "tied embeddings": {"tie_word_embeddings": True},
    "sequential, tied, no attention bias": {
        "use_parallel_residual": False,
        "tie_word_embeddings": True,
        "attention_bias": False,
    },
    "full rotation": {"rotary_pct": 1.0, "rotary_emb_base": 500},
    "new rotary spelling": {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 300.0,
            "partial_rotary_factor": 0.5,
        }
    },
    "tanh gelu": {"hidden_act": "gelu_new"},
    "large epsilon": {"layer_norm_eps": 0.1},
}


@pytest.fixture(params=[True, False], ids=["parallel", "sequential"])
def checkpoint(request, tmp_path):
    """(folder, params, config) of a tiny checkpoint with either residual layout."""
    folder = tiny_checkpoint(tmp_path, use_parallel_residual=request.param)
    return folder, *replay.load(folder)


def hugging_face(folder):
    transformers.utils.logging.disable_progress_bar()
    model = transformers.GPTNeoXForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


@pytest.mark.parametrize("variant", VARIANTS)
def test_replay_gives_the_logits_of_transformers(variant, tmp_path):
    folder = tiny_checkpoint(tmp_path, seed=1, **VARIANTS[variant])
    params, config = replay.load(folder)
    ours = replay.forward(params, config, TOKENS).logits
    with torch.inference_mode():
        theirs = hugging_face(folder)(torch.tensor([TOKENS])).logits[0, -1]
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_replay_reads_the_names_that_transformers_uses_in_memory(checkpoint):
    folder, params, config = checkpoint
    in_memory = replay.as_f32(hugging_face(folder).state_dict())
    again = replay.forward(in_memory, config, TOKENS).logits
    assert torch.equal(again.detach(), replay.forward(params, config, TOKENS).logits)


def test_contributions_and_bias_add_up_to_the_attention_output(checkpoint):
    _, params, config = checkpoint
    true = replay.contributions(params, config, TOKENS, head_mode="true")
    blocks = replay.contributions(params, config, TOKENS, head_mode="edge-align")
    for layer in range(config["num_hidden_layers"]):
        bias = params[f"gpt_neox.layers.{layer}.attention.dense.bias"].numpy()
        together = np.concatenate(list(blocks[layer]), axis=-1)
        np.testing.assert_allclose(true[layer].sum(0) + bias, together, atol=1e-5)


@pytest.mark.parametrize("head_mode", replay.HEAD_MODES)
def test_a_prompt_as_its_own_donor_has_no_effect(checkpoint, head_mode):
    _, params, config = checkpoint
    own = replay.contributions(params, config, TOKENS, head_mode=head_mode)
    donor = replay.contributions(params, config, OTHER, head_mode=head_mode)
    same = replay.importance(params, config, TOKENS, TARGET, own, head_mode=head_mode)
    moved = replay.importance(params, config, TOKENS, TARGET, donor, head_mode=head_mode)
    assert np.abs(same).max() <= 1e-6 < np.abs(moved).min()


def test_int8_rounding_keeps_the_grid_and_rounds_halves_away_from_zero():
    x = torch.tensor([127.0, 0.5, -0.5, 1.5, -2.5, 0.49999997, -126.4])
    expected = torch.tensor([127.0, 1.0, -1.0, 2.0, -3.0, 0.0, -126.0])
    assert torch.equal(replay.fake_int8(x), expected)
    for same in (torch.zeros(3), torch.tensor([1.0, torch.inf]), torch.tensor([1.3, torch.nan])):
        torch.testing.assert_close(replay.fake_int8(same), same, rtol=0, atol=0, equal_nan=True)
    tiny = torch.tensor([1e-44, -1e-44])
    assert torch.isfinite(replay.fake_int8(tiny)).all()


def test_every_int8_site_is_visited(checkpoint, monkeypatch):
    _, params, config = checkpoint
    seen = []
    monkeypatch.setattr(replay, "fake_int8", lambda x: (seen.append(tuple(x.shape)), x)[1])
    replay.forward(params, config, TOKENS, int8=True)
    sites = 1 + 3 * config["num_hidden_layers"] + 1
    assert seen == [(len(TOKENS), config["hidden_size"])] * sites


@pytest.mark.parametrize("head_mode", replay.HEAD_MODES)
def test_int8_moves_every_head_a_little(checkpoint, head_mode):
    _, params, config = checkpoint
    drift = replay.drift(params, config, TOKENS, head_mode=head_mode)
    for relative in (drift.relative, drift.relative_all):
        assert ((relative > 1e-4) & (relative < 0.2)).all()
    for cosine in (drift.cosine, drift.cosine_all):
        assert ((cosine > 0.98) & (cosine <= 1 + 1e-12)).all()


def test_drift_of_nothing_is_zero():
    exact, moved = np.zeros((1, 2, 4)), np.zeros((1, 2, 4))
    moved[0, 1] = 1.0
    relative, cosine = replay._relative_and_cosine(exact, moved)
    assert not relative.any()
    assert not cosine.any()


@pytest.mark.parametrize("head_mode", replay.HEAD_MODES)
def test_repair_starts_from_int8_and_counts_heads(checkpoint, head_mode):
    _, params, config = checkpoint
    ranking = [(2, 1), (0, 3), (1, 0)]
    curve = replay.repair_curve(params, config, TOKENS, TARGET, ranking, head_mode=head_mode)
    alone = replay.repair_curve(params, config, TOKENS, TARGET, ranking[:1], head_mode=head_mode)
    damaged = replay.clean_metric(params, config, TOKENS, TARGET, int8=True)
    assert curve.shape == (3,)
    assert curve[0] == alone[0] != damaged


@pytest.mark.parametrize("head_mode", replay.HEAD_MODES)
def test_gradient_predicts_a_small_edit_of_each_head(checkpoint, head_mode, monkeypatch):
    """A contribution scaled by 1 ± ε moves the metric by ±ε · g · c; here int8 is that edit."""
    _, params, config = checkpoint
    step = 1e-2
    exact = replay.forward(params, config, TOKENS, head_mode=head_mode)
    moved = replay.Run(exact.logits, exact.heads * (1 + step))
    real = replay.forward
    monkeypatch.setattr(
        replay, "forward", lambda *a, int8=False, **k: moved if int8 else real(*a, **k)
    )
    predicted = replay.first_order(params, config, TOKENS, TARGET, head_mode=head_mode)
    for layer, head in np.ndindex(*predicted.shape):
        up, down = (
            real(
                params,
                config,
                TOKENS,
                head_mode=head_mode,
                edits={(layer, head): exact.heads[layer, head].detach() * scale},
            ).logits
            for scale in (1 + step, 1 - step)
        )
        change = float(replay.metric(up, TARGET) - replay.metric(down, TARGET)) / 2
        assert change == pytest.approx(predicted[layer, head], rel=1e-2, abs=5e-6)
