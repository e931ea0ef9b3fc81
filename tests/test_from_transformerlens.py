"""Every pair of snippets of ``docs/from_transformerlens.md``: run, and compared."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxalign

PAGE = (Path(__file__).parent.parent / "docs" / "from_transformerlens.md").read_text()
PARTS = dict(re.findall(r"^## (\d+\. .*?)\n(.*?)(?=^## )", PAGE, re.MULTILINE | re.DOTALL))
PAIRS = {
    title: re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    for title, text in PARTS.items()
}


@pytest.fixture(scope="module")
def given():
    """One random checkpoint in both libraries, and token ids of two runs."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformer_lens")
    from benchmarks import transformer_lens_baseline, workload

    rng = np.random.default_rng(0)
    tokens, others = rng.integers(0, 97, (2, 2, 6))
    lengths = jnp.array([6, 6])
    with workload.checkpoint(workload.TINY) as folder, torch.no_grad():
        model = jaxalign.load(str(folder))
        yield (
            {
                "torch": torch,
                "np": np,
                "bridge": transformer_lens_baseline.load(folder),
                "ids": torch.from_numpy(tokens),
                "other": torch.from_numpy(others),
            },
            {
                "np": np,
                "jnp": jnp,
                "jaxalign": jaxalign,
                "model": model,
                "L": model.config.num_layers,
                "H": model.config.num_heads,
                "texts": (jnp.asarray(tokens), lengths),
                "tokens": jnp.asarray(tokens),
                "others": (jnp.asarray(others), lengths),
                "lengths": lengths,
            },
        )


def test_the_page_has_its_pairs():
    assert len(PAIRS) == 22
    assert all(len(pair) == 2 for pair in PAIRS.values())


@pytest.mark.parity
@pytest.mark.parametrize("title", PAIRS)
def test_both_snippets_find_the_same_numbers(given, title):
    found = []
    for code, names in zip(PAIRS[title], given, strict=True):
        own = dict(names)
        # Users' code: it runs under users' settings, not under the tests' strict ones.
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            exec(compile(code, f"docs/from_transformerlens.md, {title}", "exec"), own)
        found.append(np.asarray(own["found"]))
    theirs, ours = found
    assert ours.shape == theirs.shape
    assert np.abs(theirs).max() > 1e-2
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())
