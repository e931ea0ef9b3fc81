"""Claims about what a command prints: the answer on stdout, the rest as asked; and estimates."""

import contextlib
import io
import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from tiny_run import PROMPTS, refusal, run, write_model, write_prompts

from jaxalign import load, read
from jaxalign.commands.main import main
from jaxalign.numerics.scheme import scheme_named
from jaxalign.prompts import SINGLE, read_prompts
from jaxalign.studies.registry import STUDIES
from jaxalign.study import codec, estimate
from jaxalign.study.call_log import operations
from jaxalign.study.calls import Call
from jaxalign.study.session import Session

SMALL = ("--device", "cpu", "--no-figures", "--schemes", "f16")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("screen")
    return SimpleNamespace(
        model=write_model(folder / "model"), prompts=write_prompts(folder / "p.json", PROMPTS)
    )


def schemes(inputs, output, *more):
    return run(
        "schemes", "--model", inputs.model, "--prompts", inputs.prompts, "--output", output,
        *SMALL, *more,
    )  # fmt: skip


def test_quiet_prints_the_table_and_nothing_else(inputs, tmp_path):
    ran = schemes(inputs, tmp_path / "s.json", "--quiet")
    result = read(tmp_path / "s.json")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == f"{result.summary()}\n"


def test_verbose_prints_all_details_behind_the_table(inputs, tmp_path, monkeypatch):
    monkeypatch.setitem(
        STUDIES["schemes"].__dict__, "details", lambda result: f"details of {len(result.rows)} rows"
    )
    ran = schemes(inputs, tmp_path / "s.json", "--verbose")
    table = read(tmp_path / "s.json").summary()
    assert f"{table}\n\ndetails of 2 rows\n" in ran.out
    assert "details of" not in schemes(inputs, tmp_path / "again.json").out


def test_json_is_alone_on_stdout(inputs, tmp_path):
    ran = schemes(inputs, tmp_path / "s.json", "--json")
    found = json.loads(ran.out)
    assert ran.out.count("\n") == 1
    result = read(tmp_path / "s.json")
    assert found["rows"] == codec.encode(result.rows)
    assert (found["file"], found["prompts"]) == (str(tmp_path / "s.json"), 5)
    assert f"schemes study of {inputs.model} on cpu" in ran.err
    assert f"result: {tmp_path / 's.json'}" in ran.err
    assert schemes(inputs, tmp_path / "q.json", "--json", "--quiet").err == ""


def test_an_answer_that_could_not_be_printed_is_no_success_and_its_file_is_whole(inputs, tmp_path):
    output, err = tmp_path / "s.json", io.StringIO()
    asked = ("--model", inputs.model, "--prompts", inputs.prompts, "--output", output, *SMALL)
    with (
        open("/dev/full", "w") as full,
        contextlib.redirect_stdout(full),
        contextlib.redirect_stderr(err),
    ):
        assert main(["schemes", *map(str, asked), "--json", "--quiet"]) == 2
    said = "jaxalign: note: the output cannot be written (No space left on device)\n"
    assert err.getvalue() == said
    assert len(read(output).rows) == 2


