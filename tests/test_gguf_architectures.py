"""Claim: a GGUF file of every architecture of the table computes what transformers computes."""

import re

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_checkpoints import torch_and_transformers
from gguf_files import (
    CASES,
    HALVES,
    ONE_EACH,
    WIDE,
    WIDE_CASES,
    add,
    model_of,
    original_of,
    random_blocks,
    write_case,
)
from llama_gguf import TOKENS

import jaxalign
from jaxalign.checkpoints.gguf_architectures import ARCHITECTURES
from jaxalign.checkpoints.gguf_file import open_gguf
from jaxalign.checkpoints.quantized import load_beside
from jaxalign.checkpoints.quantized.gguf_blocks import PACKED, in_one_format, packed_blocks
from jaxalign.checkpoints.quantized.stack import packed_matrix
from jaxalign.errors import InputError
from jaxalign.model.size import mean_bits
from jaxalign.numerics.invariants import check
from jaxalign.numerics.qtensor import QTensor, unpack
from jaxalign.numerics.storage import packed_bits

IDS = np.random.default_rng(1).integers(3, len(TOKENS), (3, 17)).astype(np.int32)


def ours(params, config):
    return np.asarray(jaxalign.forward(params, jnp.asarray(IDS), config).logits)


def of_transformers(model):
    torch, _ = torch_and_transformers()
    with torch.no_grad():
        return model(torch.from_numpy(IDS).long()).logits.numpy()


def assert_close(found, expected):
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_every_architecture_of_the_table_is_tested():
    assert {architecture for architecture, _, _ in CASES.values()} == set(ARCHITECTURES)


@pytest.mark.parametrize("case", CASES)
def test_a_file_on_its_own_computes_what_transformers_does(tmp_path, case):
    expected = of_transformers(write_case(tmp_path / "m.gguf", case))
    model = jaxalign.load(tmp_path / "m.gguf")
    assert_close(ours(model.params, model.config), expected)


def test_a_window_that_a_mistral_file_names_is_one(tmp_path):
    windows = {"sliding_window": 4, "changes": {"llama.attention.sliding_window": 4}}
    expected = of_transformers(write_case(tmp_path / "m.gguf", "mistral", **windows))
    model = jaxalign.load(tmp_path / "m.gguf")
    assert (model.config.family, model.config.windows) == ("mistral", (4, 4, 4))
    assert_close(ours(model.params, model.config), expected)


@pytest.mark.parametrize("case", ["qwen2, untied", "qwen3", "phi3"])
def test_transformers_reads_the_same_from_the_file(tmp_path, case):
    torch, transformers = torch_and_transformers()
    # What transformers' reader assumes where the file says otherwise: Qwen 3's heads of 128, and
    # Phi-3's padding token beyond this vocabulary.
    sizes = {"head_dim": 128} if case == "qwen3" else {"hidden_size": 64}
    write_case(tmp_path / "m.gguf", case, **sizes)
    read = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path,
        gguf_file="m.gguf",
        dtype=torch.float32,
        attn_implementation="eager",
        **({"pad_token_id": 0} if case == "phi3" else {}),
    ).eval()
    model = jaxalign.load(tmp_path / "m.gguf")
    assert_close(ours(model.params, model.config), of_transformers(read))


@pytest.mark.parametrize("case", ONE_EACH)
@pytest.mark.parametrize("kind", ["Q4_1", "Q6_K"])
def test_beside_its_original_a_file_stays_packed_and_computes_the_same(tmp_path, case, kind):
    before = model_of(case, **WIDE_CASES[case])
    quantized_model = write_case(tmp_path / "m.gguf", case, kind, **WIDE_CASES[case])
    original = original_of(tmp_path / "original", before, tmp_path / "m.gguf")
    found = load_beside(tmp_path / "m.gguf", original)
    packed = jax.tree.leaves(found.params, is_leaf=lambda x: isinstance(x, QTensor))
    packed = [x for x in packed if isinstance(x, QTensor)]
    assert len(packed) == (5 if case.startswith("gptneox") else 6)
    for matrix in packed:
        check(matrix, kind)
    size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    assert mean_bits(original.config, found.scheme) == 8 * size[1] / size[0]
    assert found.title == f"GGUF, mostly {kind}"
    assert_close(ours(found.params, original.config), of_transformers(quantized_model))


