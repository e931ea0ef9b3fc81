"""Claims about quantized files that lie: each is refused in one line that names what is wrong."""

import json
import re
import shutil
import struct
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from packed_files import (
    WEIGHTS,
    config_of,
    original,
    write_awq,
    write_bnb,
    write_ct,
    write_fp8,
    write_gptq,
    write_int8,
)
from safetensors.numpy import load_file, save_file

import jaxalign
from jaxalign import InputError
from jaxalign.checkpoints.gguf_file import open_gguf
from jaxalign.checkpoints.quantized import load_beside, load_quantized
from jaxalign.checkpoints.quantized.gguf import tokens_of

TOKENIZER = Path(jaxalign.__file__).parent / "demo" / "model" / "tokenizer.json"
BASE = "gpt_neox.layers.1.mlp.dense_4h_to_h"  # [64, 128]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One honest folder of every format."""
    root = tmp_path_factory.mktemp("honest")
    source = original(root / "source")
    write_gptq(root / "gptq", source, act_order=True)
    write_awq(root / "awq", source)
    write_bnb(root / "nf4", source)
    write_bnb(root / "nf4-dq", source, double=True)
    write_int8(root / "int8", source)
    write_ct(root / "ct", source)
    return root


@pytest.fixture
def refusal(folders, tmp_path):
    """Edit a copy of an honest folder; the line that refuses it."""

    def refuse(kind, edit=None, **settings):
        folder = shutil.copytree(folders / kind, tmp_path / "lies")
        if edit is not None:
            tensors = load_file(folder / WEIGHTS)
            edit(tensors)
            tensors = {name: np.ascontiguousarray(x) for name, x in tensors.items()}
            save_file(tensors, folder / WEIGHTS)
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"] |= settings
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(InputError) as error:
            load_quantized(folder, config_of(folders / "source"))
        assert "\n" not in str(error.value)
        return str(error.value)

    return refuse


def test_the_honest_folders_are_read(folders):
    config = config_of(folders / "source")
    for kind in ("gptq", "awq", "nf4", "nf4-dq", "int8", "ct"):
        assert len(load_quantized(folders / kind, config).matrices) == 5, kind


def change(part, value, base=BASE):
    """An edit: a tensor of ``BASE`` becomes ``value`` of it."""

    def edit(tensors):
        tensors[f"{base}{part}"] = value(tensors[f"{base}{part}"])

    return edit


def put(value, *index):
    """One element changed."""

    def changed(x):
        x = x.copy()
        x[index] = value
        return x

    return changed


def say(**settings):
    """A quant_state that says something else."""

    def changed(x):
        state = json.loads(x.tobytes()) | settings
        return np.frombuffer(json.dumps(state).encode(), np.uint8)

    return changed


