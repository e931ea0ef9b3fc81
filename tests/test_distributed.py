"""Several processes give what one gives, and end together; real processes over loopback."""

import json
import os
import re
import signal
import socket
from types import SimpleNamespace

import jax
import numpy as np
import process_worker as worker
import pytest
from loopback import free_address, run_of, wait_until
from tiny_run import (
    PROMPTS,
    refusal,
    study,
    without_times,
    write_loud_model,
    write_model,
    write_prompts,
)

from jaxalign.checkpoints import load, locate
from jaxalign.devices.mesh import make_mesh, part_bytes
from jaxalign.engine.budget import bytes_per_call
from jaxalign.errors import InputError
from jaxalign.processes.distributed import processes
from jaxalign.prompts import read_prompts
from jaxalign.studies.heads import HEADS, HeadsOptions
from jaxalign.studies.heads.edge_align import edge_align
from jaxalign.study.session import Session

COUNTRIES = ("France", "Germany", "Japan", "Egypt", "Spain", "Italy")
ROOM = 200_000  # bytes beside the weights and what every call needs: a prompt or two in a call


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    asked = [{"prompt": f"The capital of {name} is", "target": " Rome"} for name in COUNTRIES]
    prompts = write_prompts(
        folder / "prompts.json", {"factual": asked, "reference": PROMPTS["reference"][:1]}
    )
    return write_model(folder / "model"), prompts


@pytest.fixture(scope="module")
def small(inputs):
    """Options of a study that makes many calls of few prompts."""
    config = load(locate(str(inputs[0]))).config
    budget = 2 * part_bytes(config, 1) + bytes_per_call(config, 8) + ROOM
    return "--schemes", "f16", "--no-figures", "--max-repair-k", 1, "--memory-gb", budget / 1e9


@pytest.fixture(scope="module")
def start(inputs, small):
    """Starts the study in two processes, each with a folder of its own for what it writes."""
    tiny, prompts = inputs

    def start(folder, *others, model=tiny):
        """``others`` are options of the second process, instead of those that both have."""
        own = ["cli.py", "--model", model, "--prompts", prompts, "--device", "cpu", *small]
        outputs = (folder / f"output {index}" / "experiment.json" for index in range(2))
        first, second = ([*own, "--output", output] for output in outputs)
        for flag, value in zip(others[::2], others[1::2], strict=True):
            at = second.index(flag) if flag in second else len(second)
            second = [*second[:at], flag, value, *second[at + 2 :]]
        commands = [first, second]
        return run_of(commands, folder)

    return start


@pytest.fixture(scope="module")
def together(start, tmp_path_factory):
    """The study in two processes, never cut off."""
    folder = tmp_path_factory.mktemp("together")
    with start(folder) as started:
        rans = [one.end() for one in started]
    return SimpleNamespace(rans=rans, folder=folder, output=folder / "output 0" / "experiment.json")


@pytest.fixture(scope="module")
def alone(inputs, small, tmp_path_factory):
    """The study in one process."""
    output = tmp_path_factory.mktemp("alone") / "experiment.json"
    assert study(*inputs, output, *small).code == 0
    jax.config.update("jax_default_device", None)
    return output


# What comes out.


def test_both_processes_end_well_and_only_the_first_reports(together):
    first, second = together.rans
    assert (first.code, first.err) == (0, "")
    assert first.out.startswith("heads study of ")
    assert f"result: {together.output}" in first.out
    assert second == (0, "", "")


def test_only_the_first_process_writes(together):
    assert [path.name for path in together.output.parent.iterdir()] == ["experiment.json"]
    assert not (together.folder / "output 1").exists()


def test_the_file_says_that_two_processes_shared_the_work(together):
    where = HEADS.read(together.output).provenance
    assert where.processes == 2
    assert where.devices == {"edits": 2, "model": 1}


@pytest.mark.slow
def test_an_overflow_ends_both_with_its_line_and_nobody_is_to_start_again(start, tmp_path):
    with start(tmp_path, model=write_loud_model(tmp_path / "loud")) as started:
        first, second = (one.end() for one in started)
    assert first.code == second.code == 2
    assert first.err == second.err
    assert re.fullmatch(r"jaxalign: error: f16: activations overflow in 3 heads .*\n", first.err)
    assert "again" not in first.err
    output = tmp_path / "output 0"
    assert [path.name for path in output.iterdir()] == ["experiment.json"], "it is written whole"


@pytest.mark.slow
def test_devices_of_two_processes_share_a_sweep_of_parameters_spread_over_some(tmp_path):
    with run_of([["tests/process_worker.py", tmp_path, "sweep"]] * 2, tmp_path, 2) as started:
        assert [one.end()[::2] for one in started] == [(0, "")] * 2
    first, second = (dict(np.load(tmp_path / f"{index}.npz")) for index in range(2))
    assert first["owners"].tolist() == [0, 0, 1, 1], "a copy of the parameters stays in a process"
    assert first["sent"].tobytes() == worker.CONTENT
    assert first["nothing"].size == 0
    assert first["numbers"].ravel().tolist() == list(range(8))
    for name, found in first.items():
        np.testing.assert_array_equal(found, second[name], strict=True)
    expected = worker.sweep_on(None)
    assert np.abs(first["logits"] - expected).max() <= 1e-6 * np.abs(expected).max()


