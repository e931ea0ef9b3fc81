"""The benchmarks: listed, runnable, right in what they count, and as the README says."""

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from compiled_work import matrix_flops
from pythia_shape import tiny_checkpoint

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch_replay as replay  # noqa: E402  (needs torch)

import jaxalign  # noqa: E402
from benchmarks import __main__ as suite  # noqa: E402
from benchmarks import (  # noqa: E402
    devices,
    dictionaries,
    dictionaries_baselines,
    float64,
    gpu_json,
    patching,
    patching_calls,
    products,
    pytorch_baseline,
    record,
    scaling,
    study,
    table,
    workload,
)
from benchmarks.flops import patching_flops, wave_flops  # noqa: E402
from jaxalign.dictionaries import encode  # noqa: E402
from jaxalign.edits import Edit, HeadEdit, head_ablation_masks  # noqa: E402
from jaxalign.engine import sweep  # noqa: E402
from jaxalign.measures.metrics import Answer  # noqa: E402
from jaxalign.model import ModelConfig  # noqa: E402
from jaxalign.model.params import param_shapes  # noqa: E402
from jaxalign.numerics.dot import dot  # noqa: E402

ROOT = Path(__file__).parent.parent
RUNNABLE = sorted(set(suite.questions()) - set(suite.NEEDS_FILES))
LONG = (
    "scaling", "command", "packed_product", "calibration", "agreement", "random_weights",
    "rounding_lottery", "packed", "products", "blocks", "screen", "dictionaries",
)  # fmt: skip


