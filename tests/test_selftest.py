"""Claims about selftest and doctor: what they print, and that they notice what is wrong."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import run

import jaxalign
from jaxalign.commands import doctor, selftest
from jaxalign.commands.selftest import Differs


@pytest.fixture(scope="module")
def model():
    return jaxalign.load("demo")


@pytest.fixture(autouse=True, scope="module")
def default_device():
    """The command makes its device the process's default; other tests get theirs back."""
    yield
    jax.config.update("jax_default_device", None)


def test_selftest_passes_here_in_plain_words():
    ran = run("selftest", "--device", "cpu", "--no-compilation-cache")
    assert ran.code == 0, ran.out
    first, *lines, last = ran.out.splitlines()
    assert first.startswith("selftest on cpu (")
    assert last == "all passed"
    assert len(lines) == len(selftest.CHECKS)
    for line, check in zip(lines, selftest.CHECKS, strict=True):
        assert line.startswith(f"passed  {check.__doc__.rstrip('.')} (")


def test_a_check_that_fails_is_told_and_the_others_still_run(monkeypatch):
    def wrong(model):
        """Two and two are five."""
        raise Differs("they are four")

    def right(model):
        """Two and two are four."""
        return "counted"

    monkeypatch.setattr(selftest, "CHECKS", (wrong, right))
    ran = run("selftest", "--device", "cpu", "--no-compilation-cache")
    assert ran.code == selftest.FAILED == 1
    assert "FAILED  Two and two are five (Differs: they are four; 0 s)\n" in ran.out
    assert "passed  Two and two are four (counted; 0 s)\n" in ran.out
    assert ran.out.endswith("1 of 2 failed\n")


def test_logits_of_another_model_are_noticed(model):
    moved = jax.tree.map(lambda a: a * 1.001, model.params)
    with pytest.raises(Differs, match="logits behind 'The capital of France is'"):
        selftest.logits(dataclasses.replace(model, params=moved))


def test_an_engine_that_drops_an_edit_is_noticed(model, monkeypatch):
    own = selftest.sweep

    def dropping(*given, engine):
        [m] = own(*given, engine=engine)
        return [m.at[5].set(m[0]) if engine == "wave" else m]

    monkeypatch.setattr(selftest, "sweep", dropping)
    with pytest.raises(Differs, match="the two engines"):
        selftest.engines(model)


def test_a_format_that_rounds_otherwise_is_noticed(model, monkeypatch):
    own = selftest.unpack
    monkeypatch.setattr(selftest, "unpack", lambda q: own(q) + jnp.float32(1e-4))
    with pytest.raises(Differs, match="weights in int8"):
        selftest.formats(model)


def test_numbers_that_are_none_are_no_agreement():
    with pytest.raises(Differs):
        selftest._near(np.array([np.nan]), np.array([1.0]), "numbers")


def test_kept_logits_say_where_they_come_from():
    kept = json.loads(selftest.KEPT.read_text())
    assert "transformers" in kept["source"]
    assert len(kept["texts"]) == len(kept["tokens"]) == len(kept["logits"]) == 3


def test_doctor_prints_what_a_report_needs(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXALIGN_CACHE", str(tmp_path))
    (tmp_path / "jit_x-cache").write_bytes(bytes(3_000_000))
    ran = run("doctor", "--device", "cpu")
    assert ran.code == 0
    names = [line.split("  ")[0] for line in ran.out.splitlines()]
    for name in ("versions", "python", "platform", "device", "memory", "compiled programs"):
        assert name in names
    assert f"jaxalign {jaxalign.__version__}, jax {jax.__version__}" in ran.out
    assert f"{tmp_path}, 1 of 3 MB" in " ".join(ran.out.split())
    assert max(map(len, ran.out.splitlines()[:2])) <= 100  # a path or a setting stays whole
    assert "16-bit roundings are kept, f32 products are f32" in ran.out


def test_doctor_says_what_is_wrong_and_does_not_end_by_it(monkeypatch):
    def broken():
        raise jaxalign.InputError("f32 matrix products are not f32", "unset something")

    monkeypatch.setattr(doctor, "check_canary", broken)
    monkeypatch.setenv("JAXALIGN_CACHE", "")
    ran = run("doctor", "--device", "cpu")
    assert ran.code == 0
    assert "WRONG: f32 matrix products are not f32" in ran.out
    assert "not kept (JAXALIGN_CACHE is empty)" in ran.out
