"""Claims about faults of machine and budget: a clear refusal, or the same result and one line."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import kept_programs
import numpy as np
import pytest
from jax._src.compilation_cache import combine_executable_and_time, compress_executable
from tiny_run import refusal, without_progress, without_times, write_model, write_prompts

import jaxalign
from jaxalign.commands.one_study import ACTIVATIONS
from jaxalign.devices.mesh import part_bytes
from jaxalign.prompts import read_prompts, tokenize
from jaxalign.runtime.canary import require_exact_compilation
from jaxalign.studies.heads import HeadsOptions
from jaxalign.studies.heads.calls import Runner

ROOT = Path(__file__).parent.parent
LIMIT = 3600  # seconds; a run takes a few, more on a busy machine
DAMAGED = 6  # programs, of more; the smallest, which are soon compiled again
COPIES = 2  # of the parameters: f32's, and a low precision's beside them


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    return write_model(folder / "model"), write_prompts(folder / "prompts.json")


@pytest.fixture
def output(tmp_path):
    return tmp_path / "results" / "experiment.json"


@pytest.fixture(autouse=True, scope="module")
def default_device():
    """The command makes its device the process's default; other tests get theirs back."""
    yield
    jax.config.update("jax_default_device", None)


def refused(inputs, output, *more):
    """The one line of a command that refuses, with exit code 2 and before it writes anything."""
    asked = ("--model", inputs[0], "--prompts", inputs[1], "--output", output, *more)
    line = refusal(*asked, "--schemes", "f16,int8-sim")  # its width holds no group of 64
    assert not output.parent.exists() or not list(output.parent.iterdir())
    return line


# A budget too small.


def test_budget_below_the_parameters_is_refused_with_the_arithmetic(inputs, output):
    model = jaxalign.load(str(inputs[0]))
    need = COPIES * part_bytes(model.config, 1) / 1e9
    line = refused(inputs, output, "--memory-gb", 0.9 * need)
    assert (
        f"the parameters need {need:.3g} GB on each device when they are spread over 1 of 1, but "
        f"the memory budget is {0.9 * need:.3g} GB a device. raise --memory-gb" in line
    )


def test_budget_below_one_row_is_refused_with_an_arithmetic_that_adds_up(inputs, output):
    model = jaxalign.load(str(inputs[0]))
    weights = COPIES * part_bytes(model.config, 1) / 1e9
    line = refused(inputs, output, "--memory-gb", 1.5 * weights)
    found = re.search(
        r"one prompt of 8 positions needs (\S+) GB beside the weights, but the memory budget "
        r"leaves (\S+) GB\. raise --memory-gb or shorten the prompts",
        line,
    )
    needs, leaves = map(float, found.groups())
    assert leaves == pytest.approx(0.5 * weights, rel=1e-2)
    # What the line asks for is enough.
    runner = Runner(model, HeadsOptions(memory_gb=weights + 1.01 * needs))
    prompts, _, _ = tokenize(read_prompts(inputs[1]), model.tokenizer, model.config)
    assert runner.study_batches(prompts)
    assert runner.row_ranges(8, 6, 6)


# A number of devices that does not divide the work.


def test_heads_that_the_devices_do_not_divide_are_refused_where_they_would_have_to(inputs, output):
    config = jaxalign.load(str(inputs[0])).config
    third, whole = (COPIES * part_bytes(config, n) / 1e9 for n in (3, 1))
    enough = (third + whole) / 2 / (1 - ACTIVATIONS)
    line = refused(inputs, output, "--devices", 3, "--memory-gb", enough)
    assert "must be spread over 3 of 3 devices, but the model's 2 heads cannot be divided" in line


def test_devices_without_their_host_are_refused_with_the_setting(inputs, output, monkeypatch):
    found = jax.local_devices
    require_exact_compilation()  # once a process; it asks for the CPU, too

    def without_cpu(*arguments, backend=None, **more):
        if backend == "cpu":
            raise RuntimeError("Unknown backend cpu")
        return found(*arguments, backend=backend, **more)

    monkeypatch.setattr(jax, "local_devices", without_cpu)
    line = refused(inputs, output, "--devices", 2)
    assert "from the host's memory" in line
    assert ",cpu" in line


@pytest.mark.parametrize("count", [0, 9])
def test_more_devices_than_there_are_is_refused_with_their_number(count, inputs, output):
    line = refused(inputs, output, "--devices", count)
    assert f"--devices {count}: expected 1 to 8, the cpu devices found" in line


# In processes of their own.


OTHER_VERSION = "import jax._src.cache_key as key; key.jaxlib_version_str = '0.0.1'"
# No file grows beyond so many bytes: a write ends half way, as on a full disk.
FULL_DISK = "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, ({0}, {0}))"
COMMAND = "import sys; from jaxalign.commands.main import main; sys.exit(main(sys.argv[1:]))"