STATE = ".weight.quant_state.bitsandbytes__nf4"
LIES = {
    # scales
    "gptq scales of zero": ("gptq", change(".scales", put(0, 1, 2)), "1 scales of zero"),
    "gptq scales NaN": ("gptq", change(".scales", put(np.nan, 1, 2)), "NaN or infinite"),
    "gptq scales negative": ("gptq", change(".scales", put(-1, 1, 2)), "1 negative scales"),
    "awq scales infinite": ("awq", change(".scales", put(np.inf, 0, 0)), "NaN or infinite"),
    "awq scales of zero": ("awq", change(".scales", put(0, 0, 0)), "scales of zero"),
    "nf4 absmax of zero": ("nf4", change(".weight.absmax", put(0, 3)), "scales of zero"),
    "nf4 absmax NaN": ("nf4", change(".weight.absmax", put(np.nan, 3)), "NaN or infinite"),
    "int8 SCB of zero": ("int8", change(".SCB", put(0, 3)), "scales of zero"),
    "ct scale of zero": ("ct", change(".weight_scale", put(0, 3, 1)), "scales of zero"),
    # shapes and sizes
    "gptq packed by outputs": ("gptq", change(".qweight", lambda x: x.T),
                               r"qweight' has shape \[64, 16\], expected \[16, 64\]"),
    "gptq cut": ("gptq", change(".qweight", lambda x: x[:-1]), r"has shape \[15, 64\]"),
    "awq zero points cut": ("awq", change(".qzeros", lambda x: x[:1]), r"has shape \[1, 8\]"),
    "nf4 cut": ("nf4", change(".weight", lambda x: x[:-1]), "has 4095 bytes, expected 4096"),
    "nf4 absmax cut": ("nf4", change(".weight.absmax", lambda x: x[1:]), r"has shape \[127\]"),
    "nf4 of no size": ("nf4", change(".weight", lambda x: x[:0]), "has 0 bytes"),
    "nested absmax cut": ("nf4-dq", change(".weight.nested_absmax", lambda x: np.tile(x, 3)),
                          r"nested_absmax' has shape \[3\], expected \[1\]"),
    "int8 turned": ("int8", change(".weight", lambda x: x.T), r"has shape \[128, 64\]"),
    "ct shape": ("ct", change(".weight_shape", put(65, 0)), r"says \[65, 128\], expected"),
    # types
    "gptq words of 64 bits": ("gptq", change(".qweight", lambda x: x.astype(np.int64)),
                              "is of type I64, expected I32"),
    "int8 in floats": ("int8", change(".weight", lambda x: x.astype(np.float32)), "expected I8"),
    # group indices
    "g_idx too large": ("gptq", change(".g_idx", put(4, 9)), "from 0 to 4, expected"),
    "g_idx negative": ("gptq", change(".g_idx", put(-1, 9)), "from -1 to 3"),
    # what bitsandbytes says of itself
    "state shape": ("nf4", change(STATE, say(shape=[64, 64])), r"says shape \[64, 64\]"),
    "state shape absurd": ("nf4", change(STATE, say(shape=[2**40, -3])), "says shape"),
    "state type": ("nf4", change(STATE, say(quant_type="fp4")), "says quant_type 'fp4'"),
    "state blocksize": ("nf4", change(STATE, say(blocksize=96)), "blocks of 96 do not divide"),
    "state blocksize of zero": ("nf4", change(STATE, say(blocksize=0)), "blocks of 0 do not"),
    "state other blocksize": ("nf4", change(STATE, say(blocksize=32)), r"shape \[128\]"),
    "state is no JSON": ("nf4", change(STATE, lambda x: x[:-4]), "is not JSON"),
    "nested offset": ("nf4-dq", change(STATE, say(nested_offset="x")), "nested_offset 'x'"),
    "nested offset of 400 digits": (
        "nf4-dq", change(STATE, say(nested_offset=10**400)), "nested_offset 10{50}"),
    "codebook": ("nf4", change(".weight.quant_map", lambda x: x[::-1]), "is not the codebook"),
    # what is missing, and what is too much
    **{f"{kind} without {part}": (kind, lambda t, name=BASE + part: t.pop(name),
                                  f"{part}' is missing")
       for kind, part in (("gptq", ".scales"), ("gptq", ".qzeros"), ("gptq", ".qweight"),
                          ("awq", ".qzeros"), ("nf4", ".weight.absmax"), ("nf4", STATE),
                          ("nf4", ".weight.quant_map"), ("nf4-dq", ".weight.nested_quant_map"),
                          ("ct", ".weight_shape"), ("ct", ".weight_packed"))},
    "int8 without SCB": ("int8", lambda t: t.pop(f"{BASE}.SCB"), "is of type I8, expected F16"),
    "something else": ("gptq", lambda t: t.update({f"{BASE}.lora_A": np.ones(3)}),
                       "lora_A' is not known"),
}  # fmt: skip


@pytest.mark.parametrize("lie", list(LIES))
def test_a_file_that_lies_is_refused(refusal, lie):
    kind, edit, expected = LIES[lie]
    message = refusal(kind, edit)
    assert re.search(expected, message), message
    assert "dense_4h_to_h" in message