@pytest.mark.parametrize("asked", [["--help"], ["plan", "--help"], ["--version"]])
def test_help_that_could_not_be_printed_is_no_success(asked):
    with (
        open("/dev/full", "w") as full,
        contextlib.redirect_stdout(full),
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        assert main(asked) == 2
    assert "the output cannot be written" in err.getvalue()


def test_reference_texts_are_asked_for_where_heads_are_replaced_by_means_alone(inputs, tmp_path):
    file = {name: given for name, given in PROMPTS.items() if name != "reference"}
    prompts = write_prompts(tmp_path / "p.json", file)
    asked = ("--model", inputs.model, "--prompts", prompts, "--output", tmp_path / "h.json", *SMALL)
    line = refusal("heads", *asked, "--quiet")
    assert "come without reference texts, which mean ablation averages over" in line
    ran = run("heads", *asked, "--ablations", "zero", "--repair", "none")
    assert ran.code == 0, ran.err
    assert read(tmp_path / "h.json").reference_count == 0
    whole = ("--prompts", inputs.prompts, "--output", tmp_path / "w.json", "--ablations", "zero")
    assert run("heads", *asked, *whole, "--repair", "none").code == 2  # an option twice
    whole = ("--model", inputs.model, *whole, *SMALL, "--repair", "none")
    assert run("heads", *whole).code == 0
    for with_texts, without in zip(
        read(tmp_path / "w.json").prompts, read(tmp_path / "h.json").prompts, strict=True
    ):
        np.testing.assert_allclose(
            with_texts.zero_importance, without.zero_importance, rtol=1e-4, atol=1e-5
        )


def test_draws_that_no_precision_has_are_a_note(inputs, tmp_path):
    ran = schemes(inputs, tmp_path / "s.json", "--lottery-draws", 3)
    assert ran.code == 0, ran.err
    said = "no scheme is solved for, as by AWQ or GPTQ, so none has a lottery"
    assert said in read(tmp_path / "s.json").provenance.notes
    asked = ("--model", inputs.model, "--prompts", inputs.prompts, "--output", tmp_path / "h.json")
    small = (*SMALL[:3], "--schemes", "int8-sim", "--ablations", "zero")
    assert run("heads", *asked, *small).code == 0
    said = "no precision moves a weight, so none stands beside weight noise"
    assert said in read(tmp_path / "h.json").provenance.notes


def test_one_prompt_needs_no_file(inputs, tmp_path):
    output = tmp_path / "one.json"
    one = ("--prompt", "The capital of France is", "--target", " Paris", "--distractor", " Rome")
    ran = run("schemes", "--model", inputs.model, "--output", output, *SMALL, *one)
    assert ran.code == 0, ran.err
    where = read(output).provenance.prompts
    assert (where.file, where.given, where.positions) == ("--prompt", 1, 5)
    heads = tmp_path / "heads.json"
    few = ("--ablations", "zero", "--repair", "none")
    assert run("--model", inputs.model, "--output", heads, *SMALL, *one, *few).code == 0
    [prompt] = read(heads).prompts
    assert (prompt.prompt, prompt.target, prompt.distractor) == (one[1], one[3], one[5])


def test_tasks_and_a_limit_choose_prompts_and_the_result_says_so(inputs, tmp_path):
    output = tmp_path / "few.json"
    ran = schemes(inputs, output, "--tasks", "rivers,FactualRecall", "--limit", 1)
    assert ran.code == 0, ran.err
    where = read(output).provenance.prompts
    assert where.given == 2
    assert where.file == f"{inputs.prompts}, --tasks rivers,FactualRecall, --limit 1"


def test_an_input_that_a_figure_would_be_drawn_over_is_refused(inputs, tmp_path):
    figures = tmp_path / "figures"
    figures.mkdir()
    taken = shutil.copy(inputs.prompts, figures / "schemes.svg")
    asked = ("schemes", "--model", inputs.model, "--prompts", taken)
    line = refusal(*asked, "--output", tmp_path / "s.json")
    assert "has the name of a figure and would be drawn over" in line
    other = shutil.copy(inputs.prompts, figures / "mine.svg")
    assert "drawn over" not in run(
        "schemes", "--model", "nowhere", "--prompts", other, "--output", tmp_path / "s.json"
    ).err  # fmt: skip


# Estimates.


# Studies of single prompts; a study of texts counts its calls in a test of its own.
OF_PROMPTS = [name for name, study in STUDIES.items() if study.prompts is SINGLE]


@pytest.mark.parametrize(
    "name", [n if n == "schemes" else pytest.param(n, marks=pytest.mark.slow) for n in OF_PROMPTS]
)
def test_an_estimate_counts_the_calls_that_the_study_makes(inputs, name, tmp_path, monkeypatch):
    """Zeros in the place of results: every study makes all of its calls, and computes none."""
    computed = []
    own = Call.compute

    def compute(call):
        computed.append(call.key)
        return own(call)

    monkeypatch.setattr(Call, "compute", compute)
    chosen = (
        ("--scheme", "int4-g8", "--budget", "8bits") if name == "plan" else ("--schemes", "int4-g8")
    )
    asked = (
        name, "--model", inputs.model, "--prompts", inputs.prompts, "--device", "cpu", *chosen,
        "--output", tmp_path / "r.json", "--no-figures",
    )  # fmt: skip
    ran = run(*asked, "--estimate", "--json")
    assert ran.code == 0, ran.err
    assert "null" not in ran.err  # zeros in the place of a result overflow nowhere
    assert all(key[:2] == ("clean", "f32") for key in computed)
    assert [*tmp_path.iterdir()] == []
    found = json.loads(ran.out)
    assert found["seconds"] > 0
    assert found["bytes"] > 0
    assert sum(phase["calls"] for phase in found["phases"]) == found["calls"]
    del computed[:]
    assert run(*asked, "--quiet").code == 0
    if name != "plan":  # which exchanges it tries hangs on what it measures
        assert found["calls"] == len(computed)


@pytest.mark.parametrize("estimated", [False, True])
def test_only_what_was_computed_is_remarked_on(inputs, estimated):
    model, prompts = load(str(inputs.model)), read_prompts(inputs.prompts)
    options = STUDIES["schemes"].options()
    with Session.open("jaxalign.x/1", model, prompts, options, estimate=estimated) as session:
        session.observed(["f16: activations overflow"])
    assert ("f16: activations overflow" in session.notes) is not estimated


def test_an_estimate_is_printed_in_words_and_writes_nothing(inputs, tmp_path):
    ran = schemes(inputs, tmp_path / "folder" / "s.json", "--estimate")
    assert ran.code == 0
    for word in (
        "calls",
        "memory",
        "compute",
        "time",
        "GFLOP/s of f32 products here",
        "calibration and statistics",
    ):
        assert word in ran.out
    assert not list(tmp_path.iterdir())


def test_nothing_is_calibrated_for_an_estimate(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "jaxalign.calibration.prepare.calibrate", lambda *_, **__: pytest.fail("calibrated")
    )
    # The shipped texts are longer than this model's context.
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(["It was a quiet day.", "The train is late again."] * 8))
    own = ("--calibration", texts)
    ran = schemes(inputs, tmp_path / "s.json", "--estimate", "--json")
    assert ran.code == 0, ran.err
    for name in ("gptq-g8", "smoothquant-static", "awq-g8"):
        asked = ("--model", inputs.model, "--prompts", inputs.prompts, "--schemes", name, *own)
        one = run("schemes", *asked, "--estimate", "--json", "--output", tmp_path / "s.json")
        assert one.code == 0, one.err
        assert {phase["precision"] for phase in json.loads(one.out)["phases"]} == {"f32", name}


def test_operations_of_a_clean_pass_are_two_for_a_weight_and_a_position(inputs):
    model = load(str(inputs.model))
    blocks = sum(leaf.size for leaf in jax.tree.leaves(model.params.blocks))
    with Session.open(
        "jaxalign.x/1", model, read_prompts(inputs.prompts), STUDIES["schemes"].options()
    ) as session:
        [batch] = session.batches(lambda length: 8)
    layers = model.config.num_layers
    call = Call(
        key=("clean", "f32", 0), program=None, arguments=(), batch=batch,
        layer_rows=layers * batch.shape[0],
    )  # fmt: skip
    prompts, positions = batch.shape
    embedding = model.config.vocab_size * model.config.hidden_size
    expected = 2 * prompts * (positions * blocks + embedding)
    assert operations(call, model.config) == expected


@pytest.mark.parametrize("name", ["gptq-g8", "smoothquant-static", "awq-g16", "hqq-g8"])
def test_what_chooses_codes_is_rounded_to_the_nearest_in_an_estimate(inputs, name):
    found = estimate.nearest(load(str(inputs.model)).params, scheme_named(name))
    assert found.blocks.mlp.up.format == scheme_named(name).weights
