"""Claims about the heads study's file: typed, checked by its types, whole or not there."""

import functools
import json
import os
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from synthetic_result import make_result
from tiny_run import refusal

import jaxalign
from jaxalign import InputError
from jaxalign.measures.correlation import HeadEstimate
from jaxalign.measures.estimates import Estimate, estimate, number
from jaxalign.measures.stats import generator
from jaxalign.studies.heads import HEADS
from jaxalign.studies.heads.analysis import summarize
from jaxalign.studies.heads.edge_align import KNOWN, edge_align, precision_fields, read_1
from jaxalign.studies.heads.findings import RANKINGS
from jaxalign.studies.heads.result import HeadsResult
from jaxalign.study import codec

# Fields of the original format, as its readers know them.
ORIGINAL = {"model", "num_layers", "num_heads", "mean_activation_reference_count", "prompts"} | {
    "repair",
    "metadata",
}
ORIGINAL_PROMPT = {"prompt", "target_token", "task_type", "zero_importance", "mean_importance"} | {
    "drift_f32_f16",
    "cosine_sim_f32_f16",
    "clean_logit_diff_f32",
    "clean_logit_diff_f16",
}
ORIGINAL_INT8 = {"drift_f32_int8", "cosine_sim_f32_int8", "clean_logit_diff_int8"}
ORIGINAL_REPAIR = {
    "prompt",
    "task_type",
    "baseline_logit_diff_f32",
    "baseline_logit_diff_quantized",
    "repair_curve",
    "repaired_heads",
}
ORIGINAL_METADATA = {"timestamp", "device", "int8_mode", "total_forward_passes"} | {
    "total_runtime_seconds"
}
VARIANTS = {
    "usual": {},
    "one task": {"tasks": ("rivers",)},
    "without int8": {"precisions": ("f16",)},
    "int8 alone": {"precisions": ("int8-sim",)},
    "without repair": {"repair": False},
    "overflow": {"nonfinite": True},
    "one prompt": {"tasks": ("IOI",), "prompts_per_task": 1},
    "one head": {"num_layers": 1, "num_heads": 1},
}
OLDER = Path(__file__).parent / "older_files" / "heads_1.json"


@functools.cache
def small(**options):
    return make_result(**({"num_layers": 2, "num_heads": 3, "prompts_per_task": 2} | options))


@pytest.fixture(params=VARIANTS)
def result(request):
    return small(**VARIANTS[request.param])


@pytest.fixture
def content():
    return codec.encode(small())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results" / "experiment.json"


def equal(a, b):
    """Deep equality of typed results, NaN equal to NaN."""
    if isinstance(a, np.ndarray):
        return a.shape == b.shape and np.array_equal(a, b, equal_nan=True)
    if hasattr(a, "__dataclass_fields__"):
        return type(a) is type(b) and all(equal(v, vars(b)[k]) for k, v in vars(a).items())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(v, b[k]) for k, v in a.items())
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


# What is written and read.


def test_result_survives_a_round_trip(result, path):
    again = HEADS.write(result, path)
    assert equal(again, result)
    assert equal(HEADS.read(path), result)
    assert json.loads(path.read_text())["format"] == "jaxalign.heads/4"


@pytest.mark.parametrize(
    "names", [("int8-sim", "int8"), ("f16", "int4-g16@bf16"), ("int8", "quantized", "f16")]
)
def test_every_scheme_keeps_its_own_values_whatever_its_name(names, path):
    written = small(precisions=names)
    HEADS.write(written, path)
    found = HEADS.read(path)
    assert found.precisions == names
    for name in names:
        low, expected = (r.prompts[0].precisions[name] for r in (found, written))
        np.testing.assert_array_equal(low.drift, expected.drift)
        curves = [
            [r.random for r in each.repairs if r.precision == name] for each in (found, written)
        ]
        np.testing.assert_array_equal(*curves)
        assert len(curves[0]) == len(written.prompts)


def test_stored_statistics_follow_from_the_stored_values(path):
    """What is written under one name is what the statistics of that name were computed from."""
    names = ("int8-sim", "int8")
    written = small(precisions=names, num_heads=5, prompts_per_task=3)
    statistics = summarize(written.prompts, written.repairs, names, 0)
    HEADS.write(replace(written, statistics=statistics), path)
    found = HEADS.read(path)
    again = summarize(found.prompts, found.repairs, found.precisions, 0)
    assert_close(codec.encode(again), codec.encode(found.statistics))


