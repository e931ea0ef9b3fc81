"""Claims about checkpoints that other tools quantized: every weight comes out with the bits that
the tool's own dequantization gives, stays packed, and the model computes the same with it."""

import hashlib
import json
import warnings
from dataclasses import replace

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packed_files import (
    config_of,
    linear,
    original,
    published,
    words_of,
    write,
    write_awq,
    write_bnb,
    write_gguf,
    write_gptq,
)
from safetensors.numpy import load_file, save_file

import jaxalign
from jaxalign import InputError
from jaxalign.checkpoints import load_params, open_checkpoint, save_checkpoint
from jaxalign.checkpoints.families import FAMILIES
from jaxalign.checkpoints.families.neox import NEOX
from jaxalign.checkpoints.quantized import load_quantized, read
from jaxalign.checkpoints.quantized.linear import fields
from jaxalign.checkpoints.tables import Table, Target, concatenated, same, transposed
from jaxalign.numerics.dot import dense
from jaxalign.numerics.invariants import check
from jaxalign.numerics.qtensor import QTensor

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import bitsandbytes as bnb
    import compressed_tensors.quantization as ct
    import torch
    from bitsandbytes.functional import QuantState
    from compressed_tensors.compressors import BaseCompressor, ModelCompressor
    from compressed_tensors.quantization.utils import calculate_qparams
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GPTNeoXForCausalLM

MATRICES = ("query", "key_value", "out", "up", "down")
TOKENS = np.random.default_rng(0).integers(0, 96, (2, 7))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return original(tmp_path_factory.mktemp("original"))


def packed(params):
    leaves = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, QTensor))
    return [leaf for leaf in leaves if isinstance(leaf, QTensor)]


def assert_stands_for(quantized, expected, source, folder):
    """Every published tensor, to the bit; and what is packed is what it says it is."""
    for w in packed(quantized.params):
        check(w, "a matrix")
    found = published(quantized.params, config_of(source), folder)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        np.testing.assert_array_equal(tensor, expected[name].astype(np.float32), name)


def assert_computes(quantized, expected, source):
    """The logits of the packed model are those of transformers with the unpacked weights."""
    model = GPTNeoXForCausalLM.from_pretrained(source, dtype=torch.float32)
    model.load_state_dict(
        {
            name.replace("embed_out", "lm_head"): torch.tensor(tensor.astype(np.float32))
            for name, tensor in expected.items()
        }
    )
    with torch.no_grad():
        wanted = model(torch.tensor(TOKENS)).logits.numpy()
    config = config_of(source)
    found = jaxalign.forward(quantized.params, jnp.asarray(TOKENS, jnp.int32), config).logits
    np.testing.assert_allclose(np.asarray(found), wanted, atol=1e-5 * np.abs(wanted).max())


# AWQ and GPTQ, packed by the tests' own writer.


@pytest.mark.parametrize("scaled", [False, True])
def test_awq_gemm(source, tmp_path, scaled):
    expected = write_awq(tmp_path / "q", source, scaled=scaled)
    quantized = load_quantized(tmp_path / "q", config_of(source))
    assert quantized.title == "AWQ (gemm), 4 bits, groups of 32"
    assert len(packed(quantized.params)) == len(MATRICES)
    assert (quantized.params.blocks.mlp.down.input_divisor is not None) == scaled
    assert_stands_for(quantized, expected, source, tmp_path / "back")
    if scaled:
        assert_computes(quantized, expected, source)


@pytest.mark.parametrize(
    ("version", "bits", "act_order"), [(1, 4, True), (2, 4, False), (1, 8, False), (2, 8, True)]
)
def test_gptq(source, tmp_path, version, act_order, bits):
    expected = write_gptq(tmp_path / "q", source, version, bits, act_order)
    quantized = load_quantized(tmp_path / "q", config_of(source))
    order = ", act-order" if act_order else ""
    assert quantized.title == f"GPTQ v{version}, {bits} bits, groups of 32{order}"
    assert all((w.group_of is not None) == act_order for w in packed(quantized.params))
    assert_stands_for(quantized, expected, source, tmp_path / "back")
    if bits == 4 and act_order:
        assert_computes(quantized, expected, source)


