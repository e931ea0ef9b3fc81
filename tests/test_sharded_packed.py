"""Packed parameters on many devices give what they give on one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pythia_shape import tiny_config

from jaxalign.checkpoints.families import config_from_hf
from jaxalign.devices.deal import sharded_sweep
from jaxalign.devices.mesh import MODEL, make_mesh, shard_packed
from jaxalign.edits import zero_ablation
from jaxalign.model import init_params
from jaxalign.model.params import cast
from jaxalign.numerics import jit
from jaxalign.numerics.scheme import F32, scheme_named

CONFIG = config_from_hf(tiny_config(num_hidden_layers=2))
PARAMS = jax.tree.map(
    lambda a: 3 * a + 0.1 * jax.random.normal(jax.random.key(a.size), a.shape),
    init_params(jax.random.key(0), CONFIG),
)
TOKENS = jax.random.randint(jax.random.key(1), (2, 6), 0, CONFIG.vocab_size)
LENGTHS = jnp.array([6, 4])


def logits(mesh, params):
    edits = [zero_ablation(CONFIG.num_layers, CONFIG.num_heads)]

    def run(params):
        return sharded_sweep(mesh, params, TOKENS, LENGTHS, CONFIG, edits, lambda x: x, scheme=F32)

    return np.asarray(jit(run)(params)[0])


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [("int4-g16", 1e-5), pytest.param("int8", 1e-2, marks=pytest.mark.slow)],
    ids=["int4-g16", "int8"],
)
def test_a_spread_packed_copy_equals_a_whole_one(name, tolerance):
    low = cast(PARAMS, scheme_named(name))
    mesh = make_mesh(jax.devices()[:4], 2)
    spread = shard_packed(low, mesh)
    whole = logits(None, low)
    largest = np.abs(whole).max()
    assert np.abs(logits(mesh, spread) - whole).max() < tolerance * largest
    assert np.abs(whole - logits(None, PARAMS)).max() > 1e-3 * largest


def test_codes_and_scales_lie_with_the_heads_and_hidden_units_they_belong_to():
    mesh = make_mesh(jax.devices()[:4], 2)
    blocks = shard_packed(cast(PARAMS, scheme_named("int4-g16")), mesh).blocks
    for matrix, axis in ((blocks.attention.query, -1), (blocks.mlp.up, -1), (blocks.mlp.down, -2)):
        for field in (matrix.codes, matrix.scale, matrix.zero):
            assert field.sharding.spec[axis % field.ndim] == MODEL
            part = field.addressable_shards[0].data
            assert part.size == field.size // 2
