"""Checkpoints in NVFP4, MXFP4 and float8 by blocks: written by compressed-tensors and transformers,
read to the bit, and refused in one line where they lie."""

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from packed_files import WEIGHTS, config_of, linear, original, write
from safetensors.numpy import load_file as load_numpy
from test_quantized_checkpoints import TOKENS, assert_computes, assert_stands_for, packed

import jaxalign
from jaxalign import InputError
from jaxalign.checkpoints.quantized import load_beside, load_quantized
from jaxalign.checkpoints.quantized.closeness import rounding_of
from jaxalign.checkpoints.quantized.linear import block_float8, checked
from jaxalign.numerics import scheme_named
from jaxalign.numerics.quantize import quantize

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import compressed_tensors.quantization as ct
    import torch
    from compressed_tensors.compressors import BaseCompressor, ModelCompressor
    from compressed_tensors.quantization.lifecycle.forward import dequantize
    from compressed_tensors.quantization.utils import (
        calculate_qparams,
        generate_gparam,
        maybe_pad_tensor_for_block_quant,
    )
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM, FineGrainedFP8Config, GPTNeoXForCausalLM
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize

TOKENIZER = Path(jaxalign.__file__).parent / "demo" / "model" / "tokenizer.json"
BASE = "gpt_neox.layers.1.mlp.dense_4h_to_h"  # [64, 128]
BLOCKS = {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [48, 96]}
# compressed-tensors' own presets, and blocks that the matrices' edges cut.
PRESETS = {
    "nvfp4": ("NVFP4A16", None, "nvfp4-pack-quantized, e2m1, groups of 16"),
    "nvfp4 and inputs": ("NVFP4", "other", "nvfp4-pack-quantized, e2m1, groups of 16"),
    "mxfp4": ("MXFP4A16", None, "mxfp4-pack-quantized, e2m1, groups of 32"),
    "mxfp4 and inputs": ("MXFP4", "other", "mxfp4-pack-quantized, e2m1, groups of 32"),
    "fp8-block": ("FP8_BLOCK", "other", "float-quantized, float8, blocks of 128 × 128"),
    "blocks": (BLOCKS, None, "naive-quantized, float8, blocks of 48 × 96"),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("original")
    return original(folder, tokenizer=TOKENIZER, vocab_size=4096)


def parts_of(w, args):
    """A matrix with the weights that share a scale along the last axis."""
    if args.strategy != "block":
        return w.unflatten(-1, (-1, args.group_size))
    rows, columns = args.block_structure
    w = maybe_pad_tensor_for_block_quant(w, args.block_structure)
    return w.reshape(len(w) // rows, rows, -1, columns).transpose(1, 2).flatten(-2)


def set_scales(module):
    """The scales of a module's weights by compressed-tensors' own functions."""
    w, args = module.weight.data, module.quantization_scheme.weights
    whole = None
    if args.strategy == "tensor_group":
        whole = generate_gparam(w.amin(), w.amax())
        module.weight_global_scale.data.copy_(whole)
    parts = parts_of(w, args)
    scale, _ = calculate_qparams(parts.amin(-1), parts.amax(-1), args, whole)
    module.weight_scale.data = scale
    if hasattr(module, "input_global_scale"):
        module.input_global_scale.data.fill_(100)


def decompressed(module):
    """What compressed-tensors makes of one compressed module, and the same without its bf16."""
    scheme = module.quantization_scheme
    state = {key: x.detach() for key, x in module._parameters.items() if x is not None}
    kind = BaseCompressor.get_value_from_registry(scheme.format.value)
    theirs = kind.decompress(state, scheme)["weight"]
    if "weight_packed" not in state:
        return theirs, theirs
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8

    halves = state["weight_packed"]
    codes = unpack_fp4_from_uint8(halves, len(halves), 2 * halves.shape[1], torch.float32)
    scale = kind._decompress_scale(state["weight_scale"], torch.float32)
    whole = state.get("weight_global_scale")
    exact = dequantize(codes, scale, None, scheme.weights, torch.float32, global_scale=whole)
    return theirs, exact


def compress(source, folder, preset, dtype=torch.float32):
    """A folder by compressed-tensors; every tensor that it stands for, f32."""
    model = GPTNeoXForCausalLM.from_pretrained(source, dtype=dtype)
    if isinstance(preset, str):
        scheme = ct.preset_name_to_scheme(preset, ["Linear"])
    else:
        scheme = ct.QuantizationScheme(targets=["Linear"], weights=ct.QuantizationArgs(**preset))
    config = ct.QuantizationConfig(config_groups={"group_0": scheme}, ignore=["lm_head"])
    ct.apply_quantization_config(model, config)
    modules = {n: m for n, m in model.named_modules() if hasattr(m, "quantization_scheme")}
    for module in modules.values():
        set_scales(module)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(folder)
    expected = {name: x.float().numpy() for name, x in load_file(source / WEIGHTS).items()}
    for name, module in modules.items():
        theirs, exact = decompressed(module)
        assert torch.equal(exact.to(theirs.dtype), theirs)
        expected[f"{name}.weight"] = exact.float().numpy()
    return expected


@pytest.fixture(scope="module")
def folders(source, tmp_path_factory):
    """A folder of every kind, and what it stands for."""
    root, made = tmp_path_factory.mktemp("compressed"), {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind, (preset, _, _) in PRESETS.items():
            made[kind] = root / kind, compress(source, root / kind, preset)
    made["fp8"] = root / "fp8", write_fine_grained(root / "fp8", source)
    return made


@pytest.mark.parity
@pytest.mark.parametrize("kind", list(PRESETS))
def test_what_compressed_tensors_wrote_is_read_to_the_bit(folders, source, tmp_path, kind):
    folder, expected = folders[kind]
    quantized = load_quantized(folder, config_of(source))
    _, inputs, title = PRESETS[kind]
    assert (quantized.title, quantized.inputs) == (f"compressed-tensors {title}", inputs)
    assert len(packed(quantized.params)) == 5
    assert_stands_for(quantized, expected, source, tmp_path / "back")
    noted = [note for note in quantized.notes if "rounds the inputs" in note]
    assert len(noted) == (inputs is not None)
    if inputs:
        with pytest.raises(InputError, match="inputs are rounded in a way that is not computed"):
            load_quantized(folder, config_of(source), deployed_inputs=True)
    else:
        assert_computes(quantized, expected, source)


@pytest.mark.parity
def test_how_matrices_are_kept_is_said(folders, source):
    said = {
        kind: load_quantized(folders[kind][0], config_of(source)).matrices["blocks.mlp.up"]
        for kind in ("nvfp4", "mxfp4", "blocks", "fp8")
    }
    assert said == {
        "nvfp4": "e2m1-g16, e4m3 scales",
        "mxfp4": "e2m1-g32, e8m0 scales",
        "blocks": "e4m3fn, blocks of 48 × 96",
        "fp8": "e4m3fn, blocks of 32 × 64",
    }


@pytest.mark.parity
def test_what_a_tool_wrote_in_bf16_is_read_to_the_bit(source, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = compress(source, tmp_path / "q", BLOCKS, torch.bfloat16)
    quantized = load_quantized(tmp_path / "q", config_of(source))
    found = {name: x.astype(jnp.bfloat16).astype("f4") for name, x in expected.items()}
    assert {str(w.scale.dtype) for w in packed(quantized.params)} == {"bfloat16"}
    assert_stands_for(quantized, expected | {n: found[n] for n in found if not linear(n)},
                      tmp_path / "q", tmp_path / "back")  # fmt: skip


# transformers' fine-grained float8.


def write_fine_grained(folder, source, block=(32, 64), scale_dtype=torch.float32, **settings):
    """A folder whose tensors transformers' own operation made; what its inverse makes of them."""
    config = FineGrainedFP8Config(weight_block_size=block, **settings)
    quantizer = Fp8Quantize(SimpleNamespace(quantization_config=config))
    inverse = Fp8Dequantize(SimpleNamespace(quantization_config=config))
    stored, expected = {}, {}
    for name, w in load_file(source / WEIGHTS).items():
        stored[name], expected[name] = w, w.float().numpy()
        if linear(name):
            made = quantizer._quantize_one(name, w)
            codes, scale = made[name], made[f"{name}_scale_inv"]
            if scale.dtype == torch.float32:
                scale = scale.to(scale_dtype)
            stored |= {name: codes, f"{name}_scale_inv": scale}
            expected[name] = inverse._dequantize_one(codes, scale.float(), scale_dtype)
            expected[name] = expected[name].float().numpy()
    said = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3",
            "weight_block_size": list(block), "modules_to_not_convert": ["embed_out"]}  # fmt: skip
    write(folder, source, {"x": np.zeros(1)}, said | settings)
    stored = {name: x.contiguous() for name, x in stored.items()}
    save_file(stored, folder / WEIGHTS, metadata={"format": "pt"})
    return expected


@pytest.mark.parity
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fine_grained_float8_is_read_to_the_bit(source, tmp_path, dtype):
    expected = write_fine_grained(tmp_path / "q", source, scale_dtype=getattr(torch, dtype))
    quantized = load_quantized(tmp_path / "q", config_of(source))
    assert quantized.title == "FP8, e4m3, blocks of 32 × 64"
    assert quantized.inputs == "other"
    assert {w.format.block for w in packed(quantized.params)} == {32}
    assert_stands_for(quantized, expected, source, tmp_path / "back")
    if dtype == "float32":
        assert_computes(quantized, expected, source)


@pytest.mark.parity
def test_transformers_computes_the_same_with_the_folder(folders, source):
    """Without a GPU it unpacks the weights as it loads them."""
    folder, _ = folders["fp8"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            quantization_config=FineGrainedFP8Config(weight_block_size=(32, 64), dequantize=True),
        )
    with torch.no_grad():
        wanted = model(torch.tensor(TOKENS)).logits.numpy()
    config = config_of(source)
    params = load_quantized(folder, config).params
    found = jaxalign.forward(params, jnp.asarray(TOKENS, jnp.int32), config).logits
    np.testing.assert_allclose(np.asarray(found), wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parity
def test_scales_that_are_powers_of_two_are_read_as_exponents_and_as_floats(source, tmp_path):
    expected = write_fine_grained(tmp_path / "floats", source, scale_fmt="ue8m0")
    folder = shutil.copytree(tmp_path / "floats", tmp_path / "bytes")
    tensors = load_file(folder / WEIGHTS)
    for name in [name for name in tensors if name.endswith("_scale_inv")]:
        kept = tensors[name]
        tensors[name] = kept.view(torch.uint8)
        assert (tensors[name] != 127).all()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    floats = {
        name: x.float() if name.endswith("_scale_inv") else x
        for name, x in load_file(tmp_path / "floats" / WEIGHTS).items()
    }
    save_file(floats, tmp_path / "floats" / WEIGHTS, metadata={"format": "pt"})
    for kind in ("floats", "bytes"):
        quantized = load_quantized(tmp_path / kind, config_of(source))
        assert_stands_for(quantized, expected, source, tmp_path / f"{kind}-back")


@pytest.mark.parity
def test_blocks_at_the_edges_have_the_scale_of_their_own_block(source, tmp_path):
    """128 × 128 blocks of matrices with 64 and 192 outputs, by loops."""
    tensors, expected = load_file(source / WEIGHTS), {}
    stored = dict(tensors)
    for name, w in tensors.items():
        expected[name] = w.numpy()
        if not linear(name):
            continue
        rows, columns = -(-w.shape[0] // 48), -(-w.shape[1] // 40)
        codes, scale = torch.zeros_like(w), torch.zeros(rows, columns)
        for i in range(rows):
            for j in range(columns):
                place = slice(48 * i, 48 * i + 48), slice(40 * j, 40 * j + 40)
                scale[i, j] = w[place].abs().max() / 448
                codes[place] = (w[place] / scale[i, j]).to(torch.float8_e4m3fn).float()
                expected[name][place] = (codes[place] * scale[i, j]).numpy()
        stored |= {name: codes.to(torch.float8_e4m3fn), f"{name}_scale_inv": scale}
    write(tmp_path / "q", source, {"x": np.zeros(1)},
          {"quant_method": "fp8", "weight_block_size": [48, 40]})  # fmt: skip
    save_file(stored, tmp_path / "q" / WEIGHTS)
    quantized = load_quantized(tmp_path / "q", config_of(source))
    assert_stands_for(quantized, expected, source, tmp_path / "back")


# Files that lie.


def change(part, value):
    """An edit: a tensor of ``BASE`` becomes ``value`` of it; one that returns None is left out."""

    def edit(tensors):
        tensors[BASE + part] = value(tensors[BASE + part])

    return edit


def put(value, *index, view=None):
    """One element changed, of the bits that ``view`` shows."""

    def changed(x):
        x = x.clone()
        (x if view is None else x.view(view))[index] = value
        return x

    return changed


def without(part):
    return lambda tensors: tensors.pop(BASE + part)


def beside(part):
    """A tensor that belongs to another format stands beside the layer's own."""
    return lambda tensors: tensors.update({BASE + part: torch.ones(1)})


U8 = torch.uint8
LIES = {
    "nvfp4 without codes": ("nvfp4", without(".weight_packed"), "weight_packed' is missing"),
    "nvfp4 without scales": ("nvfp4", without(".weight_scale"), "weight_scale' is missing"),
    "nvfp4 without its scale of the matrix": (
        "nvfp4", without(".weight_global_scale"), "weight_global_scale' is missing"),
    "nvfp4 scale NaN": (
        "nvfp4", change(".weight_scale", put(0x7F, 3, 1, view=U8)), "values that are NaN"),
    "nvfp4 scale negative": (
        "nvfp4", change(".weight_scale", put(0xB8, 3, 1, view=U8)), "has 1 negative scales"),
    "nvfp4 scale of zero": (
        "nvfp4", change(".weight_scale", put(0, 3, 1, view=U8)), "1 scales of zero over codes"),
    "nvfp4 scale of the matrix negative": (
        "nvfp4", change(".weight_global_scale", put(-1, 0)), "is -1.0, expected a number above 0"),
    "nvfp4 scale of the matrix zero": (
        "nvfp4", change(".weight_global_scale", put(0, 0)), "is 0.0, expected a number above 0"),
    "nvfp4 scale of the matrix infinite": (
        "nvfp4", change(".weight_global_scale", put(np.inf, 0)), "NaN or infinite"),
    "nvfp4 scales of groups of 32": (
        "nvfp4", change(".weight_scale", lambda x: x[:, ::2].contiguous()),
        "has shape [64, 4], expected [64, 8]"),
    "nvfp4 codes cut": (
        "nvfp4", change(".weight_packed", lambda x: x[:-1]), "has shape [63, 64], expected"),
    "nvfp4 codes in words": (
        "nvfp4", change(".weight_packed", lambda x: x.to(torch.int32)), "of type I32, expected U8"),
    "nvfp4 twice": ("nvfp4", beside(".weight"), "weight' is not known, or belongs to no layer"),
    "mxfp4 exponent that is NaN": (
        "mxfp4", change(".weight_scale", put(255, 3, 1)), "1 exponents of 255"),
    "mxfp4 scales in floats": (
        "mxfp4", change(".weight_scale", lambda x: x.float()), "of type F32, expected U8"),
    "mxfp4 scales cut": (
        "mxfp4", change(".weight_scale", lambda x: x[:, :3].contiguous()), "shape [64, 3]"),
    "mxfp4 with a scale of the matrix": (
        "mxfp4", beside(".weight_global_scale"), "weight_global_scale' is not known"),
    "blocks of another size": (
        "blocks", change(".weight_scale", lambda x: x[:1]), "has shape [1, 2], expected [2, 2]"),
    "blocks by outputs": (
        "blocks", change(".weight_scale", lambda x: x.reshape(-1)), "has shape [4], expected"),
    "blocks negative": (
        "blocks", change(".weight_scale", put(-1, 0, 1)), "has 48 negative scales"),
    "blocks twice": ("blocks", beside(".weight_scale_inv"), "weight_scale_inv' is not known"),
    "fp8 without scales": (
        "fp8", without(".weight_scale_inv"), "is of type F8_E4M3, expected F16"),
    "fp8 without codes": ("fp8", without(".weight"), "weight' is missing"),
    "fp8 scale NaN": (
        "fp8", change(".weight_scale_inv", put(np.nan, 0, 1)), "NaN or infinite"),
    "fp8 scale of zero": (
        "fp8", change(".weight_scale_inv", put(0, 0, 1)), "32 scales of zero over codes"),
    "fp8 scales cut": (
        "fp8", change(".weight_scale_inv", lambda x: x[:, :1].contiguous()),
        "has shape [2, 1], expected [2, 2]"),
    "fp8 codes NaN": ("fp8", change(".weight", put(0x7F, 3, 1, view=U8)), "values that are NaN"),
    "fp8 exponents unsaid": (
        "fp8", change(".weight_scale_inv", lambda x: x.to(U8)), "is of type U8, expected F32"),
    "fp8 twice": ("fp8", beside(".weight_scale"), "weight_scale' is not known"),
}  # fmt: skip


def edited(folder, to, edit=None, settings=None, weights=None):
    """A copy of a folder with other tensors or settings."""
    shutil.copytree(folder, to)
    if edit:
        tensors = load_file(to / WEIGHTS)
        edit(tensors)
        save_file(tensors, to / WEIGHTS, metadata={"format": "pt"})
    config = json.loads((to / "config.json").read_text())
    said = config["quantization_config"]
    said |= settings or {}
    if weights:
        said["config_groups"]["group_0"]["weights"] |= weights
    (to / "config.json").write_text(json.dumps(config))
    return to


def refusal(folder, source):
    with pytest.raises(InputError) as error:
        load_quantized(folder, config_of(source))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parity
@pytest.mark.parametrize("lie", list(LIES))
def test_a_file_that_lies_is_refused(folders, source, tmp_path, lie):
    kind, edit, expected = LIES[lie]
    message = refusal(edited(folders[kind][0], tmp_path / "lies", edit), source)
    assert expected in message
    assert "dense_4h_to_h" in message


OF_WEIGHTS = {
    "other bits": ("nvfp4", {"num_bits": 8}, "num_bits is 8, expected 4"),
    "whole numbers": ("nvfp4", {"type": "int"}, "type is 'int', expected 'float'"),
    "other groups": ("nvfp4", {"group_size": 32}, "group_size is 32, expected 16"),
    "groups of one format": ("mxfp4", {"group_size": 16}, "group_size is 16, expected 32"),
    "zero points": ("mxfp4", {"symmetric": False}, "symmetric is False, expected True"),
    "other scales": ("mxfp4", {"scale_dtype": "torch.float32"}, "scale_dtype is 'torch.float32'"),
    "other strategy": ("nvfp4", {"strategy": "group"}, "strategy is 'group', expected 'tensor_"),
    "a setting of tomorrow": ("nvfp4", {"rotation": "hadamard"}, "rotation is 'hadamard', and"),
    "the same by blocks": ("blocks", {"rotation": 3}, "rotation is 3, and that setting is not"),
    "blocks of text": ("blocks", {"block_structure": "48x96"}, "block_structure is '48x96'"),
    "blocks of nothing": ("blocks", {"block_structure": [48, 0]}, "is [48, 0], expected a list"),
    "blocks of 4 bits": ("blocks", {"num_bits": 4}, "blocks of symmetric float weights of 4 bits"),
    "blocks of integers": ("blocks", {"type": "int"}, "blocks of symmetric int weights of 8"),
    "asymmetric blocks": ("blocks", {"symmetric": False}, "blocks of asymmetric float"),
}
OF_FP8 = {
    "a setting of tomorrow": ({"rotation": True}, "rotation is True, and that setting is not"),
    "no blocks": ({"weight_block_size": None}, "weight_block_size is None, expected a list of two"),
    "one size": ({"weight_block_size": [32]}, "weight_block_size is [32], expected"),
    "half sizes": ({"weight_block_size": [32, 6.5]}, "weight_block_size is [32, 6.5]"),
    "other blocks": ({"weight_block_size": [128, 128]}, "has shape [6, 1], expected [2, 1]"),
    "other codes": ({"fmt": "e5m2"}, "fmt is 'e5m2', expected 'e4m3'"),
    "other scales": ({"scale_fmt": "int8"}, "scale_fmt is 'int8', expected 'float' or 'ue8m0'"),
    "other inputs": ({"activation_scheme": "none"}, "activation_scheme is 'none', expected 'dyn"),
    "experts in 4 bits": ({"expert_dtype": "fp4"}, "expert_dtype is 'fp4', expected 'fp8'"),
}


@pytest.mark.parity
@pytest.mark.parametrize("case", list(OF_WEIGHTS))
def test_settings_that_are_not_the_formats_are_refused(folders, source, tmp_path, case):
    kind, weights, expected = OF_WEIGHTS[case]
    assert expected in refusal(edited(folders[kind][0], tmp_path / "q", weights=weights), source)


@pytest.mark.parity
@pytest.mark.parametrize("case", list(OF_FP8))
def test_settings_of_fine_grained_float8_are_known_or_refused(folders, source, tmp_path, case):
    settings, expected = OF_FP8[case]
    assert expected in refusal(edited(folders["fp8"][0], tmp_path / "q", None, settings), source)


def test_a_scale_of_zero_belongs_to_its_own_block_where_the_last_is_smaller():
    codes = np.ones((2, 100), jnp.float8_e4m3fn)
    codes[:, 64:] = 0
    scale = np.array([[1, 0]], np.float32)
    layer = checked(block_float8(codes, scale, (2, 64)), "a layer")
    assert (layer.groups == np.arange(100) // 64).all()
    codes[1, 70] = 1
    with pytest.raises(InputError, match="2 scales of zero over codes that are not zero"):
        checked(block_float8(codes, scale, (2, 64)), "a layer")


def test_steps_of_rounding_are_those_of_each_block():
    w = np.ones((100, 4), np.float32)
    w[128 - 64 :] = 1000
    form = replace(scheme_named("fp8-block").weights, group=64, block=4)
    step = rounding_of(quantize(jnp.asarray(w), form)).step
    assert (step[:64] == step[0]).all()
    assert (step[64:] == step[99]).all()
    assert step[99, 0] == pytest.approx(1000 * step[0, 0])


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["nvfp4", "mxfp4", "blocks", "fp8"])
def test_what_rounding_leaves_of_the_original_is_accepted(folders, source, tmp_path, kind):
    model = jaxalign.load(str(source))
    quantized = load_beside(folders[kind][0], model)
    (note,) = [note for note in quantized.notes if "relative error" in note or "norm" in note]
    error = float(note.split(": ")[1].split(" (")[0])
    assert 0.01 < error < (0.2 if "fp4" in kind else 0.04)


@pytest.mark.parity
def test_halves_in_the_other_order_are_refused(folders, source, tmp_path):
    def swap(tensors):
        for name in [name for name in tensors if name.endswith("weight_packed")]:
            tensors[name] = tensors[name] >> 4 | tensors[name] << 4

    folder = edited(folders["nvfp4"][0], tmp_path / "q", swap)
    with pytest.raises(InputError, match="is off by"):
        load_beside(folder, jaxalign.load(str(source)))


@pytest.mark.parity
def test_inputs_that_groups_do_not_divide_are_refused(tmp_path):
    source = original(tmp_path / "narrow", hidden_size=48, num_attention_heads=3)
    stored = load_numpy(source / WEIGHTS)
    name = "gpt_neox.layers.0.attention.dense"
    stored[f"{name}.weight_packed"] = np.zeros((48, 24), np.uint8)
    stored.pop(f"{name}.weight")
    weights = {"num_bits": 4, "type": "float", "group_size": 32}
    write(tmp_path / "q", source, stored, {
        "quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized",
        "config_groups": {"group_0": {"weights": weights}}})  # fmt: skip
    assert "48 inputs, which groups of 32 do not divide" in refusal(tmp_path / "q", source)
