"""A result's file: what its type hints say, checked as it is read, with the place of a misfit."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pytest

from jaxalign.errors import InputError
from jaxalign.shapes import Float
from jaxalign.study import codec, result_file


@dataclass(frozen=True, kw_only=True)
class Part:
    name: str
    drift: Float[np.ndarray, "L H"]
    gain: float | None = None


@dataclass(frozen=True, kw_only=True)
class Whole:
    layers: int
    kind: Literal["true", "edge-align"]
    parts: tuple[Part, ...]
    heads: tuple[tuple[int, int], ...] = ()
    by_name: dict[str, Float[np.ndarray, " K"]] = field(default_factory=dict)
    held: bool | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise ValueError(f"{self.layers} layers, expected at least 1")


WHOLE = Whole(
    layers=2,
    kind="true",
    parts=(
        Part(name="a", drift=np.array([[1 / 3, np.nan, 2], [0, -1e-9, np.inf]]), gain=math.nan),
        Part(name="日本", drift=np.ones((2, 3), np.float32), gain=-0.5),
    ),
    heads=((1, 2), (0, 0)),
    by_name={"x": np.arange(2.0), "y": np.arange(2.0)},
    held=False,
    metadata={"scheme": "int4-g16@bf16", "notes": ["one"], "seed": 0, "mesh": None},
)
FORM = "jaxalign.whole/2"
START, END = '{"format": "jaxalign.whole/2", "layers": ', ', "kind": "true", "parts": []}'


@pytest.fixture
def content():
    return codec.encode(WHOLE)


def written(tmp_path, text):
    path = tmp_path / "result.json"
    path.write_text(text, encoding="utf-8")
    return path


def read(path):
    return result_file.read(path, {FORM: Whole})


def test_a_result_is_read_as_it_was_written_with_seven_digits(tmp_path):
    path = tmp_path / "new" / "result.json"
    again = result_file.write(WHOLE, path, FORM)
    assert codec.encode(read(path)) == codec.encode(again) == codec.encode(WHOLE)
    np.testing.assert_array_equal(
        again.parts[0].drift, [[0.3333333, np.nan, 2], [0, -1e-9, np.nan]]
    )
    assert again.parts[0].gain is None, "what is not finite is not there"
    assert again.heads == WHOLE.heads
    assert again.metadata == WHOLE.metadata
    assert json.loads(path.read_text(encoding="utf-8"))["format"] == FORM
    assert codec.encode(result_file.write(again, path, FORM)) == codec.encode(again)


def test_rows_of_numbers_stand_on_one_line(tmp_path):
    result_file.write(WHOLE, tmp_path / "r.json", FORM)
    assert "[1.0, 1.0, 1.0]" in (tmp_path / "r.json").read_text(encoding="utf-8")


def change(content, place, value):
    *parents, last = place
    for key in parents:
        content = content[key]
    content[last] = value


@pytest.mark.parametrize(
    ("place", "value", "at", "fault"),
    [
        (["layers"], True, "layers", "true, expected an integer"),
        (["layers"], 2.0, "layers", "2.0, expected an integer"),
        (["layers"], 10**400, "layers", "expected an integer below"),
        (["layers"], 0, "the top level", "0 layers, expected at least 1"),
        (["kind"], "both", "kind", '"both", expected "true" or "edge-align"'),
        (["parts", 1, "gain"], "3", "parts/1/gain", '"3", expected a number'),
        (["parts", 1, "gain"], True, "parts/1/gain", "true, expected a number"),
        (["parts", 1, "gain"], 1e-310, "parts/1/gain", "1e-310, expected a number that is 0 or"),
        (["parts", 1, "gain"], 10**400, "parts/1/gain", "expected a number that is"),
        (["parts", 1, "name"], "\ud800", "parts/1/name", "not Unicode"),
        (["parts", 1, "drift", 0, 2], "1.5", "parts/1/drift/0/2", '"1.5", expected a number'),
        (["parts", 1, "drift", 0, 2], False, "parts/1/drift/0/2", "false, expected a number"),
        (["parts", 1, "drift", 0, 2], 1e-310, "parts/1/drift/0/2", "1e-310"),
        (["parts", 1, "drift", 0, 2], 10**400, "parts/1/drift/0/2", "expected a number"),
        (["parts", 1, "drift", 0, 2], [1], "parts/1/drift/0/2", "[1], expected a number"),
        (["parts", 1, "drift", 1], [1, 2], "parts/1/drift/1", "2 entries, expected 3"),
        (["parts", 1, "drift"], [[1, 2]], "parts/1/drift", "1 × 2 numbers, expected 2 × 3 (L × H)"),
        (["parts", 1, "drift"], [1, 2], "parts/1/drift/0", "1, expected an array"),
        (["parts", 1, "drift"], [], "parts/1/drift", "0 × 0 numbers, expected 2 × 3"),
        (["by_name", "y"], [1], "by_name/y", "1 numbers, expected 2 (K)"),
        (["heads", 1], [1, 2, 3], "heads/1", "3 entries, expected 2"),
        (["heads", 1, 0], None, "heads/1/0", "null, expected an integer"),
        (["held"], 0, "held", "0, expected true or false"),
        (["metadata", "seed"], math.inf, "metadata/seed", "expected a number"),
        (["metadata"], [], "metadata", "[], expected an object"),
        (["metadatum"], {}, "metadatum", "unknown, expected layers, kind"),
        (["parts", 0], {"name": "a"}, "parts/0/drift", "missing"),
    ],
)
def test_a_misfit_is_refused_by_its_place(content, place, value, at, fault):
    change(content, place, value)
    with pytest.raises(InputError) as caught:
        codec.decode(Whole, content, "r.json")
    assert caught.value.problem.startswith(f"r.json: {at}: ")
    assert fault in caught.value.problem
    assert len(caught.value.problem) < 250


def test_what_has_a_default_may_be_missing(content):
    for name in ("heads", "by_name", "held", "metadata"):
        del content[name]
    del content["parts"][0]["gain"]
    assert codec.decode(Whole, content, "r.json").held is None


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (
            '{"format": "jaxalign.whole/2", "layers": 1, "layers": 2}',
            'an object has "layers" twice',
        ),
        ('{"format": "jaxalign.whole/2", "layers": NaN}', "NaN is no number"),
        ('{"format": "jaxalign.whole/2", "layers": -Infinity}', "-Infinity is no number"),
        (f"{START}1e999{END}", "layers: Infinity, expected an integer"),
        ('{"format": "jaxalign.whole/2", "layers": 1' + "0" * 5000 + "}", "not JSON"),
        ("[" * 100_000, "not JSON"),
        (f'{START}1{END[:-1]}, "metadata": {{"a": {"[" * 900}{"]" * 900}}}}}', "nested too deeply"),
        (
            '{"format": "jaxalign.other/1"}',
            'format: "jaxalign.other/1", expected "jaxalign.whole/2"',
        ),
        ('{"format": ["jaxalign.whole/2"]}', "format: "),
        ("{}", "format: null"),
        ("[]", "format: null"),
        ("", "not JSON"),
    ],
)
def test_a_file_that_is_no_result_is_refused_in_one_line(tmp_path, text, fault):
    with pytest.raises(InputError, match=r"result\.json") as caught:
        read(written(tmp_path, text))
    assert fault in caught.value.problem


def test_an_older_format_has_a_reader_of_its_own(tmp_path):
    path = written(tmp_path, '{"format": "jaxalign.whole/1", "n": 3}')
    kinds = {FORM: Whole, "jaxalign.whole/1": lambda content, where: (content["n"], where)}
    assert result_file.read(path, kinds) == (3, path)


def test_a_result_that_cannot_be_written_is_kept_beside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    taken = tmp_path / "folder"
    taken.mkdir()
    (taken / "more").touch()
    with pytest.raises(InputError, match=r"the result is kept in .*folder\.kept"):
        result_file.write(WHOLE, taken, FORM)
    assert codec.encode(read(tmp_path / "folder.kept")) == codec.encode(WHOLE)


def test_a_result_that_could_not_be_read_is_kept_and_said(tmp_path):
    wrong = Whole(layers=1, kind="neither", parts=())
    with pytest.raises(InputError, match=r'kind: "neither", .* kept in .*r\.json\.kept'):
        result_file.write(wrong, tmp_path / "r.json", FORM)
    assert not (tmp_path / "r.json").exists()
    kept = json.loads((tmp_path / "r.json.kept").read_text(encoding="utf-8"))
    assert kept == {"format": FORM, **codec.encode(wrong)}


def test_name_of_a_file_that_is_no_unicode_can_be_written(tmp_path):
    odd = Whole(layers=1, kind="true", parts=(), metadata={"file\udc80": "a\udcff.json"})
    again = result_file.write(odd, tmp_path / "r.json", FORM)
    assert again.metadata == {"file\\udc80": "a\\udcff.json"}


def test_what_no_file_can_hold_is_an_error_of_ours():
    for value in (object(), {1: 2}, {"a": {3}}):
        with pytest.raises(TypeError):
            codec.encode(value)