SETTINGS = {
    "bits": ("gptq", {"bits": 3}, "3 bits, expected 4 or 8"),
    "awq bits": ("awq", {"bits": 8}, "8 bits, expected 4"),
    "bits of text": ("gptq", {"bits": "4"}, "bits is '4'"),
    "group": ("gptq", {"group_size": 48}, "groups of 48 do not divide"),
    "group of zero": ("awq", {"group_size": 0}, "group_size is 0"),
    "other group": ("gptq", {"group_size": 64}, "has shape [2, 24], expected [1, 24]"),
    "version": ("awq", {"version": "gemv"}, "layout 'gemv', expected 'gemm'"),
    "format": ("gptq", {"checkpoint_format": "marlin"}, "format 'marlin'"),
    "dynamic": ("gptq", {"dynamic": {"-:x": {}, "+:y": {"bits": 8}}}, "(dynamic: '+:y')"),
    "dynamic without a sign": ("gptq", {"dynamic": {"y": {"bits": 8}}}, "(dynamic: 'y')"),
    "dynamic of a list": ("gptq", {"dynamic": ["-:x"]}, "dynamic is ['-:x'], expected an object"),
    "bits of a half": ("gptq", {"bits": 4.9}, "bits is 4.9, expected a whole number"),
    "act-order of text": ("gptq", {"desc_act": "false"}, "desc_act is 'false', expected true or"),
    "format of a list": ("gptq", {"checkpoint_format": ["gptq"]}, "checkpoint_format is ['gptq']"),
    "marlin": ("gptq", {"is_marlin_format": True}, "format 'marlin'"),
    "version of a number": ("awq", {"version": 1}, "version is 1, expected a text"),
    "zero points of text": ("awq", {"zero_point": "false"}, "zero_point is 'false'"),
    "method": ("gptq", {"quant_method": "quip"}, "quantized by 'quip', expected one of awq"),
    "method of a list": ("gptq", {"quant_method": ["gptq"]}, "quant_method is ['gptq'], expected"),
    "method of an object": ("gptq", {"quant_method": {}}, "quant_method is {}, expected a text"),
    "file name of a number": ("gptq", {"model_file_base_name": 5}, "model_file_base_name is 5"),
    "4 bits of text": ("nf4", {"load_in_4bit": "true"}, "load_in_4bit is 'true'"),
    "other codes": ("nf4", {"bnb_4bit_quant_type": "fp4"}, "codes that config.json calls fp4"),
    "unknown codes": ("nf4", {"bnb_4bit_quant_type": "nf5"}, "bnb_4bit_quant_type is 'nf5'"),
    "both": ("nf4", {"load_in_8bit": True}, "expected one"),
    "ct format": ("ct", {"format": "mxfp8-quantized"}, "'mxfp8-quantized', expected one"),
    "ct status": ("ct", {"quantization_status": "thawed"}, "quantization_status is 'thawed'"),
    "ct status of a number": ("ct", {"quantization_status": 1}, "quantization_status is 1"),
    "ct format of a list": ("ct", {"format": ["dense"]}, "format is ['dense'], expected a text"),
    "ct groups": ("ct", {"config_groups": {"a": {}, "b": {}}}, "2 config_groups"),
    "ct cache": ("ct", {"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme"),
}


@pytest.mark.parametrize("case", list(SETTINGS))
def test_settings_that_are_not_handled_are_refused(refusal, case):
    kind, settings, expected = SETTINGS[case]
    assert expected in refusal(kind, **settings)


WEIGHTS_OF_CT = {
    "symmetric of text": ({"symmetric": "true"}, "symmetric is 'true', expected true or false"),
    "bits of a half": ({"num_bits": 4.9}, "num_bits is 4.9, expected a whole number"),
    "group of a truth": ({"group_size": True}, "group_size is True, expected a whole number"),
    "strategy of a list": ({"strategy": ["group"]}, "strategy is ['group'], expected a text"),
    "type of a number": ({"type": 4}, "type is 4, expected a text"),
}


@pytest.mark.parametrize("case", list(WEIGHTS_OF_CT))
def test_settings_of_a_config_group_have_types(folders, tmp_path, case):
    settings, expected = WEIGHTS_OF_CT[case]
    write_ct(tmp_path / "ct", folders / "source", **settings)
    with pytest.raises(InputError) as error:
        load_quantized(tmp_path / "ct", config_of(folders / "source"))
    assert expected in str(error.value)


@pytest.mark.parametrize("status", ["frozen", None, "left out"])
def test_tensors_say_that_they_are_compressed_whatever_the_status(folders, tmp_path, status):
    """llm-compressor of 2024 wrote "frozen" into float8 checkpoints."""
    folder = shutil.copytree(folders / "ct", tmp_path / "ct")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["quantization_status"] = status
    if status == "left out":
        del config["quantization_config"]["quantization_status"]
    (folder / "config.json").write_text(json.dumps(config))
    assert len(load_quantized(folder, config_of(folders / "source")).matrices) == 5


def test_float8_codes_that_are_nan_are_refused(folders, tmp_path):
    write_fp8(tmp_path / "fp8", folders / "source", damaged=f"{BASE}.weight")
    with pytest.raises(InputError, match=r"dense_4h_to_h.weight' has values that are NaN"):
        load_quantized(tmp_path / "fp8", config_of(folders / "source"))


def test_a_scale_of_zero_over_zeros_is_honest(folders, tmp_path):
    folder = shutil.copytree(folders / "int8", tmp_path / "pruned")
    tensors = load_file(folder / WEIGHTS)
    tensors[f"{BASE}.weight"] = put(0, 3)(tensors[f"{BASE}.weight"])
    tensors[f"{BASE}.SCB"] = put(0, 3)(tensors[f"{BASE}.SCB"])
    save_file(tensors, folder / WEIGHTS)
    load_quantized(folder, config_of(folders / "source"))


def test_an_original_given_as_quantized_is_refused(folders):
    with pytest.raises(InputError, match="nothing in it is quantized"):
        load_quantized(folders / "source", config_of(folders / "source"))
    for path, expected in ((folders / "nowhere", "no such folder"), ("x" * 300, "too long"),
                           (folders / "gptq" / WEIGHTS, "neither a folder nor a .gguf"),
                           ("a\0b", "cannot be read")):  # fmt: skip
        with pytest.raises(InputError, match=expected):
            load_quantized(path, config_of(folders / "source"))


def test_shapes_that_config_json_does_not_have_are_refused(folders):
    config = config_of(original(folders / "wider", intermediate_size=256))
    with pytest.raises(InputError, match=r"qweight' has shape \[8, 128\], expected \[8, 256\]"):
        load_quantized(folders / "gptq", config)


# With the original at hand.


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = original(tmp_path_factory.mktemp("model"), tokenizer=TOKENIZER, vocab_size=4096)
    return jaxalign.load(str(folder))


def test_a_checkpoint_that_belongs_is_loaded_with_its_largest_error(model, tmp_path):
    write_gptq(tmp_path / "q", model.source.folder)
    (note,) = load_beside(tmp_path / "q", model).notes
    error = float(note.split(": ")[1].split(" (")[0])
    assert 0.03 < error < 0.2, note


def test_awq_is_compared_up_to_the_scales_it_moved(model, tmp_path):
    write_awq(tmp_path / "q", model.source.folder, scaled=True)
    (note,) = load_beside(tmp_path / "q", model).notes
    assert float(note.split(": ")[1].split(" (")[0]) < 0.25, note


@pytest.mark.parametrize("scaled", [False, True])
def test_a_wrong_nibble_order_is_refused(model, tmp_path, scaled):
    write_awq(tmp_path / "q", model.source.folder, order=tuple(range(8)), scaled=scaled)
    with pytest.raises(InputError, match=r"blocks\.\w+\.\w+ of layer \d is off by"):
        load_beside(tmp_path / "q", model)


def test_another_models_checkpoint_is_refused(model, tmp_path):
    other = original(tmp_path / "other", seed=1, tokenizer=TOKENIZER, vocab_size=4096)
    write_gptq(tmp_path / "q", other)
    with pytest.raises(InputError, match="embed is off by"):
        load_beside(tmp_path / "q", model)


@pytest.mark.parametrize(
    ("setting", "value"), [("rotary_pct", 0.5), ("num_attention_heads", 2), ("hidden_act", "relu")]
)
def test_another_architecture_is_refused_by_its_field(model, tmp_path, setting, value):
    write_gptq(tmp_path / "q", model.source.folder)
    path = tmp_path / "q" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {setting: value}))
    with pytest.raises(InputError, match=r"says \w+ .*, but the original has"):
        load_beside(tmp_path / "q", model)


