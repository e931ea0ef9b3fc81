"""Claims about the comparison of schemes: what it measures, its noise floors, its command."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pythia_shape import tiny_config
from scipy.special import rel_entr, softmax
from tiny_run import refusal, run, write_model, write_prompts

import jaxalign
from jaxalign import read, read_prompts
from jaxalign.calibration import preparer
from jaxalign.checkpoints.families import config_from_hf
from jaxalign.devices.mesh import make_mesh, shard_params
from jaxalign.measures.estimates import Estimate
from jaxalign.model.params import MATRICES, cast
from jaxalign.model.size import deployed_bytes, mean_bits
from jaxalign.numerics.scheme import F16, F32, scheme_named
from jaxalign.numerics.storage import packed_bits
from jaxalign.studies.schemes import SCHEMES, SchemesOptions
from jaxalign.studies.schemes.calls import compare, moved
from jaxalign.studies.schemes.result import Lottery
from jaxalign.studies.schemes.rivals import with_rivals
from jaxalign.study.tables import header
from jaxalign.study.weight_noise import low_matrices, noisy

INT4 = scheme_named("int4-g8")


@pytest.fixture(scope="module")
def tiny():
    config = config_from_hf(tiny_config())
    params = jax.tree.map(
        lambda leaf: leaf + 0.05 * jnp.sin(jnp.arange(leaf.size).reshape(leaf.shape)),
        jaxalign.init_params(jax.random.key(0), config),
    )
    tokens = jax.random.randint(jax.random.key(1), (3, 6), 0, config.vocab_size)
    return params, config, tokens, jnp.array([6, 4, 5])


def test_kl_agreement_and_margin_are_those_of_the_two_models_logits(tiny):
    params, config, tokens, lengths = tiny
    low = cast(params, INT4)
    target = jnp.array([1, 2, 3])
    found = compare(params, low, tokens, lengths, target, config=config, scheme=INT4)
    high, quantized = (
        np.asarray(
            jaxalign.forward(p, tokens, config, lengths=lengths, scheme=s).logits, np.float64
        )
        for p, s in ((params, F32), (low, INT4))
    )
    for b, length in enumerate(lengths):
        p, q = softmax(high[b, :length], axis=-1), softmax(quantized[b, :length], axis=-1)
        kl = rel_entr(p, q).sum(axis=-1).mean()
        np.testing.assert_allclose(found.kl[b], kl, rtol=1e-3)
        same = (p.argmax(axis=-1) == q.argmax(axis=-1)).mean()
        np.testing.assert_allclose(found.agreement[b], same, rtol=1e-6)
        last = quantized[b, length - 1]
        margin = last[target[b]] - np.delete(last, target[b]).max()
        np.testing.assert_allclose(found.margin[b], margin, atol=1e-4)
    assert float(found.kl.max()) > 1e-6


def test_a_model_beside_itself_moves_by_plan_noise_only(tiny):
    params, config, tokens, lengths = tiny
    target = jnp.array([1, 2, 3])
    f32 = compare(params, params, tokens, lengths, target, config=config, scheme=F32, alone=True)
    assert float(f32.kl.max()) < 1e-9
    assert float(f32.drift.max()) < 1e-5
    half = cast(params, F16)
    how = {"config": config, "scheme": F16, "reference_scheme": F16}
    together = compare(half, half, tokens, lengths, target, **how)
    assert float(together.kl.max()) == 0
    assert float(together.agreement.min()) == 1


def test_prompts_that_are_dealt_to_devices_give_what_one_device_gives(tiny):
    params, config, *_ = tiny
    tokens = jax.random.randint(jax.random.key(1), (4, 6), 0, config.vocab_size)
    given = tokens, jnp.array([6, 4, 5, 6]), jnp.array([1, 2, 3, 4])
    how = {"config": config, "scheme": F32, "alone": True}
    mesh = make_mesh(jax.devices()[:4], 2)
    spread = shard_params(params, mesh, config)
    one = compare(params, params, *given, **how)
    four = compare(spread, spread, *given, mesh=mesh, **how)
    assert four.kl.is_fully_replicated
    np.testing.assert_allclose(four.margin, one.margin, atol=1e-5)
    np.testing.assert_allclose(four.kl, one.kl, atol=1e-9)


def test_weight_noise_is_as_large_as_the_schemes_error_in_every_matrix_and_head(tiny):
    params, config, *_ = tiny
    low = cast(params, INT4)
    moved = noisy(params, low, jax.random.key(3), config)
    for layer in range(config.num_layers):
        high, error = (
            jax.tree.map(lambda leaf, layer=layer: leaf[layer], tree.blocks)
            for tree in (params, low)
        )
        wanted = low_matrices(high, error, config)
        assert set(wanted) <= set(MATRICES)
        for name, matrix in wanted.items():
            owner = "attention" if name in ("query", "key_value", "out") else "mlp"
            before, after = (
                np.asarray(getattr(getattr(tree.blocks, owner), name)[layer])
                for tree in (params, moved)
            )
            np.testing.assert_allclose(
                np.linalg.norm(after - before), np.linalg.norm(matrix - before), rtol=1e-4
            )
            assert np.abs(after - np.asarray(matrix)).max() > 1e-4
    same = [(a == b).all() for a, b in zip(moved.embed, params.embed, strict=True)]
    assert all(same)


def test_weight_noise_of_every_matrix_and_layer_is_drawn_by_itself(tiny):
    """One draw for all would add up along the residual stream, as no rounding error does."""
    params, config, *_ = tiny
    moved = noisy(params, cast(params, INT4), jax.random.key(3), config)
    noise = jax.tree.map(lambda a, b: np.asarray(a - b), moved.blocks, params.blocks)
    draws = [leaf[layer].ravel() for leaf in (noise.mlp.up, noise.mlp.down) for layer in (0, 1)]
    draws += [leaf[layer].ravel() for leaf in (noise.attention.query,) for layer in (0, 1)]
    for i, one in enumerate(draws):
        for other in draws[:i]:
            size = min(len(one), len(other))
            assert abs(np.corrcoef(one[:size], other[:size])[0, 1]) < 5 / size**0.5


def test_sizes_count_codes_scales_and_zero_points():
    config = config_from_hf(tiny_config())
    assert mean_bits(config, F16) == 16
    assert deployed_bytes(config, F32) == 2 * deployed_bytes(config, F16)
    width = config.hidden_size
    bits = packed_bits(width, width, INT4.weights) / width**2
    assert 4 < bits < 8
    assert mean_bits(config, INT4) == pytest.approx(bits)  # both widths hold whole groups
    assert deployed_bytes(config, INT4) < deployed_bytes(config, F16)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("schemes")
    return write_model(folder / "model"), write_prompts(folder / "prompts.json")


def test_the_command_prints_and_writes_a_row_for_every_scheme(inputs, tmp_path):
    model, prompts = inputs
    output = tmp_path / "schemes.json"
    ran = run(
        "schemes", "--device", "cpu", "--model", model, "--prompts", prompts,
        "--schemes", "f16,int4-g8", "--noise-draws", "3", "--output", output,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    content = json.loads(output.read_text())
    names = [row["scheme"] for row in content["rows"]]
    assert names == ["f32", "f16", "int4-g8"]
    f32, f16, int4 = content["rows"]
    assert f32["kl"]["value"] == 0
    assert f32["kl_floor"]["below"]
    assert f16["kl_floor"]["weights"] is None  # the weights on disk are f16 already
    assert int4["kl"]["value"] > 100 * int4["kl_floor"]["batching"]
    assert int4["kl_floor"]["weights"] > 0
    assert int4["bits"] < f16["bits"] < f32["bits"]
    for name in names[1:]:  # f32 is what the others are compared with
        assert f"\n{name}" in ran.out
    assert len(int4["kl_floor"]["draws"]) == 3
    assert int4["kl_floor"]["corrected"] >= int4["kl_floor"]["p"]
    assert int4["lottery"] is None  # rounding to the nearest has no ties that cascade
    assert f16["rival"]["scheme"] == "int4-g8"
    assert f16["rival"]["difference"]["value"] < 0
    assert int4["rival"] is None  # nothing else is as small
    assert (tmp_path / "figures" / "schemes.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("schemes", "said"),
    [
        ("nf5", "nf4"),
        ("int4-g128x", "int4-g128"),
        (",", "names no scheme"),
        ("int4-g7", "do not divide"),
    ],
)
def test_schemes_that_cannot_be_used_are_refused_by_name(inputs, tmp_path, schemes, said):
    model, prompts = inputs
    line = refusal(
        "schemes", "--device", "cpu", "--model", model, "--prompts", prompts,
        "--schemes", schemes, "--output", tmp_path / "s.json",
    )  # fmt: skip
    assert said in line
    assert not (tmp_path / "s.json").exists()


DEMO = Path(__file__).parent.parent / "results" / "demo" / "schemes.json"


def screen(result):
    lines = SCHEMES.table(result).splitlines()
    assert max(map(len, lines)) <= 100
    assert len(lines) <= 35
    assert lines[0] == header("schemes", result.provenance)
    return lines


def many(result, count):
    """A result with that many schemes of long names."""
    row = next(row for row in result.rows if row.scheme == "gptq-g64")
    rows = [replace(row, scheme=f"a-scheme-of-a-long-name-g64@{i}") for i in range(count)]
    return replace(result, rows=(*result.rows, *rows))


def test_the_answer_is_one_screen_whatever_the_schemes():
    result = read(DEMO)
    assert any(line.startswith("nf4 ") for line in screen(result))
    assert any("more: --verbose" in line for line in screen(many(result, 40)))
    alone = replace(result, rows=result.rows[:1])
    assert screen(alone)
    assert "int4-g64" in SCHEMES.details(result)


def test_a_lead_that_is_not_told_from_0_after_correction_is_the_same():
    result = read(DEMO)
    row = next(row for row in result.rows if row.scheme == "int4-g64")
    changed = Estimate(-0.1, -0.17, -0.04, 0.01)
    for corrected, said in ((0.04, "-0.100 ± 0.065"), (0.06, "same")):
        one = replace(row, margin_change=changed, change_corrected=corrected)
        [line] = [x for x in screen(replace(result, rows=(one,))) if x.startswith("int4-g64 ")]
        assert said in line


def row_of(result, **changes):
    return replace(next(row for row in result.rows if row.scheme == "nf4"), **changes)


def test_a_scheme_stands_beside_the_best_of_at_most_its_size():
    rng = np.random.default_rng(0)
    kl = {name: mean * rng.uniform(0.5, 1.5, 60) for name, mean in (("a", 1), ("b", 2), ("c", 3))}
    kl["d"] = kl["a"] + 0.2 * rng.standard_normal(60)
    rows = [
        row_of(
            read(DEMO), scheme=name, bits=bits, kl=Estimate(float(kl[name].mean())), lottery=None
        )
        for name, bits in (("a", 4.5), ("b", 4.5), ("c", 4.0), ("d", 8.0))
    ]
    found = {row.scheme: row.rival for row in with_rivals(rows, kl, 0)}
    assert {name: rival and (rival.scheme, rival.verdict) for name, rival in found.items()} == {
        "a": ("b", "less"),
        "b": ("a", "more"),
        "c": None,
        "d": ("a", "not told apart"),
    }
    assert all(r.corrected >= r.difference.p for r in found.values() if r)


def test_a_difference_that_the_lottery_reaches_is_not_told_apart():
    kl = {"a": np.linspace(0.9, 1.1, 50), "b": np.linspace(1.0, 1.2, 50)}
    for high, verdict in ((1.05, "less"), (1.15, "not told apart")):
        lottery = Lottery(kl=(1.0, high), sd=0.1, low=1.0, high=high)
        rows = [
            row_of(read(DEMO), scheme="a", bits=4, kl=Estimate(1.0), lottery=lottery),
            row_of(read(DEMO), scheme="b", bits=4, kl=Estimate(1.1), lottery=None),
        ]
        rival = with_rivals(rows, kl, 0)[0].rival
        assert (rival.verdict, rival.within_lottery) == (verdict, high > 1.1)


@pytest.mark.slow
def test_the_lottery_moves_weights_by_a_millionth_and_gptq_by_much_more(inputs):
    """Where weights stand half-way between two codes, each draw is another KL."""
    model = jaxalign.load(str(inputs[0]))
    # The first group's scale is 0.01, so all but its first two inputs stand at a tie.
    group = np.array([0.0, 0.15] + [0.005] * 6, np.float32)
    up = model.params.blocks.mlp.up.at[:, :8].set(group[:, None])
    blocks = replace(model.params.blocks, mlp=replace(model.params.blocks.mlp, up=up))
    model = replace(model, params=replace(model.params, blocks=blocks))
    params = moved(model.params, jax.random.key(0))
    change = np.asarray(params.blocks.mlp.up / up - 1)[:, 8:]
    assert 0.9e-6 < change.std() < 1.1e-6
    assert (params.embed == model.params.embed).all()
    prompts = read_prompts(inputs[1])
    asked = SchemesOptions(schemes=("gptq-g8", "int4-g8"), noise_draws=1, lottery_draws=2)
    prepare = preparer(model, prompts.reference)
    gptq, nearest = SCHEMES(model, prompts, asked, prepare=prepare).rows[1:]
    assert nearest.lottery is None
    assert len(gptq.lottery.kl) == 2
    assert gptq.lottery.low < gptq.lottery.high
    assert gptq.lottery.sd / gptq.kl.value > 1e-3
