"""Claims about what users bring: tensors in memory, texts, and edits of their own."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny_run import WEIGHTS, write_model

import jaxalign
from jaxalign import InputError, params_from_state_dict
from jaxalign.checkpoints.families import config_from_hf
from jaxalign.edits import Add
from jaxalign.edits.batch import rows
from jaxalign.model import ModelConfig, init_params
from jaxalign.model.checks import check_edit

UNEMBED = "embed_out.weight"
DENSE = "gpt_neox.layers.0.attention.dense.weight"


@pytest.fixture
def folder(tmp_path):
    return write_model(tmp_path / "model")


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def from_memory(folder, edit=lambda tensors: None):
    """The folder's tensors after ``edit``, as if a user had them in memory."""
    tensors = load_file(folder / WEIGHTS)
    edit(tensors)
    config = config_from_hf(json.loads((folder / "config.json").read_text()))
    return params_from_state_dict(tensors, config)


def test_tensors_in_memory_become_the_same_parameters_as_on_disk(folder):
    def renamed(tensors):
        tensors["lm_head.weight"] = tensors.pop(UNEMBED)  # transformers 5, in memory

    stored = jaxalign.load(str(folder)).params
    assert_same(from_memory(folder), stored)
    assert_same(from_memory(folder, renamed), stored)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(DENSE), f"the state dict: tensor '{DENSE}' is missing (1 in all)"),
        (lambda t: t.update(extra=t[DENSE]), "tensor 'extra' is not known"),
        (lambda t: t.update({"lm_head.weight": t[UNEMBED]}), "tensor 'lm_head.weight' is not"),
        (lambda t: t.update({DENSE: t[DENSE][:5]}), f"tensor '{DENSE}' has shape (5, 32)"),
        (lambda t: t.update({DENSE: t[DENSE].astype(np.int8)}), "is of type int8, expected fl"),
        (lambda t: t.update({DENSE: t[DENSE] * np.float16(np.nan)}), "NaN or infinite"),
    ],
)
def test_tensors_in_memory_are_refused_by_name_as_on_disk(folder, change, words):
    with pytest.raises(InputError, match=re.escape(words)):
        from_memory(folder, change)


@pytest.mark.parametrize("kind", ["bfloat16", "float32 with a gradient"])
def test_torch_tensor_that_numpy_cannot_read_says_how_to_convert_it(folder, kind):
    torch = pytest.importorskip("torch")

    def as_torch(tensors):
        tensor = torch.from_numpy(tensors[DENSE].astype(np.float32))
        tensors[DENSE] = tensor.bfloat16() if kind == "bfloat16" else tensor.requires_grad_()

    with pytest.raises(InputError, match=r"NumPy can read.*give tensor\.detach\(\)\.float"):
        from_memory(folder, as_torch)


def test_texts_are_encoded_as_padded_tokens_with_their_lengths(folder):
    model = jaxalign.load(str(folder))
    texts = ["The capital of France is", " Paris"]
    tokens, lengths = model.encode(texts)
    ids = [model.tokenizer.encode(text).ids for text in texts]
    assert lengths.tolist() == [len(own) for own in ids]
    assert tokens.dtype == lengths.dtype == jnp.int32
    assert tokens.tolist() == [own + [0] * (tokens.shape[1] - len(own)) for own in ids]


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ("Paris", "texts are 'Paris'. give a list of one text or more"),
        ([], "texts are []. give a list"),
        (["Paris", ""], "texts[1] is empty"),
        (["a " * 100], "more than the model's context of 64"),
    ],
)
def test_texts_that_cannot_be_encoded_are_refused(folder, texts, words):
    with pytest.raises(InputError, match=re.escape(words)):
        jaxalign.load(str(folder)).encode(texts)


HEADS = jaxalign.head_ablation_masks(3, 4)
STEPS = jaxalign.residual_patch_masks(3, 5)


def head(mask, *value, mode="true"):
    return jaxalign.Edit(jaxalign.HeadEdit(mask, np.zeros(value, np.float32), mode))


def residual(mask, *value):
    return jaxalign.Edit(jaxalign.Replace("resid", mask, np.zeros(value, np.float32)))


def first_row(edit):
    return edit.map_arrays(lambda declared, a: a[0] if declared.per_row else a)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (
            jaxalign.zero_ablation(2, 4),
            "HeadEdit.mask has shape {}2, 1, 1, 4), expected [{}3, 2|1, 5|1",
        ),
        (
            head(HEADS, 2, 1, 1, 1, 1),
            "HeadEdit.value has shape (2, 1, 1, 1, 1), expected [3, 2|1, 5|1",
        ),
        (
            head(HEADS, 3, 1, 1, 4, 8),
            "HeadEdit.value has shape (3, 1, 1, 4, 8), expected [3, 2|1, 5|1",
        ),
        (head(HEADS, 3, 1, 1, 4, 32, mode="edge-align"), "expected [3, 2|1, 5|1, 4|1, 8|1]"),
        (head(HEADS, 3), "HeadEdit.value has shape (3,), expected [3, 2|1, 5|1, 4|1, 32|1]"),
        (
            residual(STEPS[:, :3], 4, 1, 5, 32),
            "Replace.mask has shape {}3, 1, 5, 1), expected [{}4",
        ),
        (
            residual(STEPS, 3, 1, 5, 32),
            "Replace.value has shape (3, 1, 5, 32), expected [4, 2|1",
        ),
        (
            residual(STEPS, 4, 3, 5, 32),
            "Replace.value has shape (4, 3, 5, 32), expected [4, 2|1",
        ),
        (
            jaxalign.Edit(Add("attn_out", STEPS[:, :3], value=np.zeros((3, 1, 1, 31)))),
            "Add.value has shape (3, 1, 1, 31), expected [3, 2|1, 5|1, 32|1]",
        ),
    ],
)
def test_edit_that_does_not_fit_the_run_is_refused_by_name_and_shape(edit, words):
    config = ModelConfig(97, 3, 4, 32, 64, rotary_dims=2)
    params = init_params(jax.random.key(0), config)
    with pytest.raises(ValueError, match=re.escape(words.format(f"({rows(edit)}, ", "M, "))):
        check_edit(edit, config, (2, 5), batch=True)
    edit = first_row(edit)
    with pytest.raises(ValueError, match=re.escape(words.format("(", ""))):
        jaxalign.forward(params, jnp.zeros((2, 5), jnp.int32), config, edit=edit)
