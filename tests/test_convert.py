"""Claims about loading: a checkpoint gives the same parameters however it is stored, or an error
that names what is wrong with it."""

import functools
import hashlib
import json
import os
import re
import shutil
import struct

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from pythia_shape import tiny_checkpoint
from safetensors.numpy import load_file, save_file
from tiny_run import SIZES, TOKENIZER, WEIGHTS, edit_config, edit_weights, refusal, write_model
from tokenizers import Tokenizer

import jaxalign
from jaxalign import InputError
from jaxalign.checkpoints import load_params, open_checkpoint, save_checkpoint
from jaxalign.checkpoints.families import config_from_hf

INDEX = "model.safetensors.index.json"
EMBED, UNEMBED = "gpt_neox.embed_in.weight", "embed_out.weight"
DENSE = "gpt_neox.layers.0.attention.dense.weight"


def leaves(params):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(params)]


def assert_same(a, b):
    for x, y in zip(leaves(a), leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def open_params(folder, dtype=jnp.float32):
    config = config_from_hf(json.loads((folder / "config.json").read_text()))
    return load_params(open_checkpoint(folder), config, dtype)


@pytest.fixture
def folder(tmp_path):
    return write_model(tmp_path / "model")


@pytest.fixture
def sharded(tmp_path):
    return write_model(tmp_path / "sharded", shards=2)


# What can be used.


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_every_float_type_on_disk_becomes_the_same_numbers_in_f32(tmp_path, dtype):
    kind = np.dtype(getattr(ml_dtypes, dtype, None) or dtype)
    stored = open_params(tiny_checkpoint(tmp_path / "stored", dtype=dtype))
    exact = open_params(tiny_checkpoint(tmp_path / "exact", dtype="float32"))
    for x, y in zip(leaves(stored), leaves(exact), strict=True):
        assert x.dtype == np.float32
        np.testing.assert_array_equal(x, y.astype(kind).astype(np.float32))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_parameters_come_in_the_dtype_that_was_asked_for(folder, dtype):
    model = jaxalign.load(str(folder), dtype=dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(model.params)} == {jnp.dtype(dtype)}


def test_shards_give_the_same_bits_as_one_file(folder, sharded):
    assert len(list(sharded.glob("*.safetensors"))) == 2
    assert_same(open_params(folder), open_params(sharded))


def test_saved_checkpoint_loads_as_the_same_bits(folder, tmp_path):
    model = jaxalign.load(str(folder))
    save_checkpoint(model.params, model.config, tmp_path / "again")
    assert_same(model.params, open_params(tmp_path / "again"))
    ours, theirs = load_file(tmp_path / "again" / WEIGHTS), load_file(folder / WEIGHTS)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(ours[name], tensor)


def test_buffers_of_old_files_are_skipped_even_where_they_are_not_finite(tmp_path):
    plain = write_model(tmp_path / "plain")
    old = write_model(tmp_path / "old", buffers=True)
    assert np.isinf(load_file(old / WEIGHTS)["gpt_neox.layers.0.attention.masked_bias"])
    assert_same(open_params(plain), open_params(old))


def test_tied_model_loads_with_and_without_a_copy_of_the_embedding(tmp_path):
    alone = write_model(tmp_path / "alone", tie_word_embeddings=True)
    twice = write_model(tmp_path / "twice", tie_word_embeddings=True)
    edit_weights(twice, lambda t: t.update({UNEMBED: t[EMBED].copy()}))
    assert_same(open_params(alone), open_params(twice))


def test_hash_is_the_weight_files_own(folder, sharded):
    digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    assert jaxalign.load(str(folder)).weights_sha256 == digest
    shards = b"".join(path.read_bytes() for path in sorted(sharded.glob("*.safetensors")))
    assert jaxalign.load(str(sharded)).weights_sha256 == hashlib.sha256(shards).hexdigest()


def grown_tokenizer(path, count):
    """The demo's tokenizer with ``count`` tokens more, one after the other."""
    data = json.loads(TOKENIZER.read_text(encoding="utf-8"))
    extra = range(4096, 4096 + count)
    data["added_tokens"] += [
        {"id": i, "content": f"<extra{i}>", "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for i in extra
    ]
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def test_vocabulary_may_be_padded_and_a_text_beyond_it_is_refused(tmp_path):
    """Pythia's weights have rows for 50304 tokens and its tokenizer knows 50277."""
    grown = grown_tokenizer(tmp_path / "tokenizer.json", 4)
    padded = write_model(tmp_path / "padded", tokenizer=grown, vocab_size=4224)
    assert jaxalign.load(str(padded)).encode(["a <extra4099>"])[0].max() == 4099
    small = jaxalign.load(str(write_model(tmp_path / "small", tokenizer=grown)))
    assert small.encode(["a text"])[0].max() < 4096
    with pytest.raises(InputError, match=r"texts\[1\] has token 4099 .* vocabulary of 4096"):
        small.encode(["a text", "a <extra4099>"])


@pytest.mark.parametrize("number", [4096, 10**6, 2**31, 2**32 - 1])
def test_special_token_outside_the_vocabulary_is_refused(folder, number):
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    special = {"B": {"id": "B", "ids": [number], "tokens": ["B"]}}
    piece = {"Sequence": {"id": "A", "type_id": 0}}
    single = [{"SpecialToken": {"id": "B", "type_id": 0}}, piece]
    data["post_processor"] = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [piece, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": special,
    }
    path.write_text(json.dumps(data), encoding="utf-8")
    model = jaxalign.load(str(folder))
    assert model.encode(["a text"])[0].max() < 4096
    with pytest.raises(InputError, match=f"has token {number} .* vocabulary of 4096"):
        model.encode(["a text"], special=True)


def test_text_has_one_encoding_whatever_the_tokenizer_was_last_used_for(folder):
    path, text = folder / "tokenizer.json", "The capital of France is"
    plain = Tokenizer.from_file(str(path)).encode(text).ids
    data = json.loads(path.read_text(encoding="utf-8"))
    data["model"]["dropout"] = 0.9
    data["truncation"] = {"max_length": 2, "strategy": "LongestFirst", "stride": 0}
    data["truncation"]["direction"] = "Right"
    data["padding"] = {"strategy": {"Fixed": 24}, "direction": "Left", "pad_to_multiple_of": None}
    data["padding"] |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>"}
    path.write_text(json.dumps(data), encoding="utf-8")
    assert Tokenizer.from_file(str(path)).encode(text).ids != plain
    for _ in range(3):
        assert jaxalign.load(str(folder)).encode([text])[0].tolist() == [plain]


def test_panic_inside_the_tokenizers_library_is_refused(folder, capfd):
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    data["model"]["continuing_subword_prefix"] = "longer than a token"
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(InputError, match=r"tokenizer.json is not a tokenizer"):
        jaxalign.load(str(folder))
    assert capfd.readouterr().err == "", "Rust prints lines of its own about a panic"


def test_one_file_is_read_where_shards_of_another_model_lie_beside_it(folder, tmp_path):
    other = write_model(tmp_path / "other", shards=2, seed=1)
    expected = open_params(folder)
    assert not np.array_equal(open_params(other).embed, expected.embed)
    shutil.copy(folder / WEIGHTS, other)
    assert_same(open_params(other), expected)
    next(iter(other.glob("model-*"))).unlink()  # a stale index does not matter either
    assert_same(open_params(other), expected)


def test_shards_may_lie_in_a_folder_below(sharded):
    expected = open_params(sharded)
    (sharded / "weights").mkdir()
    for shard in sharded.glob("*.safetensors"):
        shard.rename(sharded / "weights" / shard.name)
    index = json.loads((sharded / INDEX).read_text(encoding="utf-8"))
    for name, file in index["weight_map"].items():
        index["weight_map"][name] = f"weights/{file}"
    (sharded / INDEX).write_text(json.dumps(index), encoding="utf-8")
    assert_same(open_params(sharded), expected)
    index["weight_map"][EMBED] = "../elsewhere.safetensors"
    (sharded / INDEX).write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(InputError, match=r"outside of its folder: '../elsewhere"):
        open_checkpoint(sharded)


def test_index_of_a_tied_model_may_list_the_unembedding_that_no_shard_holds(tmp_path):
    folder = write_model(tmp_path / "tied", shards=2, tie_word_embeddings=True)
    expected = open_params(folder)
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    for file in (index["weight_map"][EMBED], "model-gone.safetensors"):
        for name in (UNEMBED, "lm_head.weight"):
            listed = index["weight_map"] | {name: file}
            (folder / INDEX).write_text(json.dumps(index | {"weight_map": listed}))
            assert_same(jaxalign.load(str(folder)).params, expected)


def test_unembedding_may_have_the_name_that_it_has_in_memory(folder):
    expected = open_params(folder)
    edit_weights(folder, lambda t: t.update({"lm_head.weight": t.pop(UNEMBED)}))
    assert_same(open_params(folder), expected)


def test_weights_of_64_bits_are_rounded_once(folder):
    expected = open_params(folder)
    edit_weights(folder, lambda t: t.update({n: x.astype(np.float64) for n, x in t.items()}))
    assert_same(open_params(folder), expected)


def test_weights_that_are_replaced_or_written_while_they_are_read_are_refused(tmp_path):
    for change in ("replaced", "written"):
        folder, other = (
            write_model(tmp_path / change / name, seed=i) for i, name in enumerate("ab")
        )
        checkpoint = open_checkpoint(folder)
        checkpoint.read(EMBED)
        content = (other / WEIGHTS).read_bytes()
        if change == "replaced":
            (other / WEIGHTS).replace(folder / WEIGHTS)
        else:
            (folder / WEIGHTS).write_bytes(content)
        for use in (functools.partial(checkpoint.read, EMBED), checkpoint.sha256):
            with pytest.raises(InputError, match="was replaced or written while it was read"):
                use()


def test_pipes_and_devices_are_no_files_of_a_checkpoint(folder):
    for name in ("config.json", "tokenizer.json", WEIGHTS):
        content = (folder / name).read_bytes()
        for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
            (folder / name).unlink()
            make(folder / name)
            with pytest.raises(InputError, match=r"is no regular file|neither model.safetensors"):
                jaxalign.load(str(folder))
        (folder / name).unlink()
        (folder / name).write_bytes(content)
    jaxalign.load(str(folder))


# What cannot be used.


def refused(folder, *words):
    with pytest.raises(InputError) as caught:
        jaxalign.load(folder)
    line = str(caught.value)
    assert "\n" not in line
    for word in words:
        assert re.search(word, line), line


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", WEIGHTS])
def test_command_refuses_a_damaged_checkpoint_in_one_line(folder, tmp_path, name):
    (folder / name).write_text("{")
    line = refusal("--model", folder, "--output", tmp_path / "out" / "result.json")
    assert str(folder / name) in line


def test_truncated_file_is_refused_and_named(folder):
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])
    refused(folder, str(path), "damaged or cut short", "download it again")


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"abcd",
        lambda data: b"\xff" * 8 + data[8:],
        lambda data: data[:8] + b"x" * 20 + data[28:],
        lambda data: struct.pack("<Q", 1 << 20) + data[8:],
    ],
    ids=["empty", "four bytes", "huge header", "header not JSON", "wrong header length"],
)
def test_corrupted_header_is_refused_and_named(folder, damage):
    path = folder / WEIGHTS
    path.write_bytes(damage(path.read_bytes()))
    refused(folder, str(path), "damaged or cut short", "download it again")


