"""A study makes the compiler do no more than it did: programs and matrix products, not seconds."""

import json
import os
import subprocess
import sys

import compiled_work
import jax
import jax.numpy as jnp
import pytest
from compiled_work import KEPT, ROOT, matrix_flops


@pytest.fixture(scope="module")
def counted():
    """What a fresh process counts, on one device."""
    flags = os.environ["XLA_FLAGS"].split()
    alone = [flag for flag in flags if "device_count" not in flag]
    done = subprocess.run(
        [sys.executable, compiled_work.__file__],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": " ".join(alone)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.slow
def test_matrix_products_are_those_kept(counted):
    assert counted["matrix_flops"] == json.loads(KEPT.read_text())["matrix_flops"], (
        "if this change is meant: python tests/compiled_work.py --keep"
    )


@pytest.mark.slow
@pytest.mark.parametrize("command", compiled_work.COMMANDS)
def test_no_more_programs_are_compiled_than_kept(counted, command):
    # Each counts, also one that another test compiled and this study only loads.
    assert 0 < counted["programs"][command] <= json.loads(KEPT.read_text())["programs"][command], (
        "if this change is meant: python tests/compiled_work.py --keep"
    )


def test_products_are_counted_as_often_as_they_run():
    x, w = jnp.ones((5, 3, 4)), jnp.ones((7, 4, 4))
    one = 2 * 5 * 3 * 4 * 4

    def scanned(x, w):
        return jax.lax.scan(lambda x, layer: (jax.jit(jnp.dot)(x, layer), None), x, w)[0]

    def branched(x, w):
        return jax.lax.cond(x.sum() > 0, lambda: x @ w[0] @ w[1], lambda: x @ w[0])

    def counted_by_data(x, w, times):
        return jax.lax.fori_loop(0, times.sum(), lambda i, x: x @ w[i], x)

    assert matrix_flops(scanned, x, w) == 7 * one
    assert matrix_flops(branched, x, w) == 2 * one
    assert matrix_flops(branched, -x, w) == one
    assert matrix_flops(counted_by_data, x, w, jnp.array([2, 1])) == 3 * one
    assert matrix_flops(lambda x: x + 1, x) == 0


def test_only_what_decides_a_loop_is_computed():
    x = jax.ShapeDtypeStruct((5, 4), jnp.float32)
    times = jnp.array([1, 3])

    def run(x):
        return jax.lax.while_loop(
            lambda a: a[0] < times.max(), lambda a: (a[0] + 1, a[1] @ w), (0, x)
        )

    w = jnp.ones((4, 4))
    assert matrix_flops(run, x) == 3 * 2 * 5 * 4 * 4
