"""One table says what a matrix is: a new one is handled everywhere, an unknown one nowhere."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from jaxalign.calibration.groups import all_groups, groups_of
from jaxalign.devices.mesh import MODEL, make_mesh, param_shardings, part_bytes, shard_packed
from jaxalign.model import ModelConfig, init_params, params
from jaxalign.model.matrices import MATRICES, Matrix
from jaxalign.model.params import cast, param_shapes
from jaxalign.numerics.qtensor import QTensor
from jaxalign.numerics.scheme import scheme_named
from jaxalign.shapes import Leaf
from jaxalign.studies.plan.rows import mix
from jaxalign.study.weight_noise import low_matrices, noisy

CONFIG = ModelConfig(96, 2, 4, 32, 64, rotary_dims=2)
LOW = scheme_named("int8")


@struct.dataclass
class WiderMLP(params.MLP):
    """An MLP with a second matrix that writes to the residual stream."""

    side: Leaf | None = None
    side_bias: Leaf | None = None


@pytest.fixture
def wider(monkeypatch):
    """Parameters with one more matrix, of which the table does not know."""
    monkeypatch.setattr(params, "MLP", WiderMLP)
    whole = init_params(jax.random.key(0), CONFIG)
    side = jax.random.normal(jax.random.key(1), (2, 64, 32))
    blocks = dataclasses.replace(whole.blocks, mlp=dataclasses.replace(whole.blocks.mlp, side=side))
    return dataclasses.replace(whole, blocks=blocks)


@pytest.fixture
def known(monkeypatch):
    """The row that the table lacks."""

    def add():
        row = Matrix(part="mlp", inputs="F", outputs=("D",), residual=True)
        monkeypatch.setitem(MATRICES, "side", row)

    return add


def first_layer(whole):
    return jax.tree.map(lambda leaf: leaf[0], whole.blocks)


def mixed(whole):
    layer = first_layer(whole)
    low = {"side": jnp.zeros((64, 32))}
    return mix(layer, low, jnp.array([True]), jnp.zeros(4, bool), ("side",), CONFIG)


READERS = {
    "cast": lambda whole: cast(whole, LOW),
    "cast to another dtype": lambda whole: cast(whole, scheme_named("bf16")),
    "sharding": lambda whole: shard_packed(whole, make_mesh(jax.devices()[:2], 2)),
    "calibration": lambda whole: groups_of(first_layer(whole)),
    "weight error": lambda whole: low_matrices(first_layer(whole), first_layer(whole), CONFIG),
    "noise": lambda whole: noisy(whole, whole, jax.random.key(2), CONFIG),
    "mixing": mixed,
}


@pytest.mark.parametrize("reader", READERS)
def test_a_matrix_that_the_table_does_not_have_is_an_error_everywhere(wider, reader):
    with pytest.raises(KeyError, match="side"):
        READERS[reader](wider)


def test_a_matrix_that_the_table_has_is_handled_everywhere(wider, known):
    known()
    assert param_shapes(CONFIG).blocks.mlp.side.shape == (2, 64, 32)
    drawn = init_params(jax.random.key(0), CONFIG).blocks.mlp
    assert drawn.side.std() == pytest.approx(0.02 / 2, rel=0.1), "smaller, since it is residual"
    assert not drawn.side_bias.any()
    packed = cast(wider, LOW)
    assert isinstance(packed.blocks.mlp.side, QTensor)
    mesh = make_mesh(jax.devices()[:2], 2)
    assert tuple(param_shardings(mesh, CONFIG).blocks.mlp.side.spec) == (None, MODEL, None)
    codes = shard_packed(packed, mesh).blocks.mlp.side.codes
    assert tuple(codes.sharding.spec) == (None, MODEL, None)
    assert part_bytes(CONFIG, 1) == 4 * sum(a.size for a in jax.tree.leaves(wider)) + 4 * 2 * 32
    assert groups_of(first_layer(wider))[-1].linears == ("mlp.side",)
    assert "side" in low_matrices(first_layer(wider), first_layer(packed), CONFIG)
    noise = noisy(wider, packed, jax.random.key(2), CONFIG).blocks.mlp.side - wider.blocks.mlp.side
    assert np.abs(noise).min(axis=(1, 2)).max() > 0
    assert not mixed(wider).mlp.side.any()


def test_every_parameter_is_sharded_as_megatron_does():
    axes = {
        "/".join(entry.name for entry in path): tuple(sharding.spec).index(MODEL)
        for path, sharding in jax.tree_util.tree_leaves_with_path(
            param_shardings(make_mesh(jax.devices()[:2], 2), CONFIG)
        )
        if MODEL in tuple(sharding.spec)
    }
    attention, mlp = "blocks/attention/", "blocks/mlp/"
    assert axes == {
        "embed": 0,
        "unembed": 0,
        f"{attention}query": 2,
        f"{attention}query_bias": 1,
        f"{attention}key_value": 3,
        f"{attention}key_value_bias": 2,
        f"{attention}out": 1,
        f"{mlp}up": 2,
        f"{mlp}up_bias": 1,
        f"{mlp}down": 1,
    }


def test_calibration_groups_are_the_linear_layers_that_read_one_input():
    assert [(group.linears, group.norm, group.divisible) for group in all_groups()] == [
        (("attention.query", "attention.key_value"), "attention_norm", False),
        (("attention.out",), None, False),
        (("mlp.gate", "mlp.up"), "mlp_norm", False),
        (("mlp.down",), None, True),
    ]
