"""How every test runs: strict promotion, several devices, checked shapes, no network."""

import gc
import os
import re
from pathlib import Path

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

# Every shape in a signature of the array rooms is checked while the tests run.
ARRAY_ROOMS = ("numerics", "measures", "edits", "dictionaries", "model", "engine", "devices")
_hook = install_import_hook([f"jaxalign.{room}" for room in ARRAY_ROOMS], "beartype.beartype")
_hook.__enter__()

import jax  # noqa: E402 - after the hook

from jaxalign.runtime import progress  # noqa: E402
from jaxalign.runtime.compile import Program  # noqa: E402

# What is said of work that takes long would depend on how busy the machine is.
progress.SHORT = progress.FIRST = 1e6

import pytest  # noqa: E402
from jax.experimental.compilation_cache import compilation_cache  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


# What a file of tests imports says which tier it belongs to, so that no file can be forgotten.
TIERS = {
    "parity": "torch transformers bitsandbytes torchao compressed_tensors hqq gguf llama_gguf "
    "gguf_files "
    "torch_replay real_packages family_checkpoints",
    "processes": "subprocess multiprocessing loopback",
}


def tiers(path):
    """The tiers of a test file beside the default one: "parity", "processes"."""
    text = path.read_text(encoding="utf-8")
    for tier, packages in TIERS.items():
        names = "|".join(packages.split())
        if re.search(
            rf"^\s*(import|from) ({names})\b|importorskip\(.({names})", text, re.MULTILINE
        ):
            yield tier


def pytest_collection_modifyitems(items):
    """Mark the tests of a file by the tiers that it belongs to."""
    found = {path: list(tiers(path)) for path in {item.path for item in items}}
    for item in items:
        for tier in found[item.path]:
            item.add_marker(tier)


# Compiled programs are mapped into memory, and Linux allows a process 65,530 maps by default: where
# they run out, it dies without a word.
MOST_MAPS = 20_000


@pytest.fixture(scope="module", autouse=True)
def room_for_programs():
    """Forget compiled programs between files of tests, once there are many."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        for program in gc.get_objects():
            if type(program) is Program:
                program._ahead.clear()
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def users_programs(monkeypatch):
    """For tests of bits and of the compiler: programs as users have them, in every process."""
    before = {name: jax.config.values[name] for name in kept_programs.USERS}
    for name, value in kept_programs.USERS.items():
        monkeypatch.delenv(name.upper(), raising=False)
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
