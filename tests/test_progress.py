"""Claims about what a long run says: bars where people look, lines in files, nothing if asked."""

import re
import sys
import threading
import types

import pytest

from jaxalign.runtime import progress
from jaxalign.runtime.progress import Progress, in_notebook, span


@pytest.fixture
def spoken(monkeypatch):
    """What was said so far, and an event that comes with the next line."""
    said, came = [], threading.Event()

    def say(text):
        said.append(text)
        came.set()

    monkeypatch.setattr(progress, "_say", say)
    said_and_came = types.SimpleNamespace(lines=said, came=came)
    return said_and_came


@pytest.fixture
def short(monkeypatch):
    """Every phase is long, and the first line comes at once."""
    monkeypatch.setattr(progress, "SHORT", 0.0)
    monkeypatch.setattr(progress, "FIRST", 0.01)
    monkeypatch.setattr(progress, "AGAIN", 0.01)


def test_a_call_that_takes_long_is_spoken_of_while_it_runs(spoken, short):
    with Progress().phase("parameters nf4"):
        assert spoken.came.wait(600)
    assert re.fullmatch(r"parameters nf4: \d+ s so far", spoken.lines[0])
    assert spoken.lines[-1].startswith("parameters nf4: done, ")


def test_lines_say_what_is_done_elapsed_and_left(spoken, short):
    for number in Progress().track(range(4), "repair"):
        if number == 2:
            spoken.came.clear()
            assert spoken.came.wait(600)
    line = next(line for line in spoken.lines if line.startswith("repair: 2 of 4"))
    assert re.fullmatch(r"repair: 2 of 4, .+ so far, about .+ left", line)
    assert re.fullmatch(r"repair: done, 4 of 4 in .+", spoken.lines[-1])


def test_work_that_was_cut_off_is_not_called_done(spoken, short):
    with pytest.raises(KeyboardInterrupt), Progress().phase("parameters nf4"):
        raise KeyboardInterrupt
    for _ in Progress().track(range(4), "repair"):
        break
    assert not [line for line in spoken.lines if "done" in line]


def test_what_is_left_is_taken_from_what_is_done():
    work = progress._Work("repair", 10, done=4, started=100.0, last_done=140.0)
    assert work.line(145.0) == "repair: 4 of 10, 45 s so far, about 55 s left"
    assert progress._Work("repair", 10, started=100.0).line(130.0) == "repair: 0 of 10, 30 s so far"


def test_a_phase_whose_parts_have_spoken_does_not_repeat_them(spoken, monkeypatch):
    monkeypatch.setattr(progress, "SHORT", 0.0)
    log = Progress()
    with log.phase("importance"):
        list(log.track(range(2), "importance of every head"))
    [line] = spoken.lines
    assert line.startswith("importance of every head: done, 2 of 2")


def test_short_work_says_nothing_and_neither_does_quiet_work(spoken, short, monkeypatch):
    with Progress(False).phase("silent"):
        assert list(Progress(False).track(range(3), "silent")) == [0, 1, 2]
    monkeypatch.setattr(progress, "FIRST", 600.0)
    monkeypatch.setattr(progress, "SHORT", 600.0)
    with Progress().phase("short"):
        assert list(Progress().track(range(3), "short")) == [0, 1, 2]
    assert spoken.lines == []


def test_the_thread_that_speaks_ends_with_the_work_even_if_that_fails(spoken, short):
    with pytest.raises(KeyboardInterrupt), Progress().phase("fails"):
        raise KeyboardInterrupt
    assert progress._RUNNING.works == []
    assert progress._RUNNING._stop is None


def test_a_terminal_has_a_bar_and_no_lines(spoken, short, monkeypatch):
    drawn = []

    def bar(items, name, unit):
        drawn.append((name, unit))
        return items

    monkeypatch.setattr(progress, "bar", bar)
    monkeypatch.setattr(progress, "watched", lambda: True)
    for _ in Progress().track(range(2), "repair", "layer"):
        assert not spoken.came.wait(0.1)
    assert (drawn, spoken.lines) == ([("repair", "layer")], [])


def test_a_notebook_is_known_by_its_kernel_and_gets_its_own_bar(monkeypatch):
    assert not in_notebook()
    shell = types.SimpleNamespace(config={"IPKernelApp": {}})
    notebook = types.ModuleType("IPython")
    notebook.get_ipython = lambda: shell
    monkeypatch.setitem(sys.modules, "IPython", notebook)
    assert in_notebook()
    assert progress.watched()
    used = []
    of_notebooks = types.ModuleType("tqdm.auto")
    of_notebooks.tqdm = lambda items, **how: used.append(how) or items
    monkeypatch.setitem(sys.modules, "tqdm.auto", of_notebooks)
    assert list(Progress().track([1, 2], "repair")) == [1, 2]
    assert used == [{"desc": "repair", "leave": False, "unit": "call"}]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min"), (-3, "0 s")],
)
def test_times_are_for_people(seconds, words):
    assert span(seconds) == words
