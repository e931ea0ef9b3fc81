"""Claims about a command that is cut off: the next run goes on, and says what an unbroken one does.

A run that is killed or sent a signal is a process of its own, and so is one that goes on from
there; all others run in this process, which is quicker.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
import tiny_run
from tiny_run import PROMPTS, without_progress, without_times, write_model, write_prompts

from jaxalign.runtime import resume
from jaxalign.study import session

ROOT = Path(__file__).parent.parent
LIMIT = 3600  # seconds; a run takes a few, more on a busy machine
# The command, which says what it computes and may stop at a
# call or in the middle of writing one, until it is killed.
DRIVER = """
import os, sys, time
from jaxalign.commands import main
from jaxalign.study import session
from jaxalign.runtime import resume

mode, _, number = sys.argv[1].partition(":")
replace = os.replace
count = 0

def stop():
    print("stopped", flush=True)
    time.sleep(600)

class Told(resume.Resume):
    def keep(self, key, compute, like=0):
        def told():
            global count
            count += 1
            print("computes", *key, flush=True)
            if mode == "call" and count == int(number):
                stop()
            return compute()
        return super().keep(key, told, like)

def replaced(source, target):
    if mode == "write" and str(target).endswith(".npz") and count == int(number):
        stop()
    replace(source, target)

os.replace = replaced
session.Resume = Told
sys.exit(main.main(sys.argv[2:]))
"""
CUT = 5  # the call that a run is cut off at


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A tiny model, and prompts for three batches."""
    folder = tmp_path_factory.mktemp("inputs")
    tasks = {
        name: [
            item | {"prompt": f"{n} {item['prompt']}"} for n in range(33) for item in PROMPTS[name]
        ]
        for name in ("factual", "rivers")
    }
    prompts = write_prompts(folder / "prompts.json", PROMPTS | tasks)
    return write_model(folder / "model"), prompts


def options(inputs, output):
    model, prompts = inputs
    files = ("--model", model, "--prompts", prompts, "--output", output)
    return *files, "--device", "cpu", "--no-figures", "--max-repair-k", 2, "--schemes", "f16"


def start(inputs, output, mode, *more):
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, mode, *map(str, (*options(inputs, output), *more))],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(inputs, output, *more, mode="", at_stop=signal.SIGKILL):
    """A run to its end, or to where it stops and is sent ``at_stop``."""
    process = start(inputs, output, mode, *more)
    guard = threading.Timer(LIMIT, process.kill)
    guard.start()
    lines = []
    try:
        for line in process.stdout:
            lines.append(line.rstrip())
            if line == "stopped\n":
                process.send_signal(at_stop)
                break
        out, err = process.communicate(timeout=LIMIT)
    finally:
        guard.cancel()
        process.kill()
    lines += out.splitlines()
    computed = [line for line in lines if line.startswith("computes ")]
    return SimpleNamespace(
        code=process.returncode, computed=computed, out=lines, err=without_progress(err)
    )


def go_on(inputs, output, *more, stop=None):
    """A run to its end in this process, or to an interruption at its call number ``stop``."""
    computed = []

    class Told(resume.Resume):
        def keep(self, key, compute, like=0):
            def told():
                computed.append(" ".join(map(str, ("computes", *key))))
                if len(computed) == stop:
                    raise KeyboardInterrupt
                return compute()

            return super().keep(key, told, like)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "Resume", Told)
        ran = tiny_run.run(*options(inputs, output), *more)
    jax.config.update("jax_default_device", None)
    return SimpleNamespace(code=ran.code, computed=computed, out=ran.out, err=ran.err)


@contextlib.contextmanager
def full_disk(ending):
    """No file whose name ends so takes its place."""
    replace = os.replace

    def replaced(source, target):
        if str(target).endswith(ending):
            raise OSError(28, "No space left on device")
        replace(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", replaced)
        yield


def folder_of(output):
    return output.with_name(f"{output.name}.journal")


def chunks(output):
    return {path.name: path.stat().st_mtime_ns for path in folder_of(output).rglob("*.npz")}


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory):
    """A run that nothing cuts off."""
    output = tmp_path_factory.mktemp("whole") / "experiment.json"
    ran = go_on(inputs, output)
    assert (ran.code, ran.err) == (0, "")
    assert len(ran.computed) == 21, "three batches through seven calls"
    return SimpleNamespace(computed=ran.computed, content=without_times(output), output=output)


@pytest.fixture(scope="module")
def killed(inputs, whole, tmp_path_factory):
    """What a run leaves that is killed while it computes a call."""
    output = tmp_path_factory.mktemp("killed") / "experiment.json"
    ran = run(inputs, output, mode=f"call:{CUT}")
    assert ran.code == -signal.SIGKILL
    assert ran.computed == whole.computed[:CUT]
    return output


@pytest.fixture
def output(killed, tmp_path):
    """A copy of what the killed run left, times of files included."""
    shutil.copytree(killed.parent, tmp_path / "results")
    return tmp_path / "results" / killed.name


def assert_finished(output, whole):
    """The result is the unbroken run's to the bit, and nothing else is left."""
    assert without_times(output) == whole.content
    assert list(output.parent.iterdir()) == [output]


def test_killed_run_leaves_its_finished_calls_and_no_result(output):
    assert len(chunks(output)) == CUT - 1
    assert list(output.parent.iterdir()) == [folder_of(output)]


