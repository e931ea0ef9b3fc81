"""Claim: loading a checkpoint never holds a second copy of the model in memory."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pythia_shape import tiny_checkpoint

PEAK = """
import json, os, re, sys
from pathlib import Path
import jax, jax.numpy as jnp
from jaxalign.checkpoints import load_params, open_checkpoint
from jaxalign.checkpoints.families import config_from_hf

def memory(kind):
    return 1024 * int(re.search(kind + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

for folder, dtype in zip(sys.argv[1::2], sys.argv[2::2]):
    if child := os.fork():  # each load in a process of its own, of which none imports again
        assert os.waitpid(child, 0)[1] == 0
        continue
    config = config_from_hf(json.loads((Path(folder) / "config.json").read_text()))
    jax.block_until_ready(jnp.zeros(8) + 1)
    before = memory("VmRSS")
    params = load_params(open_checkpoint(Path(folder)), config, jnp.dtype(dtype))
    params = jax.block_until_ready(params)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    print(memory("VmHWM") - before, size, flush=True)
    os._exit(0)
"""


# Not getrusage: a child's ru_maxrss begins at its parent's.
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_loading_never_holds_a_second_copy_of_the_model(tmp_path):
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 4}
    half, whole = (
        str(tiny_checkpoint(tmp_path / dtype, dtype=dtype, **sizes))
        for dtype in ("float16", "float32")
    )
    loads = (half, "float32", whole, "float16", half, "float16")
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *loads],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent.parent,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    shutil.rmtree(tmp_path)
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    for used, size in (map(int, line.split()) for line in lines):
        assert size > 100e6
        assert used > size
        assert used < 1.2 * size + 40e6