@pytest.mark.parametrize("bits", [4, 8])
def test_gptq_zero_points_of_zero_borrow_from_no_neighbour(source, tmp_path, bits):
    """Version 1 is made of version 2 as gptqmodel does: one subtraction from a whole word."""
    zero = {}
    for version in (2, 1):
        folder = tmp_path / str(version)
        write_gptq(folder, source, version, bits)
        tensors, rng = load_file(folder / "model.safetensors"), np.random.default_rng(0)
        for name in sorted(name for name in tensors if name.endswith("qzeros")):
            words = rng.integers(0, 2**32, tensors[name].shape, np.uint32)
            words &= np.uint32(0xFFF0FF0F)
            ones = {4: 0x11111111, 8: 0x01010101}[bits] if version == 1 else 0
            tensors[name] = (words - np.uint32(ones)).view(np.int32)
        save_file(tensors, folder / "model.safetensors")
        zero[version] = load_quantized(folder, config_of(source)).params.blocks.mlp.up.zero
    assert (np.asarray(zero[1]) == (0 if bits == 4 else -128)).any()
    np.testing.assert_array_equal(zero[1], zero[2])


def test_symmetric_gptq_needs_no_zero_points(source, tmp_path):
    expected = write_gptq(tmp_path / "q", source, symmetric=True)
    quantized = load_quantized(tmp_path / "q", config_of(source))
    assert all(w.zero is None and not w.format.zero for w in packed(quantized.params))
    assert_stands_for(quantized, expected, source, tmp_path / "back")


@pytest.mark.parametrize("writer", ["gptq", "awq", "ct"])
def test_negative_scales_of_symmetric_codes_are_read(source, tmp_path, writer):
    """auto-round exports ``W = (q − z) · s`` whose sign puts the largest weight on −8."""
    expected = write_gptq(tmp_path / "q", source, symmetric="full range")
    scales = load_file(tmp_path / "q" / "model.safetensors")
    assert any((x < 0).any() for name, x in scales.items() if name.endswith("scales"))
    if writer != "gptq":
        tensors = {name: x for name, x in expected.items() if not linear(name)}
        for name in filter(linear, expected):
            base = name.removesuffix(".weight")
            codes = fields(scales[f"{base}.qweight"].T.copy(), 4).reshape(expected[name].shape)
            scale, shape = scales[f"{base}.scales"], expected[name].shape
            if writer == "awq":
                tensors[f"{base}.qweight"] = words_of(codes.T, 4, (0, 2, 4, 6, 1, 3, 5, 7))
                zero = np.full(scale.shape, 8)
                tensors[f"{base}.qzeros"] = words_of(zero, 4)
                tensors[f"{base}.scales"] = scale
            else:
                tensors[f"{base}.weight_packed"] = words_of(codes, 4)
                tensors[f"{base}.weight_scale"] = scale.T
                tensors[f"{base}.weight_shape"] = np.array(shape, np.int64)
        weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
        write(tmp_path / "q", source, tensors, {
            "awq": {"quant_method": "awq", "bits": 4, "group_size": 32},
            "ct": {"quant_method": "compressed-tensors", "format": "pack-quantized",
                   "config_groups": {"group_0": {"weights": weights}}}}[writer])  # fmt: skip
    quantized = load_quantized(tmp_path / "q", config_of(source))
    assert all(w.zero is None for w in packed(quantized.params))
    assert_stands_for(quantized, expected, source, tmp_path / "back")


def test_four_bit_weights_take_four_bits_in_memory(source, tmp_path):
    write_gptq(tmp_path / "q", source, symmetric=True)
    for w in packed(load_quantized(tmp_path / "q", config_of(source)).params):
        assert w.codes.nbytes == w.size / 2
        assert w.nbytes == w.size / 2 + 2 * w.size / 32


