"""Claims about the command: a whole run, its files and figures, and how it refuses bad input."""

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from tiny_run import (
    edit_weights,
    refusal,
    run,
    study,
    without_progress,
    without_times,
    write_loud_model,
    write_model,
    write_prompts,
)

from jaxalign import __version__, read
from jaxalign.commands import one_study, run_study
from jaxalign.studies.heads import HEADS, figures
from jaxalign.studies.heads.figures import FIGURES
from jaxalign.study import codec, result_file
from jaxalign.study.provenance import ModelOrigin
from jaxalign.study.session import Session
from jaxalign.study.study import Study

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    return write_model(folder / "model"), write_prompts(folder / "prompts.json")


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory):
    """One run with everything, figures too."""
    output = tmp_path_factory.mktemp("whole") / "results" / "experiment.json"
    ran = study(*inputs, output, "--repair", "all")
    content = json.loads(output.read_text())
    return SimpleNamespace(ran=ran, output=output, content=content, result=HEADS.read(output))


@pytest.fixture(scope="module")
def plain(inputs, tmp_path_factory):
    """A run with nothing but another seed."""
    output = tmp_path_factory.mktemp("plain") / "experiment.json"
    ran = study(*inputs, output, "--no-figures", "--seed", 8)
    return SimpleNamespace(ran=ran, output=output, result=HEADS.read(output))


@pytest.fixture(scope="module")
def other(inputs, tmp_path_factory):
    """A run with other heads, other means, another list of schemes and every prompt."""
    output = tmp_path_factory.mktemp("other") / "experiment.json"
    more = ("--head-mode", "edge-align", "--mean-positions", "all", "--use-all-prompts")
    ran = study(*inputs, output, "--no-figures", *more, "--schemes", "f16", "--repair", "none")
    return SimpleNamespace(ran=ran, output=output, result=HEADS.read(output))


@pytest.fixture
def output(tmp_path):
    return tmp_path / "experiment.json"


@pytest.fixture(autouse=True, scope="module")
def default_device():
    """The command makes its device the process's default; other tests get theirs back."""
    yield
    jax.config.update("jax_default_device", None)


# A whole run.


def test_run_ends_well_and_says_where_its_files_are(whole):
    assert whole.ran.code == 0
    assert whole.ran.err == ""
    assert f"result: {whole.output}" in whole.ran.out
    assert f"figures: {whole.output.parent / 'figures'}" in whole.ran.out


def test_first_line_names_model_and_device(whole, inputs):
    assert whole.ran.out.splitlines()[0] == f"heads study of {inputs[0]} on cpu"


