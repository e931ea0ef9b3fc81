"""Claims about finished calls on disk: none is computed again, bits stay, studies never mix."""

import contextlib
import functools
import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.errors import InputError
from jaxalign.measures.metrics import AnswerMetrics
from jaxalign.runtime import resume as module
from jaxalign.runtime.resume import Resume, finished, remove_calls

FACTS = {"weights": "abc", "seed": 0, "shapes": [[8, 16], [8, 32]]}
CALLS = 5


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "experiment.json.journal"


@pytest.fixture
def opened():
    """Opens folders, and lets go of them at the test's end."""
    every = []

    def opened(folder, facts=FACTS):
        every.append(Resume(folder, facts))
        return every[-1]

    yield opened
    for each in every:
        each.close()


class Study:
    """A loop over calls that counts what it computes, and may be cut off before one of them."""

    def __init__(self, cut_off_at=None):
        self.computed = []
        self.cut_off_at = cut_off_at

    def run(self, resume):
        return [self.call(resume, number) for number in range(CALLS)]

    def call(self, resume, number):
        if number == self.cut_off_at:
            raise KeyboardInterrupt
        return resume.keep(("importance", "f32", number), lambda: self.compute(number))

    def compute(self, number):
        self.computed.append(number)
        return jnp.asarray(np.random.default_rng(number).standard_normal((3, 4), np.float32))


def cut_off(folder, at, facts=FACTS):
    """A run that ends before one of its calls; what it leaves."""
    resume = Resume(folder, facts)
    with pytest.raises(KeyboardInterrupt):
        Study(cut_off_at=at).run(resume)
    resume.close()
    return resume.folder


def files(folder):
    return sorted(path.name for path in folder.iterdir())


# Resuming.


def test_resumed_study_computes_only_what_was_not_finished_and_has_the_same_bits(folder, opened):
    whole = Study().run(opened(None))
    cut_off(folder, at=3)
    resumed = Study()
    out = resumed.run(opened(folder))
    assert resumed.computed == [3, 4]
    for found, expected in zip(out, whole, strict=True):
        np.testing.assert_array_equal(found, expected, strict=True)


def test_the_seconds_of_calls_that_are_found_are_those_of_the_runs_before(
    folder, opened, monkeypatch
):
    ticks = iter(range(0, 1000, 7))
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(ticks))
    cut_off(folder, at=3)
    resume = opened(folder)
    Study().run(resume)
    assert resume.spent == 3 * 7
    assert opened(None).spent == 0


def test_study_may_be_cut_off_again_and_again(folder, opened):
    for at in (1, 2, 4):
        cut_off(folder, at=at)
    resumed = Study()
    resumed.run(opened(folder))
    assert resumed.computed == [4]


def test_each_call_is_on_disk_when_it_ends(folder, opened):
    resume, study = opened(folder), Study()
    seen = []
    for number in range(CALLS):
        study.call(resume, number)
        seen.append(finished(folder))
    assert seen == [1, 2, 3, 4, 5]


def test_folder_is_gone_once_the_result_is_safe(folder, opened):
    resume = opened(folder)
    Study().run(resume)
    assert len(files(resume.folder)) == CALLS + 2
    resume.remove()
    assert not folder.exists()


def test_run_that_finished_no_call_leaves_nothing(folder, opened):
    opened(folder).close()
    assert not folder.exists()


def test_removing_leaves_what_is_not_ours(folder, opened):
    resume = opened(folder)
    Study().run(resume)
    (resume.folder / "notes.txt").write_text("mine")
    (folder / "results").mkdir()
    (folder / "results" / "lock").write_text("mine")
    resume.remove()
    assert files(resume.folder) == ["notes.txt"]
    assert files(folder / "results") == ["lock"]


def test_removing_the_calls_of_all_studies_leaves_what_is_not_ours(tmp_path, opened):
    folder = tmp_path / "experiment.json.calibration"
    left = cut_off(folder / "gptq-g32", at=2)
    running = opened(folder / "awq-g32", FACTS | {"seed": 5})
    Study().run(running)
    (folder / "awq-g32" / "mine").write_text("precious")
    (folder / "mine").write_text("precious")
    remove_calls(folder)
    assert not left.parent.exists() or not files(left.parent)
    assert finished(running.folder), "a run that goes on needs them"
    running.close()
    remove_calls(folder)
    assert finished(folder) == 0
    assert (folder / "awq-g32" / "mine").read_text() == (folder / "mine").read_text() == "precious"
    remove_calls(tmp_path / "not there")


@pytest.mark.parametrize(
    "dtype", ["float16", "bfloat16", "float32", "float64", "int8", "int32", "bool"]
)
def test_every_bit_survives(dtype, folder, opened):
    bits = np.random.default_rng(0).integers(0, 256, 4096, np.uint8)
    bits = bits % 2 if dtype == "bool" else bits  # nearly all patterns; among floats many NaNs
    array = bits.view(jnp.dtype(dtype)).reshape(2, -1)
    opened(folder).keep(("a", "b", 0), lambda: array)
    found = opened(folder).keep(("a", "b", 0), lambda: pytest.fail("computed again"))
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    assert found.tobytes() == array.tobytes()