# Names of AutoGPTQ's and AutoAWQ's own.


@pytest.mark.parametrize(
    ("weights", "named", "index"),
    [
        ("gptq_model-4bit-32g", "gptq_model-4bit-32g", False),
        ("gptq_model-4bit-32g", None, False),
        ("gptq_model-4bit-32g", "somewhere else", False),
        ("gptq_model-4bit-32g", "gptq_model-4bit-32g", True),
    ],
)
def test_weights_under_autogptqs_own_names_are_read(source, tmp_path, weights, named, index):
    folder = tmp_path / "q"
    expected = write_gptq(folder, source)
    (folder / "model.safetensors").rename(folder / f"{weights}.safetensors")
    if index:
        (folder / f"{weights}.safetensors").rename(folder / "a.safetensors")
        names = dict.fromkeys(load_file(folder / "a.safetensors"), "a.safetensors")
        content = json.dumps({"weight_map": names})
        (folder / f"{weights}.safetensors.index.json").write_text(content)
    config = json.loads((folder / "config.json").read_text())
    settings = config.pop("quantization_config") | {"model_file_base_name": named}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "quantize_config.json").write_text(json.dumps(settings))
    quantized = load_quantized(folder, config_of(source))
    assert_stands_for(quantized, expected, source, tmp_path / "back")


def test_one_of_several_files_is_not_guessed(source, tmp_path):
    write_gptq(tmp_path / "q", source)
    path = tmp_path / "q" / "model.safetensors"
    (tmp_path / "q" / "a.safetensors").write_bytes(path.read_bytes())
    path.rename(tmp_path / "q" / "b.safetensors")
    with pytest.raises(InputError, match=r"model\.safetensors"):
        load_quantized(tmp_path / "q", config_of(source))


def test_settings_that_autoawq_wrote_beside_the_config_are_read(source, tmp_path):
    expected = write_awq(tmp_path / "q", source, scaled=False)
    path = tmp_path / "q" / "config.json"
    config = json.loads(path.read_text())
    del config["quantization_config"]
    path.write_text(json.dumps(config))
    settings = {"zero_point": True, "q_group_size": 32, "w_bit": 4, "version": "GEMM"}
    (tmp_path / "q" / "quant_config.json").write_text(json.dumps(settings))
    quantized = load_quantized(tmp_path / "q", config_of(source))
    assert_stands_for(quantized, expected, source, tmp_path / "back")


# Layers that are not quantized.


def test_layers_that_gptqs_rules_leave_out_are_there_in_floating_point(source, tmp_path):
    expected = write_gptq(tmp_path / "q", source, skip=lambda name: "attention" in name)
    path = tmp_path / "q" / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["dynamic"] = {r"-:.*attention.*": {}, "-:.*lm_head.*": {}}
    path.write_text(json.dumps(config))
    quantized = load_quantized(tmp_path / "q", config_of(source))
    assert len(packed(quantized.params)) == 2
    assert_stands_for(quantized, expected, source, tmp_path / "back")


def test_a_kind_quantized_in_some_layers_is_unpacked_and_noted(source, tmp_path):
    expected = write_gptq(tmp_path / "q", source, skip=lambda name: "layers.1.mlp" in name)
    quantized = load_quantized(tmp_path / "q", config_of(source))
    assert len(packed(quantized.params)) == 3
    assert [note.split(" layers")[0] for note in quantized.notes] == [
        "blocks.mlp.up is quantized in 1 of 2",
        "blocks.mlp.down is quantized in 1 of 2",
    ]
    assert quantized.matrices["blocks.mlp.up"] == "float32"
    assert quantized.matrices["blocks.attention.out"] == "int4-g32, zero points"
    assert_stands_for(quantized, expected, source, tmp_path / "back")


