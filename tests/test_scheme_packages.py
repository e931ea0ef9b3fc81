"""int8, float8 and 4-bit rounding are those of torchao, PyTorch, compressed-tensors and hqq."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from real_packages import published, real_package

from jaxalign.numerics import jit, scheme_named
from jaxalign.numerics.input_rounding import float8_tokens, int8_static, int8_tokens
from jaxalign.numerics.methods.hqq import hqq
from jaxalign.numerics.qtensor import code_values, unpack, unpack_nibbles
from jaxalign.numerics.quantize import quantize, to_float8

# The claims are about bits, so about the programs that users have.
pytestmark = pytest.mark.usefixtures("users_programs")

torch = real_package("torch")
RNG = np.random.default_rng(0)
W = (RNG.standard_normal((48, 256)) * 0.05).astype(np.float32)
X = (RNG.standard_normal((100, 256)) * 10 ** RNG.uniform(-1, 2, (100, 1))).astype(np.float32)


def rounded(name, w=W, how=quantize):
    return jit(functools.partial(how, form=scheme_named(name).weights))(jnp.asarray(published(w)))


def wide(a):
    return np.asarray(jnp.asarray(a).astype(jnp.float32))


def test_int8_codes_and_scales_equal_torchao_to_the_bit():
    torchao = real_package("torchao.quantization.quant_primitives")

    def theirs(a):
        kind, block, a = torchao.MappingType.SYMMETRIC, (1, a.shape[1]), torch.tensor(a)
        how = {"eps": 1e-5, "scale_dtype": torch.float32}
        scale, zero = torchao.choose_qparams_affine(a, kind, block, torch.int8, -127, 127, **how)
        codes = torchao.quantize_affine(a, block, scale, zero, torch.int8, -127, 127)
        return codes.numpy(), scale.numpy().reshape(-1)

    codes, scale = jit(int8_tokens)(jnp.asarray(X))
    assert all(np.array_equal(a, b) for a, b in zip((codes, scale), theirs(X), strict=True))
    w = rounded("int8")
    ours = published(w.codes), w.scale[0]
    assert all(np.array_equal(a, b) for a, b in zip(ours, theirs(W), strict=True))


def test_static_int8_codes_equal_pytorch_to_the_bit():
    scale = np.float32(0.37)
    theirs = (torch.tensor(X) / torch.tensor(scale)).round().clamp(-127, 127).to(torch.int8)
    assert np.array_equal(jit(int8_static)(jnp.asarray(X), jnp.asarray(scale)), theirs.numpy())


@pytest.mark.parametrize("codes", ["e4m3fn", "e5m2"])
def test_float8_codes_equal_pytorch_casts_to_the_bit(codes):
    dtype = getattr(torch, f"float8_{codes}")
    most = torch.finfo(dtype).max

    def theirs(a):
        a = torch.tensor(a)
        scale = a.abs().amax(1, keepdim=True).clamp(min=1e-5) / most
        return (a / scale).clamp(-most, most).to(dtype).float().numpy(), scale.numpy()[:, 0]

    ours, scale = jit(functools.partial(float8_tokens, codes=codes))(jnp.asarray(X))
    assert all(np.array_equal(a, b) for a, b in zip((wide(ours), scale), theirs(X), strict=True))
    w = rounded(f"fp8-{codes[:4]}")
    assert np.array_equal(published(wide(w.codes)), theirs(W)[0])
    assert np.array_equal(w.scale[0], theirs(W)[1])
    far = np.array([1e-9, 2.0**-10, 448, 463, 465, 6e4, 1e9, -1e9], np.float32)
    clamped = torch.tensor(far).clamp(-most, most).to(dtype).float().numpy()
    assert np.array_equal(wide(jit(functools.partial(to_float8, codes=codes))(far)), clamped)


@pytest.mark.parametrize(
    ("name", "group", "how"),
    [
        ("w4a16-g64", 64, {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 64}),
        ("w4a16-channel", 256, {"num_bits": 4, "type": "int", "strategy": "channel"}),
        ("w8a8", 256, {"num_bits": 8, "type": "int", "strategy": "channel"}),
        ("fp8-e4m3", 256, {"num_bits": 8, "type": "float", "strategy": "channel"}),
    ],
)
def test_codes_scales_and_values_equal_compressed_tensors_to_the_bit(name, group, how):
    theirs = real_package("compressed_tensors.quantization.lifecycle.forward")
    quantization = real_package("compressed_tensors.quantization")
    calculate = real_package("compressed_tensors.quantization.utils").calculate_qparams
    arguments, w = quantization.QuantizationArgs(symmetric=True, **how), torch.tensor(W)
    groups = w.reshape(len(w), -1, group)
    scale, zero = calculate(groups.amin(-1), groups.amax(-1), arguments)
    codes = theirs.quantize(w, scale, zero, arguments)
    values = theirs.dequantize(codes, scale, zero, arguments)
    ours = rounded(name)
    four = ours.format.bits == 4
    mine = wide(unpack_nibbles(ours.codes, 0)) - 8 if four else wide(ours.codes)
    assert np.array_equal(published(ours.scale), scale.numpy())
    assert np.array_equal(published(mine), codes.float().numpy())
    assert np.array_equal(published(jit(unpack)(ours)), values.float().numpy())


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
def test_whole_codes_of_any_bits_are_those_of_torchao(bits, symmetric):
    """Scales and zero points to the bit; codes but for ties, since torchao multiplies by 1 / s."""
    torchao = real_package("torchao.quantization.quant_primitives")
    w, half = torch.tensor(W), 2 ** (bits - 1)
    kinds = torchao.MappingType
    how = {"eps": 1e-5, "scale_dtype": torch.float32, "zero_point_dtype": torch.float32}
    if symmetric:
        # Its largest code is 2ⁿ⁻¹ − 1 and its scale max / that with this range.
        kind, dtype, low, high = kinds.SYMMETRIC, torch.int8, 1 - half, half - 1
    else:
        kind, dtype, low, high = kinds.ASYMMETRIC, torch.uint8, 0, 2**bits - 1
    scale, zero = torchao.choose_qparams_affine(w, kind, (1, 64), dtype, low, high, **how)
    codes = torchao.quantize_affine(w, (1, 64), scale, zero, dtype, low, high).numpy()
    ours = rounded(f"int{bits}{'-sym' if symmetric else ''}-g64")
    # 8-bit codes beside a zero point are stored signed.
    shift = -128 if bits == 8 and not symmetric else 0
    mine = published(wide(jit(code_values)(ours))) - shift
    assert np.array_equal(published(ours.scale), scale.numpy().reshape(len(W), -1))
    if not symmetric:
        assert np.array_equal(published(ours.zero) - shift, zero.numpy().reshape(len(W), -1))
    apart = mine != codes
    assert apart.mean() < 1e-3
    steps = W.reshape(len(W), -1, 64) / scale.numpy().reshape(len(W), -1, 1)
    tie = np.abs(np.abs(steps - np.round(steps)) - 0.5).reshape(W.shape)
    assert (tie[apart] < 1e-5).all()


def test_int8_tokens_equal_compressed_tensors_to_the_bit():
    theirs = real_package("compressed_tensors.quantization.lifecycle.forward")
    quantization = real_package("compressed_tensors.quantization")
    calculate = real_package("compressed_tensors.quantization.utils").calculate_qparams
    arguments = quantization.QuantizationArgs(num_bits=8, strategy="token", dynamic=True)
    x = torch.tensor(X)
    scale, zero = calculate(x.amin(-1, keepdim=True), x.amax(-1, keepdim=True), arguments)
    codes = theirs.quantize(x, scale, zero, arguments).numpy()
    ours, mine = jit(functools.partial(int8_tokens, levels=127.5))(jnp.asarray(X))
    assert np.array_equal(ours, codes)
    assert np.array_equal(mine, scale.numpy()[:, 0])
    assert codes.min() == -128, "with 127.5 levels the lowest code is used"


@pytest.mark.parametrize(("group", "size"), [(64, 0.05), (64, 1.0), (128, 0.05), (128, 1.0)])
def test_hqq_chooses_the_codes_of_hqq(group, size):
    quantizer = real_package("hqq.core.quantize").Quantizer
    w = (np.random.default_rng(group).standard_t(4, (64, 256)) * size).astype(np.float32)
    how = {"nbits": 4, "group_size": group, "axis": 1, "device": "cpu", "bitpack": False}
    codes, meta = quantizer.quantize(torch.tensor(w), **how)
    ours = rounded(f"hqq-g{group}", w, hqq)
    different = published(unpack_nibbles(ours.codes, 0)) != codes.numpy().reshape(w.shape)
    assert different.mean() < 1e-3
    assert np.allclose(published(ours.scale), meta["scale"].numpy().reshape(64, -1), rtol=1e-6)
    start = (-w.reshape(64, -1, group).min(-1) / published(ours.scale)).astype(np.float32)
    moved = np.abs(published(ours.zero) - start)
    apart = np.abs(published(ours.zero) - meta["zero"].numpy().reshape(64, -1))
    assert apart.mean() < 1e-2 * moved.mean(), "the search moved the zero points as hqq's did"