def test_a_setting_of_a_wrong_type_is_refused(model, tmp_path):
    write_gptq(tmp_path / "q", model.source.folder)
    path = tmp_path / "q" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden_size": "wide"}))
    with pytest.raises(InputError, match='hidden_size is "wide", expected a whole number'):
        load_beside(tmp_path / "q", model)


def test_another_vocabulary_is_refused_by_its_first_token(model, tmp_path):
    write_gptq(tmp_path / "q", model.source.folder)
    path = tmp_path / "q" / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    a, b = list(vocabulary)[300:302]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"its tokenizer has .* the original's as"):
        load_beside(tmp_path / "q", model)


def edit_tokenizer(folder, edit):
    content = json.loads((folder / "tokenizer.json").read_text())
    edit(content)
    (folder / "tokenizer.json").write_text(json.dumps(content))


PAD = {"id": 4096, "content": "<|PAD|>", "special": True} | dict.fromkeys(
    ("single_word", "lstrip", "rstrip", "normalized"), False
)


def test_a_pad_token_and_a_longer_context_change_no_number_and_are_noted(model, tmp_path):
    write_gptq(tmp_path / "q", model.source.folder)
    edit_tokenizer(tmp_path / "q", lambda content: content["added_tokens"].append(PAD))
    path = tmp_path / "q" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_position_embeddings": 4096}))
    context, tokens, _ = load_beside(tmp_path / "q", model).notes
    assert "contexts of 4096 tokens" in context
    assert "only one of the two tokenizers has '<|PAD|>'" in tokens


