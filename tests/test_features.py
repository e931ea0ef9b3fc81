"""The features study: its measures against plain NumPy, planted cases, and the command."""

import json
from dataclasses import replace
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats as scipy_stats
from test_dictionaries import random_dictionary
from tiny_run import refusal, run, write_model

import jaxalign
from jaxalign.checkpoints.dictionaries import DictionaryFacts, TrainedDictionary, save_dictionary
from jaxalign.demo.corpus import is_reserved
from jaxalign.demo.texts import unseen_documents
from jaxalign.dictionaries import decode, encode
from jaxalign.engine.activations import activations_at, activations_below, blocks_below
from jaxalign.measures import stats
from jaxalign.numerics import F32
from jaxalign.numerics.scheme import scheme_named
from jaxalign.prompts import cut_windows, first_tokens
from jaxalign.prompts.named_texts import named_texts
from jaxalign.studies.features import FEATURES
from jaxalign.studies.features.against import against, alike
from jaxalign.studies.features.calls import work_of
from jaxalign.studies.features.floors import group_noisy, pruned, share_of
from jaxalign.studies.features.moments import compare
from jaxalign.studies.features.quality import first_left_out, measure_quality
from jaxalign.studies.features.rows import CONTROLS, Floor
from jaxalign.studies.features.sources import Source, open_sources
from jaxalign.studies.features.survival import (
    judged,
    kendalls_w,
    lost_over_documents,
    summaries,
    survival,
    unexplained,
    unlike_over_documents,
)
from jaxalign.studies.features.untrained import (
    as_read,
    controls,
    random_directions,
    token_directions,
)
from jaxalign.study.weight_noise import low_matrices

GROUPS, TOKENS, FEATURES_ = 12, 400, 30


def activations(seed, share=0.3):
    """Sparse activations of some documents, [groups, tokens, features]."""
    rng = np.random.default_rng(seed)
    size = rng.gamma(2.0, size=(GROUPS, TOKENS, FEATURES_))
    return size * (rng.random(size.shape) < share)


def sums(a, b):
    """What a pass adds up, group by group."""
    d = b - a
    return {
        "tokens": np.full(len(a), a.shape[1], float),
        "a": a.sum(1), "d": d.sum(1), "aa": (a * a).sum(1), "dd": (d * d).sum(1),
        "ad": (a * d).sum(1), "fired": (a > 0).sum(1).astype(float),
        "low_fired": (b > 0).sum(1).astype(float), "both": ((a > 0) & (b > 0)).sum(1).astype(float),
    }  # fmt: skip


def whole(parts):
    return {name: value.sum(axis=0) for name, value in parts.items()}


def flat(a):
    return a.reshape(-1, a.shape[-1])


@pytest.mark.parametrize("size", [1.0, 1e-2, 1e-5])
def test_survival_is_that_of_two_passes_over_the_activations(size):
    a = activations(0)
    b = np.maximum(a + size * np.random.default_rng(1).normal(size=a.shape) * (a > 0), 0)
    found, x, y = survival(whole(sums(a, b))), flat(a), flat(b)
    for f in range(FEATURES_):
        u, v = x[:, f] - x[:, f].mean(), y[:, f] - y[:, f].mean()
        u, v = u / np.linalg.norm(u), v / np.linalg.norm(v)
        # 1 − cos is half of the squared distance of unit vectors: exact near 1, too.
        np.testing.assert_allclose(found.lost[f], ((u - v) ** 2).sum() / 2, rtol=1e-6)
        line = scipy_stats.linregress(x[:, f], y[:, f])
        np.testing.assert_allclose(found.slope[f], line.slope, rtol=1e-9)
        np.testing.assert_allclose(1 - found.lost[f], line.rvalue, rtol=1e-9)
        on, low = x[:, f] > 0, y[:, f] > 0
        np.testing.assert_allclose(found.overlap[f], (on & low).sum() / (on | low).sum())
        np.testing.assert_allclose(found.rate[f], low.sum() / on.sum())