def test_call_returns_a_pytree_of_arrays_of_any_rank(folder, opened):
    metrics = AnswerMetrics(*(jnp.arange(3) * n for n in range(1, 5)))
    tree = (metrics, {"state": np.zeros((0, 2)), "total": jnp.float16(np.inf)})
    like = (AnswerMetrics(0, 0, 0, 0), {"state": 0, "total": 0})
    opened(folder).keep(("clean", "int4-g16@bf16", 0), lambda: tree, like)
    compute = functools.partial(pytest.fail, "computed again")
    again = opened(folder).keep(("clean", "int4-g16@bf16", 0), compute, like)
    assert isinstance(again[0], AnswerMetrics)
    np.testing.assert_array_equal(again[0].correct, metrics.correct, strict=True)
    assert again[1]["state"].shape == (0, 2)
    assert again[1]["total"].shape == ()
    assert again[1]["total"] == np.inf


def test_no_folder_keeps_nothing_and_computes_everything(tmp_path, opened):
    study = Study()
    study.run(opened(None))
    assert study.computed == list(range(CALLS))
    assert list(tmp_path.iterdir()) == []


# Several runs with one folder.


def test_runs_of_one_study_share_their_calls_in_any_order(folder, opened):
    first, second, third = Study(), Study(), Study()
    runs = [(first, opened(folder)), (second, opened(folder))]
    for number, (study, resume) in zip((3, 0, 4, 2), runs * 2, strict=True):
        study.call(resume, number)
    runs[0][1].close()  # as if killed; others may be added later
    out = third.run(opened(folder))
    assert (first.computed, second.computed, third.computed) == ([3, 4], [0, 2], [1])
    np.testing.assert_array_equal(out, Study().run(opened(None)))


def test_two_runs_on_one_call_lose_nothing(folder, opened):
    first, second = opened(folder), opened(folder)
    inner = []

    def compute():
        inner.append(Study().call(second, 0))
        return Study().compute(0)

    outer = first.keep(("importance", "f32", 0), compute)
    np.testing.assert_array_equal(outer, inner[0])
    assert finished(folder) == 1
    Study().run(third := opened(folder))
    third.remove()
    for each in (first, second):  # which hold the lock of the folder until they end
        each.close()
    assert not folder.exists()


def test_run_of_a_study_that_another_run_has_finished_leaves_nothing(folder, opened):
    late, resume = opened(folder), opened(folder)
    Study().run(resume)
    resume.remove()
    study = Study()
    study.run(late)
    assert study.computed == list(range(CALLS))
    late.remove()
    assert not folder.exists()


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"seed": 1}, "seed differ"),
        ({"seed": 1, "weights": "abd"}, "seed, weights differ"),
        ({"more": None, "new": 2}, "new differ"),
    ],
)
def test_another_study_is_refused_while_the_first_runs(other, named, folder, opened):
    Study().call(opened(folder), 0)
    with pytest.raises(InputError) as caught:
        opened(folder, FACTS | other)
    assert caught.value.problem == f"{folder} is in use by another study ({named})"
    assert len(list(folder.iterdir())) == 1
    resumed = Study()
    resumed.run(opened(folder))
    assert resumed.computed == list(range(1, CALLS))


def test_a_run_that_ends_leaves_the_lock_to_one_of_the_same_study_that_goes_on(folder, opened):
    first, second = opened(folder), opened(folder)
    first.keep(("clean", 0), lambda: np.zeros(3))
    first.remove()
    with pytest.raises(InputError, match="in use by another study"):
        opened(folder, FACTS | {"seed": 7})
    second.remove()
    assert not folder.exists()
    opened(folder, FACTS | {"seed": 7})


def test_a_study_that_was_killed_holds_nobody_up_and_loses_nothing(folder, opened, capsys):
    code = (
        "import os, signal, sys, pathlib, numpy; from jaxalign.runtime.resume import Resume;"
        f"resume = Resume(pathlib.Path(sys.argv[1]), {FACTS});"
        "resume.keep(('importance', 'f32', 0), lambda: numpy.ones(3));"
        "print('ready', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "ready\n"
        with pytest.raises(InputError, match="in use by another study"):
            opened(folder, FACTS | {"seed": 1})
    finally:
        process.kill()
        process.communicate()
    study = Study()
    other = opened(folder, FACTS | {"seed": 1})
    study.run(other)
    assert study.computed == list(range(CALLS))
    err = capsys.readouterr().err
    assert "keeps 1 finished calls of another study (seed differ), which are not used here" in err
    assert err.count("\n") == 1
    other.remove()
    first = opened(folder).keep(("importance", "f32", 0), lambda: pytest.fail("lost"))
    np.testing.assert_array_equal(first, np.ones(3))


def test_without_locks_two_studies_do_not_mix(folder, opened, monkeypatch):
    def none(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(module.fcntl, "flock", none)
    runs = [(Study(), opened(folder, FACTS | {"seed": seed})) for seed in (0, 1)]
    for number in range(3):
        for study, resume in runs:
            study.call(resume, number)
    resumed = Study()
    resumed.run(opened(folder))
    assert resumed.computed == [3, 4]


# What is not used.


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '{"seed": ' + "[" * 100_000, None])
def test_facts_that_cannot_be_read_are_only_words(text, folder, opened, capsys):
    facts = cut_off(folder, at=3) / "facts.json"
    facts.unlink()
    if text is not None:
        facts.write_text(text)
    with contextlib.suppress(InputError):
        opened(folder, FACTS | {"seed": 1}).close()
    assert "another study (its facts cannot be read)" in capsys.readouterr().err
    resumed = Study()
    resumed.run(opened(folder))
    assert resumed.computed == [3, 4], "each call says by itself of which study it is"