def test_a_token_that_only_one_vocabulary_has_is_refused(model, tmp_path):
    """A word that was not added took part in how the tokenizer cuts texts."""
    write_gptq(tmp_path / "q", model.source.folder)
    edit_tokenizer(tmp_path / "q", lambda content: content["model"]["vocab"].update(qqq=4096))
    with pytest.raises(InputError, match="'qqq' as 4096, the original's as no token"):
        load_beside(tmp_path / "q", model)


def test_a_missing_tokenizer_is_noted(model, tmp_path):
    write_gptq(tmp_path / "q", model.source.folder)
    (tmp_path / "q" / "tokenizer.json").unlink()
    assert any("no tokenizer" in note for note in load_beside(tmp_path / "q", model).notes)


# GGUF.


def gguf_file(path, architecture="gptneox", **settings):
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(settings.get("blocks", 2))
    writer.add_tensor("token_embd.weight", np.zeros((96, 64), np.float32))
    if "tensor" in settings:
        writer.add_tensor(settings["tensor"], np.zeros((96, 64), np.float32))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file,
                 writer.write_tensors_to_file, writer.close):  # fmt: skip
        step()
    return path


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"architecture": "llama"}, "architecture 'llama', and the original is of GPT-NeoX"),
        ({"blocks": 7}, "block_count 7, but the original has 2"),
        ({"tensor": "blk.0.attn_q.weight"}, "'blk.0.attn_q.weight' is not known"),
        ({}, "is missing"),
    ],
)
def test_a_gguf_file_of_something_else_is_refused(folders, tmp_path, settings, expected):
    path = gguf_file(tmp_path / "m.gguf", **settings)
    with pytest.raises(InputError) as error:
        load_quantized(path, config_of(folders / "source"))
    assert expected in str(error.value)


def test_a_damaged_gguf_file_is_refused(folders, tmp_path):
    path = gguf_file(tmp_path / "m.gguf")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="damaged or no GGUF file"):
        load_quantized(path, config_of(folders / "source"))
    path.write_bytes(b"no such thing")
    with pytest.raises(InputError, match="damaged or no GGUF file"):
        load_quantized(path, config_of(folders / "source"))
    with pytest.raises(InputError, match=r"there is no such folder or \.gguf file"):
        load_quantized(tmp_path / "nowhere.gguf", config_of(folders / "source"))