def test_a_rescaled_feature_survives_a_rotated_one_does_not_and_a_dead_one_is_dead():
    a = activations(2)
    b = a.copy()
    b[..., 0] *= 0.7
    b[..., 1] = a[..., 2]
    b[..., 3] = 0
    a[..., 4] = 0
    found = survival(whole(sums(a, b)))
    assert found.lost[0] < 1e-12
    assert found.slope[0] == pytest.approx(0.7)
    assert found.lost[1] > 0.9
    assert (found.lost[3], found.overlap[3], found.rate[3]) == (1, 0, 0)
    assert np.isnan(found.lost[4])
    assert np.isnan(found.slope[4])
    untouched = found.lost[5:]
    assert (untouched == 0).all()
    assert not judged(sums(a, b), 20)[4]


def noisy(a, seed, size=0.3):
    rng = np.random.default_rng(seed)
    return np.maximum(a + size * rng.normal(size=a.shape) * (a > 0), 0)


def one_more(own, floors):
    """The p of one more draw, of the logarithm of what is lost."""
    value, draws = np.log(np.nansum(own)), np.log([np.nansum(one) for one in floors])
    return float(stats.beyond_draws(value, draws))


def against_floor(own_size, seed, change=lambda b: b):
    a = activations(3)
    weights = stats.bootstrap_weights(GROUPS, np.random.default_rng(0))
    own = unexplained(sums(a, change(noisy(a, seed, own_size))))
    floors = [unexplained(sums(a, noisy(a, seed + 10 + i))) for i in range(5)]
    found = against(own, floors, weights, np.random.default_rng(1))
    return Floor(
        lost=1.0, worst=1.0, unlike=1.0, ratio=found.ratio, worst_ratio=found.worst,
        order=found.ratio, order_draws=None, shared=None, curve=(), one_more=one_more(own, floors),
    )  # fmt: skip


def test_groups_of_documents_add_up_to_what_a_line_does_not_explain():
    a = activations(9)
    b = 0.6 * noisy(a, 1) + 0.2 * (a > 0)
    b[..., 0] = 0
    parts, each = unexplained(sums(a, b)), survival(whole(sums(a, b)))
    assert parts.shape == (GROUPS, FEATURES_)
    np.testing.assert_allclose(parts.sum(axis=0)[1:], 1 - (1 - each.lost[1:]) ** 2, rtol=1e-9)
    assert parts[:, 0].sum() == pytest.approx(1)
    x, y = flat(a)[:, 5], flat(b)[:, 5]
    line = scipy_stats.linregress(x, y)
    rest = (y - line.intercept - line.slope * x).reshape(GROUPS, TOKENS)
    ours = parts[:, 5]
    np.testing.assert_allclose(ours, (rest**2).sum(axis=1) / ((y - y.mean()) ** 2).sum(), rtol=1e-6)


def test_noise_of_the_floors_size_has_ratio_one_and_other_sizes_are_told():
    same = [against_floor(0.3, seed) for seed in range(0, 400, 20)]
    for ratio in ("ratio", "worst_ratio"):
        found = [getattr(floor, ratio) for floor in same]
        assert np.mean([each.low <= 1 <= each.high for each in found]) >= 0.85
        assert all(each.low < each.value < each.high for each in found)
    verdicts = [floor.verdict for floor in same]
    assert verdicts.count("what") >= 17
    more, less = against_floor(0.33, 1), against_floor(0.27, 1)
    assert (more.verdict, less.verdict) == ("more", "less")
    assert more.ratio.value == pytest.approx(1.21, abs=0.08), "it goes with the square"


def test_a_rescaling_is_no_damage_beside_noise():
    plain, scaled = (against_floor(0.3, 1, change) for change in (lambda b: b, lambda b: 0.5 * b))
    assert scaled.ratio.value == pytest.approx(plain.ratio.value)
    assert scaled.ratio.p == plain.ratio.p


def test_features_that_lose_on_few_tokens_have_an_interval_around_their_ratio():
    """Resamples of documents without these tokens lose nothing."""
    a = activations(11)
    rng = np.random.default_rng(2)

    def flipped(rate):
        return np.where(rng.random(a.shape) < rate, 0, a)

    weights = stats.bootstrap_weights(GROUPS, np.random.default_rng(0))
    own = unexplained(sums(a, flipped(1e-2)))
    floors = [unexplained(sums(a, flipped(5e-3))) for _ in range(5)]
    found = against(own, floors, weights, np.random.default_rng(1)).ratio
    assert found.low < found.value < found.high
    assert found.value == pytest.approx(2, rel=0.3)
    assert found.low > 1


