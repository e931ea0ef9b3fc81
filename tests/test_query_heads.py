"""Edits by query head: against PyTorch with hooks, the wave against vmap, on many devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_checkpoints import made_once, prompts, torch_and_transformers, write

from benchmarks.flops import wave_flops
from jaxalign.devices.deal import sharded_sweep
from jaxalign.devices.mesh import choose_mesh, make_mesh, param_shardings, part_bytes, shard_params
from jaxalign.edits import Edit, HeadEdit, zero_ablation
from jaxalign.engine import sweep
from jaxalign.engine.readout import read_out
from jaxalign.errors import InputError
from jaxalign.measures.metrics import Answer
from jaxalign.model import ModelConfig, cast, forward, head_contributions, param_shapes
from jaxalign.numerics import F32, INT8_SIM, jit
from testing.edits import chosen, edits_for, logits_of, loud, swept

LENGTHS = jnp.array([11, 4, 7])


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """transformers' model and ours of a variant, made once."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    return made_once(tmp_path_factory, write)


def ablated(model, layer, head, width, tokens):
    """PyTorch's last logits with a head's slice of ``o_proj``'s input set to zero."""
    torch, _ = torch_and_transformers()

    def zeroed(module, given):
        z = given[0].clone()
        z[..., head * width : (head + 1) * width] = 0
        return (z,)

    handle = model.model.layers[layer].self_attn.o_proj.register_forward_pre_hook(zeroed)
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens).long()).logits.numpy()
    handle.remove()
    return logits


@pytest.mark.parametrize("variant", ["llama, biases", "qwen3, biases, windows", "gemma2"])
def test_ablating_a_query_head_equals_zeroing_its_slice_in_pytorch(models, variant):
    model, params, config = models(variant)
    tokens = prompts()
    assert config.num_kv_heads < config.num_heads
    [rows] = jit(
        lambda p, t: sweep(
            p, t, LENGTHS, config, [zero_ablation(config.num_layers, config.num_heads)], lambda x: x
        )
    )(params, jnp.asarray(tokens))
    last = np.asarray(LENGTHS) - 1
    for row in range(config.num_layers * config.num_heads):
        layer, head = divmod(row, config.num_heads)
        expected = ablated(model, layer, head, config.head_size, tokens)[np.arange(3), last]
        far = np.abs(rows[1 + row] - expected).max() / np.abs(expected).max()
        assert far <= 1e-5, (layer, head)
        assert not np.allclose(rows[1 + row], rows[0], atol=1e-4), (layer, head)


def test_heads_of_one_group_have_contributions_of_their_own(models):
    _, params, config = models("gemma2")
    capture = ("z", "attn_out")
    out = jit(lambda p, t: forward(p, t, config, capture=capture))(params, jnp.asarray(prompts()))
    c = jax.vmap(head_contributions)(out.activations["z"], params.blocks.attention.out)
    np.testing.assert_allclose(c.sum(axis=1), out.activations["attn_out"], atol=1e-5)
    assert not np.allclose(c[:, 0], c[:, 1], atol=1e-2)


@pytest.mark.parametrize(
    ("variant", "scheme", "names"),
    [
        ("llama, scaled like 3.1", F32, ["several heads, by prompt"]),
        pytest.param(
            *("qwen3, biases, windows", F32, ["several heads, by prompt"]), marks=pytest.mark.slow
        ),
        ("gemma2", F32, ["mean", "edge-align", "several heads, by prompt", "patching"]),
        ("gemma2", INT8_SIM, ["several heads, by prompt", "patching"]),
    ],
    ids=lambda value: getattr(value, "name", value) if not isinstance(value, list) else "",
)
def test_wave_equals_vmap_over_masks(models, variant, scheme, names):
    _, params, config = models(variant)
    tokens = jnp.asarray(prompts())
    some = chosen(edits_for(config, *tokens.shape), *names)
    run = cast(params, scheme), tokens, LENGTHS, config, list(some.values()), logits_of
    wave, plain = (swept(*run, engine=engine, scheme=scheme) for engine in ("wave", "vmap"))
    for name, ours, expected in zip(some, wave, plain, strict=True):
        far = np.abs(ours - expected).max(axis=-1) / np.abs(expected).max()
        if scheme is F32:
            assert far.max() <= 1e-5, name
        else:  # an activation within rounding of a tie takes the other of two int8 codes
            assert (far <= 1e-5).mean() >= 0.8, name
            assert far.max() <= 0.1, name
        assert not np.allclose(expected[0], expected[1], atol=1e-3), f"{name} edits nothing"