def assert_close(a, b):
    """Equal but for what seven digits of the stored values leave open."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for name in a:
            assert_close(a[name], b[name])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_close(x, y)
    else:
        assert a == (pytest.approx(b, rel=1e-5, abs=1e-6) if isinstance(b, float) else b)


def test_what_is_not_finite_is_written_as_null_and_read_as_nan(path):
    result = small(nonfinite=True)
    HEADS.write(result, path)
    text = path.read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    first = json.loads(text)["prompts"][0]["precisions"]["f16"]
    assert first["drift"][0][0] is None
    assert first["drift"][0][1] is not None
    assert first["logit_diff"] is None
    low = HEADS.read(path).prompts[0].precisions["f16"]
    assert np.isnan(low.drift[0, 0])
    assert low.nonfinite_heads == ((0, 0), (1, 2))
    assert low.first_order.bound_held is None


def test_numbers_keep_the_digits_of_f32(path):
    value = np.float32(1) / np.float32(3)
    prompt = small().prompts[0]
    maps = np.full_like(prompt.zero_importance, value)
    kept = replace(small(), prompts=(replace(prompt, zero_importance=maps), *small().prompts[1:]))
    HEADS.write(kept, path)
    assert np.float32(HEADS.read(path).prompts[0].zero_importance[0, 0]) == pytest.approx(
        value, rel=1e-7
    )
    assert number(np.inf) is number(np.nan) is None


def test_result_is_read_as_typed_objects(path):
    HEADS.write(small(), path)
    result = HEADS.read(path)
    assert isinstance(result, HeadsResult)
    assert result.precisions == ("f16", "int8-sim")
    assert result.prompts[0].precisions["f16"].drift.dtype == np.float64
    assert isinstance(result.statistics.correlations[0].pearson, HeadEstimate)
    assert result.statistics.task_means[0].change is None
    assert isinstance(result.statistics.task_means[1].change, Estimate)


def test_target_and_distractor_of_one_first_token_have_no_distractor_values(path):
    """The text stays; there is nothing to measure."""
    prompt = replace(small().prompts[0], distractor=" Rome", distractor_importance=None)
    HEADS.write(replace(small(), prompts=(prompt, *small().prompts[1:])), path)
    assert HEADS.read(path).prompts[0].distractor == " Rome"
    assert HEADS.read(path).prompts[0].distractor_importance is None


def test_row_of_a_map_stands_on_one_line_however_long_it_is(path):
    HEADS.write(small(num_heads=40), path)
    lines = [line.strip() for line in path.read_text().splitlines()]
    start = lines.index('"zero_importance": [')
    rows = [json.loads(line.rstrip(",")) for line in lines[start + 1 : start + 3]]
    assert [len(row) for row in rows] == [40, 40]
    assert lines[start + 3] == "],"


# The original program's names.


def test_the_original_program_finds_its_fields_under_their_names(path):
    written = small(precisions=("f16", "int8-sim", "int8", "nf4"))
    view = edge_align(written)
    assert view.keys() >= ORIGINAL | {"repair_int8"}
    assert view["metadata"].keys() == ORIGINAL_METADATA
    for prompt, ours in zip(view["prompts"], written.prompts, strict=True):
        assert prompt.keys() == ORIGINAL_PROMPT | ORIGINAL_INT8
        int8 = ours.precisions["int8-sim"]
        assert prompt["drift_f32_int8"] == int8.drift.tolist(), "its int8 is the simulated one"
        assert prompt["clean_logit_diff_int8"] == int8.logit_diff
        assert prompt["zero_importance"] == ours.zero_importance.tolist()
    for entry in view["repair"] + view["repair_int8"]:
        assert entry.keys() == ORIGINAL_REPAIR
    repairs = [r for r in written.repairs if r.precision == "int8-sim"]
    for entry, ours in zip(view["repair_int8"], repairs, strict=True):
        assert entry["repair_curve"] == ours.curves[RANKINGS[0]].tolist()
        assert entry["repaired_heads"] == [list(head) for head in ours.heads[RANKINGS[0]]]


def test_what_did_not_run_has_no_original_fields():
    view = edge_align(small(precisions=("f16",)))
    assert "int8" not in json.dumps({k: v for k, v in view.items() if k != "metadata"})
    assert view["metadata"]["int8_mode"] == "disabled"
    without = edge_align(small(repair=False))
    assert without["repair"] == []
    assert "repair_int8" not in without


# Files of the version before.


def test_file_of_the_version_before_is_read():
    result = HEADS.read(OLDER)
    content = json.loads(OLDER.read_text(encoding="utf-8"))
    assert result.precisions == ("f16", "int8-sim")
    assert (len(result.prompts), len(result.repairs)) == (3, 6)
    for prompt, entry in zip(result.prompts, content["prompts"], strict=True):
        assert prompt.zero_importance.tolist() == entry["zero_importance"]
        assert prompt.precisions["int8-sim"].drift.tolist() == entry["drift_f32_int8"]
    assert result.repairs[-1].random.tolist() == content["repair_int8"][-1]["random_curves"]
    view = edge_align(result)
    assert {name: view[name] for name in view if name not in ("prompts", "metadata")}.items() >= {
        "num_layers": content["num_layers"],
        "mean_activation_reference_count": content["mean_activation_reference_count"],
    }.items()
    for ours, theirs in zip(view["prompts"], content["prompts"], strict=True):
        assert ours.items() <= theirs.items()
    was = content["metadata"]
    of_all = {"total_forward_passes"}  # of the 103 prompts that three were taken from
    for name in view["metadata"].keys() - of_all:
        assert view["metadata"][name] == was[name]
    where = result.provenance
    assert where.layer_rows == was["computed"]["layer_rows"]
    assert sum(call.times for call in where.calls) == was["computed"]["calls"]
    assert where.options["max_repair_k"] == was["max_repair_k"]
    assert where.environment.versions == was["environment"]["versions"]
    assert (where.prompts.given, where.prompts.sha256) == (103, was["prompts"]["sha256"])


def metadata_1(precisions):
    """What the older file says of itself, of other precisions."""
    return json.loads(OLDER.read_text(encoding="utf-8"))["metadata"] | {"precisions": precisions}


def older(result):
    """A result's content as the version before wrote it, of one prompt and without repairs."""
    content = codec.encode(result) | {"repair": []}
    del content["repairs"]
    content["mean_activation_reference_count"] = content.pop("reference_count")
    del content["resample_draws"], content["provenance"]
    content |= {"model": "demo", "metadata": metadata_1(list(result.precisions))}
    for prompt in content["prompts"]:
        for name, low in prompt["precisions"].items():
            fields = precision_fields(KNOWN.get(name, name))
            prompt |= {its: low.pop(ours) for its, ours in fields.items()}
        prompt |= {
            "target_token": prompt.pop("target"),
            "distractor_token": prompt.pop("distractor"),
            "task_type": prompt.pop("task"),
        }
    return content