def test_summaries_are_of_the_features_that_are_judged():
    a = activations(4)
    b = noisy(a, 5)
    kept = np.arange(FEATURES_) < 20
    found = summaries(sums(a, b), kept)
    each = survival(whole(sums(a, b)))
    lost = np.sort(1 - (1 - each.lost[:20]) ** 2)
    wanted = [lost.mean(), lost[-1:].mean(), 1 - each.overlap[:20].mean()]
    np.testing.assert_allclose(found, wanted, rtol=1e-9)
    b[..., 3] = 0  # falls silent
    assert summaries(sums(a, b), kept)[1] == 1


def test_intervals_over_documents_are_of_documents_drawn_again():
    a = activations(6)
    b = noisy(a, 7)
    kept = np.arange(FEATURES_) < 20
    weights = stats.bootstrap_weights(GROUPS, np.random.default_rng(3), 200)
    lost = lost_over_documents(sums(a, b), kept, weights)
    unlike = unlike_over_documents(sums(a, b), kept, weights)
    again = []
    for row in weights:
        times = np.rint(row * GROUPS).astype(int)
        one = sums(np.repeat(a, times, axis=0), np.repeat(b, times, axis=0))
        again.append(summaries(one, kept))
    for found, column in ((lost, 0), (unlike, 2)):
        assert found.value == pytest.approx(summaries(sums(a, b), kept)[column])
        ends = np.percentile(np.array(again)[:, column], (2.5, 97.5))
        width = ends[1] - ends[0]
        # Of what is lost the line through each feature stays that of all documents.
        np.testing.assert_allclose((found.low, found.high), ends, atol=0.1 * width)


def test_a_scheme_that_damages_what_noise_damages_is_alike():
    rng = np.random.default_rng(0)
    size = rng.random(300)
    own, floor = (size + 0.01 * rng.random(300) for _ in range(2))
    found = alike(own, floor, 0.9, np.random.default_rng(1))
    assert found.order.value == pytest.approx(scipy_stats.spearmanr(own, floor).statistic)
    assert found.order.low < found.order.value < found.order.high
    assert found.order.p == pytest.approx(1 / 10_001)
    end = 1 - 0.9**2
    both = (own > end) & (floor > end)
    assert found.shared == both.sum() / ((own > end) | (floor > end)).sum()
    apart = alike(own, rng.permutation(floor), 0.9, np.random.default_rng(1)).order
    assert apart.p > 0.05
    assert apart.low < 0 < apart.high
    assert np.isnan(alike(own * 0, floor * 0, 0.9, rng).shared)


def test_what_is_read_without_the_blocks_above_is_what_the_whole_model_has(model):
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 4096, (2, 9)), jnp.int32)
    lengths = jnp.array([9, 6])
    for place in (("resid", 0), ("resid", 1), ("mlp_out", 0), ("mlp_out", 1), ("final_norm", None)):
        given = model.params, tokens, lengths, model.config, (place,)
        [below], [whole] = activations_below(*given), activations_at(*given)[0]
        assert np.array_equal(below, whole), place
    assert blocks_below((("resid", 1), ("resid", 2)), model.config) == 2
    assert blocks_below((("final_norm", None),), model.config) == model.config.num_layers


def test_kendalls_w_is_that_of_friedmans_test():
    shares = np.random.default_rng(8).random((6, 5)).round(1)
    chi, _ = scipy_stats.friedmanchisquare(*shares.T)
    assert kendalls_w(shares) == pytest.approx(chi / (6 * 4))
    order = np.tile(np.arange(5.0), (6, 1))
    assert kendalls_w(order) == 1
    assert np.isnan(kendalls_w(np.ones((6, 5))))
    assert np.isnan(kendalls_w(np.ones((6, 1))))


def test_the_share_of_removed_weights_is_found_between_those_measured():
    shares, found = np.array([0.1, 0.2, 0.4]), np.array([1.9, 2.2, 3.0])
    assert share_of(2.2, 2.0, shares, found) == pytest.approx(0.2)
    part = np.log(0.6 / 0.2) / np.log(1.0 / 0.2)  # rises grow by a factor a step
    assert share_of(2.6, 2.0, shares, found) == pytest.approx(0.2 + 0.2 * part)
    # Below the first rise there is no factor: a line from where nothing is removed.
    assert share_of(2.1, 2.0, shares, found) == pytest.approx(0.15)
    assert share_of(1.95, 2.0, shares, found) is None
    assert share_of(3.5, 2.0, shares, found) is None


