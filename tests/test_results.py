"""Claims about the result file: its schema, its fields, and that it is whole or not there."""

import copy
import functools
import json
import os
import stat
from dataclasses import replace

import jsonschema
import numpy as np
import pytest
from synthetic_result import make_result
from tiny_run import refusal

from jaxalign import InputError, results
from jaxalign.results import RANKINGS, SCHEMA, Estimate, check, from_json, read, to_json, write

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


@functools.cache
def small(**options):
    return make_result(**({"num_layers": 2, "num_heads": 3, "prompts_per_task": 2} | options))


@pytest.fixture(params=VARIANTS)
def result(request):
    return small(**VARIANTS[request.param])


@pytest.fixture
def content():
    return to_json(small())


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


# The schema and the fields.


def test_schema_is_a_valid_schema_of_its_draft():
    schema = json.loads(SCHEMA.read_text())
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema.Draft202012Validator.check_schema(schema)


def test_every_result_fits_the_schema_after_writing(result, path):
    write(result, path)
    check(json.loads(path.read_text()), path)


def test_result_survives_a_round_trip(result, path):
    content = to_json(result)
    assert to_json(from_json(content)) == content
    assert equal(from_json(content), result)
    write(result, path)
    assert equal(read(path), result)


def test_original_fields_are_all_there_under_their_names(content):
    assert content.keys() >= ORIGINAL | {"repair_int8"}
    assert content["metadata"].keys() >= ORIGINAL_METADATA
    for prompt in content["prompts"]:
        assert prompt.keys() >= ORIGINAL_PROMPT | ORIGINAL_INT8
    for entry in content["repair"] + content["repair_int8"]:
        assert entry.keys() >= ORIGINAL_REPAIR


def test_original_fields_have_their_shapes(content):
    L, H = content["num_layers"], content["num_heads"]
    maps = {"zero_importance", "mean_importance"}
    for name in ("f16", "int8"):
        maps |= {f"drift_f32_{name}", f"cosine_sim_f32_{name}"}
    for prompt in content["prompts"]:
        assert all(np.array(prompt[name]).shape == (L, H) for name in maps)
        assert prompt["task_type"] in ("FactualRecall", "IOI")
    for entry in content["repair"]:
        assert len(entry["repair_curve"]) == len(entry["repaired_heads"])
        assert all(0 <= a < L and 0 <= b < H for a, b in entry["repaired_heads"])


def test_original_repair_is_the_ranking_by_zero_importance(content):
    for entry in content["repair"]:
        assert entry["rankings"].keys() == {*RANKINGS}
        assert entry["repair_curve"] == entry["rankings"]["zero_importance"]["curve"]
        assert entry["repaired_heads"] == entry["rankings"]["zero_importance"]["heads"]


def test_without_int8_there_are_no_int8_fields():
    content = to_json(small(precisions=("f16",)))
    assert "int8" not in json.dumps({k: v for k, v in content.items() if k != "metadata"})
    assert content["metadata"]["int8_mode"] == "disabled"


def test_repair_is_an_empty_list_where_nothing_was_repaired():
    content = to_json(small(repair=False))
    assert content["repair"] == []
    assert "repair_int8" not in content


def test_each_precision_keeps_its_own_repairs(result):
    repairs = from_json(to_json(result)).repairs
    names = [(r.precision, r.prompt, r.task) for r in result.repairs]
    assert [(r.precision, r.prompt, r.task) for r in repairs] == names


def test_what_is_not_finite_is_written_as_null_and_read_as_nan(path):
    result = small(nonfinite=True)
    write(result, path)
    text = path.read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    first = json.loads(text)["prompts"][0]
    assert first["drift_f32_f16"][0][0] is None
    assert first["drift_f32_f16"][0][1] is not None
    assert first["clean_logit_diff_f16"] is None
    low = read(path).prompts[0].precisions["f16"]
    assert np.isnan(low.drift[0, 0])
    assert low.nonfinite_heads == ((0, 0), (1, 2))
    assert low.first_order.bound_held is None


