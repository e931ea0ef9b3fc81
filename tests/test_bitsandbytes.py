"""NF4, FP4, double quantization and LLM.int8 are bitsandbytes' to the bit."""

import functools
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from real_packages import published, real_package

from jaxalign.errors import InputError
from jaxalign.numerics import jit, scheme_named
from jaxalign.numerics.dot import LLM_INT8_CPU, LLM_INT8_CUDA, dense, dot, llm_int8_dot
from jaxalign.numerics.double_quantization import dynamic_map, nested_scales, round_scales
from jaxalign.numerics.input_rounding import llm_int8
from jaxalign.numerics.qtensor import unpack
from jaxalign.numerics.quantize import quantize

torch = real_package("torch")
functional = real_package("bitsandbytes.functional")
FLOATS = ("float32", "float16", "bfloat16")


def weights():
    """Outputs first; an output of zeros, a block of zeros, a small output, ties."""
    w = np.random.default_rng(0).standard_normal((48, 256)).astype(np.float32) * 0.05
    w[3], w[5, 64:128], w[7] = 0, 0, w[7] * 1e-3
    w[9] = np.linspace(-1, 1, 256)
    return w


@functools.cache
def rounding(name):
    return jit(functools.partial(quantize, form=scheme_named(name).weights))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_4_bit_codes_scales_and_values_equal_to_the_bit(kind, dtype):
    theirs = torch.tensor(weights()).to(getattr(torch, dtype))
    packed, state = functional.quantize_4bit(theirs, blocksize=64, quant_type=kind)
    ours = rounding(kind)(jnp.asarray(published(theirs.float().numpy())))
    assert np.array_equal(published(ours.codes).reshape(-1), packed.numpy().reshape(-1))
    assert np.array_equal(published(ours.scale).reshape(-1), state.absmax.numpy())
    values = functional.dequantize_4bit(packed, state)
    mine = jit(functools.partial(dense, dtype=dtype))(ours).astype(jnp.float32)
    assert np.array_equal(published(mine), values.float().numpy())


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_4_bit_codes_are_equal_at_every_midpoint_and_beside_it(kind):
    """Half way between two values, where random weights hardly ever lie, the lower one is taken."""
    book = np.sort(functional.get_4bit_type(kind, device="cpu").numpy())
    middles = (book[1:] + book[:-1]) / 2
    middles = middles[middles != 0]  # between fp4's two zeros any number is 0
    beside = [np.nextafter(middles, np.float32(way)) for way in (-2, 2)]
    w = np.zeros((1, 64), np.float32)
    chosen = np.concatenate([[1], middles, *beside])
    w[0, : len(chosen)] = chosen
    packed, _ = functional.quantize_4bit(torch.tensor(w), blocksize=64, quant_type=kind)
    ours = published(rounding(kind)(jnp.asarray(published(w))).codes)
    assert np.array_equal(ours.reshape(-1), packed.numpy().reshape(-1))


def test_dynamic_map_equals_to_the_bit():
    assert np.array_equal(dynamic_map(), functional.create_dynamic_map().numpy())


def nested(kind="nf4"):
    packed, state = functional.quantize_4bit(
        torch.tensor(weights() + 0.01), quant_type=kind, blocksize=64, compress_statistics=True
    )
    tensors = [t.numpy() for t in (state.absmax, state.state2.absmax, state.state2.code)]
    return packed, state, tensors


def test_nested_scales_of_a_file_are_decoded_to_the_bit():
    packed, state, tensors = nested()
    scale = nested_scales(*tensors, state.offset.item(), state.state2.blocksize)
    theirs = functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
    assert np.array_equal(scale, theirs.numpy())
    ours = rounding("nf4")(jnp.asarray(published(weights() + 0.01)))
    assert np.array_equal(published(ours.codes).reshape(-1), packed.numpy().reshape(-1))
    ours = replace(ours, scale=jnp.asarray(scale.reshape(48, 4).T))
    values = functional.dequantize_4bit(packed, state).numpy()
    assert np.array_equal(published(jit(unpack)(ours)), values)


def test_rounded_scales_are_the_same_but_for_a_few():
    """Another order of summing the mean moves all by an ulp; a tie may take another code."""
    scale = np.abs(np.random.default_rng(1).standard_normal((300, 8))).astype(np.float32) * 0.05
    flat = torch.tensor(scale.reshape(-1))
    codes, state = functional.quantize_blockwise(flat - flat.mean(), blocksize=256)
    theirs = (functional.dequantize_blockwise(codes, state) + flat.mean()).numpy()
    ours = published(jit(functools.partial(round_scales, axis=0))(jnp.asarray(scale.T)))
    apart = np.abs(ours.reshape(-1) - theirs)
    assert (apart > 1e-7).mean() < 5e-3
    assert apart.max() < 0.02 * scale.max()