# On a model.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("features") / "model")


@pytest.fixture(scope="module")
def model(folder):
    return jaxalign.load(str(folder))


def test_a_call_adds_up_what_numpy_adds_up(model):
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 4096, (4, 9)).astype(np.int32)
    lengths = np.array([9, 7, 9, 3], np.int32)
    counted = (np.arange(9) < lengths[:, None]) & (np.arange(9) > 0)
    predicted = np.arange(9) < lengths[:, None]
    segment = np.array([0, 0, 1, 1], np.int32)
    d = random_dictionary("topk", width=32)
    low = jaxalign.cast(model.params, scheme_named("int4-channel"))
    out = compare(
        model.params, low, (d,), tokens, lengths, counted, predicted, segment, config=model.config,
        scheme=F32, places=(("resid", 2),), segments=2,
    )  # fmt: skip
    runs = [
        jaxalign.forward(
            params,
            jnp.asarray(tokens),
            model.config,
            lengths=jnp.asarray(lengths),
            capture=("resid",),
        )
        for params in (model.params, low)
    ]
    a, b = (np.asarray(encode(d, r.activations["resid"][1]), np.float64) for r in runs)
    a, b = a * counted[..., None], b * counted[..., None]
    [found] = out.features
    for part in (0, 1):
        x, y = a[segment == part], b[segment == part]
        for name, value in sums(x.reshape(1, -1, 40), y.reshape(1, -1, 40)).items():
            if name != "tokens":
                np.testing.assert_allclose(getattr(found, name)[part], value[0], atol=2e-4)
        np.testing.assert_allclose(found.top[part], x.max(axis=(0, 1)), rtol=1e-5)
        assert float(found.tokens[part]) == counted[segment == part].sum()
    x = np.asarray(runs[0].activations["resid"][1], np.float64)
    y = np.asarray(decode(d, jnp.asarray(a, jnp.float32), jnp.asarray(x, jnp.float32)))
    missed = (((x - y) * counted[..., None]) ** 2).sum(axis=(1, 2))
    np.testing.assert_allclose(found.missed, [missed[:2].sum(), missed[2:].sum()], rtol=1e-4)
    logits = [np.asarray(r.logits, np.float64) for r in runs]
    logp = [v - np.log(np.exp(v).sum(-1, keepdims=True)) for v in logits]
    kl = (np.exp(logp[0]) * (logp[0] - logp[1])).sum(-1) * counted
    np.testing.assert_allclose(out.predictions.kl, [kl[:2].sum(), kl[2:].sum()], rtol=1e-3)
    nll = -np.take_along_axis(logp[0][:, :-1], tokens[:, 1:, None], -1)[..., 0] * predicted[:, 1:]
    np.testing.assert_allclose(out.predictions.loss, [nll[:2].sum(), nll[2:].sum()], rtol=1e-4)


@pytest.mark.parametrize("how", [{}, {"alone": True, "predict": False}, {"chance": True}])
def test_devices_that_share_windows_add_up_to_what_one_adds_up(model, how):
    import jax

    from jaxalign.devices.mesh import make_mesh, shard_packed, shard_params

    rng = np.random.default_rng(1)
    tokens = rng.integers(0, 4096, (4, 9)).astype(np.int32)
    lengths = np.array([9, 7, 9, 3], np.int32)
    counted = (np.arange(9) < lengths[:, None]) & (np.arange(9) > 0)
    given = (random_dictionary("topk", width=32),), tokens, lengths, counted, counted
    segment, low = (
        np.array([0, 0, 1, 1], np.int32),
        jaxalign.cast(model.params, scheme_named("int4-channel")),
    )
    low = model.params if "chance" in how else low
    found = []
    for mesh in (None, make_mesh(jax.devices()[:2], 1), make_mesh(jax.devices()[:4], 1)):
        params = shard_params(model.params, mesh, model.config)
        out = compare(
            params, shard_packed(low, mesh), *given, segment, config=model.config, scheme=F32,
            places=(("resid", 2),), segments=2, mesh=mesh, **how,
        )  # fmt: skip
        found.append(jax.tree.map(np.asarray, out))
    if "chance" in how:  # with other tokens, whatever a device has of them: one window on four
        for out in found:
            assert all((each.dd.sum(), each.low_fired.sum()) > (1, 1) for each in out.features)
        return
    for out in found[1:]:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found[0], out
        )


