"""How every test runs: strict promotion, several devices, checked shapes, no network."""

import os

# Before jax starts: tests see eight devices, and never a hub.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["JAXALIGN_CACHE"] = ""  # no compiled programs in the folder of whoever runs the tests

from jaxtyping import install_import_hook

# Every shape in a signature is checked while the tests run.
_hook = install_import_hook("jaxalign", "beartype.beartype")
_hook.__enter__()

import jax  # noqa: E402 - after the hook

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
