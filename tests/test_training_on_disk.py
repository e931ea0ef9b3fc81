"""Dictionaries trained on files: the bits of training in memory, and what is said of them."""

import shutil

import jax
import numpy as np
import pytest
from tiny_run import refusal, run, write_model

from jaxalign.checkpoints.activations import open_activations
from jaxalign.checkpoints.dictionaries import open_dictionary
from jaxalign.dictionaries import Dictionary
from jaxalign.dictionaries import fit as fitting
from jaxalign.dictionaries.dead import agreement, dead_causes, silent_since
from jaxalign.dictionaries.fit import bytes_of, fit
from jaxalign.dictionaries.training import TrainingOptions
from jaxalign.errors import InputError
from jaxalign.studies.features.quality import quality_of, row_sums

SMALL = ("--window", 16, "--tokens", 1500, "--shard-tokens", 300)
TRAINING = ("--features", 48, "--k", 4, "--steps", 20, "--batch", 64)


@pytest.fixture(autouse=True)
def promotion():
    """Optax multiplies floats by whole numbers, which the tests' strict setting refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("on_disk") / "model")


@pytest.fixture(scope="module")
def stored(model, tmp_path_factory):
    """Folders of activations by precision, only read."""
    folder = tmp_path_factory.mktemp("stored")
    for scheme in ("f32", "bf16"):
        ran = run("extract", "--model", model, "--device", "cpu", "--texts", "demo", *SMALL,
                  "--scheme", scheme, "--output", folder / scheme)  # fmt: skip
        assert ran.code == 0, ran.err
    return folder


def train(folder, output, *more):
    return run("train-sae", "--activations", folder, "--device", "cpu", *TRAINING,
               "--output", output, *more)  # fmt: skip


def options(**more):
    how = {"features": 40, "k": 4, "steps": 60, "batch": 64, "learning_rate": 3e-3}
    return TrainingOptions(**{**how, **more})


@pytest.mark.parametrize("scheme", ["f32", "bf16"])
def test_files_and_memory_train_to_the_same_bits(stored, scheme, monkeypatch):
    monkeypatch.setattr(fitting, "CALL_BYTES", 40_000)  # several calls a part
    found = open_activations(stored / scheme)
    kept = np.flatnonzero(found.documents % 3 > 0)
    how = options(seeds=(3, 4, 3), dead_after=500, resample=10)
    fitted = [
        fit(data, [0, 1, 1], how)
        for data in (
            [found.source(layer, kept) for layer in (0, 1)],
            [found.matrix(layer)[kept] for layer in (0, 1)],
        )
    ]
    assert np.array_equal(fitted[0].error, fitted[1].error)
    ours, theirs = (jax.tree.leaves(one.dictionaries) for one in fitted)
    assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert fitted[0].error[-1].max() < fitted[0].error[5].min(), "it learns"


class Watched:
    """An array that remembers how many rows were asked for at once."""

    def __init__(self, array):
        self.array, self.most = array, 0

    @property
    def shape(self):
        return self.array.shape

    def __getitem__(self, index):
        found = self.array[index]
        self.most = max(self.most, len(found))
        return found


def test_no_more_rows_are_read_at_once_than_two_calls_hold(monkeypatch):
    rng = np.random.default_rng(0)
    array = rng.normal(size=(20_000, 8)).astype(np.float32)
    monkeypatch.setattr(fitting, "CALL_BYTES", 4 * 64 * 8 * 5)  # of five steps
    for block, most in ((1000, 1000), (100, 5 * 64)):
        monkeypatch.setattr(fitting, "BLOCK_BYTES", 4 * 8 * block)
        data = Watched(array)
        fit([data], [0], options(steps=200))
        assert data.most == most


def test_the_scale_is_that_of_the_whole_array(monkeypatch):
    x = np.random.default_rng(0).normal(3, 2, size=(1001, 7)).astype(np.float32)
    whole = fitting.scale_of(x)
    assert whole[0] == pytest.approx(x.var(axis=0).mean() ** -0.5, rel=1e-5)
    np.testing.assert_allclose(whole[1], x.mean(axis=0), rtol=1e-5)
    monkeypatch.setattr(fitting, "BLOCK_BYTES", 4 * 7 * 100)
    assert fitting.scale_of(x)[0] == pytest.approx(whole[0], rel=1e-6)
    x[500, 3] = np.inf
    with pytest.raises(InputError, match="some activations are not finite"):
        fitting.scale_of(x)


def test_batches_are_the_largest_part_of_what_a_small_training_holds():
    assert bytes_of(options(steps=1), 1, 8) < 1e6
    assert bytes_of(options(steps=10_000), 3, 4096) > 2 * 32e6
    many, one = options(features=9000, seeds=(0, 1)), options(features=9000)
    assert bytes_of(many, 1, 8) > 1.9 * bytes_of(one, 1, 8)


def test_the_command_trains_on_all_documents_but_every_tenth(model, stored, tmp_path):
    ran = train(stored / "f32", tmp_path, "--layers", 1)
    assert ran.code == 0, ran.err
    assert {path.name for path in tmp_path.iterdir()} == {"resid.1"}
    found = open_activations(stored / "f32")
    kept = np.flatnonzero(found.documents % 10 != 9)
    how = TrainingOptions(features=48, k=4, steps=20, batch=64, penalties=(0.0,))
    [expected] = fit([found.matrix(1)[kept]], [0], how).dictionaries
    written = open_dictionary(tmp_path / "resid.1")
    assert np.array_equal(written.dictionary.encoder, expected.encoder)
    facts = written.facts
    assert (facts.point, facts.step, facts.prepend_bos) == ("resid", 2, False)
    assert facts.context_size == 16
    assert facts.weights_sha256 == found.facts.weights_sha256
    assert facts.training["scheme"] == "f32"
    assert facts.training["tokens"] == len(kept)
    quality = facts.training["quality"]
    assert np.isfinite(quality["recovered"])
    # The same measures without the model, on the rows that were held out.
    held = found.source(1, np.flatnonzero(found.documents % 10 == 9))
    alone = quality_of(row_sums(held, expected, batch=50))
    assert alone.tokens == quality["tokens"] == held.shape[0]
    for name in ("explained", "active", "dead", "rare", "common"):
        assert getattr(alone, name) == pytest.approx(quality[name], abs=2e-3), name
    assert np.isnan(alone.recovered)


def test_quality_of_rows_is_its_definition(stored):
    x = open_activations(stored / "f32").matrix(1)
    rng = np.random.default_rng(0)
    encoder = rng.normal(size=(x.shape[1], 9)).astype(np.float32)
    d = Dictionary(
        encoder=encoder, decoder=encoder.T.copy() / 10, encoder_bias=np.full(9, -0.5, np.float32),
        decoder_bias=x.mean(axis=0), kind="relu",
    )  # fmt: skip
    f = np.maximum((x - d.decoder_bias) @ encoder - 0.5, 0)
    missed = x - (f @ d.decoder + d.decoder_bias)
    found = quality_of(row_sums(x, d, batch=64))
    expected = 1 - (missed**2).sum() / ((x - x.mean(axis=0)) ** 2).sum()
    assert found.explained == pytest.approx(expected, abs=1e-4)
    assert found.active == pytest.approx((f > 0).sum(axis=1).mean(), rel=1e-4)
    assert found.frequent == pytest.approx(((f > 0).mean(axis=0) >= 0.5).mean())


def test_another_precision_has_no_share_of_the_loss_and_says_so(model, stored, tmp_path):
    ran = train(stored / "bf16", tmp_path / "sae")
    assert ran.code == 0, ran.err
    assert "is not measured: they are in bf16, and it is measured in f32" in ran.err
    facts = open_dictionary(tmp_path / "sae" / "resid.0").facts
    assert facts.training["scheme"] == "bf16"
    assert facts.training["quality"]["recovered"] is None
    assert facts.training["quality"]["explained"] > 0
    assert "--model has no use beside these --activations" in refusal(
        "train-sae", "--activations", stored / "bf16", "--model", model, "--output", tmp_path / "o"
    )


def test_a_model_or_texts_that_are_gone_are_named(model, tmp_path):
    texts, own = tmp_path / "own.txt", tmp_path / "model"
    shutil.copytree(model, own)
    texts.write_text("\n\n".join(f"Sentence number {i} of the text. " * 70 for i in range(12)))
    ran = run("extract", "--model", own, "--device", "cpu", "--texts", texts, *SMALL,
              "--output", tmp_path / "a")  # fmt: skip
    assert ran.code == 0, ran.err
    before = train(tmp_path / "a", tmp_path / "before")
    assert before.code == 0, before.err
    assert "note" not in before.err
    texts.write_text(texts.read_text() + "!")
    assert "own.txt are no longer those that were read" in train(tmp_path / "a", tmp_path / "1").err
    texts.unlink()
    assert "own.txt is no file" in train(tmp_path / "a", tmp_path / "2").err
    shutil.rmtree(own)
    after = train(tmp_path / "a", tmp_path / "after")
    assert after.code == 0
    assert "is not measured" in after.err
    for name, left in (("before", False), ("after", True)):
        quality = open_dictionary(tmp_path / name / "resid.1").facts.training["quality"]
        assert (quality["recovered"] is None) == left


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--texts", "demo"), "--texts has no use beside --activations, whose folder says it"),
        (("--window", 16), "--window has no use beside --activations"),
        (("--tokens", 99), "--tokens has no use beside --activations"),
        (("--site", "z"), "--site has no use beside --activations"),
        (("--layers", "0,7"), "has no layer 7. give one of 0, 1"),
        (("--layers", "1,1"), "--layers: expected numbers, each once"),
        (("--batch", 9999), "and a batch is 9999"),
        (("--features", 60_000, "--memory-gb", 0.05), "2 dictionaries of 60000 features take"),
        (("--model", "demo"), "--model names a model with other weights than the one that"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(stored, tmp_path, more, said):
    words = [str(word) for word in TRAINING]
    if more[0] in words:
        del words[words.index(more[0]) : words.index(more[0]) + 2]
    given = ("train-sae", "--activations", stored / "f32", "--device", "cpu", *words)
    assert said in refusal(*given, "--output", tmp_path / "sae", *more)
    assert not [*tmp_path.rglob("*.*")]


def test_damaged_shards_and_other_folders_are_refused_before_training(stored, tmp_path):
    given = ("train-sae", "--device", "cpu", *TRAINING, "--output", tmp_path / "sae")
    shutil.copytree(stored / "f32", tmp_path / "damaged")
    path = tmp_path / "damaged" / "shard-00002.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    line = refusal(*given, "--activations", tmp_path / "damaged")
    assert "shard-00002.safetensors has another checksum than manifest.json says" in line
    path.write_bytes(content[:-5])
    assert "is damaged" in refusal(*given, "--activations", tmp_path / "damaged")
    assert "manifest.json is missing" in refusal(*given, "--activations", tmp_path)
    assert "manifest.json cannot be read" in refusal(*given, "--activations", path)


def test_one_document_is_too_few_to_hold_some_out(model, tmp_path):
    (tmp_path / "one.txt").write_text("The capital of France is Paris. " * 30)
    ran = run("extract", "--model", model, "--device", "cpu", "--texts", tmp_path / "one.txt",
              *SMALL, "--output", tmp_path / "a")  # fmt: skip
    assert ran.code == 0, ran.err
    given = ("train-sae", "--activations", tmp_path / "a", "--device", "cpu", *TRAINING)
    assert "of 1 document, expected 2 or more" in refusal(*given, "--output", tmp_path / "sae")


def test_embeddings_are_a_site(model, tmp_path):
    ran = run("extract", "--model", model, "--device", "cpu", "--texts", "demo", *SMALL,
              "--site", "embed", "--output", tmp_path / "a")  # fmt: skip
    assert ran.code == 0, ran.err
    for layout, name in (("sae_lens", "embed"), ("sparsify", "embed_tokens")):
        ran = train(tmp_path / "a", tmp_path / layout, "--layout", layout)
        assert ran.code == 0, ran.err
        facts = open_dictionary(tmp_path / layout / name).facts
        assert (facts.point, facts.step) == ("resid", 0)


def planted():
    rng = np.random.default_rng(0)
    decoder = rng.normal(size=(5, 64)).astype(np.float32)
    encoder = decoder.T.copy()
    encoder[:, 3] = rng.normal(size=64)
    return Dictionary(
        encoder=encoder, decoder=decoder, encoder_bias=np.zeros(5, np.float32),
        decoder_bias=np.zeros(64, np.float32), kind="relu",
    )  # fmt: skip


def test_each_dead_feature_has_its_likely_cause():
    d = planted()
    cosines = agreement(d)
    np.testing.assert_allclose(cosines[[0, 1, 2, 4]], 1, rtol=1e-6)
    a, b = d.encoder[:, 3].astype(float), d.decoder[3].astype(float)
    assert cosines[3] == pytest.approx(a @ b / np.sqrt((a @ a) * (b @ b)))
    since = silent_since(np.array([0, 40, 100, 95, 90]), 100)
    assert since == {"0": 0, "1": 40}
    dead = np.array([True, True, False, True, True])
    expected = {0: "never fired", 1: "died", 3: "disagree", 4: "seldom"}
    assert dead_causes(dead, since, d) == expected
    assert dead_causes(~dead, since, d) == {2: "seldom"}


def test_the_step_of_a_features_death_is_kept_with_its_dictionary(stored, tmp_path):
    ran = run(
        "train-sae", "--activations", stored / "f32", "--device", "cpu", "--features", 300,
        "--k", 1, "--steps", 40, "--batch", 64, "--auxiliary", 0, "--layers", 0,
        "--output", tmp_path,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    found = open_activations(stored / "f32")
    kept = np.flatnonzero(found.documents % 10 != 9)
    how = TrainingOptions(features=300, k=1, steps=40, batch=64, penalties=(0.0,), auxiliary=0.0)
    fired = fit([found.matrix(0)[kept]], [0], how).fired[0]
    training = open_dictionary(tmp_path / "resid.0").facts.training
    since = training["silent_since"]
    assert since == {str(i): int(step) for i, step in enumerate(fired) if step < 36}
    assert training["never_fired"] == list(since.values()).count(0) > 0
    assert training["dead_causes"].get("never fired", 0) > 0
    assert sum(training["dead_causes"].values()) == round(training["quality"]["dead"] * 300)
    assert "never fired in training; died before its last" in ran.out