def test_noise_has_the_norm_of_the_error_in_each_group_and_pruning_the_share(model):
    import jax

    scheme = scheme_named("int3-g16")
    low = jaxalign.cast(model.params, scheme)
    moved = group_noisy(model.params, low, jax.random.key(0), config=model.config, group=16)
    block = jax.tree.map(lambda a: a[0], (model.params.blocks, low.blocks, moved.blocks))
    target = low_matrices(block[0], block[1], model.config)["up"]
    error, noise = (np.asarray(w - block[0].mlp.up) for w in (target, block[2].mlp.up))
    for part in range(0, 32, 16):
        ours, theirs = (np.linalg.norm(e[part : part + 16], axis=0) for e in (noise, error))
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    cut = np.asarray(pruned(model.params, jnp.float32(0.3)).blocks.mlp.up)
    assert (cut == 0).mean() == pytest.approx(0.3, abs=0.01)
    kept = cut != 0
    assert np.array_equal(cut[kept], np.asarray(model.params.blocks.mlp.up)[kept])


def dictionary_of(model, folder, **facts):
    own = {
        "layout": "sae_lens", "model": "m", "point": "resid", "step": 2, "prepend_bos": False,
        "weights_sha256": model.weights_sha256,
    }  # fmt: skip
    d = random_dictionary("topk", width=32)
    trained = TrainedDictionary(dictionary=d, facts=DictionaryFacts(**{**own, **facts}))
    save_dictionary(trained, folder)
    return folder


@pytest.fixture(scope="module")
def study(folder, model, tmp_path_factory):
    place = tmp_path_factory.mktemp("study")
    sae = dictionary_of(model, place / "sae")
    ran = run(
        "features", "--model", folder, "--device", "cpu", "--sae", sae, "--schemes",
        "int4-channel,int2-channel", "--noise-draws", 2, "--group-noise", "--tokens",
        1500, "--window", 32, "--effects", 0, "--cards", 0, "--output", place / "features.json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    return ran, FEATURES.read(place / "features.json"), place


def test_the_command_says_what_happened_and_writes_it(study):
    ran, result, place = study
    [own] = result.dictionaries
    assert [row.scheme for row in own.rows] == ["int4-channel", "int2-channel"]
    assert not own.valid, "a random dictionary explains nothing"
    assert "No dictionary explains enough" in ran.out
    assert own.chance[0] > 0.5 > own.rows[0].lost.value > own.batching[0]
    four, two = own.rows
    assert two.lost.value > four.lost.value
    assert two.survives < four.survives
    for row in own.rows:
        assert row.survives + row.blurred + row.destroyed == pytest.approx(1)
        assert np.isfinite(row.rho).sum() == own.judged
        assert len(row.tensor.draws) == 2
        assert row.lost.low <= row.lost.value <= row.lost.high
        assert row.dead + row.rare + row.common + row.frequent == pytest.approx(1)
    assert result.predictions[0].kl.value == 0
    assert {path.suffix for path in (place / "figures").iterdir()} == {".png", ".svg"}
    assert len(result.records()) == 2
    assert max(map(len, result.summary().splitlines())) <= 100
    assert result.summary() in ran.out
    assert "int2-channel ÷ group" in result.details()


def edited(content, path, value):
    """A result with one value of its first dictionary changed."""
    *way, last = path.split("/")
    own = content["dictionaries"][0]
    for step in way:
        own = own[int(step) if step.isdecimal() else step]
    own[int(last) if last.isdecimal() else last] = value


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("rows/0/tensor/one_more", -3.0, "one_more of a floor is -3.0, expected a share"),
        ("rows/0/tensor/ratio/p", 1.5, "p is 1.5, expected 0 … 1"),
        ("rows/0/tensor/curve", [0.5], "the curve of int4-channel's tensor has another length"),
        ("rows/0/rho/0", 5.0, "rho of int4-channel is 5.0"),
        ("rows/0/survives", -0.1, "survives of int4-channel is -0.1"),
        ("rows/0/slopes", [], "rho, overlap and slopes of different lengths"),
        ("dead", 1.5, "dead of resid after L1 .* is 1.5"),
        ("peak", [1.0], "peak has another length than 40 features"),
        ("rows", [], "a dictionary has no row"),
        ("untrained/0/rows/0/scheme", "nf4", "random directions stand beside other schemes"),
    ],
)
def test_a_result_that_was_edited_is_refused(study, tmp_path, path, value, said):
    _, _, place = study
    content = json.loads((place / "features.json").read_text())
    edited(content, path, value)
    (tmp_path / "f.json").write_text(json.dumps(content))
    with pytest.raises(jaxalign.InputError, match=said):
        FEATURES.read(tmp_path / "f.json")