def test_two_schemes_under_one_name_are_refused(path):
    with pytest.raises(InputError, match="values of int8-sim and int8 under the same names"):
        read_1(older(small(precisions=("int8-sim", "int8"), repair=False)), path)


@pytest.mark.parametrize("name", ["metadata", "prompts", "statistics", "num_layers"])
def test_missing_field_of_the_version_before_is_refused_and_named(name, path):
    content = older(small(repair=False))
    del content[name]
    with pytest.raises(InputError, match=name):
        read_1(content, path)


# What is refused.


def at(content, *place):
    for key in place[:-1]:
        content = content[key]
    return content, place[-1]


WRONG = {
    ("format",): "jaxalign.heads/9",
    ("num_layers",): "six",
    ("head_mode",): "other",
    ("prompts", 1, "zero_importance", 0, 2): "high",
    ("prompts", 1, "zero_importance", 0, 1): 10**400,
    ("prompts", 1, "zero_importance", 0, 0): 1e-310,
    ("prompts", 0, "validated"): None,
    ("prompts", 0, "vibes"): 1,
    ("prompts", 0, "precisions", "f16", "nonfinite_heads", 0): [1],
    ("prompts", 0, "precisions", "f16", "first_order", "bound_held"): "yes",
    ("prompts", 1, "precisions", "int8-sim", "drift"): [[1.0, 2.0, 3.0]] * 3,
    ("repairs", 1, "curves", "drift"): "flat",
    ("repairs", 0, "heads"): {"best": []},
    ("statistics", "repair", 0, "verdict"): "great",
    ("statistics", "correlations", 0, "pearson", "low"): "small",
    ("provenance", "model", "name"): None,
    ("provenance", "environment", "device"): 1,
}