def test_next_run_computes_only_the_rest_and_writes_the_result_of_an_unbroken_one(
    inputs, output, whole
):
    ran = run(inputs, output)
    assert (ran.code, ran.err) == (0, "")
    assert ran.computed == whole.computed[CUT - 1 :]
    assert_finished(output, whole)


@pytest.mark.slow
def test_run_may_be_killed_again_and_finished_calls_stay_untouched(inputs, output, whole):
    before = chunks(output)
    ran = run(inputs, output, mode="call:4")
    assert ran.computed == whole.computed[CUT - 1 : CUT + 3]
    after = chunks(output)
    assert len(after) == CUT + 2
    assert {name: after[name] for name in before} == before
    ran = go_on(inputs, output)
    assert ran.computed == whole.computed[CUT + 2 :]
    assert_finished(output, whole)


@pytest.mark.slow
def test_call_that_was_being_written_is_computed_again_and_its_half_file_goes(
    inputs, output, whole
):
    ran = run(inputs, output, mode="write:2")
    assert ran.code == -signal.SIGKILL
    half = [path.name for path in folder_of(output).rglob("*") if ".npz." in path.name]
    assert len(half) == 1
    assert len(chunks(output)) == CUT
    ran = go_on(inputs, output)
    assert ran.computed == whole.computed[CUT:]
    assert_finished(output, whole)


@pytest.mark.parametrize(
    ("more", "differ"), [(("--seed", 8), "seed"), (("--devices", 2), "devices")]
)
def test_calls_of_other_options_are_not_used_and_stay_and_one_line_says_so(
    more, differ, inputs, output, whole
):
    before = chunks(output)
    ran = go_on(inputs, output, *more, stop=1)
    assert ran.computed == whole.computed[:1], "from the start"
    said, interrupted = ran.err.splitlines()
    assert f"keeps {CUT - 1} finished calls of another study ({differ} differ), which" in said
    assert "interrupted" in interrupted
    assert chunks(output) == before


@pytest.mark.slow
def test_tokenizer_that_changed_is_another_study(inputs, output, whole, tmp_path):
    """Weights, config and texts are the same, and no number would be."""
    model = tmp_path / "model"
    shutil.copytree(inputs[0], model)
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    a, b = (next(w for w in vocabulary if w.endswith(name)) for name in ("France", "Japan"))
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    ran = go_on((model, inputs[1]), output)
    assert "another study (token ids differ)" in ran.err
    assert len(ran.computed) == len(whole.computed)


def test_another_study_with_one_output_is_refused_while_the_first_runs(inputs, output):
    running = resume.Resume(folder_of(output), {"weights": "others"})
    running.keep(("clean", "f32", 0), lambda: 1.0)
    before = chunks(output)
    ran = go_on(inputs, output)
    running.close()
    assert (ran.code, ran.computed) == (2, [])
    assert f"{folder_of(output)} is in use by another study (" in ran.err
    assert "wait until that run has ended, or give another --output.\n" in ran.err
    assert chunks(output) == before


def test_control_c_keeps_what_is_finished_and_says_so(inputs, output, whole):
    ran = run(inputs, output, mode="call:2", at_stop=signal.SIGINT)
    assert ran.code == 2
    assert ran.err == (
        "jaxalign: error: interrupted; earlier results are unchanged. Run it again: with the same "
        "options it goes on from the calls that are finished.\n"
    )
    ran = go_on(inputs, output)
    assert ran.computed == whole.computed[CUT:]
    assert_finished(output, whole)


def test_result_that_cannot_be_written_costs_no_finished_call(inputs, output, whole):
    with full_disk(output.name):
        ran = go_on(inputs, output)
    assert ran.code == 2
    assert ran.err.count("\n") == 1
    kept = output.with_name(f"{output.name}.kept")
    assert (
        f"error: {output} cannot be written (No space left on device); the result is kept in {kept}"
    ) in ran.err
    assert without_times(kept) == whole.content
    kept.unlink()
    assert len(chunks(output)) == len(whole.computed)
    assert list(output.parent.iterdir()) == [folder_of(output)]
    ran = go_on(inputs, output)
    assert (ran.code, ran.computed) == (0, [])
    assert_finished(output, whole)


def test_full_disk_for_finished_calls_costs_one_line_and_no_result(inputs, tmp_path, whole):
    output = tmp_path / "results" / "experiment.json"
    with full_disk(".npz"):
        ran = go_on(inputs, output)
    assert (ran.code, ran.computed) == (0, whole.computed)
    assert ran.err.startswith(f"jaxalign: note: {folder_of(output)}")
    assert ran.err.endswith(
        "/clean-f32-0.npz cannot be written (No space left on device), so a run that is cut off "
        "starts anew\n"
    )
    assert ran.err.count("\n") == 1
    assert_finished(output, whole)


@pytest.mark.slow
def test_chunk_damaged_after_the_kill_is_computed_again(inputs, output, whole):
    damaged = sorted(folder_of(output).rglob("*.npz"))[0]
    damaged.write_bytes(damaged.read_bytes()[:-100])
    ran = go_on(inputs, output)
    assert len(ran.computed) == len(whole.computed) - CUT + 2
    assert (ran.code, ran.err) == (0, "")
    assert_finished(output, whole)