def gguf_bytes(tmp_path, **settings):
    """A small valid file of two tensors and a vocabulary, and where its parts stand."""
    path = tmp_path / "whole.gguf"
    writer = gguf.GGUFWriter(path, "gptneox")
    for key, value in settings.items():
        writer.add_uint32(f"gptneox.{key}", value)
    writer.add_token_list(["alpha", "omega"])
    for name in ("token_embd.weight", "output.weight"):
        writer.add_tensor(name, np.zeros((96, 64), np.float32))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file,
                 writer.write_tensors_to_file, writer.close):  # fmt: skip
        step()
    return bytearray(path.read_bytes())


def after(raw, name, skip):
    """The place behind a text and ``skip`` bytes more."""
    return raw.index(name.encode()) + len(name) + skip


def overlap(raw):
    struct.pack_into("<Q", raw, after(raw, "output.weight", 4 + 16 + 4), 0)


def unalign(raw):
    struct.pack_into("<Q", raw, after(raw, "output.weight", 4 + 16 + 4), 4 * 96 * 64 + 4)


def leave_the_file(raw):
    struct.pack_into("<Q", raw, after(raw, "output.weight", 4), 2**40)


def break_a_token(raw):
    raw[raw.index(b"omega")] = 0xFF


def endless_list(raw):
    struct.pack_into("<Q", raw, after(raw, "tokenizer.ggml.tokens", 4 + 4), 2**60)


def scalar_tokens(raw):
    """An unsigned number where the list of tokens was; the rest of the list is no setting."""
    struct.pack_into("<I", raw, after(raw, "tokenizer.ggml.tokens", 0), 4)


DAMAGED = {
    overlap: "'output.weight' begins at 0, expected 24576",
    unalign: "'output.weight' begins at 24580, expected 24576",
    leave_the_file: "ends behind the end",
    break_a_token: "not UTF-8",
    endless_list: "is damaged or no GGUF file",
    scalar_tokens: "is damaged or no GGUF file",
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_gguf_file_that_leaves_its_bounds_is_refused(tmp_path, damage):
    raw = gguf_bytes(tmp_path)
    (tmp_path / "m.gguf").write_bytes(raw)
    open_gguf(tmp_path / "m.gguf")
    damage(raw)
    (tmp_path / "m.gguf").write_bytes(raw)
    with pytest.raises(InputError, match=re.escape(DAMAGED[damage])):
        open_gguf(tmp_path / "m.gguf")


def test_a_vocabulary_that_is_no_list_of_texts_is_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "gptneox")
    writer.add_uint32("tokenizer.ggml.tokens", 7)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file,
                 writer.write_tensors_to_file, writer.close):  # fmt: skip
        step()
    with pytest.raises(InputError, match=r"tokens is 7, expected a list of texts"):
        tokens_of(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("key", "value"),
    [("vocab_size", 97), ("attention.head_count_kv", 2), ("use_parallel_residual", 1),
     ("rope.scaling.factor", 2), ("expert_count", 8), ("attention.layer_norm_epsilon", 1)],
)  # fmt: skip
def test_whatever_a_gguf_file_says_of_the_model_is_held_against_it(folders, tmp_path, key, value):
    raw = gguf_bytes(tmp_path, **{key: value})
    (tmp_path / "m.gguf").write_bytes(raw)
    with pytest.raises(InputError, match=f"says {key} {value}, but the original has"):
        load_quantized(tmp_path / "m.gguf", config_of(folders / "source"))


def test_a_layer_number_of_many_digits_is_no_name(folders, tmp_path):
    name = f"blk.{'9' * 5000}.attn_q.weight"
    path = gguf_file(tmp_path / "m.gguf", tensor=name)
    with pytest.raises(InputError, match="is not known"):
        load_quantized(path, config_of(folders / "source"))


def test_without_the_gguf_package_the_remedy_is_said(folders, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match=r"pip install 'jaxalign\[gguf\]'"):
        load_quantized(tmp_path / "m.gguf", config_of(folders / "source"))
