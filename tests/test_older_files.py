"""Claims about files of the schemes and plan studies as the version before wrote them.

``older_files`` holds a few rows of each, as that version kept them for the bundled model. The heads
study's own are in ``test_results``.
"""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from jaxalign import InputError, read
from jaxalign.studies.plan import PLAN
from jaxalign.studies.plan.result import PlanResult
from jaxalign.studies.schemes import SCHEMES
from jaxalign.studies.schemes.result import SchemesResult

FOLDER = Path(__file__).parent / "older_files"


def content(name):
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


def test_schemes_of_the_version_before_are_read():
    was, result = content("schemes_1.json"), read(FOLDER / "schemes_1.json")
    assert isinstance(result, SchemesResult)
    assert [row.scheme for row in result.rows] == ["f32", "f16", "int8-sim", "nf4"]
    for row, old in zip(result.rows, was["schemes"], strict=True):
        assert (row.bits, row.kl.value) == (old["bits"], old["kl"]["value"])
        if old["kl_floor"] is not None:
            assert row.kl_floor.batching == old["kl_floor"]["plan"]
            above = asdict(row.kl_floor.above_batching)
            assert above == old["kl_floor"]["above_plan"] | {"p_adjusted": None}
    assert result.noise_draws == was["metadata"]["noise_draws"]
    assert result.provenance.model.weights_sha256 == was["metadata"]["model"]["weights_sha256"]
    assert result.provenance.prompts.positions == was["metadata"]["positions"]


def test_plan_of_the_version_before_is_read():
    was, result = content("plan_1.json"), read(FOLDER / "plan_1.json")
    assert isinstance(result, PlanResult)
    assert (result.scheme, result.bits_low, result.bits_high) == ("nf4", 4.5, 16.0)
    assert [each.kl.value for each in result.damage.components] == [
        each["kl"]["value"] for each in was["damage"]["components"]
    ]
    assert result.plan.chosen_kl == was["plan"]["chosen_kl"]
    assert list(result.validating) == was["metadata"]["prompts"]["validating"]
    assert result.provenance.prompts.given == 103


def test_files_of_version_2_are_read_and_say_of_no_test_what_it_found():
    schemes, plan = read(FOLDER / "schemes_2.json"), read(FOLDER / "plan_2.json")
    assert [row.scheme for row in schemes.rows] == [
        row["scheme"] for row in content("schemes_2.json")["rows"]
    ]
    row = schemes.rows[-1]
    assert row.kl.value == content("schemes_2.json")["rows"][-1]["kl"]["value"]
    assert (row.rival, row.lottery, row.kl_floor.corrected, row.kl_floor.draws) == (None,) * 3 + (
        (),
    )
    was = content("plan_2.json")
    assert plan.plan.chosen_kl == was["plan"]["chosen_kl"]
    assert (plan.plan.uniform, plan.plan.uniform_verdict) == ((), None)
    assert [c.verdict for c in plan.damage.components] == [
        c["verdict"] for c in was["damage"]["components"]
    ]
    assert all(c.p is None and c.corrected is None for c in plan.damage.components)
    assert "uniform" not in PLAN.table(plan)
    assert SCHEMES.table(schemes)


@pytest.mark.parametrize("name", ["schemes_1.json", "plan_1.json"])
@pytest.mark.parametrize("key", ["metadata", "prompts"])
def test_what_an_older_file_lacks_is_named(name, key, tmp_path):
    broken = content(name)
    del (broken if key == "metadata" else broken["metadata"])[key]
    file = tmp_path / name
    file.write_text(json.dumps(broken))
    with pytest.raises(InputError, match=key):
        read(file)


def test_an_older_file_of_another_study_is_refused():
    with pytest.raises(InputError, match="plan"):
        SCHEMES.read(FOLDER / "plan_1.json")