def test_wrong_shape_is_refused_and_named(folder):
    edit_weights(folder, lambda t: t.update({DENSE: t[DENSE][:, :-1].copy()}))
    refused(folder, DENSE, r"\(32, 31\), expected \(32, 32\)", "config.json that belongs")


def test_transposed_matrix_is_refused_by_its_shape(folder):
    name = "gpt_neox.layers.1.mlp.dense_h_to_4h.weight"
    edit_weights(folder, lambda t: t.update({name: t[name].T.copy()}))
    refused(folder, name, r"\(32, 64\), expected \(64, 32\)")


def test_config_of_another_size_is_refused_by_a_tensor(folder):
    edit_config(folder, num_hidden_layers=3)
    refused(folder, r"gpt_neox\.layers\.2\.", "is missing", "config.json that belongs")


def test_missing_tensor_is_refused_and_named(folder):
    edit_weights(folder, lambda t: t.pop(DENSE))
    refused(folder, f"{DENSE}' is missing", "download them again")


def test_unknown_tensor_is_refused_and_named(folder):
    edit_weights(folder, lambda t: t.update({"gpt_neox.adapter.weight": t[DENSE].copy()}))
    refused(folder, "gpt_neox.adapter.weight' is not known", "use a GPT-NeoX checkpoint")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_and_named(folder, bad):
    edit_weights(folder, lambda t: t[DENSE].__setitem__((3, 4), bad))
    refused(folder, DENSE, "1 values that are NaN or infinite", "download the checkpoint")