def test_numbers_keep_the_digits_of_f32(path):
    value = np.float32(1) / np.float32(3)
    prompt = small().prompts[0]
    maps = np.full_like(prompt.zero_importance, value)
    kept = replace(small(), prompts=(replace(prompt, zero_importance=maps),))
    write(kept, path)
    assert np.float32(read(path).prompts[0].zero_importance[0, 0]) == pytest.approx(value, rel=1e-7)
    assert results.number(np.inf) is results.number(np.nan) is None


def test_result_is_read_as_typed_objects(path):
    written = small()
    write(written, path)
    result = read(path)
    assert isinstance(result, results.HeadsResult)
    assert result.precisions == ("f16", "int8-sim")
    assert result.prompts[0].precisions["f16"].drift.dtype == np.float64
    assert isinstance(result.statistics.correlations[0].pearson, Estimate)
    assert result.statistics.task_means[0].change is None
    assert isinstance(result.statistics.task_means[1].change, Estimate)


def test_what_was_written_is_what_is_read(result, path):
    assert equal(write(result, path), read(path))


def test_row_of_a_map_stands_on_one_line_however_long_it_is(path):
    write(small(num_heads=40), path)
    lines = [line.strip() for line in path.read_text().splitlines()]
    start = lines.index('"zero_importance": [')
    rows = [json.loads(line.rstrip(",")) for line in lines[start + 1 : start + 3]]
    assert [len(row) for row in rows] == [40, 40]
    assert lines[start + 3] == "],"


# What is refused.


def at(content, *place):
    for key in place[:-1]:
        content = content[key]
    return content, place[-1]


WRONG = {
    ("format",): "jaxalign.heads/9",
    ("num_layers",): "six",
    ("head_mode",): "other",
    ("prompts",): [],
    ("prompts", 1, "zero_importance", 0, 2): "high",
    ("prompts", 0, "validated"): None,
    ("prompts", 0, "precisions", "f16", "nonfinite_heads"): [[1]],
    ("prompts", 0, "precisions", "f16", "first_order", "bound_held"): "yes",
    ("repair", 1, "repair_curve"): "flat",
    ("repair_int8", 0, "rankings", "drift"): {},
    ("statistics", "repair", 0, "verdict"): "great",
    ("statistics", "correlations", 0, "pearson", "low"): "small",
    ("metadata", "model", "weights_sha256"): "abc",
    ("metadata", "int8_mode"): "real",
}


@pytest.mark.parametrize("place", WRONG, ids=lambda place: "/".join(map(str, place)))
def test_wrong_value_is_refused_with_its_place(place, content, tmp_path):
    bad = copy.deepcopy(content)
    owner, key = at(bad, *place)
    owner[key] = WRONG[place]
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(bad))
    line = refusal("plot", "--input", path)
    assert f"{path} is not a result of the heads study: at {'/'.join(map(str, place))}" in line
    assert "run the study again, or give the file that it wrote" in line


@pytest.mark.parametrize("name", sorted(ORIGINAL | {"format", "head_mode", "statistics"}))
def test_missing_field_is_refused_and_named(name, content, path):
    del content[name]
    with pytest.raises(InputError, match=f"at the top level, '{name}' is a required property"):
        check(content, path)


def test_map_of_another_shape_is_refused_with_its_place(content, path):
    for rows in ([[1.0, 2.0, 3.0], [1.0]], [[1.0, 2.0, 3.0]] * 3, [[1.0]] * 2):
        for name in ("zero_importance", "drift_f32_int8"):
            bad = copy.deepcopy(content)
            bad["prompts"][1][name] = rows
            with pytest.raises(InputError, match=f"at prompts/1/{name}, .* 2 layers of 3 heads"):
                check(bad, path)
    content["prompts"][0]["precisions"]["f16"]["first_order"]["predicted"] = [[0.0]]
    with pytest.raises(InputError, match="at prompts/0/precisions/f16/first_order/predicted"):
        check(content, path)