def test_a_kind_left_out_everywhere_stays_as_it_was(source, tmp_path):
    expected = write_gptq(tmp_path / "q", source, skip=lambda name: "attention" in name)
    quantized = load_quantized(tmp_path / "q", config_of(source))
    assert len(packed(quantized.params)) == 2
    assert not quantized.notes
    assert_stands_for(quantized, expected, source, tmp_path / "back")


def test_names_that_a_model_has_in_memory_are_known(source, tmp_path):
    expected = write_gptq(tmp_path / "q", source)
    tensors = load_file(tmp_path / "q" / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("embed_out.weight")
    save_file(tensors, tmp_path / "q" / "model.safetensors")
    quantized = load_quantized(tmp_path / "q", config_of(source))
    assert_stands_for(quantized, expected, source, tmp_path / "back")


def test_biases_of_zeros_that_a_tool_added_are_passed_over(tmp_path):
    source = original(tmp_path / "source", attention_bias=False)
    write_gptq(tmp_path / "q", source)
    path = tmp_path / "q" / "model.safetensors"
    added = {"gpt_neox.layers.0.attention.dense.bias": np.zeros(64, np.float32)}
    save_file(load_file(path) | added, path)
    load_quantized(tmp_path / "q", config_of(source))
    save_file(load_file(path) | {name: x + 1 for name, x in added.items()}, path)
    with pytest.raises(InputError, match=r"dense.bias' is not known"):
        load_quantized(tmp_path / "q", config_of(source))


def test_a_quantized_unembedding_is_unpacked_and_noted(source, tmp_path, monkeypatch):
    monkeypatch.setattr("packed_files.LINEAR", ("embed_out", "mlp.dense_h_to_4h"))
    expected = write_gptq(tmp_path / "q", source)
    quantized = load_quantized(tmp_path / "q", config_of(source))
    assert quantized.notes == (
        "unembed is quantized: unpacked, with the values it was quantized to",
    )
    assert_stands_for(quantized, expected, source, tmp_path / "back")


def test_size_and_hash_are_those_of_the_file(source, tmp_path):
    write_gptq(tmp_path / "q", source)
    quantized = load_quantized(tmp_path / "q", config_of(source))
    content = (tmp_path / "q" / "model.safetensors").read_bytes()
    assert quantized.disk_bytes == len(content)
    assert quantized.weights_sha256 == hashlib.sha256(content).hexdigest()


def by_projection(config):
    """A table as Llama's: queries, keys and values each in a tensor of their own."""
    layer = "gpt_neox.layers.{layer}."
    rules = []
    for name, leaf, part in (
        ("q_proj", "query", None),
        ("k_proj", "key_value", 0),
        ("v_proj", "key_value", 1),
    ):
        rules.append(transposed(f"{layer}{name}.weight", f"blocks.attention.{leaf}", part))
        rules.append(same(f"{layer}{name}.bias", f"blocks.attention.{leaf}_bias", part))
    return _neox_with(rules)


def side_by_side(config):
    """A table as Phi-3's: queries, keys and values below each other in one tensor."""

    def rule(kind, suffix):
        return concatenated(
            "gpt_neox.layers.{layer}.qkv_proj." + kind,
            [
                Target(leaf=f"blocks.attention.query{suffix}"),
                Target(leaf=f"blocks.attention.key_value{suffix}", part=0),
                Target(leaf=f"blocks.attention.key_value{suffix}", part=1),
            ],
            lambda config: [config.attention_width] * 3,
        )

    return _neox_with([rule("weight", ""), rule("bias", "_bias")])


def _neox_with(rules):
    table = NEOX.table
    others = [rule for rule in table.rules if "query_key_value" not in rule.published]
    return Table(
        rules=(*others, *rules),
        embed=table.embed,
        unembed=table.unembed,
        buffers=table.buffers,
    )


def split_heads(source, config):
    """The source's tensors, and by layer, part and kind what its fused ones hold."""
    tensors, parts = load_file(source / "model.safetensors"), {}
    for name in [name for name in tensors if "query_key_value" in name]:
        fused = tensors.pop(name)
        heads = fused.reshape(config.num_heads, 3, config.head_size, *fused.shape[1:])
        base, kind = name.split("attention.query_key_value")
        for i, part in enumerate(("q_proj", "k_proj", "v_proj")):
            parts[base, part, kind] = heads[:, i].reshape(64, *fused.shape[1:])
    return tensors, parts


def test_a_table_with_tensors_below_each_other(source, tmp_path, monkeypatch):
    config = config_of(source)
    tensors, parts = split_heads(source, config)
    for base, part, kind in parts:
        if part == "q_proj":
            three = [parts[base, name, kind] for name in ("q_proj", "k_proj", "v_proj")]
            tensors[f"{base}qkv_proj{kind}"] = np.concatenate(three)
    write(tmp_path / "joined", source, tensors, {})
    family = replace(NEOX, table=side_by_side(config))
    expected = load_params(open_checkpoint(source), config)
    monkeypatch.setitem(FAMILIES, "gpt_neox", family)
    found = load_params(open_checkpoint(tmp_path / "joined"), config)
    assert jax.tree.all(jax.tree.map(np.array_equal, found, expected))
    save_checkpoint(found, config, tmp_path / "again", "float32")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == tensors.keys()
    assert all(np.array_equal(again[name], tensors[name]) for name in tensors)
    stands = write_gptq(tmp_path / "q", tmp_path / "joined")
    attention = load_quantized(tmp_path / "q", config).params.blocks.attention
    assert isinstance(attention.key_value, QTensor)
    matrices = (dense(attention.query, jnp.float32)[1], *(
        dense(attention.key_value, jnp.float32)[1, :, part] for part in range(2)))  # fmt: skip
    joined = np.concatenate([np.asarray(matrix).T for matrix in matrices])
    np.testing.assert_array_equal(joined, stands["gpt_neox.layers.1.qkv_proj.weight"])


@pytest.mark.parametrize("left_out", ["", "v_proj"])
def test_tables_with_keys_and_values_apart(source, tmp_path, monkeypatch, left_out):
    """A layer's keys and values become one matrix, which is unpacked if only one is quantized."""
    config = config_of(source)
    tensors, parts = split_heads(source, config)
    tensors |= {"".join(place): tensor for place, tensor in parts.items()}
    write(tmp_path / "split", source, tensors, {})
    monkeypatch.setattr("packed_files.LINEAR", ("q_proj", "k_proj", "v_proj"))
    expected = write_gptq(
        tmp_path / "q", tmp_path / "split", skip=lambda name: left_out and left_out in name
    )
    monkeypatch.setattr(read, "_table", by_projection)
    quantized = load_quantized(tmp_path / "q", config)
    attention = quantized.params.blocks.attention
    noted = [note.split(":")[0] for note in quantized.notes]
    unalike = "blocks.attention.key_value is not quantized alike in all layers and parts"
    assert noted == ([unalike] if left_out else [])
    assert isinstance(attention.query, QTensor)
    assert isinstance(attention.key_value, QTensor) == (not left_out)
    for part, name in enumerate(("k_proj", "v_proj")):
        found = np.asarray(dense(attention.key_value, jnp.float32))[1, :, part]
        np.testing.assert_array_equal(found.T, expected[f"gpt_neox.layers.1.{name}.weight"])


# bitsandbytes, by transformers.

BNB = {
    "nf4": (BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"), "float32"),
    "nf4 in f32 storage": (
        BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",
                           bnb_4bit_quant_storage=torch.float32), "float32"),
    "fp4 double": (
        BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4",
                           bnb_4bit_use_double_quant=True), "float16"),
    "int8": (BitsAndBytesConfig(load_in_8bit=True), "float32"),
}  # fmt: skip