def test_run_writes_every_figure_as_png_and_svg_and_nothing_else(whole):
    figures = whole.output.parent / "figures"
    wanted = {f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg")}
    assert len(wanted) == 14
    assert {path.name for path in figures.iterdir()} == wanted
    assert {path.name for path in whole.output.parent.iterdir()} == {whole.output.name, "figures"}


def test_a_second_result_in_a_folder_says_whose_figures_it_draws_over(
    plain, inputs, tmp_path, monkeypatch
):
    monkeypatch.setattr(Study, "draw", lambda *_: True)
    first = tmp_path / "first.json"
    first.write_bytes(plain.output.read_bytes())
    (tmp_path / "unrelated.json").write_text("{}")
    assert study(*inputs, tmp_path / "second.json").err == ""
    (tmp_path / "figures").mkdir()
    again = study(*inputs, tmp_path / "second.json")
    assert again.err == "jaxalign: note: figures of first.json in the same folder are drawn over\n"


def test_plot_draws_the_same_bytes_from_the_file_alone(whole, tmp_path, monkeypatch):
    few = {name: FIGURES[name] for name in ("fig1_importance_vs_drift", "fig4_circuit_repair")}
    monkeypatch.setattr(figures, "FIGURES", few)
    ran = run("plot", "--input", whole.output, "--figures", tmp_path / "again")
    assert ran.code == 0
    assert len(ran.out.splitlines()) == len(list((tmp_path / "again").iterdir())) == 4
    for path in (tmp_path / "again").iterdir():
        assert (whole.output.parent / "figures" / path.name).read_bytes() == path.read_bytes()


def test_result_says_what_was_run(whole, inputs):
    model, prompts = inputs
    weights = (model / "model.safetensors").read_bytes()
    where = whole.result.provenance
    assert where.model == ModelOrigin(
        name=str(model), weights_sha256=hashlib.sha256(weights).hexdigest()
    )
    assert (where.prompts.file, where.prompts.given, where.prompts.kept) == (str(prompts), 5, 5)
    assert where.prompts.sha256 == hashlib.sha256(prompts.read_bytes()).hexdigest()
    assert where.options["schemes"] == ["f16", "int8-sim"]
    assert (where.environment.device, where.processes, where.devices) == ("cpu", 1, None)
    assert where.environment.versions["jax"] == jax.__version__
    assert "jaxalign" in where.environment.versions
    assert where.layer_rows > 0
    assert {call.phase for call in where.calls} == {
        "clean",
        "importance",
        "repair",
        "vectors",
    }
    assert whole.content["head_mode"] == "true"
    assert {entry["task"] for entry in whole.content["prompts"]} == {"FactualRecall", "rivers"}


def test_result_of_a_run_survives_a_round_trip(whole):
    assert {"format": HEADS.format, **codec.encode(whole.result)} == whole.content


def test_summary_shows_top_heads_correlations_and_verdicts(whole):
    out = whole.ran.out
    assert re.search(r"^f16: (the same|mostly the same|other) heads matter \(r ", out, re.M)
    assert re.search(
        r"^same heads matter\? Pearson r( +\d\.\d{3}( \(\d\.\d{3}\))?\*?){2}$", out, re.M
    )
    assert re.search(r"^answers kept( +\d of 5){2}$", out, re.M)
    assert "note: rivers: the model answers none of 2 prompts, so all are kept" in out


def test_details_have_top_heads_correlations_and_verdicts(whole):
    out = HEADS.details(whole.result)
    number = r"[+-]\d\.\d\d"
    assert re.search(r"^L\dH\d( +[+-]\d+\.\d{3}){3}( +\d\.\d\de-\d\d){2}$", out, re.M)
    interval = rf"{number} \[{number}, {number}\], p [=<] [01]\.\d{{3}} \(\d\.\d{{3}}\)"
    assert re.search(rf"^all +f16 +zero +relative( +{interval}){{2}}", out, re.M)
    verdict = "(beats it|no better|worse|below noise)"
    assert re.search(rf"^all +int8-sim +first_order +random heads .* {verdict}$", out, re.M)
    assert re.search(r"^all +f16 +\d/5 ", out, re.M)


def test_the_screen_is_one_screen(whole):
    lines = HEADS.table(whole.result).splitlines()
    assert len(lines) <= 35
    assert max(map(len, lines)) <= 100


def test_top_head_of_the_summary_is_the_one_of_the_file(whole):
    zero = np.abs(np.mean([p["zero_importance"] for p in whole.content["prompts"]], axis=0))
    layer, head = np.unravel_index(zero.argmax(), zero.shape)
    lines = whole.ran.out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("the lead lost"))
    assert lines[start + 1].split()[0] == f"L{layer}H{head}"


# What the options do.


def test_same_seed_gives_the_same_bytes_but_for_times(whole, plain, inputs, output):
    assert study(*inputs, output, "--no-figures", "--repair", "all").code == 0
    assert without_times(output) == without_times(whole.output)
    drawn = [ran.result.repairs[0].random for ran in (whole, plain)]
    assert not np.array_equal(*drawn)


@pytest.mark.slow
def test_same_seed_gives_the_same_bytes_in_two_processes(inputs, tmp_path):
    texts = []
    for name in ("a", "b"):
        path = tmp_path / f"{name}.json"
        done = subprocess.run(command_line(*inputs, path), cwd=ROOT, capture_output=True)
        assert done.returncode == 0
        texts.append(without_times(path))
    assert texts[0] == texts[1]


def test_schemes_that_are_not_named_are_left_out(other):
    assert other.ran.code == 0
    assert other.result.precisions == ("f16",)
    assert other.result.provenance.options["schemes"] == ["f16"]
    assert "int8" not in other.output.read_text() + other.ran.out


def test_repair_is_of_all_schemes_but_int8_sim_of_those_named_or_of_none(whole, plain, other):
    def repaired(ran):
        return [*dict.fromkeys(repair.precision for repair in ran.result.repairs)]

    assert plain.result.precisions == ("f16", "int8-sim")
    assert [repaired(ran) for ran in (whole, plain, other)] == [["f16", "int8-sim"], ["f16"], []]


def test_head_mode_and_mean_positions_are_recorded(other):
    assert other.result.head_mode == "edge-align"
    assert other.result.provenance.options["mean_positions"] == "all"


