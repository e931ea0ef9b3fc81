"""What must hold on a GPU: ``JAX_PLATFORMS=cuda,cpu python -m pytest tests/test_gpu.py``."""

import jax
import numpy as np
import pytest

import jaxalign
from jaxalign.numerics import check_canary
from jaxalign.prompts import PromptSet
from jaxalign.runtime.environment import select_device


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


def test_canary_passes_so_16_bit_roundings_are_kept_and_f32_is_not_tf32():
    check_canary()


def test_study_on_gpu_equals_the_one_on_cpu_in_f32():
    shipped = jaxalign.read_prompts()
    few = PromptSet({name: items[:6] for name, items in shipped.tasks.items()}, shipped.reference)
    found = {}
    for name in ("gpu", "cpu"):
        select_device(name)
        result = jaxalign.heads_study(jaxalign.load("demo"), few)
        found[name] = np.array([p.zero_importance for p in result.prompts])
        assert result.provenance.environment.device == name
    np.testing.assert_allclose(found["gpu"], found["cpu"], atol=1e-4)