@pytest.fixture(scope="module", params=list(BNB))
def bitsandbytes_folder(request, source, tmp_path_factory):
    folder, (settings, dtype) = tmp_path_factory.mktemp("bnb"), BNB[request.param]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(
            source, quantization_config=settings, dtype=getattr(torch, dtype)
        )
        model.save_pretrained(folder)
    return folder


def by_bitsandbytes(folder):
    """What bitsandbytes dequantizes a saved folder to."""
    stored = {name: torch.tensor(x) for name, x in load_file(folder / "model.safetensors").items()}
    found = {}
    for name, tensor in stored.items():
        parts = {k: v for k, v in stored.items() if k.startswith(f"{name}.")}
        if linear(name) and parts:
            state = QuantState.from_dict(parts, torch.device("cpu"))
            tensor = bnb.functional.dequantize_4bit(tensor.view(torch.uint8), state)
        elif linear(name):
            scales = stored[name.removesuffix("weight") + "SCB"]
            tensor = bnb.functional.int8_vectorwise_dequant(tensor, scales)
        elif not name.endswith((".weight", ".bias")):
            continue
        found[name] = tensor.numpy()
    return found


def test_bitsandbytes(source, bitsandbytes_folder, tmp_path):
    expected = by_bitsandbytes(bitsandbytes_folder)
    quantized = load_quantized(bitsandbytes_folder, config_of(source))
    assert len(packed(quantized.params)) == len(MATRICES)
    dtype = next(expected[name].dtype for name in expected if linear(name))
    found = published(quantized.params, config_of(source), tmp_path)
    for name, tensor in found.items():
        np.testing.assert_array_equal(tensor.astype(dtype), expected[name].astype(dtype), name)
    if quantized.title.startswith("bitsandbytes nf4") or quantized.inputs:
        assert_computes(quantized, expected, source)