def test_using_all_prompts_is_recorded_and_needs_no_note(other):
    assert other.result.provenance.options["use_all_prompts"] is True
    # f16 holds the weights as they are on disk.
    said = "no precision moves a weight, so none stands beside weight noise"
    assert other.result.provenance.notes == (said,)
    assert other.ran.out.count("note:") == 1
    assert not any(prompt.validated for prompt in other.result.prompts)


def test_no_figures_leaves_the_figures_out(plain):
    assert list(plain.output.parent.iterdir()) == [plain.output]
    assert "figures" not in plain.ran.out


@pytest.mark.slow
def test_more_heads_to_repair_than_there_are_restores_them_all(inputs, output):
    more = ("--max-repair-k", 50, "--schemes", "f16", "--no-figures")
    assert study(*inputs, output, *more).code == 0
    content = json.loads(output.read_text())
    assert len(content["repairs"][0]["curves"]["drift"]) == 4
    assert "--max-repair-k 50: the model has 4 heads" in content["provenance"]["notes"]


@pytest.mark.parametrize("more", [(), ("--schemes", "f16")])
def test_speed_prints_the_time_of_each_precision(inputs, more):
    counts = ("--passes", 3, "--warm-up", 1, "--device", "cpu")
    ran = run("speed", "--model", inputs[0], "--text", "The capital of", *counts, *more)
    assert ran.code == 0
    assert "one forward pass of 3 tokens, 3 passes" in ran.out
    timed = re.findall(r"^ *(\S+) +\d+\.\d{3} ms  \(quartiles", ran.out, re.MULTILINE)
    assert timed == ["f32", "f16", "int8-sim"][: 3 if not more else 2]


@pytest.mark.parametrize(
    ("schemes", "words"),
    [
        ("f16,f16", "schemes name f16 more than once"),
        ("f32", "schemes name f32 more than once (f32 is always there)"),
        ("f16,awq-g16", "awq-g16: speed times schemes that round to the nearest"),
    ],
)
def test_schemes_that_cannot_be_timed_are_refused_before_the_model_is_read(schemes, words):
    assert words in refusal("speed", "--model", "nowhere", "--schemes", schemes)