@pytest.mark.parametrize("which", range(len(CONTROLS)))
def test_a_control_is_read_like_a_dictionary_of_its_own(folder, model, study, tmp_path, which):
    ran, result, place = study
    beside = result.dictionaries[0].untrained[which]
    assert beside.name == CONTROLS[which]
    [source] = open_sources(model, [str(place / "sae")], "refuse")
    texts, _ = named_texts("demo", "m")
    windows = first_tokens(
        cut_windows(texts, model.tokenizer, window=32, config=model.config), 1500
    )
    session = SimpleNamespace(
        estimate=False, model=model, config=model.config, devices=1,
        free=lambda *trees: 1e9,
    )  # fmt: skip
    work = work_of(session, [source], windows, last=False)
    control = controls([source], session, work, 0)[which]
    save_dictionary(control.trained, tmp_path / "sae")
    ran = run(
        "features", "--model", folder, "--device", "cpu", "--sae", tmp_path / "sae", "--schemes",
        "int4-channel,int2-channel", "--noise-draws", 2, "--group-noise", "--tokens",
        1500, "--window", 32, "--effects", 0, "--cards", 0, "--output", tmp_path / "f.json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    [alone] = FEATURES.read(tmp_path / "f.json").dictionaries
    assert alone.judged == beside.judged > 10
    assert alone.explained == pytest.approx(beside.explained, rel=1e-4)
    short = ("random", "tokens")[which]
    for own, other, record in zip(alone.rows, beside.rows, result.records(), strict=True):
        np.testing.assert_allclose(own.rho, other.rho, rtol=1e-4)
        assert own.tensor.ratio.value == pytest.approx(other.tensor.ratio.value, rel=1e-4)
        assert own.group.ratio.value == pytest.approx(other.group.ratio.value, rel=1e-4)
        assert record[f"{short}.value"] == other.tensor.ratio.value
        assert record[("random_survives", "tokens_survive")[which]] == other.survives
    assert f"{beside.name}, {alone.rows[0].scheme} ÷ tensor" in result.details()


def stream_of(model, windows):
    """The stream at the dictionary's place, of the tokens that are read."""
    (x,), _ = activations_at(
        model.params, jnp.asarray(windows.tokens), jnp.asarray(windows.lengths), model.config,
        (("resid", 2),),
    )  # fmt: skip
    return np.asarray(x)[first_left_out(windows)]


def test_controls_are_unit_directions_that_read_what_they_write():
    d = random_dictionary("relu", width=32)
    rng = np.random.default_rng
    x = rng(0).standard_normal((50, 32)) * np.linspace(0.1, 3, 32) + 5
    for directions in (
        random_directions(40, 32, rng(1)), token_directions(x, 40, rng(1)),
        token_directions(x, 70, rng(1)),
    ):  # fmt: skip
        control = as_read(directions, 5, np.arange(32, dtype=np.float32), d)
        np.testing.assert_allclose(np.linalg.norm(control.decoder, axis=1), 1, rtol=1e-6)
        np.testing.assert_array_equal(control.encoder, control.decoder.T)
        assert (control.kind, control.k, control.features) == ("topk", 5, len(directions))
    tokens = token_directions(x, 40, rng(1))
    centred = x - x.mean(axis=0)
    cosines = np.abs(tokens @ (centred / np.linalg.norm(centred, axis=1, keepdims=True)).T)
    np.testing.assert_allclose(cosines.max(axis=1), 1, rtol=1e-5)
    assert len({*cosines.argmax(axis=1).tolist()}) == 40, "each token once"


def test_as_many_directions_are_active_as_features_of_a_dictionary_without_k(model):
    d = random_dictionary("relu", width=32)
    facts = DictionaryFacts(layout="sae_lens", point="resid", step=2, sha256="a" * 64)
    source = Source(trained=TrainedDictionary(dictionary=d, facts=facts), place=("resid", 2))
    texts, _ = named_texts("demo", "m")
    windows = cut_windows(texts[:20], model.tokenizer, window=32, config=model.config)
    x = stream_of(model, windows)
    session = SimpleNamespace(
        estimate=False, model=model, config=model.config, devices=1, free=lambda *trees: 1e9
    )
    for control in controls([source], session, work_of(session, [source], windows, False), 0):
        own = control.dictionary
        assert own.k == round(float((encode(d, jnp.asarray(x)) > 0).sum(axis=-1).mean()))
        np.testing.assert_allclose(own.decoder_bias, x.mean(axis=0), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_pruned_weights_of_the_same_perplexity_stand_beside_a_scheme(folder, study, tmp_path):
    _, _, place = study
    ran = run(
        "features", "--model", folder, "--device", "cpu", "--sae", place / "sae", "--schemes",
        "int2-channel", "--noise-draws", 0, "--pruning", "--tokens", 600, "--window", 32,
        "--output", tmp_path / "f.json", "--no-figures",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    result = FEATURES.read(tmp_path / "f.json")
    [row] = result.dictionaries[0].rows
    wanted = result.predictions[1].perplexity.value
    if row.pruning is None:
        assert "no share of removed weights costs its perplexity" in " ".join(
            result.provenance.notes
        )
    else:
        clean = result.predictions[0].perplexity.value
        rise = np.log(row.pruning.perplexity / clean) / np.log(wanted / clean)
        assert rise == pytest.approx(1, abs=0.03)
        assert 0 < row.pruning.share < 0.8


def test_a_result_of_another_length_is_not_read(study, tmp_path):
    _, _, place = study
    content = json.loads((place / "features.json").read_text())
    content["dictionaries"][0]["rows"][0]["rho"].append(0.5)
    (tmp_path / "f.json").write_text(json.dumps(content))
    with pytest.raises(jaxalign.InputError, match="rho, overlap and slopes of different lengths"):
        FEATURES.read(tmp_path / "f.json")


@pytest.mark.parametrize(
    ("facts", "more", "said"),
    [
        ({"weights_sha256": "0" * 64}, (), "was trained on m, and"),
        ({"point": None, "step": None}, (), "does not say where in the model it belongs"),
        ({"step": 9}, (), "the model has no resid after L8"),
        ({"point": "mlp_hidden", "step": 0}, (), "has width 32, and"),
        ({"point": "mlp_out", "step": 0, "reads": "mlp_in"}, (), "is a transcoder, from mlp_in to"),
        ({"prepend_bos": True}, (), "and the model's tokenizer puts none there"),
        ({}, ("--least-firings", 258), "is active on 258 tokens of these texts"),
        ({}, ("--least-firings", 259), "--least-firings 259 is more than the 258 tokens that are"),
        ({}, ("--sae", ","), "--sae ',' names no dictionary"),
        ({}, ("--survives", 0.2), "--destroyed 0.3 is not below --survives 0.2"),
        ({}, ("--group-noise", "--noise-draws", 0), "--group-noise has no use without draws"),
        ({}, ("--window", 4000), "4000"),
    ],
)
def test_what_cannot_be_studied_is_refused(folder, model, tmp_path, facts, more, said):
    d = {} if "reads" not in facts else {"centered": False}
    sae = tmp_path / "sae"
    own = {"layout": "sae_lens", "model": "m", "point": "resid", "step": 2, "prepend_bos": False,
           "weights_sha256": model.weights_sha256}  # fmt: skip
    kind = "relu" if "reads" in facts else "topk"
    trained = TrainedDictionary(
        dictionary=random_dictionary(kind, width=32, **d), facts=DictionaryFacts(**{**own, **facts})
    )
    save_dictionary(trained, sae)
    output = tmp_path / "out" / "features.json"
    given = ("features", "--model", folder, "--device", "cpu", "--tokens", 300)
    given += () if "--sae" in more else ("--sae", sae)
    few = ("--schemes", "int4-channel") + (() if "--noise-draws" in more else ("--noise-draws", 1))
    window = () if "--window" in more else ("--window", 32)
    assert said in refusal(*given, *few, *window, *more, "--output", output)
    assert not output.exists()


def test_a_dictionary_of_another_model_is_read_where_it_is_asked_for(folder, model, tmp_path):
    sae = dictionary_of(model, tmp_path / "sae", weights_sha256="0" * 64)
    ran = run(
        "features", "--model", folder, "--device", "cpu", "--sae", sae, "--schemes",
        "int4-channel", "--noise-draws", 0, "--tokens", 300, "--window", 32,
        "--sae-model-mismatch", "allow", "--output", tmp_path / "f.json", "--no-figures",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert "another model" in " ".join(FEATURES.read(tmp_path / "f.json").provenance.notes)


def test_a_model_without_a_dictionary_of_its_own_asks_for_one(folder, tmp_path):
    said = refusal(
        "features", "--model", folder, "--device", "cpu", "--output", tmp_path / "f.json"
    )
    assert "--sae names no dictionary of" in said
    assert "jaxalign train-sae" in said


def test_a_place_whose_units_a_scheme_moves_is_refused(folder, model, tmp_path):
    sae = dictionary_of(model, tmp_path / "sae", point="z", step=0)
    (tmp_path / "calibration.txt").write_text("It was a quiet day.\nThe train is late.\n" * 8)
    said = refusal(
        "features", "--model", folder, "--device", "cpu", "--sae", sae, "--schemes", "awq-channel",
        "--calibration", tmp_path / "calibration.txt", "--output", tmp_path / "f.json",
    )  # fmt: skip
    assert "awq-channel moves scales between matrices, so that z has other units" in said


def test_verdicts_want_both_interval_and_test():
    base = against_floor(0.33, 1)
    assert base.verdict == "more"
    weak = replace(base, ratio=replace(base.ratio, p_adjusted=0.2))
    wide = replace(base, ratio=replace(base.ratio, low=0.9))
    draw = replace(base, one_more=0.2)
    few = replace(base, one_more=None)
    assert {floor.verdict for floor in (weak, wide, draw)} == {"what"}
    assert few.verdict == "few", "no test could be made"
    assert replace(few, share=0.1).verdict == "more", "pruned weights are no draws"


def test_an_estimate_counts_the_pruned_passes_and_computes_none(folder, model, tmp_path):
    sae = dictionary_of(model, tmp_path / "sae")
    ran = run(
        "features", "--model", folder, "--device", "cpu", "--sae", sae, "--schemes",
        "int4-channel", "--noise-draws", 1, "--pruning", "--tokens", 300, "--window", 32,
        "--output", tmp_path / "out" / "f.json", "--estimate", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    # Batching, chance, bf16, the scheme, a draw, eleven shares and the one that matches; effects in
    # three models, two blocks of features each, a deficit, and cards in two.
    assert json.loads(ran.out)["calls"] == 17 + 6 + 1 + 2
    assert not (tmp_path / "out").exists()


def test_the_shipped_texts_are_the_documents_that_the_model_has_not_seen():
    texts = unseen_documents(50)
    assert len(set(texts)) == 50
    assert all(map(is_reserved, texts))
    assert named_texts("demo", "demo")[0][:50] == texts
    assert unseen_documents(50, seed=1) != texts


def test_the_bundled_dictionary_is_one_of_the_bundled_model():
    demo = jaxalign.load("demo")
    [source] = open_sources(demo, (), "refuse")
    assert source.notes == ()
    assert source.trained.facts.site == "resid after L3"
    texts, _ = named_texts("demo", "demo")
    windows = cut_windows(texts[:120], demo.tokenizer, window=64)
    found = measure_quality(
        demo.params, demo.config, windows, source.dictionary, source.place, rows=64
    )
    assert found.explained > 0.8
    assert found.recovered > 0.95
    assert found.active <= 16
