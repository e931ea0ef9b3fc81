"""Calibration meets windows, and norms whose scale counts from one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_checkpoints import prompts, read, write

from jaxalign.calibration import block as layer
from jaxalign.calibration import walk as driver
from jaxalign.calibration.groups import groups_of
from jaxalign.edit import Edit
from jaxalign.model import forward
from jaxalign.model.decoder import block, layer_windows
from jaxalign.numerics import F32, scheme_named
from jaxalign.study.weight_noise import low_matrices

LENGTHS = np.array([11, 4, 7])


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("gemma")
    write(folder, "gemma2")
    return read(folder)


def test_texts_pass_the_layers_as_they_pass_the_model(gemma):
    params, config = gemma
    texts = driver._Texts(driver._start(params, config, prompts(), LENGTHS), config)
    layers = range(config.num_layers)
    texts.behind.extend((n, driver._layer_of(params, n)) for n in layers)
    [stream] = texts.catch_up()
    out = forward(
        params, jnp.asarray(prompts()), config, lengths=jnp.asarray(LENGTHS), capture=("resid",)
    )
    np.testing.assert_allclose(stream.x, out.activations["resid"][-1], atol=1e-5)


@pytest.mark.parametrize("name", ["awq-g16", "smoothquant"])
def test_scales_folded_into_norms_leave_the_layer_as_it_was(gemma, name):
    params, config = gemma
    weights = scaled = jax.tree.map(lambda a: a[0], params.blocks)
    [stream] = driver._start(params, config, prompts(), LENGTHS)
    x, real = jnp.asarray(stream.x), jnp.asarray(stream.real)
    window = layer_windows(config)[0]
    seen = layer.observe(weights, x, real, window, config=config, second=True)
    for group, found in zip(groups_of(weights), seen, strict=True):
        if group.norm:
            scaled, scale = layer.scale_group(scaled, group, found, scheme_named(name), config)
            assert np.abs(scale - 1).max() > 1e-2
    before, after = (
        block(x, one, Edit(), config, F32, real, window)[0] for one in (weights, scaled)
    )
    np.testing.assert_allclose(after, before, atol=1e-5 * np.abs(before).max())
    whole = low_matrices(weights, scaled, config)
    for part, leaf in (("attention", "query"), ("mlp", "gate"), ("mlp", "up")):
        exact = getattr(getattr(weights, part), leaf)
        np.testing.assert_allclose(whole[leaf], exact, atol=1e-5)
