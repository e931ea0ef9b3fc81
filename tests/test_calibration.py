"""Calibration over a whole model: what is watched, folded, packed, resumed, and refused."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.calibration import block as layer
from jaxalign.calibration import calibrate, groups
from jaxalign.calibration import walk as driver
from jaxalign.edits import Edit, HeadEdit, head_ablation_masks
from jaxalign.engine import sweep
from jaxalign.errors import InputError
from jaxalign.model import ModelConfig, cast, forward, init_params
from jaxalign.model.decoder import block
from jaxalign.model.layers import Pass, activate, layer_norm
from jaxalign.model.params import MATRICES
from jaxalign.numerics import F32, jit, scheme_named
from jaxalign.numerics.dot import dot
from jaxalign.numerics.methods.hqq import hqq
from jaxalign.numerics.qtensor import QTensor, unpack

CONFIG = ModelConfig(64, 2, 4, 32, 64, rotary_dims=4)
# As Gemma 2: grouped queries, a gate, norms that keep their scale less 1, one layer with a window.
GEMMA = replace(
    CONFIG,
    parallel_residual=False,
    attention_bias=False,
    out_bias=False,
    mlp_bias=False,
    num_kv_heads=2,
    head_size=8,
    norm="rms+1",
    gated=True,
    post_norms=True,
    windows=(3, None),
)
CALIBRATED = ("awq-g16", "gptq-actorder-g16", "smoothquant-static")


watched = jit(groups.linear_inputs, static_argnames=("config",))


@functools.partial(jit, static_argnames=("config",))
def through(x, weights, real, *, config):
    return block(x, weights, Pass(config, F32, real))


@functools.cache
def model(config=CONFIG):
    """Random parameters in which every norm and bias is random, too, with loud channels."""

    def draw(path, leaf):
        noise = jax.random.normal(jax.random.key(leaf.size), leaf.shape)
        return leaf + 0.3 * noise if path[-1].name in ("scale", "bias") else 8 * leaf + 0.1 * noise

    params = jax.tree_util.tree_map_with_path(draw, init_params(jax.random.key(0), config))
    norm = params.blocks.attention_norm
    loud = replace(norm, scale=norm.scale.at[:, 5].mul(20))
    return replace(params, blocks=replace(params.blocks, attention_norm=loud))


def texts(count=12, size=16, seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, CONFIG.vocab_size, (count, size), np.int32)
    return jnp.asarray(tokens), jnp.asarray(rng.integers(size // 2, size + 1, count, np.int32))


@functools.cache
def calibrated(name):
    return calibrate(model(), CONFIG, scheme_named(name), *texts())


def same_bits(a, b):
    leaves = [jax.tree.leaves(tree) for tree in (a, b)]
    assert jax.tree.structure(a) == jax.tree.structure(b)
    return all(np.array_equal(x, y) for x, y in zip(*leaves, strict=True))


def first_layer(config=CONFIG):
    return jax.tree.map(lambda a: a[0], model(config).blocks)


def stream(count=3, size=8):
    x = jax.random.normal(jax.random.key(1), (count, size, CONFIG.hidden_size))
    return x, jnp.ones((count, size), bool)


# What is watched


@pytest.mark.parametrize("parallel", [True, False], ids=["parallel", "sequential"])
def test_linear_inputs_are_what_the_block_multiplies(parallel):
    config = replace(CONFIG, parallel_residual=parallel)
    weights, (x, real) = first_layer(), stream()
    seen = watched(weights, x, real, config=config)
    _, inside = through(x, weights, real, config=config)
    middle = x if parallel else inside["attn_out"] + x
    up = layer_norm(middle, weights.mlp_norm, config.norm_eps)
    hidden = dot(up, weights.mlp.up) + weights.mlp.up_bias[None, None]
    expected = {
        "attention.query": layer_norm(x, weights.attention_norm, config.norm_eps),
        "attention.out": inside["z"].reshape(x.shape),
        "mlp.up": up,
        "mlp.down": activate(hidden, config.activation),
    }
    for name, inputs in expected.items():
        np.testing.assert_allclose(seen[name], inputs, atol=1e-6, err_msg=name)
    for group in groups.groups_of(weights):
        first, *others = (seen[name] for name in group.linears)
        assert all(np.array_equal(other, first) for other in others), "a group reads one input"


def test_every_matrix_that_a_scheme_packs_is_in_a_group():
    names = [name for group in groups.groups_of(first_layer(GEMMA)) for name in group.linears]
    assert sorted(name.split(".")[1] for name in names) == sorted(MATRICES)


# What is folded


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("awq-g16", CONFIG),
        ("awq-g16", GEMMA),
        ("smoothquant-static", replace(CONFIG, parallel_residual=False)),
    ],
    ids=["parallel", "Gemma", "sequential"],
)
def test_scales_folded_into_norms_leave_the_f32_model_as_it_was(name, config):
    weights, (x, real) = first_layer(config), stream()
    seen = layer.observe(weights, x, real, config=config, second=True)
    scaled = weights
    for group, found in zip(groups.groups_of(weights), seen, strict=True):
        if group.norm:
            scaled, scale = layer.scale_group(scaled, group, found, scheme_named(name), config)
            assert scale.max() > 1.5 * scale.min(), "a scale of ones would test nothing"
    before, after = (through(x, w, real, config=config)[0] for w in (weights, scaled))
    assert not np.array_equal(weights.attention.query, scaled.attention.query)
    np.testing.assert_allclose(after, before, atol=1e-5 * np.abs(before).max())


def test_a_divided_input_and_scaled_rows_leave_the_product_as_it_was():
    weights, (x, real) = first_layer(), stream()
    inputs = watched(weights, x, real, config=CONFIG)["mlp.down"]
    *_, group = groups.groups_of(weights)
    *_, found = layer.observe(weights, x, real, config=CONFIG, second=True)
    loud = jnp.ones(CONFIG.intermediate_size).at[7].set(0.1)
    found, inputs = found.divided(loud), inputs / loud[None, None]
    scaled, scale = layer.scale_group(weights, group, found, scheme_named("awq-g16"), CONFIG)
    assert scale.max() > 1.5 * scale.min()
    exact = dot(inputs, weights.mlp.down)
    np.testing.assert_allclose(
        dot(inputs / scale[None, None], scaled.mlp.down), exact, atol=1e-5 * np.abs(exact).max()
    )


def test_each_method_divides_where_it_says():
    awq, smooth, gptq = (
        calibrated(n).blocks for n in ("awq-g16", "smoothquant-static", "gptq-actorder-g16")
    )
    original = model().blocks
    for blocks, norms, divisor in ((awq, True, True), (smooth, True, False), (gptq, False, False)):
        for norm in ("attention_norm", "mlp_norm"):
            same = np.array_equal(getattr(blocks, norm).scale, getattr(original, norm).scale)
            assert same != norms
        assert blocks.attention.out.input_divisor is None
        assert blocks.attention.query.input_divisor is None
        assert (blocks.mlp.down.input_divisor is not None) == divisor


# The driver


@pytest.mark.parametrize("name", ["f16", "int4-sym-g16", "int8"])
def test_schemes_that_need_no_texts_are_cast(name):
    scheme = scheme_named(name)
    assert same_bits(calibrate(model(), CONFIG, scheme), cast(model(), scheme))


@pytest.mark.parametrize("name", CALIBRATED)
def test_calibrated_parameters_have_the_form_of_cast_ones(name):
    scheme = scheme_named(name)
    inputs = None if scheme.inputs == "int8-static" else scheme.inputs
    nearest = replace(scheme, method="", inputs=inputs)
    ours, plain = calibrated(name), cast(model(), nearest)
    packed = [
        jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, QTensor))
        for tree in (ours, plain)
    ]
    for a, b in zip(*packed, strict=True):
        assert type(a) is type(b)
        assert a.shape == b.shape
        if isinstance(a, QTensor):
            assert (a.format, a.codes.dtype) == (b.format, b.codes.dtype)
            assert a.inputs == scheme.inputs
            assert a.scale.shape == b.scale.shape
            assert (a.group_of is not None) == scheme.act_order
            assert (a.input_scale is not None) == (scheme.inputs == "int8-static")
        else:
            assert a.dtype == b.dtype


def test_computing_in_f16_casts_what_is_not_packed():
    low = calibrate(model(), CONFIG, scheme_named("awq-g16@f16"), *texts())
    assert low.dtype == low.blocks.attention_norm.scale.dtype == jnp.float16
    ours = calibrated("awq-g16").blocks.mlp.up
    assert np.array_equal(low.blocks.mlp.up.codes, ours.codes), "codes are chosen in f32"


@pytest.mark.parametrize("config", [CONFIG, GEMMA], ids=["GPT-NeoX", "Gemma"])
def test_static_input_scale_is_the_largest_calibration_input_over_127(config):
    tokens, lengths = texts()
    low = calibrate(model(config), config, scheme_named("smoothquant-static"), tokens, lengths)
    real = np.arange(tokens.shape[1])[None] < np.asarray(lengths)[:, None]
    out = forward(model(config), tokens, config, lengths=lengths, capture=("z",))
    for number in range(config.num_layers):
        largest = np.abs(np.asarray(out.activations["z"][number])[real]).max()
        scale = low.blocks.attention.out.input_scale[number]
        assert scale == pytest.approx(largest / 127, rel=1e-4)


@pytest.mark.parametrize(("name", "rounded"), [("gptq-actorder-g16", True), ("awq-g16", False)])
def test_gptq_sees_what_rounded_layers_give_and_awq_what_the_model_gives(
    name, rounded, monkeypatch
):
    passed = []
    advanced = driver._advanced

    def record(weights, *args, **kwds):
        passed.append(isinstance(weights.mlp.up, QTensor))
        return advanced(weights, *args, **kwds)

    monkeypatch.setattr(driver, "_advanced", record)
    calibrate(model(), CONFIG, scheme_named(name), *texts())
    assert passed == [rounded], "the texts pass each layer but the last once"


@pytest.mark.parametrize("name", ["awq-g16", "gptq-actorder-g16"])
def test_the_same_arguments_give_the_same_bits_whatever_the_padding_holds(name):
    tokens, lengths = texts()
    real = np.arange(tokens.shape[1])[None] < np.asarray(lengths)[:, None]
    other = jnp.where(real, tokens, 7)
    again = calibrate(model(), CONFIG, scheme_named(name), other, lengths)
    assert same_bits(again, calibrated(name))


def test_texts_in_several_batches_choose_almost_the_same_codes(monkeypatch):
    monkeypatch.setattr(driver, "CALL_POSITIONS", 5 * 16)  # 12 texts: 5, 5, 2 and filler
    parts = calibrate(model(), CONFIG, scheme_named("gptq-actorder-g16"), *texts())
    whole = calibrated("gptq-actorder-g16")
    for name in [name for group in groups.all_groups() for name in group.linears]:
        packed = [groups.get(params.blocks, name) for params in (whole, parts)]
        if None not in packed:
            a, b = map(np.asarray, map(unpack, packed))
            assert np.isclose(a, b, rtol=1e-4, atol=1e-5).mean() > 0.97, name


def test_a_calibration_that_was_cut_off_goes_on_with_the_same_bits(tmp_path, monkeypatch):
    name, folder = "gptq-actorder-g16", tmp_path / "calibration"
    started = []
    chosen = driver.choose

    def fail_in_the_second(*args, **kwds):
        started.append(len(started))
        if len(started) == 2:
            raise KeyboardInterrupt
        return chosen(*args, **kwds)

    fail_in_the_second.fun = chosen.fun
    monkeypatch.setattr(driver, "choose", fail_in_the_second)
    again = functools.partial(
        calibrate, model(), CONFIG, scheme_named(name), *texts(), folder=folder
    )
    with pytest.raises(KeyboardInterrupt):
        again()
    assert [path.name for path in sorted(folder.rglob("*.npz"))] == ["layer-0.npz"]
    resumed = again()
    assert started == [0, 1, 2], "the first layer is not chosen again"
    assert same_bits(resumed, calibrated(name))
    assert same_bits(again(), resumed)
    assert started == [0, 1, 2], "a finished calibration is read"


def test_a_folder_of_other_texts_is_not_used(tmp_path, capsys):
    scheme, folder = scheme_named("gptq-actorder-g16"), tmp_path / "calibration"
    calibrate(model(), CONFIG, scheme, *texts(), folder=folder)
    other = calibrate(model(), CONFIG, scheme, *texts(seed=1), folder=folder)
    assert "texts differ" in capsys.readouterr().err
    assert same_bits(other, calibrate(model(), CONFIG, scheme, *texts(seed=1)))


def test_the_bar_is_silent_where_there_is_no_terminal(capsys):
    calibrate(model(), CONFIG, scheme_named("gptq-actorder-g16"), *texts(), progress=True)
    assert capsys.readouterr() == ("", "")


def test_hqq_needs_no_texts():
    scheme = scheme_named("hqq-g16")
    low = calibrate(model(), CONFIG, scheme)
    for number in range(CONFIG.num_layers):
        alone = hqq(model().blocks.mlp.up[number], scheme.weights)
        assert (low.blocks.mlp.up.codes[number] == alone.codes).mean() > 0.99


# What is refused


def refusal(params=None, given=None, name="gptq-actorder-g16", **options):
    with pytest.raises(InputError) as caught:
        calibrate(params or model(), CONFIG, scheme_named(name), *(given or ()), **options)
    return str(caught.value)


@pytest.mark.parametrize("name", ["awq-g16", "smoothquant-static"])
def test_a_scheme_that_needs_texts_says_so(name):
    empty = jnp.zeros((0, 4), jnp.int32), jnp.zeros(0, jnp.int32)
    for given in ((), empty):
        message = refusal(given=given, name=name)
        assert name in message
        assert "--calibration FILE" in message
        assert "shipped_texts()" in message


def test_texts_that_the_model_cannot_read_are_named():
    tokens, lengths = texts()
    assert "text 3 has no tokens" in refusal(given=(tokens, lengths.at[3].set(0)))
    assert "lengths (12,) up to 99" in refusal(given=(tokens, lengths.at[3].set(99)))
    assert "vocabulary of 64" in refusal(given=(tokens.at[0, 0].set(64), lengths))
    long = jnp.zeros((1, 2049), jnp.int32), jnp.array([2049])
    assert "context of 2048" in refusal(given=long)


def test_activations_that_are_not_finite_name_their_layer():
    params = model()
    down = params.blocks.mlp.down.at[0].mul(1e38)
    broken = replace(
        params, blocks=replace(params.blocks, mlp=replace(params.blocks.mlp, down=down))
    )
    message = refusal(broken, texts())
    assert message.startswith("layer 1: what attention.query reads")


def test_a_matrix_that_is_not_finite_is_named():
    params = model()
    out = params.blocks.attention.out.at[1, 0, 0].set(jnp.nan)
    attention = replace(params.blocks.attention, out=out)
    broken = replace(params, blocks=replace(params.blocks, attention=attention))
    assert "layer 1: " in refusal(broken, texts(), "smoothquant-static")


def test_moments_that_cannot_be_factored_ask_for_more_damping():
    message = refusal(given=texts(), damping=-1.0)
    assert message.startswith("layer 0: the second moments of what attention.query reads")
    assert "increase damping" in message


# What it is for


def test_the_wave_on_calibrated_parameters_equals_the_plan_that_defines_it():
    low, other = calibrated("gptq-actorder-g16"), calibrated("awq-g16")
    assert low.blocks.attention.query.group_of is not None
    assert other.blocks.mlp.down.input_divisor is not None
    low = replace(low, blocks=replace(low.blocks, mlp=other.blocks.mlp))
    tokens, lengths = texts(3, 8)
    masks = head_ablation_masks(CONFIG.num_layers, CONFIG.num_heads)
    zero = Edit(HeadEdit(masks, jnp.zeros((CONFIG.num_layers, 1, 1, 1, 1))))
    run = {
        engine: jit(
            functools.partial(
                sweep,
                config=CONFIG,
                edits=[zero],
                readout=lambda logits: logits,
                engine=engine,
                scheme=F32,
            )
        )(low, tokens, lengths)[0]
        for engine in ("wave", "vmap")
    }
    assert np.abs(run["wave"] - run["vmap"]).max() < 1e-4 * np.abs(run["vmap"]).max()
    assert not np.allclose(run["wave"][0], run["wave"][1], atol=1e-3), "an edit does something"