def test_weights_of_whole_numbers_are_refused_and_named(folder):
    edit_weights(folder, lambda t: t.update({DENSE: t[DENSE].astype(np.int8)}))
    refused(folder, DENSE, "type I8, expected F16 or BF16 or F32 or F64", "quantized")


def test_weights_outside_the_wanted_type_are_refused_and_named(tmp_path):
    folder = write_model(tmp_path, dtype="float32")
    edit_weights(folder, lambda t: t[DENSE].__setitem__((0, 0), 1e6))
    assert jaxalign.load(str(folder)).params.dtype == jnp.float32
    with pytest.raises(InputError, match=f"{DENSE}' has values outside float16. load it in float3"):
        jaxalign.load(str(folder), dtype=jnp.float16)


def test_tied_model_with_another_unembedding_is_refused(folder):
    edit_config(folder, tie_word_embeddings=True)
    refused(folder, "ties the embeddings", UNEMBED, EMBED, "tie_word_embeddings to false")


def test_missing_shard_is_refused_and_named(sharded):
    (sharded / "model-00002-of-00002.safetensors").unlink()
    refused(sharded, "model-00002-of-00002.safetensors is missing", "download it again")


def test_tensor_in_two_shards_is_refused_and_named(sharded):
    first, second = sorted(sharded.glob("*.safetensors"))
    tensors = load_file(second)
    save_file(tensors | {EMBED: load_file(first)[EMBED]}, second)
    refused(sharded, f"{EMBED}' is both in {first.name} and in {second.name}", "remove")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({UNEMBED: None}, f"{UNEMBED}' is in model-00002.*says no shard"),
        ({"ghost": "model-00001-of-00002.safetensors"}, "'ghost' is in no shard.*says model-00001"),
        ({EMBED: "model-00002-of-00002.safetensors"}, "is in model-00001.*says model-00002"),
    ],
    ids=["tensor left out", "tensor that is nowhere", "tensor elsewhere"],
)
def test_index_that_disagrees_with_its_shards_is_refused(sharded, change, words):
    path = sharded / INDEX
    index = json.loads(path.read_text())
    said = index["weight_map"] | change
    index["weight_map"] = {name: file for name, file in said.items() if file}
    path.write_text(json.dumps(index))
    refused(sharded, words, "download the checkpoint again")


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "{}", '{"weight_map": ["ab"]}', '{"weight_map": {"a": 1}}', "[" * 100_000],
)
def test_file_that_is_no_index_is_refused(sharded, content):
    (sharded / INDEX).write_text(content)
    refused(sharded, f"{INDEX} is not (a safetensors index|JSON)", "download it again")