@pytest.mark.parametrize("place", WRONG, ids=lambda place: "/".join(map(str, place)))
def test_wrong_value_is_refused_with_its_place(place, path):
    content = {"format": HEADS.format, **codec.encode(small(nonfinite=True))}
    owner, key = at(content, *place)
    owner[key] = WRONG[place]
    path.parent.mkdir()
    path.write_text(json.dumps(content))
    with pytest.raises(InputError) as caught:
        HEADS.read(path)
    named = "/".join(map(str, place)).removesuffix("/heads")
    assert caught.value.problem.startswith(f"{path}: {named}")


def test_plot_refuses_in_one_line(content, tmp_path):
    content["provenance"].pop("model")
    (tmp_path / "bad.json").write_text(json.dumps({"format": HEADS.format, **content}))
    line = refusal("plot", "--input", tmp_path / "bad.json")
    assert "bad.json: provenance/model: missing, as in files of an older version. run the" in line


def part(result, i, **changes):
    prompts = list(result.prompts)
    prompts[i] = replace(prompts[i], **changes)
    return {"prompts": tuple(prompts)}


def test_parts_that_do_not_belong_together_are_refused():
    whole = small()
    low = whole.prompts[1].precisions
    outside = {"f16": replace(low["f16"], nonfinite_heads=((2, 0),))}
    other = replace(whole.statistics.task_means[1], precision="int8")
    wrong = {
        "there are no prompts": {"prompts": ()},
        "maps are not of 3 layers of 3 heads": {"num_layers": 3},
        "prompts/1 is not of every precision of f16, int8-sim": part(
            whole, 1, precisions={"f16": low["f16"]}
        ),
        r"prompts/1 names head \(2, 0\)": part(whole, 1, precisions=low | outside),
        "repairs of int8-sim are not of each prompt once": {"repairs": whole.repairs[:-1]},
        "task_means/0 is of int8": {"statistics": replace(whole.statistics, task_means=(other,))},
    }
    for fault, changes in wrong.items():
        with pytest.raises(ValueError, match=fault):
            replace(whole, **changes)


def test_missing_result_says_how_to_make_one(tmp_path):
    line = refusal("plot", "--input", tmp_path / "none.json")
    assert "none.json is missing. run a study first: jaxalign heads." in line


def test_result_that_does_not_fit_is_kept_elsewhere(path):
    result = replace(small(), provenance=replace(small().provenance, options={"seed": 2**70}))
    with pytest.raises(InputError, match=r"provenance/options/seed: .* the result is kept in"):
        HEADS.write(result, path)
    assert not path.exists()
    assert json.loads(path.with_name("experiment.json.kept").read_text())["prompts"]


# Means over prompts.


def test_estimate_is_of_what_is_finite():
    values = np.array([1.0, np.nan, 2.0, np.inf, 4.0])
    found = estimate(values, generator(0, "a"), test=True)
    assert found == estimate(values[[0, 2, 4]], generator(0, "a"), test=True)
    assert found.value == pytest.approx(7 / 3)
    assert found.low < found.value < found.high
    assert estimate(values, generator(0, "a")) == replace(found, p=None)
    assert estimate(np.array([np.nan]), generator(0, "a"), test=True) == Estimate()
    assert estimate(np.array([3.0]), generator(0, "a")) == Estimate(3.0)


# Whole or not at all.


def test_file_has_the_permissions_of_any_other_file(path):
    previous = os.umask(0o027)
    try:
        HEADS.write(small(), path)
    finally:
        os.umask(previous)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("broken", ["os.replace", "os.chmod"])
def test_failure_while_writing_leaves_the_old_file_whole(broken, error, path, monkeypatch):
    HEADS.write(small(seed=0), path)
    before = path.read_bytes()

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(broken, fail)
    wanted = InputError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(wanted) as raised:
        HEADS.write(small(seed=1), path)
    if wanted is InputError:
        assert f"{path} cannot be written (No space left on device)" in str(raised.value)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_new_result_replaces_the_old_one_and_leaves_nothing_else(path):
    for seed in (0, 1):
        HEADS.write(small(seed=seed), path)
    assert equal(HEADS.read(path), small(seed=1))
    assert list(path.parent.iterdir()) == [path]


KEPT = sorted(
    path
    for path in (Path(__file__).parent.parent / "results").glob("*/*.json")
    if path.parent.name != "benchmarks" and '"format": "jaxalign.' in path.read_text()[:200]
)


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_kept_result_is_read_and_has_rows(path):
    """What the documentation quotes can be opened by the version that it is of."""
    result = jaxalign.read(path)
    assert result.records()
    assert result.summary()


def test_there_are_kept_results_of_every_study():
    assert {path.stem for path in KEPT} >= {"experiment", "schemes", "plan", "patch", "features"}