MIXED = {"": "Q4_K", "blk.1.ffn_down.weight": "Q6_K", "attn_v": "Q6_K"}


def test_a_mixture_of_k_quants_stays_packed_to_the_bit(tmp_path):
    before = model_of("qwen2", **WIDE)
    write_case(tmp_path / "m.gguf", "qwen2", MIXED, **WIDE)
    original = original_of(tmp_path / "original", before, tmp_path / "m.gguf")
    found = load_beside(tmp_path / "m.gguf", original)
    alone = jaxalign.load(tmp_path / "m.gguf").params.blocks
    for got, wanted in (
        (found.params.blocks.mlp.down, alone.mlp.down),
        (found.params.blocks.attention.key_value, alone.attention.key_value),
    ):
        assert isinstance(got, QTensor)
        assert 8 * got.nbytes / got.size == 9.125
        np.testing.assert_array_equal(
            *(np.asarray(x).view(np.uint32) for x in (unpack(got), wanted))
        )
    assert found.matrices["blocks.mlp.down"] == "Q4_K and Q6_K"
    weights = 8 * sum(
        tensor.size for name, tensor in open_gguf(tmp_path / "m.gguf").tensors.items()
        if name.startswith("blk.") and len(tensor.shape) == 2
    )  # fmt: skip
    assert found.scheme.matrix_bits == weights


def test_types_that_are_not_kept_packed_are_said(tmp_path):
    before = model_of("qwen2", **WIDE)
    kinds = {"": "Q8_0", "ffn_up": "MXFP4"}
    write_case(tmp_path / "m.gguf", "qwen2", kinds, **WIDE)
    original = original_of(tmp_path / "original", before, tmp_path / "m.gguf")
    found = load_beside(tmp_path / "m.gguf", original)
    assert any("blocks.mlp.up is of MXFP4, which is not kept packed" in n for n in found.notes)
    assert not isinstance(found.params.blocks.mlp.up, QTensor)


# Block types.


def _decodable():
    for kind in gguf.GGMLQuantizationType:
        try:
            gguf.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
        except NotImplementedError:
            continue
        yield kind.name


DECODED = tuple(_decodable())


@pytest.mark.parametrize("kind", PACKED)
def test_packed_blocks_are_the_packages_values_to_the_bit(kind):
    number = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[number]
    stored = random_blocks(7, 3, number)
    expected = gguf.dequantize(stored, number).view(np.uint32)
    found = packed_blocks(stored.reshape(7, 3, size), kind)
    matrix = check(packed_matrix(found), kind)
    for unpacked in (unpack(matrix), jax.jit(unpack)(matrix)):
        np.testing.assert_array_equal(np.asarray(unpacked).T.view(np.uint32), expected)
    assert packed_bits(3 * block, 7, found.format) == 8 * 7 * 3 * size
    if block == 256:
        layer = found.with_arrays({n: x.T for n, x in found.arrays.items()})
        [wide] = in_one_format([layer])
        wide = wide.with_arrays({n: x.T for n, x in wide.arrays.items()})
        values = np.asarray(jax.jit(unpack)(packed_matrix(wide))).T
        np.testing.assert_array_equal(values.view(np.uint32), expected)