def values(path, *names):
    """A result's numbers under some of the original's names, prompt by prompt."""
    content = edge_align(HEADS.read(path))
    rows = [*content["prompts"], *content["repair"]]
    found = [np.ravel(row[name]) for row in rows for name in names if name in row]
    return np.concatenate(found).astype(float)


IMPORTANCE = "zero_importance", "mean_importance"


def test_two_processes_give_the_f32_result_of_one(together, alone):
    margins = values(alone, "clean_logit_diff_f32")
    ours, theirs = (
        values(path, "clean_logit_diff_f32", *IMPORTANCE) for path in (together.output, alone)
    )
    assert len(theirs) == len(COUNTRIES) * (1 + 2 * 4)
    assert np.abs(ours - theirs).max() <= 1e-6 * np.abs(margins).max()


def test_two_processes_differ_from_one_in_f16_by_less_than_f16_does(together, alone):
    names = "clean_logit_diff_f16", "repair_curve"
    ours, theirs = (values(path, *names) for path in (together.output, alone))
    drift = values(alone, "clean_logit_diff_f16") - values(alone, "clean_logit_diff_f32")
    assert len(ours) > len(COUNTRIES)
    assert np.sqrt(np.mean((ours - theirs) ** 2)) < np.sqrt(np.mean(drift**2))


# A process that dies, and the run that goes on from there.


def chunks(journal):
    """The finished chunks on disk; one that is computed again is another file."""
    states = {path.name: path.stat() for path in journal.rglob("*.npz")}
    return {name: (state.st_ino, state.st_mtime_ns) for name, state in states.items()}


def of_phase(journal, start):
    return [name for name in chunks(journal) if name.startswith(start)]


@pytest.fixture(scope="module")
def cut_off(start, together, tmp_path_factory):
    """A run whose second process is killed, started again and left in peace."""
    folder = tmp_path_factory.mktemp("cut off")
    output = folder / "output 0" / "experiment.json"
    journal = output.with_name(f"{output.name}.journal")
    with start(folder) as started:
        wait_until(lambda: len(of_phase(journal, "importance-f32-")) > 1, started)
        killed = started[1].process.pid
        os.kill(killed, signal.SIGKILL)
        left = started[0].end()
    before = chunks(journal)
    unfinished = not output.exists()
    with start(folder) as started:
        wait_until(lambda: of_phase(journal, "clean-f16-"), started)
        after = chunks(journal)
        rans = [one.end() for one in started]
    return SimpleNamespace(**locals())


@pytest.mark.slow
def test_a_killed_process_ends_the_others_with_one_line_that_names_it(cut_off):
    assert cut_off.left.code == 2
    assert re.fullmatch(
        rf"jaxalign: error: process 1 \(\S+, pid {cut_off.killed}\) was lost: its connection "
        r"ended\. Its own output says why; start all processes again, finished chunks are kept\.\n",
        cut_off.left.err,
    )
    assert cut_off.unfinished


@pytest.mark.slow
def test_chunks_that_were_finished_are_not_computed_again(cut_off):
    assert any(name.startswith("clean-f32-") for name in cut_off.before)
    assert cut_off.before.items() <= cut_off.after.items()
    assert len(cut_off.after) > len(cut_off.before)


@pytest.mark.slow
def test_a_run_that_was_cut_off_has_the_bits_of_one_that_was_not(cut_off, together):
    assert [ran.code for ran in cut_off.rans] == [0, 0]
    assert without_times(cut_off.output) == without_times(together.output)
    assert [path.name for path in cut_off.output.parent.iterdir()] == ["experiment.json"]


def test_the_others_end_with_the_first_process_even_inside_a_collective(tmp_path):
    commands = [["tests/process_worker.py", tmp_path, "exchange"]] * 2
    with run_of(commands, tmp_path) as started:
        wait_until((tmp_path / "exchanging 1").exists, started)
        started[0].process.kill()
        code, _, err = started[1].end()
    assert code == 2
    assert err.count("\n") == 1
    assert re.match(r"jaxalign: error: process 0 \(the coordinator at 127\S+\) was lost: ", err)


# Processes that a launcher starts.


def srun(index, count, port):
    """What ``srun`` sets for one of its tasks."""
    return {
        "JAX_COORDINATOR_PORT": port,
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": str(count),
        "SLURM_STEP_NUM_TASKS": str(count),
        "SLURM_PROCID": str(index),
        "SLURM_LOCALID": str(index),
    }