def run(capsys, name, *arguments):
    """Exit code and JSON record of a benchmark run in this process, under users' settings."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        code = suite.main([name, *arguments])
    out = capsys.readouterr().out
    return code, json.loads(out.splitlines()[-1])


@pytest.fixture(scope="module")
def tiny_model():
    with workload.checkpoint(workload.TINY) as folder:
        return jaxalign.load(str(folder))


def births(config):
    return [layer for layer in range(config.num_layers) for _ in range(config.num_heads)]


def test_every_benchmark_asks_one_question_and_is_listed(capsys):
    assert suite.main([]) == 0
    listed = capsys.readouterr().out
    assert {"heads", "scaling", "study", "command"} <= set(suite.questions())
    for name, question in suite.questions().items():
        assert f"{name} " in listed
        assert question in listed
        assert (ROOT / "benchmarks" / f"{name}.py").exists()


def test_an_unknown_benchmark_is_refused_with_the_list(capsys):
    assert suite.main(["nonsense"]) == 2
    assert "heads" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in LONG else ())
        for name in sorted(set(RUNNABLE) - {"heads", "patching", "devices", "study"})
    ],
)
def test_a_benchmark_runs_at_a_tiny_size_and_ends_with_its_record(capsys, name):
    code, found = run(capsys, name, "--quick", "--device", "cpu")
    assert code == 0
    assert found["benchmark"] == name
    assert found["platform"] == "cpu"
    assert {"processor", "cores", "versions", "commit", "quick"} <= found.keys()


@pytest.mark.slow
def test_every_baseline_finds_the_importance_of_the_wave(capsys):
    pytest.importorskip("transformer_lens")
    code, found = run(capsys, "heads", "--quick", "--device", "cpu")
    assert code == 0
    assert len(found["rows"]) == 8
    assert all(row["largest_difference"] <= 1e-4 for row in found["rows"])
    assert found["wave"]["largest_importance"] > 0.1
    total = sum(entry["seconds"] for entry in found["account"])
    assert total == pytest.approx(found["wave"]["best"], rel=1e-2)


@pytest.mark.slow
def test_every_baseline_of_patching_finds_what_the_wave_finds(capsys):
    pytest.importorskip("transformer_lens")
    code, found = run(capsys, "patching", "--quick", "--device", "cpu")
    assert code == 0
    resid, heads, last, screen = found["cases"]
    assert (resid["edits"], heads["edits"], last["edits"]) == (4 * 6, 12 * 6, 12)
    assert screen["edits"] == 24 + 72 + 2 * 18
    assert [len(case["rows"]) for case in (resid, heads, last)] == [3, 3, 2]
    for case in (resid, heads, last):
        assert all(row["largest_difference"] <= 1e-4 for row in case["rows"])
        assert case["largest_metric"] > 0.1
        assert 0 < case["score"] < 1
    assert {row["rows_run"] for row in heads["rows"]} == {9}  # an eighth of 72
    section = table.patching_section(found)
    assert section.count("scaled from 9 rows") == 3
    assert section.count("\n| ") == 1 + 4 + 3 + 3 + 2 + 1


@pytest.mark.slow
def test_dictionaries_of_pytorch_find_what_ours_find(capsys):
    code, found = run(capsys, "dictionaries", "--quick", "--device", "cpu")
    assert code == 0
    assert [case["name"] for case in found["cases"]] == ["encode", "sums", "training"]
    for case in found["cases"]:
        [row] = case["rows"]
        assert row["largest_difference"] <= 1e-5
        assert row.get("largest_difference_of_counts", 0) == 0
        assert case["score"] > 0
    assert 0 < found["memory"]["total_gb"] < 0.1


@pytest.mark.parametrize("kind", dictionaries.KINDS)
def test_the_baseline_encodes_as_we_do(kind):
    d = dictionaries.random_dictionary(kind, 16, 64, 5)
    x = np.random.default_rng(0).standard_normal((32, 16), np.float32)
    ours = np.asarray(encode(d, jax.numpy.asarray(x)))
    theirs = dictionaries_baselines.encode(
        dictionaries_baselines.tensors(d), torch.from_numpy(x), kind, d.k
    )
    assert 0 < (ours > 0).mean() < 1
    np.testing.assert_allclose(theirs, ours, atol=1e-5)


def test_rows_that_stand_for_all_are_spread_over_heads_too():
    chosen = patching.spread(48 * 16, 8)
    assert len(set(chosen)) == 96
    assert set(chosen % 8) == set(range(8))
    assert patching.spread(7, 1).tolist() == list(range(7))


@pytest.mark.slow
def test_shared_devices_find_the_importance_of_one(capsys):
    code, found = run(capsys, "devices", "--quick", "--device", "cpu")
    assert code == 0
    assert found["virtual"]
    one, *more = found["rows"]
    assert [(row["processes"], row["devices"]) for row in more] == [(1, 2), (2, 2)]
    assert all(row["largest_difference"] <= 1e-5 for row in found["rows"])
    assert all(row["cost_of_an_operation"] > 0 and row["efficiency"] is None for row in more)
    assert one["work_efficiency"] == one["work"] == 1
    section = table.devices_section(found)
    assert "12 heads" in section
    assert section.count("\n| 2 | ") == 2


def test_the_busiest_device_has_its_share_of_rows_and_a_clean_run():
    config = scaling.config_of("70m")
    each = devices.device_flops(config, 16, 16, 5)
    clean = wave_flops(config, [16] * 16, []).total
    [alone] = devices.device_flops(config, 16, 16, 1)
    assert alone == wave_flops(config, [16] * 16, births(config)).total
    # Newborn rows need each layer's contributions once a device; all else adds up.
    assert sum(each) - alone == pytest.approx(4 * clean, rel=0.2)
    found = devices.counted(config, 16, 16, 5)
    assert found["work_efficiency"] == pytest.approx(alone / (5 * max(each)), abs=1e-4)
    assert found["work"] == pytest.approx(sum(each) / alone, abs=1e-4)


def test_a_quick_run_is_never_kept(capsys):
    assert suite.main(["heads", "--quick", "--save"]) == 2
    assert "--save" in capsys.readouterr().err


def test_pytorch_with_hooks_agrees_with_the_replay(tmp_path):
    folder = tiny_checkpoint(tmp_path)
    params, config = replay.load(folder)
    tokens = np.array([[5, 17, 42, 3, 88], [11, 70, 2, 55, 23]])
    target = np.array([33, 7])
    net = pytorch_baseline.load(folder)
    found = [
        pytorch_baseline.importance(net, tokens, target, size, unembed)
        for size, unembed in ((1, "all"), (2, "all"), (2, "last"))
    ]
    for prompt, answer, *rows in zip(tokens.tolist(), target, *found, strict=True):
        expected = replay.importance(params, config, prompt, int(answer), None, head_mode="true")
        assert np.abs(expected).min() > 0
        for row in rows:
            np.testing.assert_allclose(row, expected.ravel(), atol=1e-4)


def test_operations_of_a_tiny_wave_are_those_counted_by_hand():
    config = ModelConfig(10, 2, 2, 4, 8, rotary_dims=2)
    flops = wave_flops(config, [3], births(config))
    # One prompt of 3 tokens: 6 pairs of positions see each other, 3 of them from the last one.
    assert flops.qkv == (1 * 2 * 4 * 12 * 3, 3 * (2 * 4 * 8 * 3 + 2 * 4 * 4))
    assert flops.attention == (1 * 4 * 4 * 6, 3 * 4 * 4 * 3)
    assert flops.out == (1 * 2 * 4 * 4 * 3, 3 * 2 * 4 * 4)
    assert flops.newborn == (2 * 2 * 2 * 4 * 3, 2 * 2 * 2 * 4)
    assert flops.mlp == (1 * 4 * 4 * 8 * 3, 3 * 4 * 4 * 8)
    assert flops.unembed == 5 * 2 * 4 * 10
    assert flops.total == 288 + 672 + 96 + 144 + 96 + 96 + 96 + 32 + 384 + 384 + 400


def test_a_sequential_block_costs_its_newborn_rows_an_mlp():
    config = ModelConfig(10, 2, 2, 4, 8, rotary_dims=2, parallel_residual=False)
    assert wave_flops(config, [3], births(config)).mlp == (3 * 384, 5 * 128)


def test_operations_of_a_tiny_wave_in_layer_and_position_are_those_counted_by_hand():
    config = ModelConfig(10, 2, 2, 4, 8, rotary_dims=2)
    # Rows: the stream before block 1 at the last position; before block 0 at the middle one.
    flops = patching_flops(config, 3, 5, [1, 0], [2, 1])
    # Block 0: the clean row's 3 positions, 6 pairs; 2 positions, which see 2 + 3.
    assert flops.qkv[0] == 5 * 2 * 4 * 12 * (3 + 2)
    assert flops.attention[0] == 5 * 4 * 4 * (6 + 5)
    assert flops.out[0] == 5 * 2 * 4 * 4 * (3 + 2)
    assert flops.mlp[0] == 5 * 4 * 4 * 8 * (3 + 2)
    # Block 1: keys and values at 3 + 1 + 2 positions, all else at the last of three rows.
    assert flops.qkv[1] == 5 * 2 * 4 * (4 * 3 + 8 * (3 + 1 + 2))
    assert flops.attention[1] == 5 * 4 * 4 * 3 * 3
    assert flops.out[1] == 5 * 2 * 4 * 4 * 3
    assert flops.mlp[1] == 5 * 4 * 4 * 8 * 3
    assert flops.unembed == 5 * 3 * 2 * 4 * 10
    assert flops.newborn == (0, 0)


def test_rows_of_all_positions_cost_what_the_wave_counts():
    config = scaling.config_of("70m")
    begun = births(config)
    behind = [layer + 1 for layer in begun]
    whole = wave_flops(config, [16] * 64, begun)
    found = patching_flops(config, 16, 64, behind, [0] * len(begun))
    assert found.total == whole.total - sum(whole.newborn)


@pytest.mark.parametrize(
    ("point", "apart", "first", "heads", "at_most"),
    [
        ("resid", "S", 0, 1, 1.06),
        pytest.param("z", "HS", 1, 8, 1.10, marks=pytest.mark.slow),
    ],
    ids=["steps × positions", "heads × positions"],
)
def test_the_wave_in_two_dimensions_makes_few_more_than_the_fewest_operations(
    point, apart, first, heads, at_most
):
    config = scaling.config_of("70m")

    def wave(params, tokens, lengths, pair):
        how = {"config": config, "point": point, "apart": apart}
        return patching_calls.patch.fun(params, tokens, tokens, lengths, pair, **how)

    tokens, pair = (jax.ShapeDtypeStruct(shape, np.int32) for shape in ((64, 16), (64, 2)))
    lengths = np.full(64, 16, np.int32)  # they decide which positions are held
    births = range(first, config.num_layers + 1)
    places = [(0, 0), *itertools.product(births, range(16), range(heads))]
    places = [place[:2] for place in places]
    least = patching_flops(config, 16, 64, *zip(*places, strict=True), tokens_read=2).total
    made = matrix_flops(wave, param_shapes(config), tokens, lengths, pair)
    assert least < made < at_most * least


def test_the_wave_makes_little_more_than_the_fewest_operations():
    config = scaling.config_of("70m")
    masks = head_ablation_masks(config.num_layers, config.num_heads)
    edits = [Edit(HeadEdit(masks, np.zeros((config.num_layers, 1, 1, 1, 1), np.float32)))]

    def wave(params, tokens, lengths, target):
        return sweep(params, tokens, lengths, config, edits, Answer(target, target))

    shapes = (jax.ShapeDtypeStruct(shape, np.int32) for shape in ((64, 16), (64,), (64,)))
    least = wave_flops(config, [16] * 64, births(config)).total
    assert least < matrix_flops(wave, param_shapes(config), *shapes) < 1.02 * least


@pytest.mark.usefixtures("users_programs")
def test_the_compiler_counts_the_products_that_we_count():
    x, w = (jax.ShapeDtypeStruct(shape, np.float32) for shape in ((5, 8, 32), (32, 96)))
    compiled = jax.jit(dot).lower(x, w).compile()
    assert compiled.cost_analysis()["flops"] == matrix_flops(dot, x, w)


def test_a_random_checkpoint_reads_words_as_their_tokens():
    with workload.checkpoint(workload.TINY) as folder:
        model = workload.jaxalign.load(str(folder))
        assert model.tokenizer.encode(workload.words([5, 0, 96])).ids == [5, 0, 96]
    assert not folder.exists()


@pytest.mark.slow
def test_the_baseline_of_the_study_makes_the_passes_that_the_study_stands_for(capsys):
    code, found = run(capsys, "study", "--quick", "--device", "cpu")
    assert (code, found["benchmark"]) == (0, "study")
    [one, every, last] = found["rows"]
    heads, prompts = 12, 3
    assert every["passes"] == last["passes"]
    assert one["passes"] == {kind: prompts * count for kind, count in every["passes"].items()}
    # Two tasks, one batch each; 3 precisions, 4 draws, 2 low precisions. Four rankings restore 10
    # heads in turn; 8 random orders, and 4 orders and 8 vectors a ranking, restore 1, 3 and 10.
    curves = 4 * 10 + (8 + 4 * (4 + 8)) * 3
    assert every["passes"] == {
        "clean": 2 * 3,
        "zero": 2 * heads,
        "mean": 2 * heads,
        "resample": 2 * 4 * heads,
        "zero in low precision": 2 * 2 * heads,
        "mean in low precision": 2 * 2 * heads,
        "resample in low precision": 2 * 2 * 4 * heads,
        "backward": 2,
        "restore": 2 * 2 * heads,
        "repair": 2 * 2 * curves,
    }
    assert all(row["largest_difference"] <= 1e-4 for row in found["rows"])
    assert not every["estimated"]


def test_a_share_of_the_passes_says_so():
    row = {"name": "all", "estimated": True, "passes": {"zero": 9}, "timed_passes": {"zero": 3}}
    assert study.described(row).endswith("estimated from 3 of 9 passes")


def test_a_point_that_would_take_too_long_is_skipped_and_says_so():
    options = scaling.parse(["--most-minutes", "1"])
    skipped = scaling.run_point(scaling.Point("1b", 4096, 512), Path("nowhere"), 1e12, options)
    assert "seconds" not in skipped
    assert skipped["skipped"].startswith("would take about ")
    assert "would take" in scaling.table(
        {"peak_gflops": 1, "axes": {"shape": [skipped]}, "fits": {}, "chunks": []}
    )


def test_the_exponent_of_time_is_that_of_the_line():
    points = [{"gflop": x, "seconds": 3 * x**1.5} for x in (1.0, 10.0, 100.0)]
    found = scaling.fit([*points, {"gflop": 1e9}])
    assert found["points"] == 3
    assert found["exponent"] == pytest.approx(1.5)
    assert found["low"] == pytest.approx(1.5, abs=1e-3)


def test_the_budget_grows_only_for_weights_that_would_fill_it():
    assert scaling.budget_of(scaling.Point("70m", 1, 8), 4.0) == 4.0
    assert scaling.budget_of(scaling.Point("1b", 1, 8), 4.0) == pytest.approx(8.6, abs=0.1)


def test_the_table_in_the_readme_is_that_of_the_kept_results():
    text = table.README.read_text(encoding="utf-8")
    assert text.count(table.BEGIN) == text.count(table.END) == 1
    assert table.rewritten(text, table.region()) == text, "run: python -m benchmarks table"


@pytest.mark.parametrize("file", sorted(record.RESULTS.glob("*.json")), ids=lambda f: f.stem)
def test_a_kept_result_is_whole_and_from_a_clean_tree(file):
    found = json.loads(file.read_text())
    assert found["benchmark"] == file.stem
    assert not found["quick"]
    # A "+" behind the commit says that the tree had changes that no commit holds.
    assert re.fullmatch(r"[0-9a-f]{7,40}", found["commit"])


def test_the_suite_starts_from_a_command_line():
    command = [sys.executable, "-m", "benchmarks"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "heads" in done.stdout


def test_what_a_gpu_run_measured_is_one_record_with_a_table(tmp_path):
    """A step that hung loses itself alone, and the table says which one."""
    ran_on = {"processor": "p", "cores": 2, "platform": "gpu", "device": "H", "commit": "c"}
    versions = {"versions": {"jax": "1", "torch": "2"}, "quick": False}
    one = {"benchmark": "command", "cold": {"median": 12.3}, "repeated": {"median": 6.5}}
    (tmp_path / "command.out").write_text("a table\n" + json.dumps(one | ran_on | versions))
    (tmp_path / "blocks.out").write_text("")
    (tmp_path / "blocks.err").write_text("no such device")
    (tmp_path / "tests.out").write_text("3 passed")
    steps = [("tests", 0), ("command", 0), ("blocks", 124)]
    lines = [json.dumps({"step": s, "exit": e, "seconds": 1, "limit": 2}) for s, e in steps]
    (tmp_path / "steps.jsonl").write_text("\n".join(lines))
    out = tmp_path / "gpu.json"
    assert gpu_json.main([str(tmp_path), str(out)]) == 1
    found = json.loads(out.read_text())
    assert found["device"] == "H"
    assert found["steps"]["command"]["record"] == one
    assert found["steps"]["tests"]["said"] == "3 passed"
    assert found["steps"]["blocks"]["said"] == "no such device"
    section = table.gpu_section(found)
    assert "H; p, 2 cores" in section
    assert "without a result: blocks" in section
    assert "| the command, cold; repeated | 12.3 s | 6.5 s |" in section


def test_importance_in_f64_is_that_of_the_wave(tiny_model):
    model = tiny_model
    prompts = workload.random_prompts(model.config, 3, 6)
    lengths = np.array([6, 4, 5])
    exact = float64.importance(model.params, model.config, prompts.tokens, lengths, prompts.target)
    found = workload.zero_ablation(
        model.params,
        prompts.tokens,
        lengths,
        prompts.target,
        config=model.config,
        rows=(0, exact.shape[1]),
    )
    assert exact.dtype == np.float64
    assert np.abs(exact).max() > 0.1
    np.testing.assert_allclose(np.asarray(found).T, exact, atol=1e-5)


def test_emulated_products_have_the_error_of_their_parts():
    x, w = np.random.default_rng(0).standard_normal((2, 64, 64), np.float32)
    exact = x.astype(np.float64) @ w
    x, w = jax.numpy.asarray(x), jax.numpy.asarray(w)
    errors = {}
    for name in products.EMULATED:
        with products.emulated(name):
            found = np.asarray(dot(x, w))
        errors[name] = np.abs(found - exact).max() / np.abs(exact).max()
    assert errors["bf16x6"] < 1e-6
    assert errors["tf32x3"] < 5e-6
    assert 1e-6 < errors["bf16x3"] < 1e-4
    assert 1e-4 < errors["tf32"] < 1e-2
    assert np.abs(np.asarray(dot(x, w)) - exact).max() < 1e-4  # and the plain one is back
