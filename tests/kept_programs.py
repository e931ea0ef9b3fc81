"""Programs that one test compiles and others load, in whichever process, during one run of pytest.

What is compiled is the same without them; tests of the compiler, and of jaxalign's own folder of
programs, do without.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

SHARED = {
    # Within a bound JAX locks the folder, so that nobody reads what is half written. It then looks
    # at every entry whenever it adds one, so only programs that cost more than that are kept.
    "JAX_COMPILATION_CACHE_MAX_SIZE": "10000000000",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    "JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES": "none",
}
FOLDER = "JAX_COMPILATION_CACHE_DIR"
# JAX's own defaults, by the names of its settings.
APART = {
    "jax_compilation_cache_dir": None,
    "jax_compilation_cache_max_size": -1,
    "jax_persistent_cache_min_compile_time_secs": 1.0,
    "jax_persistent_cache_enable_xla_caches": "xla_gpu_per_fusion_autotune_cache_dir",
}


def share() -> None:
    """Before JAX is imported: a folder for all processes of this run, removed at its end."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        return  # it has the environment of the process that made the folder
    folder = tempfile.mkdtemp(prefix="jaxalign-tests-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ |= {FOLDER: folder, **SHARED}


def apart() -> dict[str, str]:
    """The environment of a process that shares no programs."""
    return {name: value for name, value in os.environ.items() if name.lower() not in APART}