def test_missing_precision_is_refused_with_its_place(content, path):
    for damage in (
        lambda prompt: prompt.pop("drift_f32_int8"),
        lambda prompt: prompt["precisions"].pop("f16"),
    ):
        bad = copy.deepcopy(content)
        damage(bad["prompts"][1])
        with pytest.raises(InputError, match="at prompts/1, not every precision of f16, int8-sim"):
            check(bad, path)


def test_unknown_field_is_refused_and_named(content, path):
    content["prompts"][0]["vibes"] = 1
    with pytest.raises(InputError, match=r"at prompts/0, .*'vibes'"):
        check(content, path)


# What the quick look at rows of numbers has to notice, place by place.
ODD = {
    ("prompts", 0, "zero_importance"): [
        [[1.0, True, 2.0]],
        [[1.0, "2", None]],
        [1.0],
        [[1.0, [2.0], 3.0]],
        None,
        {},
        "rows",
    ],
    ("prompts", 0, "precisions", "f16", "nonfinite_heads"): [
        [[0, -1]],
        [[0, 1, 2]],
        [[0]],
        [[0, True]],
        [[0, 1.5]],
        [0, 1],
        [["a", "b"]],
    ],
    ("repair", 0, "random_curves"): [[[]] * 8, [[0.5]] * 7, [0.5] * 8, [[False]] * 8],
    ("repair", 0, "repair_curve"): [[], [True], [[0.5]]],
}


@pytest.mark.parametrize(
    ("place", "value"), [(place, value) for place, values in ODD.items() for value in values]
)
def test_quick_look_refuses_what_the_schema_refuses(place, value, content, path):
    owner, key = at(content, *place)
    owner[key] = value
    plain = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    assert not plain.is_valid(content)
    with pytest.raises(InputError, match="is not a result of the heads study"):
        check(content, path)


def test_quick_look_takes_what_the_schema_takes(content, path):
    for rows in ([[1, 2, 3], [None, -1, 1e300]], [[0.5, None, 2]] * 2):
        content["prompts"][0]["zero_importance"] = rows
        check(content, path)
    content["prompts"][0]["precisions"]["f16"]["nonfinite_heads"] = [[0, 1.0], [1, 2]]
    check(content, path)


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", '{"model": "pythia"}', "[" * 100_000])
def test_file_that_is_no_result_is_refused(text, tmp_path):
    path = tmp_path / "other.json"
    path.write_text(text)
    assert f"{path} is not" in refusal("plot", "--input", path)


def test_missing_result_says_how_to_make_one(tmp_path):
    line = refusal("plot", "--input", tmp_path / "none.json")
    assert "none.json is missing. run the study first: python cli.py." in line


def test_result_that_does_not_fit_is_never_written(path):
    result = replace(small(), metadata=small().metadata | {"seed": "zero"})
    with pytest.raises(InputError, match="at metadata/seed"):
        write(result, path)
    assert not path.exists()


# Whole or not at all.


def test_file_has_the_permissions_of_any_other_file(path):
    previous = os.umask(0o027)
    try:
        write(small(), path)
    finally:
        os.umask(previous)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("broken", ["os.replace", "os.chmod"])
def test_failure_while_writing_leaves_the_old_file_whole(broken, error, path, monkeypatch):
    write(small(seed=0), path)
    before = path.read_bytes()

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(broken, fail)
    wanted = InputError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(wanted) as raised:
        write(small(seed=1), path)
    if wanted is InputError:
        assert f"{path} cannot be written (No space left on device)" in str(raised.value)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_new_result_replaces_the_old_one_and_leaves_nothing_else(path):
    for seed in (0, 1):
        write(small(seed=seed), path)
    assert equal(read(path), small(seed=1))
    assert list(path.parent.iterdir()) == [path]