@pytest.mark.parametrize("kind", DECODED)
def test_a_model_of_every_block_type_is_dequantized_as_the_package_does(tmp_path, kind):
    number = gguf.GGMLQuantizationType[kind]
    write_case(tmp_path / "a.gguf", "qwen2", **WIDE)
    reader = open_gguf(tmp_path / "a.gguf")
    rewritten, expected = gguf.GGUFWriter(tmp_path / "b.gguf", "qwen2"), {}
    for key, value in reader.settings.items():
        if key != "general.architecture":
            add(rewritten, key, value)
    for name, tensor in reader.tensors.items():
        if len(tensor.shape) == 1 or not name.startswith("blk."):
            rewritten.add_tensor(name, reader.decoded(name))
            continue
        rows, columns = tensor.shape
        block = gguf.GGML_QUANT_SIZES[number][0]
        if kind in ("F32", "F16", "BF16", "F64"):
            blocks = gguf.quantize(reader.decoded(name), number)
        else:
            blocks = random_blocks(rows, columns // block, number, seed=len(expected))
        rewritten.add_tensor(name, blocks, raw_dtype=number)
        expected[name] = gguf.dequantize(blocks, number)
    for step in (rewritten.write_header_to_file, rewritten.write_kv_data_to_file,
                 rewritten.write_tensors_to_file, rewritten.close):  # fmt: skip
        step()
    params = jaxalign.load(tmp_path / "b.gguf").params
    for layer in range(2):
        found = np.asarray(params.blocks.mlp.up[layer]).T
        wanted = np.asarray(expected[f"blk.{layer}.ffn_up.weight"], np.float32)
        np.testing.assert_array_equal(found.view(np.uint32), wanted.view(np.uint32))


# What is not so.


@pytest.mark.parametrize("case", ONE_EACH)
def test_a_missing_tensor_is_named(tmp_path, case):
    write_case(tmp_path / "m.gguf", case, leave_out=("blk.1.ffn_down.weight",))
    with pytest.raises(InputError, match=r"tensor '.*1\..*' is missing"):
        jaxalign.load(tmp_path / "m.gguf")
    write_case(tmp_path / "m.gguf", case, leave_out=("token_embd.weight",))
    with pytest.raises(InputError, match="is missing"):
        jaxalign.load(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("case", "changes", "expected"),
    [
        ("qwen2", {"qwen2.rope.scaling.type": "yarn"}, "rope.scaling.type is \"yarn\", expected"),
        ("qwen2", {"qwen2.attention.sliding_window": 4}, "not known: qwen2.attention.sliding"),
        ("qwen3", {"qwen3.attention.value_length": 3}, "value_length 3, expected 16"),
        ("gemma2", {"gemma2.block_count": 2}, r"tensor 'model.layers.2.*' is not known"),
        ("gemma2", {"gemma2.final_logit_softcapping": -1.0}, "expected a finite number above 0"),
        ("phi3", {"phi3.feed_forward_length": 24}, r"has shape \(96, 32\), expected \(48, 32\)"),
        ("phi3", {"phi3.rope.scaling.attn_factor": 1.19}, "not known: phi3.rope.scaling.attn"),
        ("gptneox", {"gptneox.rope.scaling.type": "linear"}, "\"linear\", expected 'none'"),
        ("gptneox", {"gptneox.context_length": None}, "lacks 'gptneox.context_length'"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_are_named(tmp_path, case, changes, expected):
    write_case(tmp_path / "m.gguf", case, changes=changes)
    with pytest.raises(InputError, match=expected):
        jaxalign.load(tmp_path / "m.gguf")


def test_a_rotation_that_no_scaling_of_llama_stretches_is_refused(tmp_path):
    write_case(tmp_path / "m.gguf", "llama, scaled like 3.1")
    scaling = jaxalign.load(tmp_path / "m.gguf").config.rotary_scaling
    assert (scaling.kind, scaling.factor, scaling.low, scaling.high) == ("llama3", 8, 1, 4)
    assert scaling.original_positions == 128
    raw = (tmp_path / "m.gguf").read_bytes()
    file = open_gguf(tmp_path / "m.gguf")
    start = file.tensors["rope_freqs.weight"].start
    factors = file.decoded("rope_freqs.weight").copy()
    factors[len(factors) // 2] *= 1.01
    changed = raw[:start] + factors.tobytes() + raw[start + factors.nbytes :]
    (tmp_path / "n.gguf").write_bytes(changed)
    with pytest.raises(InputError, match=re.escape("in another way than Llama 3.1's")):
        jaxalign.load(tmp_path / "n.gguf")
    original = original_of(
        tmp_path / "original", model_of("llama, scaled like 3.1"), tmp_path / "m.gguf"
    )
    with pytest.raises(InputError, match="in another way than the original"):
        load_beside(tmp_path / "n.gguf", original)


def test_an_original_of_another_family_is_refused(tmp_path):
    write_case(tmp_path / "m.gguf", "qwen2", **WIDE)
    write_case(tmp_path / "n.gguf", "llama, scaled like 3.1", **WIDE)
    before = model_of("llama, scaled like 3.1", **WIDE)
    original = original_of(tmp_path / "original", before, tmp_path / "n.gguf")
    with pytest.raises(InputError, match=r'"?qwen2"?.*, and the original is of Llama'):
        load_beside(tmp_path / "m.gguf", original)


def test_every_type_whose_halves_are_drawn_is_decoded():
    assert set(HALVES) <= set(DECODED)
