"""Claims about what every study shares: files, shards, studies of somebody else's."""

import argparse
import shutil

import numpy as np
import pytest
import tiny_study
from tiny_run import PROMPTS, write_model, write_prompts
from tiny_study import MARGINS

import jaxalign
from jaxalign.commands import run_study as run_study_command
from jaxalign.commands.arguments import parse
from jaxalign.commands.one_study import run_study
from jaxalign.errors import InputError
from jaxalign.processes import distributed
from jaxalign.studies.registry import STUDIES, find_studies
from jaxalign.study.calls import Call
from jaxalign.study.options import Common
from jaxalign.study.session import Session
from jaxalign.study.shards import Shard, ShardFinished

CALLS = 3  # of each of the two phases: five prompts, two in a call


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frame")
    return write_model(folder / "model"), write_prompts(folder / "prompts.json", PROMPTS)


@pytest.fixture(scope="module")
def given(paths):
    model, prompts = paths
    return jaxalign.load(str(model)), jaxalign.read_prompts(prompts)


@pytest.fixture(scope="module")
def whole(given):
    return MARGINS(*given)


@pytest.fixture
def computed(monkeypatch):
    """The keys of the calls that were computed; a call may be told to die."""
    keys = []
    compute = Call.compute

    def told(call):
        if call.key in told.dies:
            told.dies.remove(call.key)
            raise KeyboardInterrupt
        keys.append(call.key)
        return compute(call)

    told.dies = []
    monkeypatch.setattr(Call, "compute", told)
    keys.append(told.dies)
    return keys


def worker(given, folder, index, count):
    with pytest.raises(ShardFinished):
        MARGINS(*given, folder=folder, shard=Shard(index=index, count=count))


def same_bits(a, b):
    for name in ("margins", "moved"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_shards_in_any_order_give_the_bits_of_one_run(given, whole, computed, tmp_path, order):
    computed.clear()
    for index in order:
        worker(given, tmp_path, index, 3)
    # What later calls depend on is computed by whoever needs it first, the rest by its own worker.
    assert sorted(computed) == sorted(
        [*(("clean", "f32", n) for n in range(CALLS)), *(("moved", "f16", n) for n in range(CALLS))]
    )
    computed.clear()
    same_bits(MARGINS(*given, folder=tmp_path), whole)
    assert computed == []


def test_a_worker_that_died_is_repeated_and_loses_nothing(given, whole, computed, tmp_path):
    [dies] = computed
    dies += [("clean", "f32", 0), ("moved", "f16", 1)]
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            MARGINS(*given, folder=tmp_path, shard=Shard(index=0, count=2))
    worker(given, tmp_path, 0, 2)
    assert len(computed) - 1 == len({*computed[1:]})  # nothing twice
    # The other worker never came: the command that assembles computes what is missing.
    same_bits(MARGINS(*given, folder=tmp_path), whole)


def test_two_workers_on_one_call_lose_nothing(given, whole, monkeypatch, tmp_path):
    compute, both = Call.compute, []

    def meanwhile(call):
        if not both:
            both.append(call.key)
            worker(given, tmp_path, 0, 1)  # another one computes everything while this one begins
        return compute(call)

    monkeypatch.setattr(Call, "compute", meanwhile)
    worker(given, tmp_path, 0, 2)
    same_bits(MARGINS(*given, folder=tmp_path), whole)


def test_a_shard_whose_calls_do_not_stay_says_so(given, computed, tmp_path, monkeypatch):
    folder = tmp_path / "calls"

    def removed(call):
        shutil.rmtree(folder)
        return np.zeros(2, np.float32)

    monkeypatch.setattr(Call, "compute", removed)
    with pytest.raises(InputError, match="do not stay"):
        MARGINS(*given, folder=folder, shard=Shard(index=0, count=2))
    with pytest.raises(InputError, match="no folder"):
        MARGINS(*given, shard=Shard(index=0, count=2))


@pytest.mark.parametrize("text", ["0/0", "3/2", "1", "a/b", "1/0", "-1/2", ""])
def test_a_shard_that_is_none_is_refused_by_name(text):
    with pytest.raises(InputError, match="--shard"):
        Shard.parse(text)
    assert str(Shard.parse("2/3")) == "2/3"


def test_shards_share_every_call_once():
    for first in (0, 1):  # as launchers count, and as job arrays do
        shards = [Shard.parse(f"{first + i}/3") for i in range(3)]
        assert [[shard.has(n) for shard in shards].count(True) for n in range(7)] == [1] * 7


def test_a_shard_is_alone_whatever_launched_it(monkeypatch):
    """As ``srun -n 8 bash -c 'python cli.py --shard $SLURM_PROCID/8'`` starts it."""
    monkeypatch.setattr(distributed, "launched", lambda *_: pytest.fail("joined the launcher's"))
    seen = []
    monkeypatch.setattr(run_study_command, "run_study", lambda *given: seen.append(given[2].shard))
    assert run_study_command.run(parse(["schemes", "--shard", "0/8"])) == 0
    assert seen == ["0/8"]
    connected = ["--coordinator", "node0:5000", "--processes", "2", "--process-id", "0"]
    with pytest.raises(InputError, match="--shard 0/8 is for workers that are not connected"):
        run_study_command.run(parse(["schemes", "--shard", "0/8", *connected]))


def test_the_facts_of_a_resume_folder_are_the_token_ids_and_the_schemes_in_full(given):
    model, prompts = given
    with Session.open("jaxalign.x/1", model, prompts, Common(seed=1)) as one:
        facts = one.inputs.facts()
    with Session.open("jaxalign.x/1", model, prompts, Common(seed=2)) as other:
        differing = {name for name, value in other.inputs.facts().items() if value != facts[name]}
    assert differing == {"seed"}
    assert facts["weights"] == model.weights_sha256
    assert len(facts["token ids"]) == 64


def install(folder, name, value):
    """Metadata as an installed package has them, without installing one."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[jaxalign.studies]\n{name} = {value}\n")


def test_a_study_of_somebody_elses_is_found_and_runs_like_our_own(
    paths, whole, monkeypatch, tmp_path, capsys
):
    site = tmp_path / "site"
    install(site, "margins", "their_study:MARGINS")
    shutil.copy(tiny_study.__file__, site / "their_study.py")
    monkeypatch.syspath_prepend(str(site))
    theirs = find_studies()["margins"]
    assert theirs is not MARGINS
    model, prompts = paths
    output = tmp_path / "margins.json"
    arguments = argparse.Namespace(
        model=str(model), revision=None, prompts=prompts, calibration=None, device="cpu",
        devices=None, ignore_setting=[], no_compilation_cache=True, shard=None, output=output,
        no_figures=False,
    )  # fmt: skip
    run_study(theirs, theirs.options(), arguments)
    assert "mean margin" in capsys.readouterr().out
    assert (tmp_path / "figures" / "margins.png").stat().st_size > 1000
    np.testing.assert_allclose(theirs.read(output).moved, whole.moved, rtol=1e-6)
    assert not output.with_name("margins.json.journal").exists()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("no_such_module:STUDY", "cannot be imported"),
        ("tiny_study:run", "no Study"),
        ("jaxalign.studies.schemes:SCHEMES", "second study"),
    ],
)
def test_a_study_that_cannot_be_used_costs_a_line_and_no_other_study(
    monkeypatch, tmp_path, capsys, value, said
):
    install(tmp_path, "broken", value)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_studies().keys() == STUDIES.keys()
    assert said in capsys.readouterr().err