DAMAGE = ["half", "empty", "a flipped bit", "other arrays", "another call's", "another study's"]


@pytest.mark.parametrize("damage", [*DAMAGE, "gone", "a folder"])
def test_call_whose_file_does_not_fit_is_computed_again_and_replaced(damage, folder, opened):
    path = cut_off(folder, at=3) / "importance-f32-1.npz"
    elsewhere = cut_off(folder.with_name("other"), at=3, facts=FACTS | {"seed": 1})
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 16
    damaged = {
        "half": content[: len(content) // 2],
        "empty": b"",
        "a flipped bit": bytes(flipped),
        "other arrays": module._encode({}, [np.ones(2), np.ones(2)]),
        "another call's": path.with_name("importance-f32-2.npz").read_bytes(),
        "another study's": (elsewhere / path.name).read_bytes(),
    }
    path.unlink()
    if damage in damaged:
        path.write_bytes(damaged[damage])
    elif damage == "a folder":
        path.mkdir()
    resumed = Study()
    out = resumed.run(opened(folder))
    assert resumed.computed == [1, 3, 4]
    np.testing.assert_array_equal(out[1], Study().compute(1))
    assert damage == "a folder" or np.array_equal(
        opened(folder).found(("importance", "f32", 1)), out[1]
    )


def test_half_written_file_is_no_call_and_is_removed_with_the_folder(folder, opened):
    (cut_off(folder, at=3) / ".importance-f32-3.npz.k1ll3d").write_bytes(b"half")
    resumed = Study()
    resume = opened(folder)
    resumed.run(resume)
    assert resumed.computed == [3, 4]
    resume.remove()
    assert not folder.exists()


# What goes wrong.


def test_full_disk_costs_one_line_and_the_study_goes_on(folder, opened, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    resume = opened(folder)
    Study().call(resume, 0)
    monkeypatch.setattr(os, "replace", full)
    study = Study()
    for number in range(1, CALLS):
        study.call(resume, number)
    assert study.computed == [1, 2, 3, 4]
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "(No space left on device), so a run that is cut off starts anew" in err
    assert finished(folder) == 1, "what was finished before is kept"


def test_folder_that_cannot_be_made_costs_one_line(tmp_path, opened, capsys):
    (tmp_path / "file").touch()
    study = Study()
    study.run(opened(tmp_path / "file" / "folder"))
    assert study.computed == list(range(CALLS))
    assert capsys.readouterr().err.count("so a run that is cut off starts anew") == 1


def test_two_calls_of_one_key_are_refused(folder, opened):
    resume = opened(folder)
    Study().run(resume)
    with pytest.raises(ValueError, match="there is a call"):
        Study().call(resume, 0)


def test_call_that_is_not_what_it_is_said_to_be_is_refused(opened):
    with pytest.raises(ValueError, match="call"):
        opened(None).keep(("a", "b", 0), lambda: (jnp.ones(1), jnp.ones(1)))


# Several processes of one run.


def test_other_processes_take_what_the_first_one_finds_and_write_nothing(
    folder, opened, monkeypatch
):
    (cut_off(folder, at=3) / "importance-f32-1.npz").write_bytes(b"damaged")
    sent = []
    monkeypatch.setattr(module, "from_first", lambda content: sent.append(content) or content)
    first = Study()
    expected = first.run(opened(folder))

    monkeypatch.setattr(module, "is_first", lambda: False)
    monkeypatch.setattr(module, "from_first", lambda content: sent.pop(0))
    elsewhere = folder.parent / "another machine"
    second = Study()
    resume = opened(elsewhere)
    out = second.run(resume)
    resume.remove()
    assert sent == [], "the processes took part in the same exchanges"
    assert second.computed == first.computed == [1, 3, 4]
    np.testing.assert_array_equal(out, expected)
    assert not elsewhere.exists()


def test_all_processes_refuse_where_the_first_one_does(folder, opened, monkeypatch):
    monkeypatch.setattr(module, "is_first", lambda: False)
    monkeypatch.setattr(module, "from_first", lambda content: b'["it is in use", "wait"]')
    with pytest.raises(InputError, match="it is in use"):
        opened(folder)