def test_nested_tensors_that_do_not_belong_together_are_refused():
    _, state, (codes, block, values) = nested()
    size = state.state2.blocksize
    with pytest.raises(InputError, match="nested_absmax holds 2 float32, expected 1"):
        nested_scales(codes, np.tile(block, 2), values, 0.0, size)
    with pytest.raises(InputError, match="nested_quant_map holds 255"):
        nested_scales(codes, block, values[1:], 0.0, size)
    with pytest.raises(InputError, match="absmax holds 192 int8"):
        nested_scales(codes.astype(np.int8), block, values, 0.0, size)


def inputs():
    """Outlier columns 3, 17 and 100, in one of which a token has 5.5, its largest."""
    x = np.random.default_rng(2).standard_normal((20, 256)).astype(np.float32)
    x[:, 17] *= 5
    x[4, 100], x[6, 100], x[2, 3] = -9, 5.5, 6.0
    return x


def test_int8_weights_equal_to_the_bit():
    codes, largest, _ = functional.int8_vectorwise_quant(torch.tensor(weights()).half())
    ours = rounding("llm-int8")(jnp.asarray(published(weights())))
    assert np.array_equal(published(ours.codes), codes.numpy())
    assert np.array_equal(ours.scale[0], largest.numpy())
    values = functional.int8_vectorwise_dequant(codes, largest).numpy()
    assert np.array_equal(published(jit(unpack)(ours)), values)


def test_llm_int8_codes_rows_and_outlier_columns_equal_to_the_bit():
    x = inputs()
    codes, rows, columns = functional.int8_vectorwise_quant(torch.tensor(x).half(), threshold=6.0)
    ours, row, outliers = jit(llm_int8)(jnp.asarray(x))
    assert columns.tolist() == [3, 17, 100]
    assert np.array_equal(ours, codes.numpy())
    assert np.array_equal(row, rows.numpy())
    assert np.array_equal(outliers[:, columns.numpy()], x.astype(np.float16)[:, columns.numpy()])
    assert not np.delete(outliers, columns.numpy(), axis=1).any()
    assert row[6] == 5.5, "what is below the threshold in an outlier column counts for its row"


def test_llm_int8_product_without_outliers_equals_to_the_bit():
    x = np.clip(inputs(), -5.9, 5.9)
    pair = [functional.int8_vectorwise_quant(torch.tensor(a).half())[:2] for a in (x, weights())]
    (a, rows), (b, columns) = pair
    theirs = torch.ops.bitsandbytes.int8_scaled_mm(a, b, rows, columns, dtype=torch.float32)
    packed = rounding("llm-int8")(jnp.asarray(published(weights())))
    ours = jit(functools.partial(llm_int8_dot, constant=LLM_INT8_CPU))(jnp.asarray(x), packed)
    assert np.array_equal(ours, theirs.numpy())


def test_llm_int8_layer_is_bitsandbytes_within_an_f16_step_of_the_largest_output():
    bitsandbytes = real_package("bitsandbytes")
    layer = bitsandbytes.nn.Linear8bitLt(256, 48, bias=False, has_fp16_weights=False, threshold=6.0)
    layer.weight = bitsandbytes.nn.Int8Params(
        torch.tensor(weights()).half(), requires_grad=False, has_fp16_weights=False
    )
    theirs = layer.to("cpu").eval()(torch.tensor(inputs()).half()).float().detach().numpy()
    packed = replace(rounding("llm-int8")(jnp.asarray(published(weights()))), inputs="llm-int8")
    ours = np.asarray(jit(dot)(jnp.asarray(inputs()), packed))
    assert np.abs(ours - theirs).max() <= np.spacing(np.float16(np.abs(theirs).max()))
    assert np.linalg.norm(ours - theirs) < 1e-3 * np.linalg.norm(theirs)
    plain = np.asarray(inputs() @ weights().T)
    assert np.abs(ours - plain).max() > 10 * np.abs(ours - theirs).max()


def test_devices_of_bitsandbytes_differ_by_18_in_a_million():
    assert round((LLM_INT8_CPU / LLM_INT8_CUDA - 1) * 1e6) == 18
