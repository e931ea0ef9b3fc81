"""A closer look at features: what they do, what their damage costs, what can be told ahead."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packed_files import write_gptq
from scipy import optimize
from scipy import stats as scipy_stats
from test_dictionaries import random_dictionary
from test_features import dictionary_of
from tiny_run import refusal, run, write_model

import jaxalign
from jaxalign.checkpoints.dictionaries import DictionaryFacts, TrainedDictionary, save_dictionary
from jaxalign.dictionaries import encode
from jaxalign.edits import Edit, Replace
from jaxalign.errors import InputError
from jaxalign.measures.metrics import kl_divergence
from jaxalign.measures.perplexity import next_token_loss
from jaxalign.numerics import F32
from jaxalign.numerics.scheme import scheme_named
from jaxalign.studies.features import FEATURES
from jaxalign.studies.features.chosen import activations_of, spread_over_survival
from jaxalign.studies.features.closer import DRAWS, Seen, look_at
from jaxalign.studies.features.closer_sums import deficit_rows
from jaxalign.studies.features.deficit import Shifted, along, shifted
from jaxalign.studies.features.effects import KINDS, feature_effects
from jaxalign.studies.features.labelled import groups_of, read_labels
from jaxalign.studies.features.predictors import auc, fit_logistic, predict, said_alone
from jaxalign.studies.features.sources import Source
from jaxalign.studies.features.table import sentences

PLACE = ("resid", 1)
STREAM = ("resid", 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("closer") / "model")


@pytest.fixture(scope="module")
def model(folder):
    return jaxalign.load(str(folder))


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 4096, (3, 8)).astype(np.int32)
    lengths = np.array([8, 5, 8], np.int32)
    counted = (np.arange(8) < lengths[:, None]) & (np.arange(8) > 0)
    return jnp.asarray(tokens), jnp.asarray(lengths), jnp.asarray(counted)


def stream(model, params, texts, place):
    tokens, lengths, _ = texts
    out = jaxalign.forward(params, tokens, model.config, lengths=lengths, capture=("resid",))
    return out.activations["resid"][place[1] - 1], out.logits


def with_stream(model, params, texts, place, value):
    """The logits of a run whose stream is ``value`` at a place, at positions that count."""
    tokens, lengths, counted = texts
    mask = np.zeros((model.config.num_layers + 1, *counted.shape, 1), bool)
    mask[place[1]] = np.asarray(counted)[..., None]
    edit = Edit(
        Replace("resid", jnp.asarray(mask), jnp.broadcast_to(value, (len(mask), *value.shape)))
    )
    return jaxalign.forward(params, tokens, model.config, lengths=lengths, edit=edit).logits


def summed(clean, edited, texts):
    """KL, loss and change of logits over the positions that count."""
    tokens, _, counted = texts
    kl = jnp.where(counted, kl_divergence(clean, edited), 0).sum(axis=1)
    loss = next_token_loss(edited, tokens) - next_token_loss(clean, tokens)
    loss = jnp.where(counted[:, 1:] & counted[:, :-1], loss, 0).sum(axis=1)
    change = edited - clean
    change = change - change.mean(axis=-1, keepdims=True)
    return kl, loss, jnp.where(counted[..., None], change, 0).sum(axis=(0, 1))


def test_effects_are_those_of_runs_whose_stream_is_changed_by_hand(model, texts):
    d = jax.tree.map(jnp.asarray, random_dictionary("topk", width=32))
    features, doses = np.array([3, 17, 30]), np.array([2.0, 0.5, 1.0], np.float32)
    random = np.random.default_rng(1).normal(size=(3, 32)).astype(np.float32)
    found, read = feature_effects(
        model.params, d, features, doses, random, *texts, config=model.config, scheme=F32,
        place=PLACE,
    )  # fmt: skip
    assert read.tolist() == [[7, 6], [4, 3], [7, 6]], "the last one's next token is not known"
    x, clean = stream(model, model.params, texts, PLACE)
    a = encode(d, x)
    row = 0
    for kind in KINDS:
        for i, f in enumerate(features):
            direction = random[i] if "random" in kind else d.decoder[f]
            size = doses[i : i + 1][None, None] if "steer" in kind else -a[..., f : f + 1]
            value = x + size * direction[None, None]
            edited = with_stream(model, model.params, texts, PLACE, value)
            kl, loss, change = summed(clean, edited, texts)
            np.testing.assert_allclose(found.kl[row], kl, rtol=2e-3, atol=1e-6)
            np.testing.assert_allclose(found.loss[row], loss, rtol=1e-3, atol=1e-5)
            np.testing.assert_allclose(found.change[row], change, rtol=1e-3, atol=1e-4)
            row += 1
    assert len(found.kl) == row
    assert float(jnp.abs(found.kl).max()) > 1e-4, "something was changed"


def test_the_whole_shift_behind_the_last_block_is_the_whole_deficit(model, texts):
    """What is read there is all that the unembedding sees, and it is in f32 in both models."""
    low = jaxalign.cast(model.params, scheme_named("int3-channel"))
    low = replace(low, embed=model.params.embed, unembed=model.params.unembed)
    bases = np.linalg.qr(np.random.default_rng(2).normal(size=(2, 32, 4)))[0].astype(np.float32)
    last = ("resid", model.config.num_layers)
    given = model.params, low, bases, *texts
    found = shifted(*given, config=model.config, scheme=F32, place=last, scaled=(False, True))
    deficit = np.asarray(found.low_kl[:, 0])
    assert deficit.min() > 1e-3
    np.testing.assert_allclose(found.kl[:, 0], 0, atol=1e-7)
    np.testing.assert_allclose(found.kl[:, 1], deficit, rtol=1e-3)
    np.testing.assert_allclose(found.low_kl[:, 1], 0, atol=1e-5)
    x, clean = stream(model, model.params, texts, last)
    y, _ = stream(model, low, texts, last)
    part = (y - x) @ bases[0] @ bases[0].T
    counted = texts[2]
    kl, loss, _ = summed(clean, with_stream(model, model.params, texts, last, x + part), texts)
    np.testing.assert_allclose(found.kl[:, 2], kl, rtol=2e-3)
    np.testing.assert_allclose(found.loss[:, 2] - found.loss[:, 0], loss, atol=2e-4)
    left, _, _ = summed(clean, with_stream(model, low, texts, last, y - part), texts)
    np.testing.assert_allclose(found.low_kl[:, 2], left, rtol=2e-3)
    size = jnp.where(counted[..., None], part**2, 0).sum(axis=(1, 2))
    np.testing.assert_allclose(found.size[:, 2], size, rtol=1e-4)
    np.testing.assert_allclose(found.size[:, 3], size, rtol=1e-4, err_msg="made as long")


def deficits(damaged, others, seed):
    """The row of a scheme that costs 1 nat in each of 30 documents, by what is left of it."""
    rng = np.random.default_rng(seed)
    left = np.r_[1, 0.2, damaged, others, np.full(DRAWS, 0.9)]
    low_kl = left + 0.02 * rng.normal(size=(30, len(left)))
    same, one = np.zeros_like(low_kl), np.ones(30)
    found = Shifted(
        kl=same, low_kl=low_kl, loss=same, low_loss=same, size=np.ones_like(same), tokens=one,
        predicted=one,
    )  # fmt: skip
    look = SimpleNamespace(damaged={"nf4": np.arange(3)})
    some = SimpleNamespace(group=np.arange(30))
    [row] = deficit_rows(Seen(look=look, some=some, work=some, deficits={"nf4": [found]}), 0)
    return row


def test_damage_is_told_from_other_features_by_documents_and_by_their_draws():
    apart = deficits(0.5, 0.8 + 0.01 * np.arange(DRAWS), seed=0)
    assert apart.beyond_others.value == pytest.approx(0.32, abs=0.03)
    assert apart.beyond_others.p < 0.01
    assert apart.others.repaired.value == pytest.approx(0.18, abs=0.03)
    # Every document says 0.2, and the draws differ by more.
    like_a_draw = deficits(0.6, np.linspace(0.5, 1.1, DRAWS), seed=1)
    assert like_a_draw.beyond_others.value == pytest.approx(0.2, abs=0.03)
    assert like_a_draw.beyond_others.p > 0.2
    low, high = like_a_draw.others.repaired.low, like_a_draw.others.repaired.high
    assert high - low > 0.2, "over draws as well as documents"
    assert like_a_draw.damaged.repaired.high - like_a_draw.damaged.repaired.low < 0.05


def test_parts_of_a_shift_are_projections_and_those_that_are_scaled_have_the_firsts_length():
    rng = np.random.default_rng(3)
    shift = rng.normal(size=(5, 6, 12)).astype(np.float32)
    bases = np.linalg.qr(rng.normal(size=(3, 12, 4)))[0].astype(np.float32)
    found = np.asarray(along(jnp.asarray(shift), jnp.asarray(bases), (False, False, True)))
    for i in range(2):
        np.testing.assert_allclose(found[i], shift @ bases[i] @ bases[i].T, atol=1e-5)
    np.testing.assert_allclose(
        np.linalg.norm(found[2], axis=-1), np.linalg.norm(found[0], axis=-1), rtol=1e-4
    )
    plain = shift @ bases[2] @ bases[2].T
    cosine = (found[2] * plain).sum(-1) / np.linalg.norm(found[2], axis=-1)
    np.testing.assert_allclose(cosine, np.linalg.norm(plain, axis=-1), rtol=1e-3)
    assert np.array_equal(
        along(jnp.zeros((2, 12)), jnp.asarray(bases), (False,) * 3), np.zeros((3, 2, 12))
    )


def test_chosen_features_are_spread_over_what_they_lose():
    lost = np.random.default_rng(4).random((3, 50))
    kept = np.arange(50) % 5 > 0
    chosen = spread_over_survival(lost, kept, 8)
    assert kept[chosen].all()
    mean = scipy_stats.rankdata(lost[:, kept], axis=1).mean(axis=0)
    place = dict(zip(np.flatnonzero(kept), scipy_stats.rankdata(mean), strict=True))
    ranks = [place[f] for f in chosen]
    assert ranks == sorted(ranks)
    assert np.diff(ranks).max() <= 8
    assert len(spread_over_survival(lost, kept, 999)) == kept.sum()
    assert len(spread_over_survival(lost, kept, 0)) == 0


def test_activations_of_some_features_are_the_dictionarys(model, texts):
    d = jax.tree.map(jnp.asarray, random_dictionary("jumprelu", width=32))
    x, _ = stream(model, model.params, texts, STREAM)
    found = activations_of(
        model.params, d, np.array([5, 2]), *texts, config=model.config, scheme=F32, place=STREAM
    )
    wanted = jnp.where(texts[2][..., None], encode(d, x)[..., jnp.array([5, 2])], 0)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


# What can be told ahead.


def test_the_area_under_the_curve_is_mann_and_whitneys():
    rng = np.random.default_rng(5)
    score, label = rng.random(80).round(1), (rng.random(80) < 0.3).astype(float)
    u = scipy_stats.mannwhitneyu(score[label == 1], score[label == 0]).statistic
    assert auc(score, label) == pytest.approx(u / (label.sum() * (1 - label).sum()))


def test_a_logistic_regression_is_at_its_minimum():
    rng = np.random.default_rng(6)
    x = np.concatenate([np.ones((60, 1)), rng.normal(size=(60, 3))], axis=1)
    y = (rng.random(60) < 0.4).astype(float)
    counts = (rng.random(60) < 0.8).astype(float)

    def cost(w):
        p = np.logaddexp(0, x @ w) - y * (x @ w)
        return (counts * p).sum() + 0.5 * (w[1:] ** 2).sum()

    wanted = optimize.minimize(cost, np.zeros(4), tol=1e-12).x
    np.testing.assert_allclose(fit_logistic(x, y[None], counts[None])[0], wanted, atol=1e-4)


def test_what_tells_is_told_from_what_does_not():
    rng = np.random.default_rng(7)
    peak = rng.lognormal(size=300)
    known = {"peak": peak, "nothing": rng.random(300), "flat": np.ones(300)}
    told = predict(known, peak * rng.lognormal(0, 0.3, 300) > 1, np.random.default_rng(0))
    assert told.auc.value > 0.9
    assert told.auc.low < told.auc.value < told.auc.high
    assert told.auc.p == pytest.approx(1 / 201)
    assert told.exchanged == pytest.approx(0.5, abs=0.05)
    assert told.single["peak"].value > 0.9
    assert told.single["nothing"].low < 0.5 < told.single["nothing"].high
    assert "flat" not in told.single
    blind = predict(known, rng.random(300) < 0.5, np.random.default_rng(0))
    assert blind.auc.p > 0.05
    assert predict(known, peak > np.sort(peak)[-5], rng) is None


def test_what_a_direction_says_alone_is_the_logit_lens_of_it(model):
    directions = np.random.default_rng(8).normal(size=(4, 32)).astype(np.float32)
    cosine, entropy = said_alone(model.params, directions, config=model.config)
    matrix = model.params.embed if model.params.unembed is None else model.params.unembed
    w = np.asarray(matrix, np.float64)
    unit = w / np.linalg.norm(w, axis=1, keepdims=True)
    own = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    np.testing.assert_allclose(cosine, (unit @ own.T).max(axis=0), rtol=1e-5)
    norm = model.params.final_norm
    centred = directions - directions.mean(axis=1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + model.config.norm_eps)
    logits = (normed * np.asarray(norm.scale) + np.asarray(norm.bias)) @ w.T
    np.testing.assert_allclose(
        entropy,
        scipy_stats.entropy(np.exp(logits - logits.max(1, keepdims=True)), axis=1),
        rtol=1e-4,
    )


def test_features_are_told_by_a_fit_to_other_features():
    """Forty statistics of noise fit a hundred labels well, and others not at all."""
    rng = np.random.default_rng(11)
    known = {f"noise {i}": rng.random(100) for i in range(40)}
    told = predict(known, rng.random(100) < 0.5, np.random.default_rng(0))
    assert told.exchanged == pytest.approx(0.5, abs=0.05)
    assert told.auc.value < 0.75


# Labels.


def test_a_damaged_group_is_told_and_a_random_one_is_not():
    rng = np.random.default_rng(9)
    rate = rng.lognormal(-4, 1, 600)
    lost = 0.1 * rng.lognormal(0, 0.3, 600) / (1 + 20 * rate)
    hurt, fine = np.arange(0, 600, 40), np.arange(7, 600, 40)
    lost[hurt] *= 2
    lost[3] = np.nan
    found = groups_of({"hurt": hurt, "fine": fine, "few": np.array([3])}, lost, rate, rng)
    assert found["hurt"].ratio.value == pytest.approx(2, rel=0.25)
    assert found["hurt"].ratio.p < 0.01
    assert found["hurt"].ratio.value > found["hurt"].ratio.high
    assert found["fine"].ratio.p > 0.05
    assert found["fine"].ratio.low < found["fine"].ratio.value < found["fine"].ratio.high
    assert found["hurt"].lost == pytest.approx(lost[hurt].mean())
    assert "few" not in found, "none of it is judged"


def test_a_groups_features_are_matched_by_how_often_they_fire():
    """Rare features lose more; a group of rare ones is as damaged as other rare ones."""
    rng = np.random.default_rng(10)
    rate = np.concatenate([np.full(300, 1e-3), np.full(300, 1e-1)]) * rng.lognormal(0, 0.1, 600)
    lost = np.where(rate < 1e-2, 0.3, 0.03) * rng.lognormal(0, 0.2, 600)
    labels = {"rare": np.arange(0, 300, 10), "frequent": np.arange(300, 600, 10)}
    for group in groups_of(labels, lost, rate, rng).values():
        assert group.ratio.value == pytest.approx(1, abs=0.15)
        assert group.ratio.p > 0.01


def test_labels_are_read_from_csv_and_json_lines(tmp_path):
    (tmp_path / "l.csv").write_text('feature,label\n3,names\n5,"verbs, past"\n3,names\n7,names\n')
    lines = '{"feature": 3, "label": "names"}\n{"feature": 7, "label": "names"}\n'
    (tmp_path / "l.jsonl").write_text(lines + '{"feature": 5, "label": "verbs, past"}\n')
    for name in ("l.csv", "l.jsonl"):
        found = read_labels(tmp_path / name, 10, STREAM)
        assert {label: own.tolist() for label, own in found.items()} == {
            "names": [3, 7],
            "verbs, past": [5],
        }


def test_published_labels_count_where_they_belong(tmp_path):
    line = '{"Component": "%s", "Layer": "%s", "Feature": "%s", "Annotation": "verbs"}\n'
    path = tmp_path / "published.jsonl"
    path.write_text(line % ("resid", 1, 4) + line % ("mlp", 1, 5) + line % ("resid", 0, 6))
    assert read_labels(path, 10, ("resid", 2))["verbs"].tolist() == [4]
    assert read_labels(path, 10, ("mlp_out", 1))["verbs"].tolist() == [5]
    with pytest.raises(InputError, match="no labels of attn_out L1"):
        read_labels(path, 10, ("attn_out", 1))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("l.csv", "", "does not begin with the line feature,label"),
        ("l.csv", "a,b\n1,x\n", "does not begin with the line feature,label"),
        (
            "l.csv",
            "feature,label\n99,x\n",
            "line 2 names feature 99, and the dictionary has 0 … 39",
        ),
        ("l.csv", "feature,label\n-1,x\n", "names feature -1"),
        ("l.csv", "feature,label\nx,x\n", 'line 2 has feature "x", expected a whole number'),
        ("l.csv", "feature,label\n1,\n", "line 2 has no label"),
        ("l.csv", "feature,label\n", "has no labels"),
        ("l.csv", "feature,label\n1,a,b\n", "line 2 has more than a feature and a label"),
        ("l.jsonl", "[1]\n", "line 1 is"),
        ("l.jsonl", '{"feature": true, "label": "x"}\n', "line 1 has feature true"),
        ("l.jsonl", '{"feature": 1}\n', "line 1 has no label"),
    ],
)
def test_labels_that_cannot_be_used_are_refused(folder, model, tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    sae = dictionary_of(model, tmp_path / "sae")
    given = ("features", "--model", folder, "--device", "cpu", "--sae", sae, "--tokens", 300)
    few = ("--schemes", "int4-channel", "--noise-draws", 1, "--window", 32)
    output = tmp_path / "out" / "f.json"
    assert said in refusal(*given, *few, "--labels", tmp_path / name, "--output", output)
    assert not output.exists()


# The command.


@pytest.fixture(scope="module")
def study(folder, model, tmp_path_factory):
    place = tmp_path_factory.mktemp("closer-study")
    sae = dictionary_of(model, place / "sae")
    (place / "labels.csv").write_text(
        "feature,label\n" + "".join(f"{i},{'even' if i % 2 else 'odd'}\n" for i in range(12))
    )
    ran = run(
        "features", "--model", folder, "--device", "cpu", "--sae", sae, "--schemes",
        "int2-channel", "--noise-draws", 1, "--tokens", 1200, "--window", 32, "--effects", 8,
        "--effect-tokens", 300, "--cards", 2, "--labels", place / "labels.csv", "--verbose",
        "--output", place / "features.json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    return ran, FEATURES.read(place / "features.json"), place


def test_the_command_looks_closer_at_some_features(study):
    ran, result, place = study
    closer = result.dictionaries[0].closer
    assert len(closer.features) == 8
    assert 200 <= closer.tokens <= 400
    assert closer.kl.shape == (len(KINDS), 8)
    assert {row.scheme for row in closer.effects} == {"int2-channel", "noise of int2-channel"}
    assert {row.kind for row in closer.effects} == {*KINDS}
    for row in closer.effects:
        assert len(row.cosine) == 8
        assert row.direction.low <= row.direction.value <= row.direction.high
        assert row.direction.value > row.others
    assert [row.scheme for row in closer.deficits] == ["int2-channel"]
    for row in closer.deficits:
        assert row.whole.share == pytest.approx(1)
        assert row.random.share == pytest.approx(row.damaged.share, rel=1e-3)
        assert row.damaged.repaired.value < row.whole.repaired.value
        assert 0 < row.damaged.harm.value < row.whole.harm.value
    assert len({card.feature for card in closer.cards}) == len(closer.cards) == 2
    for card in closer.cards:
        top = [one.a for one in card.top]
        assert top == sorted(top, reverse=True)
        largest = max(top[0], card.low_top[0].low)
        assert card.points.max() == pytest.approx(largest)
        assert [one.low for one in card.low_top] == sorted(
            (one.low for one in card.low_top), reverse=True
        )
    assert {row.label for row in closer.groups} == {"even", "odd"}
    assert all(row.ratio.p_adjusted >= row.ratio.p for row in closer.groups)
    assert "What 8 features do on" in ran.out
    assert "taken away" not in ran.out, "the dictionary explains too little"
    sentence, *_ = sentences(closer)
    assert sentence.startswith("8 features taken away: logits move as in f32 at cosine ")
    assert "The shift of the site put into f32" in ran.out
    assert "Groups of labels" in ran.out
    figures = {path.stem for path in (place / "figures").glob("*.png")}
    assert {"features6_effects", "features9_scatter", "features10_cards"} <= figures
    assert max(map(len, result.summary().splitlines())) <= 100


def test_one_feature_has_no_others_to_be_held_against():
    d = random_dictionary("relu", width=16)
    source = Source(trained=TrainedDictionary(dictionary=d, facts=None), place=STREAM)
    lost = np.full(40, np.nan)
    lost[7] = 0.2
    one = np.array([7])
    found = look_at(source, 0, one, one, np.ones(40), {"nf4": lost}, np.random.default_rng(0))
    assert found.bases == {}
    lost[9] = 0.1
    found = look_at(source, 0, one, one, np.ones(40), {"nf4": lost}, np.random.default_rng(0))
    assert found.damaged["nf4"].tolist() == [7]
    assert found.bases["nf4"].shape == (1 + 2 * DRAWS, 16, 1)


def test_without_a_closer_look_nothing_is_said_of_it(folder, study, tmp_path):
    _, _, place = study
    ran = run(
        "features", "--model", folder, "--device", "cpu", "--sae", place / "sae", "--schemes",
        "int3-channel", "--noise-draws", 0, "--tokens", 600, "--window", 32, "--effects", 0,
        "--cards", 0, "--output", tmp_path / "f.json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    closer = FEATURES.read(tmp_path / "f.json").dictionaries[0].closer
    assert (closer.effects, closer.deficits, closer.cards, closer.groups) == ((), (), (), ())
    said = refusal(
        "features",
        "--model",
        folder,
        "--effects",
        0,
        "--effect-tokens",
        5,
        "--output",
        tmp_path / "g",
    )
    assert "--effect-tokens has no use without --effects" in said


def test_a_checkpoint_of_another_tool_is_one_more_precision(tmp_path):
    folder = write_model(tmp_path / "model", hidden_size=64, intermediate_size=128)
    write_gptq(tmp_path / "gptq", folder)
    own = jaxalign.load(str(folder))
    facts = DictionaryFacts(
        layout="sae_lens", model="m", point="resid", step=2, prepend_bos=False,
        weights_sha256=own.weights_sha256,
    )  # fmt: skip
    for name, place in (("sae", {}), ("of-z", {"point": "z", "step": 0})):
        d = random_dictionary("topk", width=64)
        trained = TrainedDictionary(dictionary=d, facts=replace(facts, **place))
        save_dictionary(trained, tmp_path / name)
    given = ("features", "--device", "cpu", "--quantized", tmp_path / "gptq", "--tokens", 400,
             "--window", 32, "--noise-draws", 1, "--effects", 0, "--cards", 0, "--no-figures",
             "--output", tmp_path / "f.json")  # fmt: skip
    ran = run(*given, "--model", folder, "--sae", tmp_path / "sae")
    assert ran.code == 0, ran.err
    result = FEATURES.read(tmp_path / "f.json")
    [row] = result.dictionaries[0].rows
    assert row.scheme == "quantized"
    assert 1e-3 < row.lost.value < 0.9
    assert 0.3 < row.tensor.ratio.value < 3, "noise as far away as the file's weights"
    assert any("GPTQ" in note for note in result.provenance.notes)
    assert result.provenance.quantized
    assert "--quantized needs the original" in refusal(*given, "--sae", tmp_path / "sae")
    said = refusal(*given, "--model", folder, "--sae", tmp_path / "of-z")
    assert "quantized moves scales between matrices, so that z has other units" in said
