"""What must hold on a GPU: ``JAX_PLATFORMS=cuda,cpu python -m pytest tests/test_gpu.py``."""

import jax
import numpy as np
import pytest

import jaxalign
from jaxalign.engine.blocks import GPU_POSITIONS, block_positions
from jaxalign.numerics import check_canary
from jaxalign.prompts import PromptSet
from jaxalign.runtime.compile import compiler_options, wanted_options
from jaxalign.runtime.environment import select_device
from jaxalign.runtime.products import PRODUCTS, use_products


def gpus():
    try:
        return jax.local_devices(backend="gpu")
    except RuntimeError:
        return []


pytestmark = pytest.mark.skipif(not gpus(), reason="no GPU with a working driver")


@pytest.fixture(scope="module", autouse=True)
def on_gpu():
    before = jax.config.jax_default_device
    yield select_device("gpu")
    jax.config.update("jax_default_device", before)


def few_prompts():
    shipped = jaxalign.read_prompts()
    return PromptSet({name: items[:6] for name, items in shipped.tasks.items()}, shipped.reference)


@pytest.mark.parametrize("products", PRODUCTS)
def test_canary_passes_so_16_bit_roundings_are_kept_and_products_are_what_they_say(products):
    with use_products(products):
        check_canary()


def test_options_for_speed_are_known_and_blocks_are_a_gpus(on_gpu):
    assert compiler_options() == wanted_options("gpu")
    assert compiler_options()["xla_gpu_enable_triton_gemm"] is False
    assert block_positions(jaxalign.load("demo").config) == GPU_POSITIONS


@pytest.mark.parametrize("products", PRODUCTS)
def test_study_on_gpu_equals_the_one_on_cpu_in_f32(products):
    found = {}
    for name, own in (("gpu", products), ("cpu", "highest")):
        select_device(name)
        try:
            options = jaxalign.HeadsOptions(products=own)
            result = jaxalign.heads_study(jaxalign.load("demo"), few_prompts(), options)
        finally:
            select_device("gpu")
        found[name] = np.array([p.zero_importance for p in result.prompts])
        assert result.provenance.environment.device == name
        assert result.provenance.options["products"] == own
    np.testing.assert_allclose(found["gpu"], found["cpu"], atol=1e-4)
