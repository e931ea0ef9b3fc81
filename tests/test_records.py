"""Claims about results in a notebook: short to look at, and rows for a table."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import Float
from tiny_study import MARGINS

import jaxalign
from jaxalign.errors import InputError
from jaxalign.study.provenance import Environment, ModelOrigin, PromptsOrigin, Provenance
from jaxalign.study.records import Result, content_of

DEMO = Path(__file__).parent.parent / "results" / "demo"
KEPT = ("experiment", "schemes", "plan")


@dataclass(frozen=True, kw_only=True)
class Low:
    drift: Float[np.ndarray, "L H"]
    lead: float


@dataclass(frozen=True, kw_only=True)
class Prompt:
    text: str
    importance: Float[np.ndarray, "L H"]
    other: Float[np.ndarray, "L H"] | None
    curve: Float[np.ndarray, " K"]
    precisions: dict[str, Low]


@dataclass(frozen=True, kw_only=True)
class Tiny(Result, rows="prompts", headline=("total",)):
    prompts: tuple[Prompt, ...]
    total: int
    provenance: Provenance


@pytest.fixture(scope="module")
def tiny():
    maps = np.arange(6.0).reshape(2, 3)
    low = {"nf4": Low(drift=maps / 10, lead=0.5)}
    prompt = Prompt(text="a", importance=maps, other=None, curve=np.ones(4), precisions=low)
    where = Provenance(
        model=ModelOrigin(name="m"), prompts=PromptsOrigin(given=3, kept=1),
        environment=Environment(),
    )  # fmt: skip
    return Tiny(prompts=(prompt,), total=7, provenance=where)


@pytest.mark.parametrize("name", KEPT)
def test_results_are_one_line_to_look_at(name):
    result = jaxalign.read(DEMO / f"{name}.json")
    assert len(repr(result)) < 200
    assert "demo" in repr(result)
    assert "\n" not in repr(result)


@pytest.mark.parametrize("name", KEPT)
def test_a_result_shows_its_screen_and_its_rows(name):
    result = jaxalign.read(DEMO / f"{name}.json")
    assert result.summary() == result._kind.table(result)
    assert result.details() == result._kind.details(result)
    records = result.records()
    assert len({frozenset(record) for record in records}) == 1
    assert not any(isinstance(v, np.ndarray | dict) for record in records for v in record.values())


def test_arrays_of_layers_and_heads_have_a_row_a_head(tiny):
    records = tiny.records()
    assert len(records) == 6
    assert records[4] == {
        "text": "a", "other": None, "nf4.lead": 0.5, "layer": 1, "head": 1, "importance": 4.0,
        "nf4.drift": 0.4, "curve": [1.0] * 4,
    }  # fmt: skip
    result = jaxalign.read(DEMO / "experiment.json")
    [first, *_] = result.records()
    assert first["zero_importance"] == result.prompts[0].zero_importance[0, 0]


def test_other_rows_of_a_result_are_named_by_their_place():
    result = jaxalign.read(DEMO / "experiment.json")
    means = result.records("statistics.task_means")
    assert len(means) == len(result.statistics.task_means)
    assert means[0]["logit_diff.value"] == result.statistics.task_means[0].logit_diff.value
    with pytest.raises(InputError, match=r"names no rows of the result. use one of: prompts"):
        result.records("statistics.nothing")


def test_records_are_what_pandas_takes(tiny):
    pandas = pytest.importorskip("pandas")
    frame = tiny.to_dataframe()
    assert isinstance(frame, pandas.DataFrame)
    assert frame.pivot(index="layer", columns="head", values="importance").to_numpy().tolist() == [
        [0, 1, 2],
        [3, 4, 5],
    ]


def test_a_study_of_somebody_elses_finds_its_result_and_a_type_without_a_study_says_so(tiny):
    with pytest.raises(TypeError, match="no kind of result has the type Tiny"):
        tiny.summary()
    assert MARGINS.result.__name__ == "MarginsResult"


def test_json_has_what_the_headline_names_and_where_it_comes_from(tiny):
    content = content_of(MARGINS, tiny)
    assert content["total"] == 7
    assert "prompts" in content
    assert content["prompts"] == 1  # how many, not which
    assert (content["model"], content["format"]) == ("m", "jaxalign.margins/1")


def test_a_result_draws_and_writes_itself(tmp_path):
    result = jaxalign.read(DEMO / "schemes.json")
    assert [path.name for path in result.plot(tmp_path / "figures")] == [
        "schemes.png",
        "schemes.svg",
    ]
    result.write(tmp_path / "again.json")
    assert jaxalign.read(tmp_path / "again.json").summary() == result.summary()


def test_parameters_and_models_show_shapes_and_no_numbers():
    model = jaxalign.load("demo")
    assert repr(model).startswith("<Model demo: 6 layers of 8 heads, width 128, 2,238,464 param")
    shown = repr(model.params)
    assert "embed=float32[4096,128]" in shown
    assert len(shown) < 1000
    packed = repr(jaxalign.cast(model.params, "nf4").blocks.mlp.up)
    assert packed.startswith("QTensor(codes=uint8[6,64,512]")
    assert len(packed) < 400