@pytest.mark.parametrize("program", [["cli.py"], ["-m", "jaxalign"]])
def test_checkout_runs_without_installation(program):
    done = subprocess.run(
        [sys.executable, *program, "--version"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, f"jaxalign {__version__}\n")


# Bad input: one line, exit code 2. (More of it beside the code that reads it.)

BAD = {
    "unknown device": (("--device", "tpu9"), "--device tpu9 is unknown. use one of auto, cpu"),
    "no driver": (("--device", "gpu"), "--device gpu: no such device with a working driver"),
    "no cuda": (("--device", "cuda"), "install the driver and: pip install 'jaxalign[cuda]'"),
    "budget": (("--memory-gb", 1e-6), "raise --memory-gb"),
    "no repair": (("--max-repair-k", 0), "--max-repair-k is 0. give at least 1"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_argument_is_refused_in_one_line(kind, inputs, output):
    more, words = BAD[kind]
    model, prompts = inputs
    line = refusal("--model", model, "--prompts", prompts, "--output", output, *more)
    assert words in line
    assert not output.exists()


def test_a_text_without_tokens_cannot_be_timed(inputs):
    line = refusal("speed", "--model", inputs[0], "--text", "")
    assert "--text is empty" in line


def test_output_in_a_file_is_refused_before_anything_runs(inputs, tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "r.json", tmp_path / "file" / "deeper" / "r.json"):
        ran = study(*inputs, path)
        assert ran.code == 2
        assert ran.out == ""
        assert f"{path} cannot be written (" in ran.err
        assert "give a file in a folder that you may write to" in ran.err


def test_output_whose_name_is_too_long_is_refused_before_anything_runs(inputs, tmp_path):
    for name in ("x" * 250, "x" * 300):  # what is written first has a longer name than the result
        line = refusal("--model", inputs[0], "--output", tmp_path / name)
        assert "File name too long" in line


def test_platforms_that_leave_no_device_are_refused_with_their_setting(inputs, output, monkeypatch):
    def none(**_):
        raise AssertionError

    monkeypatch.setattr(jax, "local_devices", none)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    line = refusal("--model", inputs[0], "--output", output)
    assert "--device auto: no such device with a working driver (JAX found none)" in line
    assert "JAX_PLATFORMS is cuda" in line


def test_output_that_is_a_folder_is_refused(inputs, tmp_path):
    line = refusal("--model", inputs[0], "--output", tmp_path)
    assert f"{tmp_path} is a folder" in line


def test_figures_folder_that_is_a_file_is_refused(whole, tmp_path):
    (tmp_path / "file").write_text("")
    line = refusal("plot", "--input", whole.output, "--figures", tmp_path / "file")
    assert "cannot be written" in line


def test_texts_that_do_not_fit_are_refused_by_their_file_before_anything_runs(inputs, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("word " * 3000)
    model, prompts = inputs
    asked = ("schemes", "--model", model, "--prompts", prompts, "--schemes", "gptq-g16")
    line = refusal(*asked, "--calibration", texts, "--output", tmp_path / "result" / "x.json")
    assert f"{texts}: texts[0] has " in line
    assert not (tmp_path / "result" / "x.json.journal").exists()


def test_output_that_is_named_like_the_folder_of_figures_is_refused(inputs, tmp_path):
    line = refusal("--model", inputs[0], "--output", tmp_path / "figures")
    assert "figures go into a folder of that name" in line
    assert not any(tmp_path.iterdir())


def test_wrong_input_is_found_before_the_model_is_looked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(one_study, "locate", lambda *args: pytest.fail("looked for"))
    refusal("--prompts", tmp_path / "none.json", "--output", tmp_path / "r.json")


# Activations beyond f16.


@pytest.fixture(scope="module")
def overflow(inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("overflow")
    model = write_loud_model(folder / "loud")
    ran = study(model, inputs[1], folder / "experiment.json", "--no-figures")
    content = json.loads((folder / "experiment.json").read_text())
    result = HEADS.read(folder / "experiment.json")
    return SimpleNamespace(ran=ran, model=model, content=content, result=result)


def test_overflow_is_one_line_and_exit_code_2_after_the_result_is_written(overflow):
    assert overflow.ran.code == 2
    assert overflow.ran.err.count("\n") == 1
    assert "f16: activations overflow in 3 heads (L0H1, L1H0, L1H1) on 5 of 5" in overflow.ran.err
    assert "read that precision's columns as incomplete" in overflow.ran.err
    notes = overflow.content["provenance"]["notes"]
    assert any(note.startswith("f16: activations overflow") for note in notes)


def test_overflow_is_said_by_every_process_once_the_run_of_all_has_ended_well(
    overflow, inputs, output, monkeypatch
):
    """An error within it would end the others, and bid them start again."""
    ends = []

    @contextlib.contextmanager
    def several(*_):
        yield
        ends.append("well")

    monkeypatch.setattr(run_study, "processes", several)
    monkeypatch.setattr(one_study, "is_first", lambda: False)
    ran = study(overflow.model, inputs[1], output, "--no-figures")
    assert ends == ["well"]
    assert ran == (2, "", overflow.ran.err)
    assert not output.exists()


def test_heads_that_overflow_are_listed_and_null(overflow):
    for prompt in overflow.content["prompts"]:
        low = prompt["precisions"]["f16"]
        assert low["nonfinite_heads"] == [[0, 1], [1, 0], [1, 1]]
        [[first, second], last] = low["drift"]
        assert first is not None
        assert second is None
        assert last == [None, None]
        assert low["logit_diff"] is None
        assert low["first_order"]["bound_held"] is None
        assert np.isfinite(prompt["zero_importance"]).all()
        assert np.isfinite(prompt["precisions"]["int8-sim"]["drift"]).all()


def test_overflow_is_never_averaged_away(overflow):
    statistics = overflow.content["statistics"]
    f16 = [row for row in statistics["task_means"] if row["precision"] == "f16"]
    assert all(row["prompts"] == 0 and row["logit_diff"]["value"] is None for row in f16)
    rows = [row for row in statistics["correlations"] if row["precision"] == "f16"]
    assert {row["heads"] for row in rows if row["drift"] == "relative"} == {1}
    assert all(row["heads"] <= 1 for row in rows)
    assert all(row["gap"] is None for row in statistics["repair"] if row["precision"] == "f16")
    line = next(x for x in HEADS.details(overflow.result).splitlines() if x.startswith("L0H1 "))
    assert line.split()[-2] == "nan"


def test_overflow_after_the_last_head_is_reported_too(inputs, output, tmp_path):
    """The last MLP overflows: every head is finite, and no answer is."""
    model = write_model(tmp_path / "late")
    for part, factor in (("h_to_4h", 100), ("4h_to_h", 10_000)):
        name = f"gpt_neox.layers.1.mlp.dense_{part}.weight"
        edit_weights(model, lambda t, name=name, by=factor: t[name].__imul__(np.float16(by)))
    ran = study(model, inputs[1], output, "--no-figures")
    content = json.loads(output.read_text())
    assert content["prompts"][0]["precisions"]["f16"]["logit_diff"] is None
    assert ran.code == 2
    assert "overflow" in ran.err


def test_model_that_leaves_even_f32_is_refused(inputs, output, tmp_path):
    model = write_model(tmp_path / "beyond", dtype="float32")
    name = "gpt_neox.layers.0.mlp.dense_4h_to_h.weight"
    edit_weights(model, lambda t: t[name].__imul__(np.float32(1e38)))
    ran = study(model, inputs[1], output, "--no-figures")
    assert ran.code == 2
    assert "f32" in ran.err
    assert not output.exists()


# Interruption.


def test_interrupted_run_leaves_the_previous_result_whole(whole, inputs, output, monkeypatch):
    output.write_bytes(whole.output.read_bytes())

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    kept = ": with the same options it goes on from the calls that are finished"
    for owner, place, more in ((Session, "open", ""), (result_file, "write", kept)):
        with monkeypatch.context() as patch:
            patch.setattr(owner, place, interrupt)
            ran = study(*inputs, output)
        assert ran.code == 2
        assert ran.err == (
            f"jaxalign: error: interrupted; earlier results are unchanged. Run it again{more}.\n"
        )
        assert output.read_bytes() == whole.output.read_bytes()


def test_an_interruption_while_figures_are_drawn_says_where_the_result_is(
    inputs, output, monkeypatch
):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(Study, "draw", interrupt)
    ran = study(*inputs, output)
    assert ran.code == 2
    assert ran.err == (
        f"jaxalign: error: interrupted, but the result is in {output}; for its figures: jaxalign "
        f"plot --input {output}\n"
    )
    assert len(read(output).prompts) == 5


def command_line(model, prompts, path):
    few = ("--max-repair-k", "2", "--schemes", "f16,int8-sim")
    small = ("--device", "cpu", "--no-figures", *few)
    files = ("--model", str(model), "--prompts", str(prompts), "--output", str(path))
    return [sys.executable, "cli.py", *files, *small]


def test_control_c_stops_a_run_in_one_line_and_leaves_the_previous_result(whole, inputs, output):
    output.write_bytes(whole.output.read_bytes())
    process = subprocess.Popen(
        command_line(*inputs, output),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline().startswith("heads study of ")
        time.sleep(1)
        for _ in range(3):  # people press it again
            process.send_signal(signal.SIGINT)
            time.sleep(0.1)
        _, err = process.communicate(timeout=3600)
    finally:
        process.kill()
    assert process.returncode == 2
    # On a fast machine a call is finished by then, and kept for the next run.
    kept = [*output.parent.rglob("*.npz")]
    more = ": with the same options it goes on from the calls that are finished" if kept else ""
    assert without_progress(err) == (
        f"jaxalign: error: interrupted; earlier results are unchanged. Run it again{more}.\n"
    )
    assert output.read_bytes() == whole.output.read_bytes()


def test_an_output_that_is_an_input_is_refused(inputs, tmp_path):
    model, prompts = inputs
    for flag, taken in (("--prompts", prompts), ("--model", model / "config.json")):
        before = taken.read_bytes()
        said = refusal("heads", "--model", model, "--prompts", prompts, "--output", taken)
        assert f"is a file that {flag} reads" in said
        assert taken.read_bytes() == before
    link = tmp_path / "link.json"
    link.symlink_to(prompts)
    assert "reads" in refusal("heads", "--model", model, "--prompts", prompts, "--output", link)


def test_an_output_that_is_no_regular_file_is_refused(inputs, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    said = refusal("--model", inputs[0], "--prompts", inputs[1], "--output", tmp_path / "pipe")
    assert "is no regular file" in said
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--schemes", "f16", "--calibration", "{texts}"), "no scheme of f16 is chosen by texts"),
        (("--repair", "none", "--max-repair-k", "2"), "no scheme has repair curves"),
        (("--revisions", "a/b,a-b"), "would share a result file"),
        (("--revisions", "a/b,./a//b"), "are one folder"),
    ],
)
def test_an_option_that_would_change_nothing_or_lose_something_is_refused(
    inputs, tmp_path, more, said
):
    texts = tmp_path / "texts.txt"
    texts.write_text("The day was long\n")
    words = [word.format(texts=texts) for word in more]
    assert said in refusal("heads", "--model", inputs[0], "--prompts", inputs[1], *words)
