"""Claims about audits: what quantizing leaves of an original is accepted in every format, whatever
scales were moved, and what it cannot leave is refused by name."""

import json
import re
import shutil
from pathlib import Path

import gguf
import jax.numpy as jnp
import numpy as np
import pytest
from packed_files import (
    WEIGHTS,
    move_scales,
    original,
    round_to_codes,
    write_awq,
    write_bnb,
    write_ct,
    write_fp8,
    write_gguf,
    write_gptq,
    write_int8,
    write_llama,
)
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import jaxalign
from jaxalign import InputError
from jaxalign.checkpoints.quantized import load_beside
from jaxalign.checkpoints.quantized.closeness import Rounding, relative_error, rounding_of
from jaxalign.checkpoints.quantized.moved import moved_between, moved_norms
from jaxalign.numerics import scheme_named
from jaxalign.numerics.dot import dense
from jaxalign.numerics.quantize import quantize

TOKENIZER = Path(jaxalign.__file__).parent / "demo" / "model" / "tokenizer.json"
WRITERS = {
    "gptq": write_gptq,
    "gptq8": lambda folder, source: write_gptq(folder, source, bits=8),
    "full range": lambda folder, source: write_gptq(folder, source, symmetric="full range"),
    "awq": lambda folder, source: write_awq(folder, source, scaled="llama" not in str(source)),
    "nf4": write_bnb,
    "nf4-dq": lambda folder, source: write_bnb(folder, source, double=True),
    "int8": write_int8,
    "ct": write_ct,
    "fp8": write_fp8,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two originals, and the Llama with scales moved."""
    root = tmp_path_factory.mktemp("audit")
    original(root / "neox", tokenizer=TOKENIZER, vocab_size=4096)
    move_scales(root / "llama-moved", write_llama(root / "llama", TOKENIZER))
    return root


@pytest.fixture(scope="module")
def models(root):
    return {name: jaxalign.load(str(root / name)) for name in ("neox", "llama")}


def largest_error(quantized):
    return float(re.search(r"largest relative error of a matrix: ([^ ]+)", quantized.notes[-1])[1])


@pytest.mark.parametrize("kind", list(WRITERS))
def test_what_every_format_leaves_of_its_original_is_accepted(root, models, tmp_path, kind):
    WRITERS[kind](tmp_path / "q", root / "neox")
    assert 0.001 < largest_error(load_beside(tmp_path / "q", models["neox"])) < 0.2


def test_double_quantization_leaves_errors_as_large_as_small_outputs(root, tmp_path):
    """The scales of all outputs share their steps, which one large output makes large."""

    def unequal(tensors):
        for name in [name for name in tensors if name.endswith("dense_h_to_4h.weight")]:
            rows = np.random.default_rng(0).random((len(tensors[name]), 1)).astype(np.float32)
            rows[:16], rows[20] = 0, 30
            tensors[name] = rows * tensors[name]

    shutil.copytree(root / "neox", tmp_path / "unequal")
    edit_tensors(tmp_path / "unequal", unequal)
    write_bnb(tmp_path / "q", tmp_path / "unequal", double=True)
    assert largest_error(load_beside(tmp_path / "q", jaxalign.load(tmp_path / "unequal"))) < 0.2
    edit_tensors(tmp_path / "q", reverse("4h_to_h.weight.absmax"))
    with pytest.raises(InputError, match=r"rounding does not leave|of its norm"):
        load_beside(tmp_path / "q", jaxalign.load(tmp_path / "unequal"))


@pytest.mark.parametrize("kind", ["awq", "ct", "fp8"])
def test_scales_that_were_moved_cancel(root, models, tmp_path, kind):
    WRITERS[kind](tmp_path / "q", root / "llama-moved")
    assert 0.001 < largest_error(load_beside(tmp_path / "q", models["llama"])) < 0.2


@pytest.mark.parametrize("kind", ["gptq", "int8"])
def test_formats_that_move_no_scales_have_the_originals_norms(root, models, tmp_path, kind):
    WRITERS[kind](tmp_path / "q", root / "llama-moved")
    with pytest.raises(InputError, match=r"norm.scale of layer 0 is off by .* not quantized"):
        load_beside(tmp_path / "q", models["llama"])


# Files that lie: vectors.


def times(by, *names):
    def edit(tensors):
        for name in [name for name in tensors if name.endswith(names)]:
            tensors[name] = tensors[name] * np.float32(by)

    return edit


def reverse(*names, by=1):
    def edit(tensors):
        for name in [name for name in tensors if name.endswith(names)]:
            turned = tensors[name][::-1]
            tensors[name] = turned if by == 1 else turned * np.float32(by)

    return edit


def swap(a, b):
    def edit(tensors):
        for name in [name for name in tensors if name.endswith(a)]:
            other = name.removesuffix(a) + b
            tensors[name], tensors[other] = tensors[other], tensors[name]

    return edit


NORMS = ("layernorm.weight", "final_layer_norm.weight")
VECTORS = {
    "norms reversed × 50": reverse(*NORMS, by=50),
    "norms of zeros": times(0, *NORMS),
    "norms × 2": times(2, "input_layernorm.weight"),
    "last norm × 1.05": times(1.05, "final_layer_norm.weight"),
    "norms' biases of zeros": times(0, "attention_layernorm.bias"),
    "biases swapped": swap("attention.dense.bias", "mlp.dense_4h_to_h.bias"),
    "biases reversed": reverse("query_key_value.bias"),
    "embeddings reversed": reverse("embed_in.weight"),
}


OTHERS = {
    "awq": ("norms reversed × 50", "norms of zeros", "last norm × 1.05", "norms' biases of zeros"),
    "fp8": ("norms × 2", "biases swapped"),
    "gguf": ("norms reversed × 50", "embeddings reversed"),
}


@pytest.mark.parametrize(
    ("kind", "lie"),
    [
        *(("gptq", lie) for lie in VECTORS),
        *((k, lie) for k, lies in OTHERS.items() for lie in lies),
    ],
)
def test_vectors_that_are_not_the_originals_are_refused(root, models, tmp_path, kind, lie):
    shutil.copytree(root / "neox", tmp_path / "lie")
    edit_tensors(tmp_path / "lie", VECTORS[lie])
    path = tmp_path / "q"
    if kind == "gguf":
        path = tmp_path / "q.gguf"
        write_gguf(path, tmp_path / "lie", gguf.GGMLQuantizationType.Q8_0)
    else:
        WRITERS[kind](path, tmp_path / "lie")
    with pytest.raises(InputError, match="original"):
        load_beside(path, models["neox"])


def edit_tensors(folder, edit):
    from safetensors.torch import load_file as load_torch
    from safetensors.torch import save_file as save_torch

    with safe_open(folder / WEIGHTS, framework="pt") as file:
        float8 = any(file.get_slice(name).get_dtype() == "F8_E4M3" for name in file.keys())  # noqa: SIM118
    if float8:
        tensors = load_torch(folder / WEIGHTS)
        arrays = {name: x.numpy() for name, x in tensors.items() if x.element_size() > 1}
        edit(arrays)
        made = {name: type(tensors[name])(np.ascontiguousarray(x)) for name, x in arrays.items()}
        save_torch(tensors | made, folder / WEIGHTS)
        return
    tensors = load_file(folder / WEIGHTS)
    edit(tensors)
    tensors = {name: np.ascontiguousarray(x) for name, x in tensors.items()}
    save_file(tensors, folder / WEIGHTS)


# Files that lie: scales.


def change(part, value):
    """An edit of one tensor of one layer."""

    def edit(tensors):
        name = next(n for n in sorted(tensors) if re.search(rf"layers\.1\..*{part}$", n))
        changed = value(tensors[name].astype(np.float32))
        tensors[name] = changed.astype(tensors[name].dtype)

    return edit


def one_output(axis):
    """The scales of one output doubled."""

    def value(x):
        x = x.copy()
        np.moveaxis(x, axis, 0)[5] *= 2
        return x

    return value


def shuffled(axis):
    return lambda x: np.random.default_rng(0).permutation(x, axis=axis)


MLP, ATTENTION = r"mlp\.dense_4h_to_h\.", r"attention\.dense\."
SCALES = {
    "fp8 × 1000": ("fp8", change(rf"{MLP}weight_scale", lambda x: x * 1000)),
    "fp8 × 0.5": ("fp8", change(rf"{MLP}weight_scale", lambda x: x / 2)),
    "fp8 one output": ("fp8", change(rf"{MLP}weight_scale", one_output(0))),
    "ct × 2": ("ct", change(rf"{ATTENTION}weight_scale", lambda x: x * 2)),
    "ct × 1.2": ("ct", change(rf"{ATTENTION}weight_scale", lambda x: x * 1.2)),
    "ct shuffled": ("ct", change(rf"{MLP}weight_scale", shuffled(0))),
    "ct one output": ("ct", change(rf"{MLP}weight_scale", one_output(0))),
    "ct negative": ("ct", change(rf"{MLP}weight_scale", lambda x: -x)),
    "awq × 0.5": ("awq", change(rf"{ATTENTION}scales", lambda x: x / 2)),
    "awq shuffled": ("awq", change(rf"{MLP}scales", shuffled(1))),
    "awq by activations × 2": ("awq", change(r"mlp\.act\.scales", lambda x: x * 2)),
    "gptq × 1000": ("gptq", change(rf"{MLP}scales", lambda x: x * 1000)),
    "gptq × 0.5": ("gptq", change(rf"{MLP}scales", lambda x: x / 2)),
    "gptq groups turned": ("gptq", change(rf"{MLP}scales", shuffled(1))),
    "gptq8 one output": ("gptq8", change(rf"{MLP}scales", one_output(1))),
    "int8 × 0.8": ("int8", change(rf"{MLP}SCB", lambda x: x * 0.8)),
    "int8 shuffled": ("int8", change(rf"{MLP}SCB", shuffled(0))),
    "nf4 × 1.5": ("nf4", change(rf"{MLP}weight\.absmax", lambda x: x * 1.5)),
    "nf4 shuffled": ("nf4", change(rf"{MLP}weight\.absmax", shuffled(0))),
    "nf4-dq × 3": ("nf4-dq", change(rf"{MLP}weight\.nested_absmax", lambda x: x * 9)),
}


@pytest.fixture(scope="module")
def honest(root):
    for kind in {kind for kind, _ in SCALES.values()}:
        WRITERS[kind](root / "honest" / kind, root / "neox")
    return root / "honest"


@pytest.mark.parametrize("lie", list(SCALES))
def test_scales_that_do_not_cancel_are_refused(honest, models, tmp_path, lie):
    kind, edit = SCALES[lie]
    shutil.copytree(honest / kind, tmp_path / "q")
    edit_tensors(tmp_path / "q", edit)
    with pytest.raises(InputError, match=r"blocks\.\w+\.\w+ of layer 1") as error:
        load_beside(tmp_path / "q", models["neox"])
    assert "original's" in str(error.value)


MOVED = {
    "a norm": lambda t: t.update(
        {n: t[n] * 3 for n in t if n.endswith("1.input_layernorm.weight")}
    ),
    "norms back": None,
    "values": change(r"v_proj\.weight_scale", lambda x: x * 2),
    "output": change(r"o_proj\.weight_scale", lambda x: x * 2),
    "up shuffled": change(r"up_proj\.weight_scale", shuffled(0)),
}


@pytest.mark.parametrize("lie", list(MOVED))
def test_scales_that_were_moved_on_one_side_only_are_refused(root, models, tmp_path, lie):
    write_ct(tmp_path / "q", root / "llama-moved")

    def norms_of_the_original(tensors):
        tensors.update(
            {n: x for n, x in load_file(root / "llama" / WEIGHTS).items() if "norm" in n}
        )

    edit_tensors(tmp_path / "q", MOVED[lie] or norms_of_the_original)
    with pytest.raises(InputError, match=r"blocks\.\w+\.\w+ of layer \d"):
        load_beside(tmp_path / "q", models["llama"])


@pytest.mark.parametrize(("version", "said"), [(1, "gptq_v2"), (2, "gptq")])
@pytest.mark.parametrize("bits", [4, 8])
def test_zero_points_of_the_other_version_are_refused(root, models, tmp_path, version, said, bits):
    write_gptq(tmp_path / "q", root / "neox", version, bits, act_order=bits == 8)
    path = tmp_path / "q" / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["checkpoint_format"] = said
    path.write_text(json.dumps(config))
    with pytest.raises(InputError, match="one shift of all weights"):
        load_beside(tmp_path / "q", models["neox"])


# The criterion itself, on matrices.


def matrix(inputs=256, outputs=48):
    """Outputs of many sizes, an outlier, an output and an input of zeros."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((inputs, outputs)) * np.exp(rng.standard_normal(outputs))
    w[3, 7], w[:, 5], w[9] = 40, 0, 0
    return w.astype(np.float32)


@pytest.mark.parametrize(
    "name",
    ["int4-channel", "int8", "nf4", "nf4-dq", "fp8-e4m3", "nvfp4", "mxfp4", "fp8-block"],
)
def test_rounding_to_the_nearest_is_never_taken_for_a_lie(name):
    w = matrix()
    scheme = scheme_named(name)
    assert scheme.weights is not None
    packed = quantize(jnp.asarray(w), scheme.weights)
    found = np.asarray(dense(packed, jnp.float32))
    assert relative_error(found, w, rounding_of(packed), "w") > 0.003


def rounded(w, bits=4):
    codes, scale, zero = round_to_codes(w.T, bits, np.arange(len(w)) // 32)
    of_input = np.arange(len(w)) // 32
    step = scale[:, of_input].T.astype(np.float32)
    found = (codes.T - zero[:, of_input].T) * step
    return found.astype(np.float32), Rounding(step=step, groups=of_input, bits=bits)


def test_clipped_weights_and_inputs_that_were_zeroed_are_no_lies():
    """AWQ clips the largest weights, GPTQ zeroes inputs that its texts never used."""
    w = np.random.default_rng(1).standard_normal((256, 48)).astype(np.float32)
    found, rounding = rounded(np.clip(w, -1.8, 1.8))
    assert relative_error(found, w, rounding, "w") < 0.3
    found[17] = 0
    relative_error(found, w, rounding, "w")


def test_one_output_that_stands_in_anothers_place_is_refused():
    w = np.random.default_rng(1).standard_normal((256, 48)).astype(np.float32)
    found, rounding = rounded(w)
    relative_error(found, w, rounding, "w")
    found[:, [3, 8]] = found[:, [8, 3]]
    with pytest.raises(InputError, match=r"w: output 3 is off by 1\.\d+ .*\(2 of 48 are\)"):
        relative_error(found, w, rounding, "w")


def test_factors_of_norms_are_found_with_and_without_the_one_that_gemma_adds():
    wanted = np.array([[0.5, -0.25, 0.0, 0.0]], np.float32)
    factor = np.array([[2.0, 0.5, 4.0, 1.0]], np.float32)
    for offset in (0.0, 1.0):
        names = ("blocks.attention_norm.scale", "blocks.mlp_norm.scale")
        found = (wanted + offset) / factor - offset
        moved = moved_norms(dict.fromkeys(names, found), dict.fromkeys(names, wanted), offset)
        expected = factor if offset else np.where(wanted == 0, 1, factor)
        np.testing.assert_allclose(moved["blocks.attention.query"], expected, rtol=1e-6)


def test_factors_of_neighbours_that_are_noise_are_not_applied():
    w = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
    np.testing.assert_array_equal(moved_between(w * [1.05, 0.97, 1], w), 1)
    np.testing.assert_allclose(moved_between(w * [0.5, 1, 4], w), [2, 1, 0.25], rtol=1e-6)