def test_scales_that_double_quantization_leaves_negative_or_zero_are_read(source, tmp_path):
    """Scales are rounded around their mean, so a small one may fall below zero."""
    tensors = load_file(source / "model.safetensors")
    w = tensors["gpt_neox.layers.1.mlp.dense_h_to_4h.weight"]
    w *= np.random.default_rng(0).uniform(0, 1, (len(w), 1)).astype(np.float32)
    w[:16], w[20] = 0, w[20] * 30
    write(tmp_path / "small", source, tensors, {})
    write_bnb(tmp_path / "q", tmp_path / "small", double=True)
    expected = by_bitsandbytes(tmp_path / "q")
    quantized = load_quantized(tmp_path / "q", config_of(source))
    up = quantized.params.blocks.mlp.up
    assert (np.asarray(up.scale) < 0).any()
    assert not np.asarray(dense(up, jnp.float32))[1][:, :16].any()
    assert_stands_for(quantized, expected, source, tmp_path / "back")


# compressed-tensors, by its own compressor.


def arguments(**settings):
    return ct.QuantizationArgs(**({"num_bits": 4, "type": "int", "symmetric": True} | settings))


TOKEN = {"num_bits": 8, "strategy": "token", "dynamic": True}
COMPRESSED = {
    "int4-sym-g32": ({"weights": arguments(strategy="group", group_size=32)}, None),
    "int4-g32": (
        {"weights": arguments(strategy="group", group_size=32, symmetric=False)}, None),
    "int4-channel": ({"weights": arguments(strategy="channel", symmetric=False)}, None),
    "w8a16": ({"weights": arguments(num_bits=8, strategy="channel")}, None),
    "w8a8": ({"weights": arguments(num_bits=8, strategy="channel"),
              "input_activations": arguments(**TOKEN)}, "int8-token"),
    "fp8": ({"weights": arguments(num_bits=8, type="float", strategy="channel"),
             "input_activations": arguments(**TOKEN, type="float")}, "e4m3fn-token"),
    "fp8-g32": (
        {"weights": arguments(num_bits=8, type="float", strategy="group", group_size=32)}, None),
    "fp8-tensor": ({"weights": arguments(num_bits=8, type="float", strategy="tensor"),
                    "input_activations": arguments(num_bits=8, type="float", strategy="tensor")},
                   "other"),
}  # fmt: skip


