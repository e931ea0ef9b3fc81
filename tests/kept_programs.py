"""Programs that one test compiles and others load, in whichever process, during one run of pytest.

They are compiled without most of LLVM's optimizations, which tests would wait for longer than for
the programs themselves. Tests of bits, of the compiler and of jaxalign's own folder of programs do
without: their programs are those that users have.
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
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
}
FOLDER = "JAX_COMPILATION_CACHE_DIR"
# JAX's own defaults, by the names of its settings.
USERS = {
    "jax_compilation_cache_dir": None,
    "jax_compilation_cache_max_size": -1,
    "jax_persistent_cache_min_compile_time_secs": 1.0,
    "jax_persistent_cache_enable_xla_caches": "xla_gpu_per_fusion_autotune_cache_dir",
    "jax_disable_most_optimizations": False,
}


def share() -> None:
    """Before JAX is imported: a folder for all processes of this run, removed at its end."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        return  # it has the environment of the process that made the folder
    folder = tempfile.mkdtemp(prefix="jaxalign-tests-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ |= {FOLDER: folder, **SHARED}


def users() -> dict[str, str]:
    """The environment of a process whose programs are those that users have."""
    return {name: value for name, value in os.environ.items() if name.lower() not in USERS}
