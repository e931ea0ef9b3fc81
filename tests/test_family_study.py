"""Other families go through the whole command; a model that memory cannot hold is refused."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from family_checkpoints import write
from tiny_run import TOKENIZER, refusal, study, write_model, write_prompts

import jaxalign
from jaxalign.checkpoints.files import Checkpoint
from jaxalign.errors import InputError
from jaxalign.model import count
from jaxalign.model.generate import generate
from jaxalign.runtime import memory

SIZES = {"vocab_size": 4096, "num_hidden_layers": 2}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A tiny Llama with grouped heads in two shards, and the demo's tokenizer."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("llama")
    model = write(folder, "llama, scaled like 3.1", **SIZES)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    model.save_pretrained(folder, max_shard_size="600KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    shutil.copyfile(TOKENIZER, folder / "tokenizer.json")
    return folder, model


def test_heads_study_of_a_llama_runs_end_to_end(llama, tmp_path):
    folder, _ = llama
    prompts = write_prompts(tmp_path / "prompts.json")
    output = tmp_path / "experiment.json"
    few = ("--ablations", "zero", "--schemes", "int8-sim", "--repair", "none", "--no-figures")
    ran = study(folder, prompts, output, *few)
    assert ran.code == 0, ran.err
    result = json.loads(output.read_text())
    assert (result["num_layers"], result["num_heads"]) == (2, 4)
    assert len(result["prompts"]) == 5
    for prompt in result["prompts"]:
        importance = np.array(prompt["zero_importance"], float)
        assert importance.shape == (2, 4)
        assert np.isfinite(importance).all()
        assert (np.abs(importance) > 1e-6).all()


def test_loaded_llama_answers_as_transformers(llama):
    import torch

    folder, model = llama
    ours = jaxalign.load(str(folder))
    tokens, lengths = ours.encode(["The capital of France is", "It was"])
    new = generate(ours.params, tokens, lengths, ours.config, steps=4).tokens
    for row, ids, n in zip(new, tokens, lengths, strict=True):
        given = torch.from_numpy(np.array(ids[: int(n)])[None]).long()
        out = model.generate(
            given,
            attention_mask=torch.ones_like(given),
            do_sample=False,
            max_new_tokens=4,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert out[0, int(n) :].tolist() == row.tolist()


@pytest.fixture
def unread(monkeypatch):
    """No tensor is read."""

    def read(self, name):
        raise AssertionError(f"{name} was read")

    monkeypatch.setattr(Checkpoint, "read", read)


def test_model_larger_than_the_budget_is_refused_with_the_arithmetic(tmp_path, unread):
    folder = write_model(tmp_path / "model")
    line = refusal("--model", folder, "--memory-gb", "1e-6", "--output", tmp_path / "r.json")
    for words in ("parameters, which take", "× 4 bytes =", "1e-06 GB is the budget", "raise --m"):
        assert words in line


def test_model_larger_than_memory_is_refused_before_a_weight_is_read(tmp_path, unread, monkeypatch):
    folder = write_model(tmp_path / "model")
    monkeypatch.setattr(memory, "available_bytes", lambda: 5e5)
    with pytest.raises(InputError, match=r"× 2 bytes = .* in float16, but 0\.0005 GB is available"):
        jaxalign.load(str(folder), dtype=jnp.float16)


def test_the_arithmetic_counts_what_is_loaded(tmp_path):
    folder = write_model(tmp_path / "model")
    model = jaxalign.load(str(folder))
    exact = 4 * count(model.params) / 1e9
    jaxalign.load(str(folder), memory_gb=exact)
    with pytest.raises(InputError, match=f"{count(model.params):,} × 4 bytes"):
        jaxalign.load(str(folder), memory_gb=exact * 0.999)


def test_available_memory_is_what_the_system_says(monkeypatch, tmp_path):
    said = tmp_path / "meminfo"
    said.write_text("MemTotal:  900 kB\nMemAvailable:     123 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", said)
    assert memory.available_bytes() == 123 * 1024
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "none")
    assert 1e6 < memory.available_bytes() < 1e15  # between a megabyte and a petabyte