def compress(source, folder, settings, dtype):
    """A folder by compressed-tensors, its scales found by its own function, and what it holds."""
    model = GPTNeoXForCausalLM.from_pretrained(source, dtype=dtype)
    scheme = ct.QuantizationScheme(targets=["Linear"], **settings)
    config = ct.QuantizationConfig(config_groups={"group_0": scheme}, ignore=["lm_head"])
    ct.apply_quantization_config(model, config)
    for module in model.modules():
        if (found := getattr(module, "quantization_scheme", None)) is None:
            continue
        w, args = module.weight.data, found.weights
        parts = w.reshape(1, -1) if args.strategy == "tensor" else w
        parts = parts.reshape(len(parts), -1, args.group_size or parts.shape[1])
        scale, zero = calculate_qparams(parts.amin(-1), parts.amax(-1), args)
        module.weight_scale.data.copy_(scale.reshape(module.weight_scale.shape))
        if hasattr(module, "weight_zero_point"):
            module.weight_zero_point.data.copy_(zero.reshape(module.weight_zero_point.shape))
        if hasattr(module, "input_scale"):
            module.input_scale.data.fill_(0.01)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(folder)
    expected = {}
    for name, module in model.named_modules():
        state = {key: x.detach() for key, x in module._parameters.items() if x is not None}
        if (found := getattr(module, "quantization_scheme", None)) is not None:
            kind = BaseCompressor.get_value_from_registry(found.format.value)
            state = {
                k: x for k, x in kind.decompress(state, found).items() if k in ("weight", "bias")
            }
        expected |= {f"{name}.{key}": x.float().numpy() for key, x in state.items()}
    return {name.replace("lm_head", "embed_out"): x for name, x in expected.items()}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, "float32") for name in COMPRESSED), ("int4-g32", "bfloat16"), ("fp8", "bfloat16")],
)
def test_compressed_tensors(source, tmp_path, name, dtype):
    settings, inputs = COMPRESSED[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = compress(source, tmp_path / "q", settings, getattr(torch, dtype))
    quantized = load_quantized(tmp_path / "q", config_of(source))
    assert quantized.inputs == inputs
    assert len(packed(quantized.params)) == len(MATRICES)
    assert_stands_for(quantized, expected, source, tmp_path / "back")
    if (name, dtype) in (("int4-channel", "float32"), ("fp8", "float32")):
        assert_computes(quantized, expected, source)


def test_inputs_are_rounded_as_deployed_on_request(source, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compress(source, tmp_path / "q", COMPRESSED["w8a8"][0], torch.float32)
    weights = load_quantized(tmp_path / "q", config_of(source))
    deployed = load_quantized(tmp_path / "q", config_of(source), deployed_inputs=True)
    assert {w.inputs for w in packed(weights.params)} == {None}
    assert {w.inputs for w in packed(deployed.params)} == {"int8-token"}
    assert deployed.scheme.inputs == "int8-token"
    assert any("int8-token" in note for note in weights.notes)


# GGUF, by the gguf package's writer.


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q8_0"])
def test_gguf(source, tmp_path, kind):
    expected = write_gguf(tmp_path / "m.gguf", source, gguf.GGMLQuantizationType[kind])
    quantized = load_quantized(tmp_path / "m.gguf", config_of(source))
    assert quantized.title == f"GGUF, mostly {kind}"
    assert quantized.matrices["blocks.attention.query"] == kind
    assert_stands_for(quantized, expected, source, tmp_path / "back")
    if kind == "Q4_0":
        assert_computes(quantized, expected, source)


@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K", "Q6_K"])
def test_gguf_of_256_wide_blocks(tmp_path, kind):
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1}
    source = original(tmp_path / "wide", **sizes)
    config = config_of(source)
    path = tmp_path / "m.gguf"
    expected = write_gguf(path, source, gguf.GGMLQuantizationType[kind])
    quantized = load_quantized(path, config)
    found = published(quantized.params, config, tmp_path / "back")
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], name)
