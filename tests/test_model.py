"""The model against transformers, and as a function of arrays."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pythia_shape import PYTHIA_SIZES, pythia_config, tiny_checkpoint

from jaxalign.checkpoints import load_params, open_checkpoint, save_checkpoint
from jaxalign.checkpoints.families import config_from_hf, config_to_hf
from jaxalign.edits import Add, Edit, HeadEdit, Replace, head_ablation_masks
from jaxalign.errors import InputError
from jaxalign.model import (
    CAPTURES,
    cast,
    count,
    forward,
    head_contributions,
    init_params,
    param_shapes,
)
from jaxalign.model.checks import points_of
from jaxalign.numerics import BF16, F16, F32, INT8_SIM, jit

# One jitted function, so that calls of equal shapes share a program.
ran = jit(forward, static_argnames=("config", "scheme", "capture", "last_only"))

VARIANTS = {
    "pythia": {},
    "sequential": {"use_parallel_residual": False},
    "tied": {"tie_word_embeddings": True},
    "sequential tied": {"use_parallel_residual": False, "tie_word_embeddings": True},
    "full rotary": {"rotary_pct": 1.0},
    "half rotary": {"rotary_pct": 0.5},
    "no rotary": {"rotary_pct": 0.0},
    "other base": {"rotary_emb_base": 500},
    "no attention bias": {"attention_bias": False},
    "gelu_new": {"hidden_act": "gelu_new"},
    "gelu_fast": {"hidden_act": "gelu_fast"},
    "gelu_pytorch_tanh": {"hidden_act": "gelu_pytorch_tanh"},
    "quick_gelu": {"hidden_act": "quick_gelu"},
    "relu": {"hidden_act": "relu"},
    "silu": {"hidden_act": "silu"},
    "larger epsilon": {"layer_norm_eps": 1e-2},
    "new rotary spelling": {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 700.0,
            "partial_rotary_factor": 0.5,
        }
    },
}


def read(folder, dtype=jnp.float32):
    config = config_from_hf(json.loads((folder / "config.json").read_text()))
    return load_params(open_checkpoint(folder), config, dtype), config


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return read(tiny_checkpoint(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def tokens():
    return jnp.asarray(np.random.default_rng(1).integers(0, 97, (3, 11)), jnp.int32)


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_transformers(variant, tmp_path, tokens):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = tiny_checkpoint(tmp_path, **VARIANTS[variant])
    theirs = transformers.GPTNeoXForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        expected = theirs(torch.from_numpy(np.array(tokens)).long()).logits.numpy()
    params, config = read(folder)
    ours = ran(params, tokens, config).logits
    assert np.abs(ours - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("size", PYTHIA_SIZES)
def test_every_pythia_size_is_known_by_its_configuration(size):
    config = config_from_hf(pythia_config(size))
    expected = PYTHIA_SIZES[size]
    assert (config.num_layers, config.hidden_size, config.num_heads, config.vocab_size) == (
        expected["layers"],
        expected["width"],
        expected["heads"],
        expected["vocab"],
    )
    leaves = jax.tree.leaves(param_shapes(config))
    assert all(leaf.size > 0 for leaf in leaves)


def test_pythia_70m_has_its_published_number_of_parameters():
    shapes = param_shapes(config_from_hf(pythia_config("70m")))
    assert count(shapes) == 70_426_624


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("attention_window", 64),
        ("rope_scaling", {"type": "linear", "factor": 2.0}),
        ("rope_parameters", {"rope_type": "yarn", "factor": 4.0}),
        ("hidden_act", "gelu_10"),
        ("model_type", "bloom"),
    ],
)
def test_settings_that_change_the_computation_are_refused_by_name(setting, value):
    with pytest.raises(InputError, match=str(value if setting == "model_type" else setting)):
        config_from_hf(pythia_config("70m") | {setting: value})


def test_config_round_trips_through_its_published_spelling():
    config = config_from_hf(pythia_config("1b"))
    assert config_from_hf(config_to_hf(config)) == config


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_saved_checkpoint_loads_to_the_same_bits(tiny, tmp_path, dtype):
    params, config = tiny
    params = jax.tree.map(lambda a: a.astype(dtype).astype(jnp.float32), params)
    save_checkpoint(params, config, tmp_path, dtype)
    again, config_again = read(tmp_path)
    assert config_again == config
    assert jax.tree.all(jax.tree.map(np.array_equal, params, again))


@pytest.mark.parametrize("scheme", [F32, F16, BF16, INT8_SIM], ids=lambda s: s.name)
def test_an_edit_that_edits_nothing_changes_no_bit(tiny, tokens, scheme):
    params, config = cast(tiny[0], scheme), tiny[1]
    L, H, D, S = config.num_layers, config.num_heads, config.hidden_size, tokens.shape[1]
    nothing = Edit(
        HeadEdit(jnp.zeros((L, 1, 1, H), bool), jnp.full((L, 1, 1, H, D), jnp.nan)),
        Add("attn_out", jnp.zeros((L, 1, S, 1), bool), value=jnp.full((L, 1, 1, D), jnp.nan)),
        Replace("resid", jnp.zeros((L + 1, 1, S, 1), bool), jnp.full((L + 1, 1, 1, D), jnp.inf)),
    )
    plain = ran(params, tokens, config, scheme=scheme).logits
    edited = ran(params, tokens, config, scheme=scheme, edit=nothing).logits
    assert np.array_equal(plain, edited)


def test_replacing_every_head_by_its_own_contribution_changes_nothing(tiny, tokens):
    params, config = tiny
    out = ran(params, tokens, config, capture=("z",))
    own = jnp.moveaxis(
        jax.vmap(head_contributions)(out.activations["z"], params.blocks.attention.out), 1, -2
    )
    mask = jnp.ones((config.num_layers, 1, 1, config.num_heads), bool)
    again = ran(params, tokens, config, edit=Edit(HeadEdit(mask, own)))
    assert np.abs(again.logits - out.logits).max() <= 1e-5 * np.abs(out.logits).max()


def test_head_contributions_and_bias_sum_to_the_attention_output(tiny, tokens):
    params, config = tiny
    out = ran(params, tokens, config, capture=("z", "attn_out"))
    c = jnp.moveaxis(
        jax.vmap(head_contributions)(out.activations["z"], params.blocks.attention.out), 1, -2
    )
    total = c.sum(axis=-2) + params.blocks.attention.out_bias[:, None, None]
    np.testing.assert_allclose(total, out.activations["attn_out"], atol=2e-6, rtol=1e-5)


def test_patching_the_whole_stream_from_another_run_gives_that_run(tiny, tokens):
    params, config = tiny
    other = (tokens + 5) % 97
    L, S = config.num_layers, tokens.shape[1]
    donor = ran(params, other, config, capture=("resid", "embed"))
    streams = jnp.concatenate([donor.activations["embed"][None], donor.activations["resid"]])
    for step in range(L + 1):
        mask = jnp.zeros((L + 1, 1, S, 1), bool).at[step].set(True)
        patched = ran(params, tokens, config, edit=Edit(Replace("resid", mask, streams)))
        np.testing.assert_allclose(patched.logits, donor.logits, atol=1e-5)


def test_patching_one_position_moves_only_later_positions(tiny, tokens):
    params, config = tiny
    L, S, D = config.num_layers, tokens.shape[1], config.hidden_size
    mask = jnp.zeros((L + 1, 1, S, 1), bool).at[1, 0, 4].set(True)
    off, edit = (
        Edit(Replace("resid", m, jnp.ones((L + 1, 1, 1, D)))) for m in (mask & False, mask)
    )
    clean, patched = (ran(params, tokens, config, edit=e).logits for e in (off, edit))
    assert np.array_equal(clean[:, :4], patched[:, :4])
    assert not np.allclose(clean[:, 4:], patched[:, 4:], atol=1e-3)


def test_every_site_can_be_returned(tiny, tokens):
    params, config = tiny
    B, S = tokens.shape
    L, D, H, h = config.num_layers, config.hidden_size, config.num_heads, config.head_size
    asked = ["embed", *points_of(config)]
    out = ran(params, tokens, config, capture=tuple(asked))
    heads, pairs, stream = (L, B, S, H, h), (L, B, H, S, S), (L, B, S, D)
    shapes = {"embed": (B, S, D), "final_norm": (B, S, D)}
    shapes |= {"q": heads, "k": heads, "v": heads, "z": heads, "scores": pairs, "pattern": pairs}
    shapes |= dict.fromkeys(("mlp_up", "mlp_hidden"), (L, B, S, config.intermediate_size))
    shapes |= {"logits": (B, S, config.vocab_size)}
    assert {name: a.shape for name, a in out.activations.items()} == {
        name: shapes.get(name, stream) for name in asked
    }
    for name in {*CAPTURES} - {*asked}:
        with pytest.raises(ValueError, match=name):
            forward(params, tokens, config, capture=(name,))
    with pytest.raises(ValueError, match="attention_pattern"):
        forward(params, tokens, config, capture=("attention_pattern",))


def test_vmap_over_masks_ablates_every_head(tiny, tokens):
    params, config = tiny
    masks = jnp.asarray(head_ablation_masks(config.num_layers, config.num_heads))
    zeros = jnp.zeros((config.num_layers, 1, 1, 1, 1))

    def run(mask):
        return forward(params, tokens, config, edit=Edit(HeadEdit(mask, zeros))).logits

    all_rows = jit(jax.vmap(run))(masks)
    one = jit(run)(masks[5])
    np.testing.assert_allclose(all_rows[5], one, atol=2e-5)
    assert not np.allclose(all_rows[5], all_rows[6], atol=1e-3)


def test_gradient_at_the_attention_output_is_the_slope_of_steering(tiny, tokens):
    params, config = tiny
    shape = (config.num_layers, 1, 1, config.hidden_size)
    mask = np.ones((*shape[:3], 1), bool)

    def loss(add):
        return (
            forward(params, tokens, config, edit=Edit(Add("attn_out", mask, value=add)))
            .logits[:, -1, 3]
            .sum()
        )

    direction = jax.random.normal(jax.random.key(0), shape)
    slope = float((jit(jax.grad(loss))(jnp.zeros(shape)) * direction).sum())
    step, by = 1e-2, jit(loss)
    measured = float(by(step * direction) - by(-step * direction)) / (2 * step)
    assert slope == pytest.approx(measured, rel=2e-2)


def test_params_of_another_precision_are_refused(tiny, tokens):
    params, config = tiny
    with pytest.raises(ValueError, match=r"float32.*float16.*cast"):
        forward(params, tokens, config, scheme=F16)


def test_fresh_parameters_are_finite_and_have_the_stated_shapes():
    config = config_from_hf(pythia_config("14m") | {"vocab_size": 200, "num_hidden_layers": 2})
    params = jit(lambda key: init_params(key, config))(jax.random.key(0))
    shapes = param_shapes(config)
    assert jax.tree.all(jax.tree.map(lambda a, s: a.shape == s.shape, params, shapes))
    assert jax.tree.all(jax.tree.map(lambda a: bool(jnp.isfinite(a).all()), params))


def test_linen_module_runs_the_same_parameters_to_the_same_bits(tiny, tokens):
    from jaxalign.model.linen import GPTNeoX, variables

    params, config = tiny
    module = GPTNeoX(config)
    plain = forward(params, tokens, config).logits
    assert np.array_equal(module.apply(variables(params), tokens), plain)
    fresh = module.init(jax.random.key(0), tokens)
    assert jax.tree.structure(fresh["params"]["model"]) == jax.tree.structure(params)


def test_linen_head_mask_switches_heads_off(tiny, tokens):
    from jaxalign.model.linen import GPTNeoX, variables

    params, config = tiny
    mask = jnp.zeros((config.num_layers, config.num_heads), bool).at[1, 2].set(True)
    module = GPTNeoX(config)
    zero = jnp.zeros((config.num_layers, 1, 1, 1, 1))
    edit = Edit(HeadEdit(mask[:, None, None], zero))
    off = module.apply(variables(params), tokens, head_mask=mask)
    assert np.array_equal(off, forward(params, tokens, config, edit=edit).logits)
    assert not np.allclose(off, module.apply(variables(params), tokens), atol=1e-3)
    with pytest.raises(ValueError, match="head_mask and edit"):
        module.apply(variables(params), tokens, head_mask=mask, edit=edit)
