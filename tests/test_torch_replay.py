"""The two PyTorch witnesses against transformers, each other, and the definitions."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pythia_shape import tiny_checkpoint

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import torch_replay as replay  # noqa: E402  (both need torch)

from benchmarks import pytorch_baseline as baseline  # noqa: E402

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


@pytest.mark.parametrize("head_mode", replay.HEAD_MODES)
@pytest.mark.parametrize("batch", baseline.BATCHES)
def test_replay_and_baseline_agree_on_importance(checkpoint, head_mode, batch):
    folder, params, config = checkpoint
    model = hugging_face(folder)
    prompts = [baseline.Prompt(TOKENS, TARGET), baseline.Prompt(OTHER[:4], 7)]
    references = [OTHER, TOKENS[:5]]
    means = baseline.reference_means(model, references, head_mode)
    expected = replay.reference_means(params, config, references, head_mode=head_mode)
    np.testing.assert_allclose(means.numpy(), expected, atol=1e-5)
    for kind in baseline.KINDS:
        found = baseline.importance(model, prompts, kind, means, head_mode, batch)
        values = None if kind == "zero" else expected
        for row, prompt in zip(found, prompts, strict=True):
            again = replay.importance(params, config, *prompt, values, head_mode=head_mode)
            assert np.abs(again).min() > 0
            np.testing.assert_allclose(row, again, atol=1e-4)


def test_computing_only_the_last_logits_changes_nothing(checkpoint):
    model = hugging_face(checkpoint[0])
    prompts = [baseline.Prompt(TOKENS, TARGET), baseline.Prompt(OTHER[:4], 7)]
    every, last = (
        baseline.importance(model, prompts, "zero", batch="batched", unembed=unembed)
        for unembed in baseline.UNEMBED
    )
    np.testing.assert_allclose(every, last, atol=1e-5)


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


def word_tokenizer(file: Path, size: int = 97) -> Path:
    """A word-level tokenizer of `w0 … w96`, so that texts spell their token ids."""
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.models.WordLevel({f"w{i}": i for i in range(size)}, unk_token="w0")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(file))
    return file


@pytest.fixture
def study(tmp_path):
    """(model folder, prompts file) for the baseline's command line."""
    tokenizer = word_tokenizer(tmp_path / "words.json")
    folder = tiny_checkpoint(tmp_path / "model", tokenizer=tokenizer)
    prompts = {
        "factual": [{"prompt": "w5 w17 w42", "target": "w33 w34"}],
        "ioi": [{"prompt": "w1 w2 w3 w4", "target": "w7"}],
        "reference": ["w9 w8 w7", "w6 w5"],
    }
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps(prompts))
    return folder, file


def test_baseline_command_ends_with_one_json_object(study):
    folder, file = study
    command = [sys.executable, "-m", "benchmarks.pytorch_baseline"]
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [*command, "--model", folder, "--prompts", file],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    record = json.loads(done.stdout.splitlines()[-1])
    assert done.stderr == ""
    assert [run["passes"] for run in record["runs"]] == [26, 26, 13, 13]
    assert record["prompts"] == record["references"] == 2
    assert record["torch"] == torch.__version__


def test_baseline_reads_the_first_token_of_a_target(study):
    folder, file = study
    _, tokenizer = baseline.load(folder)
    prompts, references = baseline.read_prompts(file, tokenizer)
    assert prompts == [([5, 17, 42], 33), ([1, 2, 3, 4], 7)]
    assert references == [[9, 8, 7], [6, 5]]


@pytest.mark.parametrize(
    ("prompts", "cause"),
    [
        (None, "cannot read"),
        ("{", "not JSON"),
        ("[]", "named lists"),
        ('{"factual": 3}', "expected a list"),
        ('{"factual": []}', "no prompts"),
        ('{"factual": [{"prompt": "", "target": "w1"}], "reference": ["w1"]}', "factual[0].prompt"),
        ('{"factual": [{"prompt": "w1"}], "reference": ["w1"]}', "factual[0].target"),
        ('{"factual": [{"prompt": "w1", "target": "w1"}]}', "no reference prompts"),
        (
            '{"a": [{"prompt": "%s", "target": "w1"}], "reference": ["w1"]}' % ("w1 " * 65),
            "context",
        ),
    ],
)
def test_baseline_refuses_bad_prompts_in_one_line(study, prompts, cause, capsys):
    folder, file = study
    file.unlink() if prompts is None else file.write_text(prompts)
    assert baseline.main(["--model", str(folder), "--prompts", str(file)]) == 2
    message = capsys.readouterr().err
    assert cause in message
    assert message.count("\n") == 1


@pytest.mark.parametrize("gone", ["config.json", "tokenizer.json", "model.safetensors", None])
def test_baseline_names_what_a_model_folder_lacks(study, gone, capsys):
    folder, file = study
    if gone is None:
        folder = folder / "nowhere"
    else:
        (folder / gone).unlink()
    assert baseline.main(["--model", str(folder), "--prompts", str(file)]) == 2
    assert (gone or "no folder").removeprefix("model") in capsys.readouterr().err


def test_baseline_without_torch_says_what_to_install(study, monkeypatch, capsys):
    folder, file = study
    monkeypatch.setattr(baseline, "MISSING", ImportError("gone", name="torch"))
    assert baseline.main(["--model", str(folder), "--prompts", str(file)]) == 2
    assert "pip install jaxalign[bench]" in capsys.readouterr().err
