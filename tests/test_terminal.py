"""Nothing that is printed ends a run, and no interruption is lost."""

import contextlib
import gc
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxalign.runtime.terminal import interruptible, lasting_streams

ROOT = Path(__file__).parent.parent
LINE = "jaxalign: error: interrupted; earlier results are unchanged. Run it again.\n"


def written(encoding, *texts):
    stream = io.TextIOWrapper(raw := io.BytesIO(), encoding)
    with contextlib.redirect_stdout(stream), lasting_streams():
        for text in texts:
            print(text)
    return raw.getvalue()


def test_what_the_terminal_lacks_is_escaped_or_has_a_stand_in():
    assert written("ascii", "│█░│ 日") == b"|#-| \\u65e5\n"
    assert written("ascii", "a − b", "c") == b"a - b\nc\n"
    assert written("cp1252", "Δm … −1") == b"dm \x85 -1\n"
    assert written("utf-8", "a\udc80−") == "a\\udc80−\n".encode()


def test_a_reader_that_leaves_ends_nothing_and_is_not_told(capfd):
    ends, done = os.pipe()
    with (
        contextlib.redirect_stdout(open(done, "w", buffering=1)) as stream,
        lasting_streams(),
    ):
        os.close(ends)
        for _ in range(3):
            print("a line", flush=True)
    stream.close()
    assert capfd.readouterr().err == ""


def test_a_full_disk_behind_the_output_is_one_line(capfd):
    with contextlib.redirect_stdout(open("/dev/full", "w")) as stream, lasting_streams():
        for _ in range(3):
            print("a line", flush=True)
    stream.close()
    said = "jaxalign: note: the output cannot be written (No space left on device)\n"
    assert capfd.readouterr().err == said


def test_a_process_without_streams_runs():
    with contextlib.redirect_stdout(None), contextlib.redirect_stderr(None), lasting_streams():
        print("nobody reads it")
        print("nor this", file=sys.stderr)


class Sends:
    """Sends a signal while it is collected, where Python drops what is raised."""

    def __init__(self, number):
        self.number = number
        self.itself = self

    def __del__(self):
        signal.raise_signal(self.number)


def collect_garbage_that_sends(number):
    Sends(number)
    gc.collect()
    time.sleep(10)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_is_delivered_even_if_a_callback_loses_it(number):
    before = signal.getsignal(number)
    with interruptible() as interruption:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        with pytest.raises(KeyboardInterrupt):
            collect_garbage_that_sends(number)
        assert interruption.asked
        interruption.answered = True
        signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_signals_that_the_process_ignores_stay_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("seconds", "number"), [(0.5, signal.SIGINT), (1.5, signal.SIGTERM)])
def test_an_interruption_while_python_imports_is_one_line(seconds, number, tmp_path):
    process = subprocess.Popen(
        [sys.executable, ROOT / "cli.py", "--model", "demo", "--output", tmp_path / "r.json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(seconds)
    process.send_signal(number)
    _, err = process.communicate(timeout=3600)
    assert (process.returncode, err) == (2, LINE)