def test_folder_with_only_a_pickle_says_how_to_convert_it(folder):
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    refused(folder, "only pytorch_model.bin, a pickle", "safe_serialization=True")


def test_folder_without_weights_is_refused(folder):
    (folder / WEIGHTS).unlink()
    refused(folder, f"neither {WEIGHTS} nor {INDEX}", "checkpoint's folder")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "is not JSON"),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
        (b"[" * 100_000, "is not JSON"),
        (b"[1]", "is not a JSON object"),
    ],
    ids=["cut short", "binary", "too deep", "list"],
)
def test_unreadable_config_is_refused_and_named(folder, content, words):
    (folder / "config.json").write_bytes(content)
    refused(folder, f"config.json {words}", "download it again")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_missing_file_of_a_checkpoint_is_refused_and_named(folder, name):
    (folder / name).unlink()
    refused(folder, f"{name} is missing", "complete checkpoint")
    (folder / name).mkdir()
    refused(folder, f"{name} cannot be read")


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"hidden_size": "wide"}, 'hidden_size is "wide", expected a whole number'),
        ({"hidden_size": [1]}, r"hidden_size is \[1\], expected a whole number"),
        ({"hidden_size": True}, "hidden_size is true, expected a whole number"),
        ({"rope_scaling": 5}, "rope_scaling is 5, expected an object"),
        ({"num_attention_heads": 2.9}, "num_attention_heads is 2.9, expected a whole number"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, expected .* to 100000"),
        ({"intermediate_size": 10**400}, r"intermediate_size is 10{70,}\.\.\., expected"),
        ({"use_parallel_residual": "false"}, 'use_parallel_residual is "false", expected true or'),
        ({"hidden_act": 3}, "hidden_act is 3, expected a text"),
        ({"model_type": ["llama"]}, r"of a \['llama'\] model"),
        ({"layer_norm_eps": float("inf")}, "layer_norm_eps is Infinity, expected a finite number"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps is NaN, expected a finite number"),
        ({"layer_norm_eps": -1e-5}, "layer_norm_eps is -1e-05, expected .* from 0 up"),
        ({"rotary_emb_base": 0}, "rotary_emb_base is 0, expected a finite number above 0"),
        ({"rotary_emb_base": 10**400}, "rotary_emb_base is 10*..., expected a finite number"),
        ({"rotary_pct": 1.5}, "rotary_pct is 1.5, expected a number from 0 to 1"),
    ],
)
def test_setting_of_a_wrong_type_or_range_is_refused_by_name(folder, bad, words):
    edit_config(folder, **bad)
    with pytest.raises(InputError, match=f"config.json.*{words}"):
        jaxalign.load(str(folder))


