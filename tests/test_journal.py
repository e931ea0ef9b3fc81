"""Claims about the journal: what was finished is not computed again, and keeps its bits."""

import json
import os

import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import journal as module
from jaxalign.journal import Journal
from jaxalign.metrics import AnswerMetrics

FACTS = {"weights": "abc", "seed": 0, "shapes": [[8, 16], [8, 32]]}
CHUNKS = 5


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "experiment.json.journal"


def open_journal(folder, facts=FACTS, patience=0.0):
    return Journal(folder, facts, patience)


class Study:
    """A loop over chunks that counts what it computes, and may be cut off before one of them."""

    def __init__(self, cut_off_at=None):
        self.computed = []
        self.cut_off_at = cut_off_at

    def run(self, journal):
        return [self.chunk(journal, number) for number in range(CHUNKS)]

    def chunk(self, journal, number):
        if number == self.cut_off_at:
            raise KeyboardInterrupt
        return journal.keep(("importance", "f32", number), lambda: self.compute(number))

    def compute(self, number):
        self.computed.append(number)
        return jnp.asarray(np.random.default_rng(number).standard_normal((3, 4), np.float32))


def cut_off(folder, at, **options):
    with pytest.raises(KeyboardInterrupt):
        Study(cut_off_at=at).run(open_journal(folder, **options))


def files(folder):
    return sorted(path.name for path in folder.iterdir())


# Resuming.


def test_resumed_study_computes_only_what_was_not_finished_and_has_the_same_bits(folder):
    whole = Study().run(open_journal(None))
    cut_off(folder, at=3)
    resumed = Study()
    out = resumed.run(open_journal(folder))
    assert resumed.computed == [3, 4]
    for found, expected in zip(out, whole, strict=True):
        np.testing.assert_array_equal(found, expected, strict=True)


def test_study_may_be_cut_off_again_and_again(folder):
    for at in (1, 2, 4):
        cut_off(folder, at=at)
    resumed = Study()
    resumed.run(open_journal(folder))
    assert resumed.computed == [4]


def test_journal_is_gone_once_the_result_is_safe(folder):
    journal = open_journal(folder)
    Study().run(journal)
    assert len(files(folder)) == CHUNKS + 1
    journal.remove()
    assert not folder.exists()


def test_removing_leaves_what_is_not_the_journals(folder):
    journal = open_journal(folder)
    Study().run(journal)
    (folder / "notes.txt").write_text("mine")
    journal.remove()
    assert files(folder) == ["notes.txt"]


@pytest.mark.parametrize(
    "dtype", ["float16", "bfloat16", "float32", "float64", "int8", "int32", "bool"]
)
def test_every_bit_survives(dtype, folder):
    bits = np.random.default_rng(0).integers(0, 256, 4096, np.uint8)
    bits = bits % 2 if dtype == "bool" else bits  # nearly all patterns; among floats many NaNs
    array = bits.view(jnp.dtype(dtype)).reshape(2, -1)
    open_journal(folder).keep(("a", "b", 0), lambda: array)
    found = open_journal(folder).keep(("a", "b", 0), lambda: pytest.fail("computed again"))
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    assert found.tobytes() == array.tobytes()


def test_chunk_is_a_pytree_of_arrays_of_any_rank(folder):
    metrics = AnswerMetrics(*(jnp.arange(3) * n for n in range(1, 5)))
    tree = (metrics, {"state": np.zeros((0, 2)), "total": jnp.float16(np.inf)})
    like = (AnswerMetrics(0, 0, 0, 0), {"state": 0, "total": 0})
    open_journal(folder).keep(("clean", "f16", 0), lambda: tree, like)
    again = open_journal(folder).keep(("clean", "f16", 0), lambda: pytest.fail("computed"), like)
    assert isinstance(again[0], AnswerMetrics)
    np.testing.assert_array_equal(again[0].correct, metrics.correct, strict=True)
    assert again[1]["state"].shape == (0, 2)
    assert again[1]["total"].shape == ()
    assert again[1]["total"] == np.inf


# When something is written.


def test_short_study_writes_nothing(folder):
    Study().run(open_journal(folder, patience=60.0))
    assert not folder.exists()


