"""Dictionaries against the SAELens package itself, in an environment of its own.

It wants an older TransformerLens than the rest of the tests, so both are installed into a folder
that only a process of its own sees.
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from test_dictionaries import FACTS, random_dictionary

from jaxalign.checkpoints.dictionaries import TrainedDictionary, open_dictionary, save_dictionary
from jaxalign.dictionaries import encode, reconstruct

pytest.importorskip("torch")
WORKER = Path(__file__).parent / "sae_lens_worker.py"
# All that SAELens imports for its dictionaries and that is not there for other tests.
PACKAGES = ("sae-lens>=6", "transformer-lens<4", "better-abc", "simple-parsing", "docstring-parser")
KINDS = ("relu", "topk", "jumprelu", "gated")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Dictionaries of ours that SAELens has read, and of SAELens."""
    folder = tmp_path_factory.mktemp("sae_lens")
    packages = folder / "packages"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", packages]
    ran = subprocess.run([*install, *PACKAGES], capture_output=True, text=True)
    if ran.returncode:
        pytest.skip(f"SAELens cannot be installed: {ran.stderr.strip()[-200:]}")
    x = np.random.default_rng(2).standard_normal((40, 16)).astype(np.float32)
    np.save(folder / "x.npy", x)
    for kind in KINDS:
        for scaling in ("none", "layer_norm", "unit_rms"):
            d = random_dictionary(kind, width=16, scaling=scaling)
            trained = TrainedDictionary(dictionary=d, facts=replace(FACTS, point="mlp_out", step=2))
            save_dictionary(trained, folder / "ours" / f"{kind} {scaling}")
    ran = subprocess.run(
        [sys.executable, WORKER, folder],
        env=os.environ | {"PYTHONPATH": str(packages)}, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return folder


def compared(folder, own):
    found, x = open_dictionary(own), jnp.asarray(np.load(folder / "x.npy"))
    theirs = np.load(own / "found.npz")
    scale = max(1, np.abs(theirs["y"]).max())
    np.testing.assert_allclose(encode(found.dictionary, x), theirs["f"], atol=1e-5)
    np.testing.assert_allclose(reconstruct(found.dictionary, x), theirs["y"], atol=1e-5 * scale)
    assert (theirs["f"] > 0).any()
    return found


@pytest.mark.slow
def test_saelens_reads_what_we_write(folder):
    names = sorted(path.name for path in (folder / "ours").iterdir())
    assert len(names) == 12
    for name in names:
        compared(folder, folder / "ours" / name)


@pytest.mark.slow
def test_we_read_what_saelens_writes(folder):
    names = sorted(path.name for path in (folder / "theirs").iterdir())
    assert len(names) == 8
    for name in names:
        found = compared(folder, folder / "theirs" / name)
        reads = "mlp_out" if name == "skip" else None
        assert (found.facts.model, found.facts.site) == ("m", "mlp_out L2")
        assert found.facts.reads == reads
