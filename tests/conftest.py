"""How every test runs: strict promotion, several devices, checked shapes, no network."""

import os

import kept_programs

# Before jax starts: tests see eight devices, and never a hub.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["JAXALIGN_CACHE"] = ""  # no compiled programs in the folder of whoever runs the tests
kept_programs.share()

from jaxtyping import install_import_hook  # noqa: E402 - what tests share is set by now

# Every shape in a signature is checked while the tests run.
_hook = install_import_hook("jaxalign", "beartype.beartype")
_hook.__enter__()

import jax  # noqa: E402 - after the hook
import pytest  # noqa: E402
from jax.experimental.compilation_cache import compilation_cache  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


# Whose tests take longest, in order: those that begin last are short, and no core is left idle.
LONGEST = (
    "test_faults",
    "test_distributed",
    "test_sharding",
    "test_resume",
    "test_benchmarks",
    "test_sweep",
    "test_study",
    "test_docs_api",
    "test_plots",
    "test_demo",
    "test_regression_guard",
    "test_command",
    "test_numerics",
    "test_model",
)


def pytest_collection_modifyitems(items):
    """Order files by how long they take, which ``--dist loadfile`` hands out in turn."""
    place = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))


@pytest.fixture
def quick_compilation():
    """For claims that are not about bits: programs that compile in half of the time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def no_kept_programs(monkeypatch):
    """For tests of what the compiler does: nothing is loaded, here or in processes of their own."""
    before = {name: getattr(jax.config, name) for name in kept_programs.APART}
    for name, value in kept_programs.APART.items():
        monkeypatch.delenv(name.upper(), raising=False)
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