def test_study_that_turns_out_long_writes_what_it_held_and_then_each_chunk(folder, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    journal = open_journal(folder, patience=30.0)
    study = Study()
    seen = []
    for number in range(CHUNKS):
        study.chunk(journal, number)
        seen.append(len(files(folder)) - 1 if folder.exists() else 0)
        now[0] += 12
    assert seen == [0, 0, 0, 4, 5]


def test_many_bytes_are_written_without_waiting(folder, monkeypatch):
    monkeypatch.setattr(module, "HELD", 100)
    Study(cut_off_at=None).run(open_journal(folder, patience=60.0))
    assert len(files(folder)) == CHUNKS + 1


def test_resumed_study_writes_at_once(folder):
    cut_off(folder, at=2)
    cut_off(folder, at=3, patience=60.0)
    assert len(files(folder)) == 3 + 1


def test_no_folder_keeps_nothing_and_computes_everything(tmp_path):
    study = Study()
    study.run(open_journal(None))
    assert study.computed == list(range(CHUNKS))
    assert list(tmp_path.iterdir()) == []


def test_chunk_that_was_donated_to_a_later_call_is_computed_again(folder):
    journal = open_journal(folder, patience=60.0)
    lost = journal.keep(("a", "f32", 0), lambda: jnp.ones(3))
    journal.keep(("a", "f32", 1), lambda: jnp.zeros(3))
    lost.delete()
    journal._write(folder)
    assert files(folder) == ["a-f32-1.npz", "facts.json"]


# What is not used.


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"seed": 1}, "seed differ"),
        ({"seed": 1, "weights": "abd"}, "seed, weights differ"),
        ({"more": None, "new": 2}, "new differ"),
    ],
)
def test_journal_of_another_study_is_emptied_with_one_line(other, named, folder, capsys):
    cut_off(folder, at=3)
    study = Study()
    journal = open_journal(folder, FACTS | other)
    assert not folder.exists()
    study.run(journal)
    assert study.computed == list(range(CHUNKS))
    err = capsys.readouterr().err
    assert err == (
        f"jaxalign: note: {folder} is of another study ({named}), so nothing of it is used\n"
    )
    assert json.loads((folder / "facts.json").read_text())["seed"] == (FACTS | other)["seed"]


@pytest.mark.parametrize("text", ["", "{", "[]", None])
def test_journal_without_its_facts_is_not_used(text, folder, capsys):
    cut_off(folder, at=3)
    (folder / "facts.json").unlink()
    if text is not None:
        (folder / "facts.json").write_text(text)
    study = Study()
    study.run(open_journal(folder))
    assert study.computed == list(range(CHUNKS))
    assert "is not complete, so nothing of it is used" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["half", "empty", "a flipped bit", "other arrays", "gone"])
def test_damaged_chunk_is_computed_again_and_replaced(damage, folder):
    cut_off(folder, at=3)
    path = folder / "importance-f32-1.npz"
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 16
    other = module._encode([np.ones(2), np.ones(2)])
    journal = open_journal(folder)
    if damage == "gone":
        path.unlink()
    else:
        damaged = {"half": content[: len(content) // 2], "empty": b"", "other arrays": other}
        path.write_bytes(damaged.get(damage, bytes(flipped)))
    resumed = Study()
    out = resumed.run(journal)
    assert resumed.computed == [1, 3, 4]
    np.testing.assert_array_equal(out[1], Study().compute(1))
    assert path.read_bytes() == content


def test_half_written_file_is_no_chunk_and_is_removed_with_the_journal(folder):
    cut_off(folder, at=3)
    (folder / ".importance-f32-3.npz.k1ll3d").write_bytes(b"half")
    resumed = Study()
    journal = open_journal(folder)
    resumed.run(journal)
    assert resumed.computed == [3, 4]
    journal.remove()
    assert not folder.exists()


# What goes wrong.


def test_full_disk_costs_one_line_and_the_study_goes_on(folder, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    study = Study()
    out = study.run(open_journal(folder))
    assert study.computed == list(range(CHUNKS))
    np.testing.assert_array_equal(out[4], Study().compute(4))
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "(No space left on device), so a run that is cut off starts anew" in err


def test_two_chunks_of_one_key_are_refused(folder):
    journal = open_journal(folder)
    Study().run(journal)
    with pytest.raises(ValueError, match="has a chunk"):
        Study().chunk(journal, 0)


def test_chunk_that_is_not_what_it_is_said_to_be_is_refused():
    with pytest.raises(ValueError, match="chunk"):
        open_journal(None).keep(("a", "b", 0), lambda: (jnp.ones(1), jnp.ones(1)))


# Several processes.


def test_other_processes_take_what_the_first_one_finds_and_write_nothing(folder, monkeypatch):
    cut_off(folder, at=3)
    (folder / "importance-f32-1.npz").write_bytes(b"damaged")
    sent = []
    monkeypatch.setattr(module, "from_first", lambda content: sent.append(content) or content)
    first = Study()
    expected = first.run(open_journal(folder))

    monkeypatch.setattr(module, "is_first", lambda: False)
    monkeypatch.setattr(module, "from_first", lambda content: sent.pop(0))
    elsewhere = folder.parent / "another machine"
    second = Study()
    journal = open_journal(elsewhere)
    out = second.run(journal)
    journal.remove()
    assert sent == [], "the processes took part in the same exchanges"
    assert second.computed == first.computed == [1, 3, 4]
    np.testing.assert_array_equal(out, expected)
    assert not elsewhere.exists()