def run(inputs, output, programs, *more, first=""):
    """A run that keeps its programs in a folder, in a process that executes ``first`` first."""
    files = ("--model", inputs[0], "--prompts", inputs[1], "--output", output)
    small = ("--device", "cpu", "--no-figures", "--max-repair-k", 2, "--schemes", "f16")
    options = [*map(str, (*files, *small, "--compilation-cache", programs, *more))]
    done = subprocess.run(
        [sys.executable, "-c", f"{first}\n{COMMAND}", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        env=kept_programs.users(),
    )
    assert done.returncode == 0, done.stderr
    assert list(output.parent.iterdir()) == [output]
    return SimpleNamespace(
        err=without_progress(done.stderr), content=json.loads(without_times(output))
    )


def warned(text):
    """What JAX's own warnings, and nothing else, say that it failed at: "reading", "writing"."""
    said = re.sub(r"^\S+: UserWarning: |^  warnings\.warn\(\n", "", text, flags=re.MULTILINE)
    found = re.findall(
        r"^Error (\w+) persistent compilation cache entry for .+$", said, re.MULTILINE
    )
    assert len(found) == len(said.splitlines()), text
    return set(found)


def entries(programs):
    return sorted(programs.glob("*-cache"))


@pytest.fixture(scope="module")
def kept(inputs, tmp_path_factory):
    """A run that fills a folder of programs."""
    folder = tmp_path_factory.mktemp("kept")
    ran = run(inputs, folder / "results" / "experiment.json", folder / "programs")
    assert ran.err == ""
    count = len(entries(folder / "programs"))
    assert count > 5
    # Before other tests add programs of their own, which this run would not ask for.
    shutil.copytree(folder / "programs", folder / "its own")
    return SimpleNamespace(
        ran=ran,
        programs=folder / "programs",
        count=count,
        copied_to=lambda place: shutil.copytree(folder / "its own", place),
    )


@pytest.mark.slow
def test_three_devices_share_four_heads_and_say_what_one_says(inputs, output, kept):
    ran = run(inputs, output, kept.programs, "--devices", 3)
    assert ran.err == ""
    assert ran.content["provenance"]["devices"] == {"edits": 3, "model": 1}
    for name in ("zero_importance", "mean_importance", "resample_importance"):
        three, one = (
            np.array([prompt[name] for prompt in content["prompts"]], float)
            for content in (ran.content, kept.ran.content)
        )
        np.testing.assert_allclose(three, one, atol=1e-5 * np.nanmax(np.abs(one)), err_msg=name)


@pytest.mark.slow
def test_full_disk_for_compiled_programs_costs_a_warning_and_no_result(
    inputs, output, kept, tmp_path
):
    result = len(json.dumps(kept.ran.content)) * 2
    sizes = [path.stat().st_size for path in entries(kept.programs)]
    assert max(sizes) > result, "some program is larger than the result, so there is a limit"
    programs = kept.copied_to(tmp_path / "programs")
    max(entries(programs), key=lambda path: path.stat().st_size).unlink()
    before = entries(programs)
    ran = run(inputs, output, programs, first=FULL_DISK.format(result))
    assert warned(ran.err) == {"writing"}
    assert ran.content == kept.ran.content
    # JAX leaves what it has written of it, which costs the next run a warning and no result.
    assert len(entries(programs)) - len(before) <= 1
    again = run(inputs, output.parent / "again" / "experiment.json", programs)
    assert warned(again.err) <= {"reading"}
    assert again.content == kept.ran.content


@pytest.mark.slow
def test_programs_of_another_version_are_left_alone_and_compiled_anew(inputs, output, kept):
    before = {path: path.stat().st_mtime_ns for path in entries(kept.programs)}
    ran = run(inputs, output, kept.programs, first=OTHER_VERSION)
    assert ran.err == ""
    assert ran.content == kept.ran.content
    assert len(entries(kept.programs)) == len(before) + kept.count, "each is there in both"
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.slow
def test_damaged_programs_cost_warnings_and_no_result(inputs, output, kept, tmp_path):
    damage = (
        lambda whole: whole[: len(whole) // 2],
        lambda whole: b"",
        lambda whole: compress_executable(combine_executable_and_time(b"not a program", 1)),
    )
    programs = kept.copied_to(tmp_path / "programs")
    smallest = sorted(entries(programs), key=lambda path: path.stat().st_size)[:DAMAGED]
    for i, path in enumerate(smallest):
        path.write_bytes(damage[i % 3](path.read_bytes()))
    ran = run(inputs, output, programs)
    assert warned(ran.err) == {"reading"}
    assert ran.content == kept.ran.content
