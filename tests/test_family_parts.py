"""Parts that some families lack or add: whatever reads norms, positions and scales knows of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engines import LENGTHS

from jaxalign.calibration.groups import groups_of
from jaxalign.calibration.walk import calibrate
from jaxalign.checkpoints.quantized.moved import moved_norms
from jaxalign.devices.mesh import make_mesh, shard_params
from jaxalign.edits import Edit, Scale
from jaxalign.edits.points import POINTS
from jaxalign.engine.lens import direct_logit_attribution
from jaxalign.errors import InputError
from jaxalign.model import ModelConfig, cast, forward, param_shapes
from jaxalign.model.checks import points_of
from jaxalign.model.layers import layer_norm, normalize, rms_norm
from jaxalign.model.params import Norm
from jaxalign.numerics import F32, jit, scheme_named
from jaxalign.numerics.dot import dense
from jaxalign.study.weight_noise import low_matrices
from testing.edits import continued, edits_for, logits_of, loud, swept

GATED = {"gated": True, "mlp_bias": False, "attention_bias": False, "num_kv_heads": 2}
# What each family has and GPT-NeoX has not.
PARTS = {
    "OLMo": GATED | {"norm": "nonparametric", "qkv_clip": 0.3},
    "OLMo 2": GATED
    | {"norm": "rms+0", "pre_norms": False, "post_norms": True}
    | {"query_key_norms": True, "norms_over_heads": True},
    "GPT-2": {"learned_positions": True, "rotary_dims": 0, "max_positions": 11},
    "Gemma 3": GATED
    | {"norm": "rms+1", "post_norms": True, "query_key_norms": True}
    | {"windows": (3, None, 3), "local_rotary_base": 20.0},
}


def prompts(batch=3, length=11):
    return np.random.default_rng(1).integers(3, 97, (batch, length))


def of_parts(family):
    sizes = {"vocab_size": 97, "num_layers": 3, "num_heads": 4, "hidden_size": 32}
    more = {"intermediate_size": 48, "rotary_dims": 8, "parallel_residual": False}
    config = ModelConfig(**sizes | more | PARTS[family])
    return loud(config), config


@pytest.mark.parametrize("family", PARTS)
def test_what_each_part_writes_adds_up_to_the_difference_of_two_logits(family):
    params, config = of_parts(family)
    given = params, jnp.asarray(prompts()), LENGTHS, config
    target, other = jnp.array([1, 2, 3]), jnp.array([4, 5, 6])
    found = jit(lambda: direct_logit_attribution(*given, target, other).total)()
    logits = jit(lambda: forward(*given[:2], config, lengths=LENGTHS, last_only=True).logits)()
    wanted = logits[np.arange(3), target] - logits[np.arange(3), other]
    np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize("family", PARTS)
def test_generation_edits_every_point_as_a_pass_over_the_whole_text_does(family):
    params, config = of_parts(family)
    rng = np.random.default_rng(0)
    sizes = {"L": 3, "L+1": 4, "B": 2, "S": 11, "Q": 11, "H": 4, "K": config.num_kv_heads, "h": 8}
    sizes |= {"D": 32, "F": 48, "V": 97}

    def scaled(point):
        at = POINTS[point]
        shape = [sizes[a] for a in at.layers] + [2] + [sizes[a] for a in (*at.position, *at.unit)]
        return Scale(point, (rng.standard_normal(shape) * (rng.random(shape) < 0.2)).astype("f4"))

    edit = Edit(*(scaled(point) for point in points_of(config)))
    text, logits = continued(params, jnp.asarray(prompts(2, 6)), config, 11, edit)
    whole = jit(lambda edit: forward(params, text, config, edit=edit).logits)(edit)
    np.testing.assert_allclose(logits, whole[:, -1], atol=1e-5 * np.abs(whole).max())


@pytest.mark.parametrize("family", ["OLMo 2", "GPT-2"])
def test_a_copy_spread_over_two_devices_computes_what_one_does(family):
    params, config = of_parts(family)
    tokens = jnp.asarray(prompts())
    edits = [edits_for(config, *tokens.shape)["zero"]]
    spread = shard_params(params, make_mesh(jax.devices()[:2], 2), config)
    alone, shared = (
        swept(each, tokens, LENGTHS, config, edits, logits_of) for each in (params, spread)
    )
    for one, other in zip(alone, shared, strict=True):
        np.testing.assert_allclose(other, one, atol=1e-5 * np.abs(one).max())
        assert np.abs(one[1:] - one[:1]).max() > 1e-3
    if family == "OLMo 2":
        norm = spread.blocks.attention.query_norm_over_heads.scale
        assert norm.addressable_shards[0].data.shape == (3, 16)


@pytest.mark.parametrize(("family", "name"), [("OLMo", "gptq-g16"), ("OLMo 2", "awq-g16")])
def test_without_norms_that_scale_matrices_alone_are_changed(family, name):
    params, config = of_parts(family)
    first = jax.tree.map(lambda leaf: leaf[0], params.blocks)
    assert [group.norm for group in groups_of(first)] == [None] * 4
    low = calibrate(params, config, scheme_named(name), jnp.asarray(prompts()), LENGTHS)
    divided = low.blocks.mlp.down.input_divisor
    assert (divided is None) == (name == "gptq-g16")
    assert low.blocks.attention.query.input_divisor is None
    for part in ("attention_post_norm", "mlp_post_norm"):
        before, after = getattr(params.blocks, part), getattr(low.blocks, part)
        assert jax.tree.all(jax.tree.map(np.array_equal, before, after))
    lows = jax.tree.map(lambda leaf: leaf[0], low.blocks)
    exact = dense(lows.attention.query, jnp.float32)
    np.testing.assert_array_equal(low_matrices(first, lows, config)["query"], exact)
    assert 0 < np.abs(exact - first.attention.query).max() < 0.5


@pytest.mark.parametrize("family", ["OLMo", "OLMo 2"])
@pytest.mark.parametrize("name", ["smoothquant", "smoothquant-static"])
def test_smoothquant_is_refused_where_no_norm_can_take_its_scales(family, name):
    params, config = of_parts(family)
    with pytest.raises(InputError, match=f"scheme '{name}' moves scales into the norms"):
        calibrate(params, config, scheme_named(name), jnp.asarray(prompts()), LENGTHS)


def test_norms_that_are_not_there_have_moved_no_scale():
    assert moved_norms({}, {}, 0.0) == {}


@pytest.mark.parametrize("family", PARTS)
def test_every_scheme_packs_every_matrix(family):
    params, config = of_parts(family)
    low = cast(params, scheme_named("int8"))
    logits, clean = (
        jit(lambda p, s=s: forward(p, jnp.asarray(prompts()), config, scheme=s).logits)(each)
        for each, s in ((low, scheme_named("int8")), (params, F32))
    )
    far = np.linalg.norm(logits - clean) / np.linalg.norm(clean)
    assert 0 < far < 0.1
    assert jax.tree.structure(param_shapes(config)) == jax.tree.structure(params)


def test_a_norm_that_is_not_there_leaves_everything_as_it_is():
    _, config = of_parts("OLMo 2")
    x = jnp.arange(6.0).reshape(2, 3)
    assert normalize(x, None, config) is x


def test_norms_round_where_their_models_do():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((64, 32)), jnp.bfloat16)
    norm = Norm(jnp.asarray(np.random.default_rng(1).random(32) + 0.5, jnp.bfloat16))
    wide = np.asarray(x, np.float64)
    unit = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-6)
    late = jnp.asarray(unit * np.asarray(norm.scale, np.float64), jnp.bfloat16)
    early = norm.scale[None] * jnp.asarray(unit, jnp.bfloat16)
    assert (rms_norm(x, norm, 1e-6, "rms+0") == late).mean() > 0.999
    assert (rms_norm(x, norm, 1e-6, "rms") == early).mean() > 0.999
    assert (late == early).mean() < 0.95
    centred = wide - wide.mean(-1, keepdims=True)
    unit = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(layer_norm(x.astype("f4"), Norm(None), 1e-5), unit, atol=1e-5)
