"""NVFP4, MXFP4 and float8 by blocks are those of compressed-tensors and gguf, to the bit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from real_packages import published, real_package

from jaxalign.errors import InputError
from jaxalign.model import ModelConfig, cast
from jaxalign.model.params import param_shapes
from jaxalign.model.size import bits_of_matrix, mean_bits
from jaxalign.numerics import jit, scheme_named
from jaxalign.numerics.invariants import check
from jaxalign.numerics.qtensor import QTensor, unpack, unpack_nibbles
from jaxalign.numerics.quantize import power_of_two, quantize, to_e2m1
from jaxalign.numerics.storage import packed_bits
from jaxalign.studies.features.floors import group_noisy
from jaxalign.studies.plan.recipes import llm_compressor

NAMES = ("nvfp4", "mxfp4", "fp8-block")
# How compressed-tensors calls them.
SETTINGS = {
    "nvfp4": {"strategy": "tensor_group", "group_size": 16, "scale_dtype": "torch.float8_e4m3fn"},
    "mxfp4": {"strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"},
    "fp8-block": {"strategy": "block", "block_structure": [128, 128]},
}


def matrix(kind, outputs=96, inputs=256):
    """``[out, in]``, with a row, a group and a block that are special."""
    rng = np.random.default_rng(0)
    w = (rng.standard_t(3, (outputs, inputs)) * 0.05).astype(np.float32)
    if kind == "zeros":
        w[3] = 0
        w[5, 32:64] = 0
        w[:, 128:] = 0
    if kind == "all zeros":
        w[:] = 0
    if kind == "wide":  # what lies under the least scale of a group beside what lies far above
        w *= (10 ** rng.uniform(-30, 20, (outputs, inputs // 32, 1))).astype(np.float32).repeat(
            32, 2).reshape(w.shape)  # fmt: skip
    if kind == "huge":
        w *= np.float32(1e37)
    if kind in TINY:
        w *= np.float32(TINY[kind])
        w[np.abs(w) < np.finfo(np.float32).tiny] = 0  # which XLA takes for 0
    if kind == "ties":  # on the midpoints of e2m1, and on both sides of where MXFP4 rounds up
        w = rng.choice([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, -0.25, -5], w.shape).astype("f4")
        w[:, ::16] = 6
        w[8:16, ::32], w[16:24, ::32] = 7, np.nextafter(np.float32(7), 0)
        w *= np.exp2(rng.integers(-3, 3, (outputs, 1))).astype("f4")
    return w


def rounded(name, w):
    return jit(functools.partial(quantize, form=scheme_named(name).weights))(jnp.asarray(w.T))


def by_compressed_tensors(name, w):
    """Codes as values, scales as f32 numbers and what they dequantize to, all ``[out, …]``."""
    forward = real_package("compressed_tensors.quantization.lifecycle.forward")
    quantization = real_package("compressed_tensors.quantization")
    utils = real_package("compressed_tensors.quantization.utils")
    torch = real_package("torch")
    bits = 8 if name == "fp8-block" else 4
    args = quantization.QuantizationArgs(num_bits=bits, type="float", **SETTINGS[name])
    w, whole = torch.tensor(w), None
    if name == "fp8-block":
        padded = utils.maybe_pad_tensor_for_block_quant(w, args.block_structure)
        rows, columns = (size // 128 for size in padded.shape)
        parts = padded.reshape(rows, 128, columns, 128).transpose(1, 2).flatten(-2)
    else:
        parts = w.unflatten(-1, (-1, args.group_size))
    if name == "nvfp4":
        whole = utils.generate_gparam(w.amin(), w.amax())
    scale, zero = utils.calculate_qparams(parts.amin(-1), parts.amax(-1), args, whole)
    codes = forward.quantize(w, scale, zero, args, global_scale=whole)
    values = forward.dequantize(codes, scale, None, args, torch.float32, global_scale=whole)
    scale = scale if whole is None else scale / whole
    if name == "fp8-block":
        scale = scale.repeat_interleave(128, 0)[: len(w)]
    return codes.float().numpy(), scale.numpy(), values.numpy()


def codes_of(q):
    if q.format.codes == "e2m1":
        values = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
        return np.array(values + [-v for v in values])[published(unpack_nibbles(q.codes, 0))]
    return published(q.codes.astype(jnp.float32))


KINDS = ("plain", "zeros", "all zeros", "wide", "huge", "tiny", "ties")
TINY = {"tiny": 1e-31, "least": 1e-36}  # the second has the least scales that there are


@pytest.mark.parity
@pytest.mark.usefixtures("users_programs")
@pytest.mark.parametrize(
    ("name", "kind"),
    [*((name, kind) for name in NAMES for kind in KINDS), ("nvfp4", "least"), ("mxfp4", "least")],
)
def test_codes_scales_and_values_equal_compressed_tensors_to_the_bit(name, kind):
    w = matrix(kind)
    codes, scale, values = by_compressed_tensors(name, w)
    ours = rounded(name, w)
    assert np.array_equal(published(ours.scale), scale)
    assert np.array_equal(codes_of(ours), codes)
    assert np.array_equal(published(jit(unpack)(ours)), values)
    check(ours, "w")
    assert codes.any() == (kind != "all zeros" and (name, kind) != ("nvfp4", "least"))


@pytest.mark.parity
@pytest.mark.usefixtures("users_programs")
@pytest.mark.parametrize("shape", [(130, 300), (128, 128), (5, 40), (257, 128), (128, 1)])
def test_blocks_at_the_edges_of_a_matrix_are_smaller(shape):
    w = matrix("plain", *shape)
    codes, scale, values = by_compressed_tensors("fp8-block", w)
    ours = rounded("fp8-block", w)
    assert ours.shape == w.T.shape
    assert np.array_equal(published(ours.scale), scale)
    assert np.array_equal(codes_of(ours), codes)
    assert np.array_equal(published(jit(unpack)(ours)), values)
    check(ours, "w")


@pytest.mark.parity
@pytest.mark.usefixtures("users_programs")
def test_mxfp4_and_nvfp4_are_what_gguf_reads_in_its_own_layout():
    """Its blocks hold the first half of their inputs in the low halves, and no scale of a whole
    matrix."""
    gguf = real_package("gguf")
    w = matrix("wide")
    ours = rounded("mxfp4", w)
    codes = published(unpack_nibbles(ours.codes, 0)).reshape(-1, 32)
    exponent = np.log2(published(ours.scale)).reshape(-1, 1) + 127
    blocks = np.concatenate([exponent.astype(np.uint8), codes[:, :16] | codes[:, 16:] << 4], 1)
    kind = gguf.GGMLQuantizationType.MXFP4
    theirs = gguf.dequantize(blocks.reshape(len(w), -1), kind)
    assert np.array_equal(published(unpack(ours)), theirs)

    # One scale of the matrix that is 1: its largest weight is 448 · 6.
    w = matrix("plain")
    w *= np.float32(2688) / np.abs(w).max()
    ours = rounded("nvfp4", w)
    codes = published(unpack_nibbles(ours.codes, 0)).reshape(-1, 4, 16)
    scale = np.asarray(ours.scale.T.astype(jnp.float8_e4m3fn)).view(np.uint8).reshape(-1, 4)
    halves = (codes[..., :8] | codes[..., 8:] << 4).reshape(-1, 32)
    blocks = np.concatenate([scale, halves], 1).reshape(len(w), -1)
    theirs = gguf.dequantize(blocks, gguf.GGMLQuantizationType.NVFP4)
    assert np.array_equal(published(unpack(ours)), theirs)
    assert np.abs(theirs - w).max() < np.abs(w).max() / 6


@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "preset"), [("nvfp4", "NVFP4A16"), ("mxfp4", "MXFP4A16"), ("fp8-block", "FP8_BLOCK")]
)
def test_a_plans_recipe_says_what_compressed_tensors_calls_the_format(name, preset):
    yaml = real_package("yaml")
    quantization = real_package("compressed_tensors.quantization")
    recipe = yaml.safe_load(llm_compressor(["lm_head"], scheme_named(name)))
    [modifier] = recipe["quant_stage"]["quant_modifiers"].values()
    found = quantization.QuantizationConfig(**modifier).config_groups["group_0"].weights
    wanted = quantization.preset_name_to_scheme(preset, ["Linear"]).weights
    for field in ("num_bits", "type", "strategy", "group_size", "block_structure", "scale_dtype"):
        assert getattr(found, field) == getattr(wanted, field), field
    assert found.symmetric


def test_ties_of_e2m1_go_to_the_even_code_and_what_is_too_large_to_6():
    y = jnp.array([0.25, 0.26, 0.75, 1.25, 1.75, 2.5, 3.5, 5, 5.01, 99, -0.25, -0.75, -99, 0])
    codes = jit(to_e2m1)(y).tolist()
    assert codes == [0, 1, 2, 2, 4, 4, 6, 6, 7, 7, 8, 10, 15, 0]


def test_powers_of_two_are_exact_to_the_last():
    codes = np.arange(255)
    found = np.asarray(jit(power_of_two)(jnp.asarray(codes)))
    assert np.array_equal(found, np.exp2(codes - 127.0).astype(np.float32))


@pytest.mark.parametrize(
    ("largest", "step"), [(6, 1), (6.9, 1), (7, 2), (8, 2), (1.7, 0.25), (1.75, 0.5)]
)
def test_an_mxfp4_scale_rounds_up_where_7_would_round_to_8(largest, step):
    w = jnp.full((32, 1), largest, jnp.float32)
    assert float(quantize(w, scheme_named("mxfp4").weights).scale[0, 0]) == step


def test_nvfp4_scales_stand_over_one_of_each_matrix_alone():
    """Keys and values lie in one array, and have a scale of the whole each."""
    w = jax.random.normal(jax.random.key(0), (64, 2, 48)) * jnp.array([[[1e-3], [1e3]]])
    form = scheme_named("nvfp4").weights
    together = quantize(w, form, outputs=2)
    for part in range(2):
        alone = quantize(w[:, part], form)
        assert np.array_equal(together.scale[:, part], alone.scale)
        assert np.array_equal(together.codes[:, part], alone.codes)
    form = scheme_named("fp8-block").weights
    together = quantize(w, form, outputs=2)
    alone = quantize(w[:, 0], form)
    assert np.array_equal(together.scale[:, 0], alone.scale)


@pytest.mark.parametrize(
    ("name", "bits"), [("nvfp4", 4.5), ("mxfp4", 4.25), ("fp8-block", 8 + 32 / 16384)]
)
def test_bits_count_a_matrixs_and_a_blocks_share_of_their_scales(name, bits):
    form, whole = scheme_named(name).weights, 32 if name == "nvfp4" else 0
    assert packed_bits(4096, 4096, form) == bits * 4096**2 + whole
    assert form.block is None or packed_bits(130, 300, form) == 8 * 130 * 300 + 2 * 3 * 32


SMALL = ModelConfig(vocab_size=32, num_layers=2, num_heads=2, hidden_size=96, intermediate_size=160)


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    shapes = param_shapes(SMALL)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.1, x.shape), jnp.float32), shapes)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_packed_in_codes_of_few_bits(name, params):
    low = cast(params, name)
    for w in (low.blocks.attention.key_value, low.blocks.mlp.down):
        assert isinstance(check(w, name), QTensor)
        assert w.codes.nbytes == w.size * w.format.bits // 8
    form, count = scheme_named(name).weights, 2 * 96 * 96
    # 96 outputs of keys and 96 of values are a block each.
    kept = 2 * 32 if name == "fp8-block" else 2 * (96 * 96 // form.group * 8)
    kept += 2 * 32 if name == "nvfp4" else 0
    assert bits_of_matrix("key_value", SMALL, form) == count * form.bits + kept
    assert form.bits < mean_bits(SMALL, name) < form.bits + 0.52


def test_noise_of_groups_fits_blocks_at_the_edge(params):
    low = cast(params, "fp8-block")
    moved = group_noisy(params, low, jax.random.key(0), config=SMALL, group=128)
    for group in (slice(0, 128), slice(128, 160)):
        error, noise = (
            np.asarray(unpacked - params.blocks.mlp.down)[:, group]
            for unpacked in (unpack(low.blocks.mlp.down), moved.blocks.mlp.down)
        )
        assert np.allclose((error**2).sum(1), (noise**2).sum(1), rtol=1e-3)


def test_groups_that_do_not_divide_are_refused_but_blocks_may_be_smaller():
    w = jnp.ones((40, 2))
    for name in ("nvfp4", "mxfp4"):
        with pytest.raises(InputError, match="40 inputs, which groups of"):
            quantize(w, scheme_named(name).weights)
    assert quantize(w, scheme_named("fp8-block").weights).scale.shape == (1, 2)