def test_an_answer_is_read_off_capped_logits(models):
    _, params, config = models("gemma2")
    answer = Answer(jnp.arange(3), jnp.arange(3) + 5)
    final = 10 * jax.random.normal(jax.random.key(0), (4, 3, config.hidden_size))
    logits, found = (
        jit(lambda p, r=r: read_out(p, final, config, r))(params) for r in (lambda x: x, answer)
    )
    assert 0.5 * config.logit_cap < np.abs(logits).max() <= config.logit_cap
    expected = jax.vmap(answer)(logits)
    np.testing.assert_allclose(found.logit_diff, expected.logit_diff, atol=1e-5)


def grouped(**settings):
    sizes = {"num_kv_heads": 2, "head_size": 12, "rotary_dims": 12, "gated": True}
    norms = {"norm": "rms+1", "post_norms": True, "query_key_norms": True, "mlp_bias": False}
    return ModelConfig(
        96,
        3,
        4,
        32,
        64,
        parallel_residual=False,
        **(sizes | norms | {"attention_bias": False}) | settings,
    )


@pytest.mark.parametrize("shards", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_sharded_copy_of_grouped_heads_equals_a_whole_one(shards):
    config = grouped(windows=(4, None, 4), attention_cap=3.0, logit_cap=2.0)
    params = loud(config)
    tokens = jnp.asarray(prompts() % 96)
    edit = [zero_ablation(config.num_layers, config.num_heads)]
    answer = Answer(jnp.arange(3), jnp.arange(3) + 5)
    mesh = make_mesh(jax.devices()[: 2 * shards], shards)
    placed = shard_params(params, mesh, config)
    [expected] = jit(lambda p: sweep(p, tokens, LENGTHS, config, edit, answer))(params)
    [found] = jit(lambda p: sharded_sweep(mesh, p, tokens, LENGTHS, config, edit, answer))(placed)
    np.testing.assert_allclose(found.logit_diff, expected.logit_diff, atol=1e-5)
    gate = placed.blocks.mlp.gate.addressable_shards[0].data
    assert gate.shape == (3, 32, 64 // shards)
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(placed))
    assert held == part_bytes(config, shards)


def test_key_and_value_heads_that_the_devices_do_not_divide_are_refused():
    config = grouped()
    with pytest.raises(InputError, match=r"2 key and value heads cannot be divided over 4"):
        param_shardings(make_mesh(jax.devices()[:4], 4), config)
    with pytest.raises(InputError, match=r"key and value heads cannot be divided by 4.*divides 2"):
        choose_mesh(config, jax.devices(), float(part_bytes(config, 4)), copies=1)


def test_work_is_counted_for_grouped_heads_gates_and_windows():
    config, lengths = grouped(windows=(4, None, None)), [7, 3]
    found = wave_flops(config, lengths, [0, 0, 1, 2])
    D, F, Q, K, S = 32, 64, 48, 24, 10
    assert found.qkv == tuple(
        rows * 2 * D * (Q * queries + 2 * K * S) for rows, queries in ((1, S), (3, S), (4, 2))
    )
    pairs = (1 + 2 + 3 + 4 * 4) + 6, 28 + 6, 7 + 3
    assert found.attention == tuple(
        rows * 4 * Q * n for rows, n in zip((1, 3, 4), pairs, strict=True)
    )
    assert found.mlp == tuple(
        rows * 6 * D * F * queries for rows, queries in ((3, S), (4, S), (5, 2))
    )


def test_blocks_of_a_stream_that_heads_do_not_divide_are_refused():
    config = ModelConfig(96, 2, 3, 32, 64, head_size=8, rotary_dims=8)
    with pytest.raises(InputError, match=r"32 coordinates into 3 equal blocks.*mode true"):
        _ = config.edge_size
    edit = Edit(HeadEdit(jnp.zeros((2, 1, 1, 3), bool), jnp.zeros((2, 1, 1, 3, 10)), "edge-align"))
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), param_shapes(config))
    with pytest.raises(ValueError, match="32 coordinates into 3 equal blocks"):
        forward(params, jnp.asarray(prompts()) % 96, config, edit=edit)