def test_setting_that_is_not_known_may_be_ignored_by_name(folder):
    edit_config(folder, qk_norm=True, other=1)
    path = re.escape(str(folder / "config.json"))
    with pytest.raises(InputError, match=f"{path} has settings that are not known: other"):
        jaxalign.load(str(folder), ignore_settings=["qk_norm"])
    source = jaxalign.load(str(folder), ignore_settings=["qk_norm", "other"]).source
    assert source.ignored_settings == ("other", "qk_norm")
    assert "were ignored: other, qk_norm" in source.note
    for name, why in (("hidden_size", "is known"), ("use_cache", "is known"), ("x", "not there")):
        edit_config(folder, use_cache=True)
        with pytest.raises(InputError, match=f"{name!r}, which was to be ignored.* {why}"):
            jaxalign.load(str(folder), ignore_settings=["qk_norm", "other", name])


def test_unknown_setting_is_refused_and_named(folder):
    edit_config(folder, qk_norm=True)
    refused(folder, "settings that are not known: qk_norm", "give --ignore-setting qk_norm")


def test_other_architecture_is_refused_and_named(folder):
    edit_config(folder, model_type="bloom")
    families = "one of gpt_neox, llama, qwen2, qwen3, mistral, gemma2"
    refused(folder, f"'bloom' model, expected {families}", "one of these families")


@pytest.mark.parametrize("content", ["{}", '{"model": {"type": "BPE"}}', "no JSON"])
def test_file_that_is_no_tokenizer_is_refused(folder, content):
    (folder / "tokenizer.json").write_text(content)
    refused(folder, "tokenizer.json is not", "download it again")


@pytest.mark.parametrize("size", [SIZES["vocab_size"] // 2, 2 * SIZES["vocab_size"]])
def test_tokenizer_of_another_vocabulary_is_refused(tmp_path, size):
    folder = write_model(tmp_path / "model", vocab_size=size)
    words = f"tokenizer knows 4096 tokens, but the model has a vocabulary of {size}"
    refused(folder, words, "tokenizer.json that was published with these weights")