def mpirun(index, count, port):
    """What Open MPI 4's ``mpirun`` sets for one of its processes."""
    return {
        "JAX_COORDINATOR_PORT": port,
        "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://127.0.0.1:34911",
        "OMPI_COMM_WORLD_SIZE": str(count),
        "OMPI_COMM_WORLD_RANK": str(index),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(index),
    }


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [srun, mpirun])
def test_processes_of_a_launcher_find_each_other_without_options(launcher, tmp_path):
    commands = [["tests/process_worker.py", tmp_path, "greet"]] * 2
    with run_of(commands, tmp_path, launcher=launcher) as started:
        assert [one.end()[::2] for one in started] == [(0, "")] * 2
    for index in range(2):
        assert (tmp_path / f"greeted {index} of 2").read_bytes() == worker.CONTENT


# Processes that cannot run together.


def test_processes_that_were_given_different_inputs_are_refused_with_what_differs(start, tmp_path):
    loud = write_prompts(tmp_path / "other.json")
    model = write_model(tmp_path / "model", num_hidden_layers=3)
    other = "--seed", 1, "--prompts", loud, "--model", model
    with start(tmp_path, *other) as started:
        rans = [one.end() for one in started]
    line = "weights, config, token ids, seed of process 1 differ from process 0's"
    for ran in rans:
        assert (ran.code, ran.err.count("\n")) == (2, 1)
        assert line in ran.err
    assert not (tmp_path / "output 0" / "experiment.json.journal").exists()


def test_an_error_of_one_process_ends_the_others_with_its_reason(start, tmp_path):
    with start(tmp_path, "--model", tmp_path / "nowhere") as started:
        first, second = (one.end() for one in started)
    assert (second.code, second.err.count("\n")) == (2, 1)
    assert (first.code, first.err.count("\n")) == (2, 1)
    assert re.search(rf"process 1 \(\S+, pid {started[1].process.pid}\) stopped: ", first.err)
    assert "nowhere" in first.err


ALL = {"--coordinator": "127.0.0.1:5000", "--processes": 2, "--process-id": 0}
BAD = {
    "no coordinator": ({"--coordinator": None}, "needs --coordinator, too. give --coordinator"),
    "no count": ({"--processes": None}, "needs --processes, too"),
    "no number": ({"--process-id": None}, "needs --process-id, too"),
    "one flag alone": (
        {"--processes": None, "--process-id": None},
        "needs --processes and --process-id, too",
    ),
    "no port": ({"--coordinator": "node0"}, "--coordinator node0: expected HOST:PORT"),
    "no host": ({"--coordinator": ":5000"}, "--coordinator :5000: expected HOST:PORT"),
    "no such port": ({"--coordinator": "node0:70000"}, "node0:70000: expected HOST:PORT"),
    "beyond": ({"--process-id": 2}, "--process-id 2: expected 0 to 1 for --processes 2"),
    "negative": ({"--process-id": -1}, "--process-id -1: expected 0 to 1 for --processes 2"),
    "none": ({"--processes": 0}, "--processes 0: expected 1 or more"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_options_of_several_processes_are_refused_in_one_line(kind, inputs, tmp_path):
    change, words = BAD[kind]
    given = {name: value for name, value in (ALL | change).items() if value is not None}
    flags = [part for pair in given.items() for part in pair]
    output = tmp_path / "experiment.json"
    assert words in refusal("--model", inputs[0], "--output", output, *flags)
    assert not output.exists()


def test_a_coordinator_port_that_is_in_use_is_refused(inputs, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        place = f"127.0.0.1:{other.getsockname()[1]}"
        flags = "--coordinator", place, "--processes", 2, "--process-id", 0
        line = refusal("--model", inputs[0], "--output", tmp_path / "r.json", *flags)
    assert f"process 0 cannot listen on {place}" in line
    assert "free port, and number the processes from 0 to N - 1, each once" in line


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (0, r"of 3 processes 1 came to 127\S+ within 1 s; missing: 1, 2"),
        (1, r"process 0 cannot be reached at 127\S+ within 1 s"),
    ],
)
def test_processes_that_never_come_are_waited_for_only_so_long(index, words):
    with (
        pytest.raises(InputError, match=words),
        processes(free_address(), 3, index, patience=1.0),
    ):
        pytest.fail("it began without the others")


def test_without_the_options_nothing_happens():
    with processes(None, None, None):
        assert jax.process_count() == 1


def test_finished_chunks_are_not_taken_over_to_another_number_of_devices(inputs):
    model, prompts = load(locate(str(inputs[0]))), read_prompts(inputs[1])
    known = []
    for mesh in (None, make_mesh(jax.devices()[:2]), make_mesh(jax.devices()[:4], 2)):
        with Session.open("jaxalign.heads/3", model, prompts, HeadsOptions(), mesh=mesh) as session:
            known.append(session.inputs.facts())
    assert known[1]["devices"] == {"edits": 2, "model": 1}
    assert len({json.dumps(facts) for facts in known}) == 3
