"""Training dictionaries: planted directions are found, stacks are what each would be alone."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_run import refusal, run, write_model

from jaxalign.checkpoints.dictionaries import open_dictionary
from jaxalign.dictionaries import encode, losses, reconstruct
from jaxalign.dictionaries.fit import Parts, fit
from jaxalign.dictionaries.losses import TRAINED, largest_above, loss
from jaxalign.dictionaries.resample import resampled
from jaxalign.dictionaries.training import TrainingOptions, batches_of, begin
from jaxalign.errors import InputError

D, F, N = 16, 24, 4096
PENALTY = {"relu": 0.3, "sigmoid": 1.0, "gated": 0.3, "jumprelu": 0.003}


@pytest.fixture(autouse=True)
def promotion():
    """Optax multiplies floats by whole numbers, which the tests' strict setting refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def planted():
    """Activations that are sums of two of 24 directions, around a mean."""
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((F, D))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    size = np.zeros((N, F))
    for row in size:
        row[rng.choice(F, 2, replace=False)] = rng.uniform(1, 3, 2)
    x = 5 * (size @ directions) + rng.standard_normal(D)
    return directions, x.astype(np.float32)


def options(kind="topk", **more):
    own = {} if kind in ("topk", "batchtopk") else {"penalties": (PENALTY[kind],)}
    how = {"features": 2 * F, "k": 2, "steps": 400, "batch": 256, "learning_rate": 3e-3}
    return TrainingOptions(kind=kind, **{**how, "dead_after": 20_000, **own, **more})


def explained(d, x):
    missed = x - np.asarray(reconstruct(d, jnp.asarray(x)))
    return 1 - (missed**2).sum() / ((x - x.mean(axis=0)) ** 2).sum()


@pytest.mark.parametrize("kind", TRAINED)
def test_each_kind_learns_sparse_features(planted, kind):
    directions, x = planted
    [d] = fit([x], [0], options(kind)).dictionaries
    f = np.asarray(encode(d, jnp.asarray(x)))
    assert explained(d, x) > 0.75
    assert (f > 0).sum(axis=1).mean() < F
    assert d.kind == {"batchtopk": "jumprelu"}.get(kind, kind)
    if kind == "topk":
        rows = d.decoder / np.linalg.norm(d.decoder, axis=1, keepdims=True)
        found = (rows @ directions.T).max(axis=0)
        random = np.random.default_rng(1).standard_normal(rows.shape)
        random /= np.linalg.norm(random, axis=1, keepdims=True)
        assert np.median(found) > 0.95 > np.median((random @ directions.T).max(axis=0))


def test_a_stack_is_what_each_would_be_alone(planted):
    _, x = planted
    other = x[::-1] * 2 + 1
    together = fit([x, other], [0, 1, 0], options(seeds=(3, 4, 5), steps=60))
    for place, (data, seed) in enumerate(((x, 3), (other, 4), (x, 5))):
        alone = fit([data], [0], options(seeds=(seed,), steps=60))
        np.testing.assert_allclose(together.error[:, place], alone.error[:, 0], rtol=1e-3)
        for name in ("encoder", "decoder", "decoder_bias"):
            ours, theirs = (
                getattr(d, name) for d in (together.dictionaries[place], alone.dictionaries[0])
            )
            np.testing.assert_allclose(ours, theirs, atol=2e-3 * np.abs(theirs).max())
    assert not np.allclose(together.error[-1, 0], together.error[-1, 2], rtol=1e-4)


class Kept(Parts):
    def __init__(self):
        self.kept, self.computed = {}, 0

    def has(self, number):
        return number in self.kept

    def keep(self, number, compute):
        if number not in self.kept:
            self.computed += 1
            self.kept = {number: compute()}  # the ones before it are forgotten
        return self.kept[number]


def test_a_training_that_was_cut_off_goes_on_to_the_same_bits(planted):
    _, x = planted
    whole = fit([x], [0], options(steps=80, resample=20))
    cut = Kept()

    class Off(Kept):
        def keep(self, number, compute):
            if number == 7:
                raise KeyboardInterrupt
            return super().keep(number, compute)

    off = Off()
    with pytest.raises(KeyboardInterrupt):
        fit([x], [0], options(steps=80, resample=20), parts=off)
    cut.kept = off.kept
    again = fit([x], [0], options(steps=80, resample=20), parts=cut)
    assert cut.computed == 13
    assert np.array_equal(again.error, whole.error)
    leaves = zip(*(jax.tree.leaves(f.dictionaries[0]) for f in (again, whole)), strict=True)
    assert all(np.array_equal(a, b) for a, b in leaves)


def test_decoders_keep_unit_norms_and_begin_at_the_mean(planted):
    _, x = planted
    start = begin(options(), jnp.asarray(x.mean(axis=0))[None])
    assert np.allclose(start.dictionary.decoder_bias, x.mean(axis=0))
    fitted = fit([x], [0], options(steps=30))
    norms = np.linalg.norm(fitted.dictionaries[0].decoder, axis=1)
    assert np.allclose(norms, norms[0], rtol=1e-5), "the scale of the activations is folded in"


def test_a_step_is_adams_step_of_the_stated_loss(planted):
    """One step beside optax on the loss written out."""
    _, x = planted
    how = options("relu", steps=1, batch=64, penalties=(0.5,))
    found = fit([x], [0], how)
    scale = 1 / np.sqrt(x.var(axis=0).mean())
    d = jax.tree.map(
        lambda a: a[0], begin(how, jnp.asarray(x.mean(axis=0) * scale)[None]).dictionary
    )
    batch = jnp.asarray(x[batches_of(how, 0, 1, N)[0, 0]] * scale)

    def written(d):
        f = jax.nn.relu((batch - d.decoder_bias[None]) @ d.encoder + d.encoder_bias[None])
        y = f @ d.decoder + d.decoder_bias[None]
        return ((batch - y) ** 2).mean() + 0.5 * f.mean()

    ours = loss(d, batch, jnp.float32(0.5), jnp.zeros(2 * F, bool), kind="relu", k=2, auxiliary=0.0)
    np.testing.assert_allclose(ours.total, written(d), rtol=1e-5)
    assert found.error[0, 0] == pytest.approx(float(ours.error), rel=1e-4)
    # The first step of the schedule has rate 0: nothing moves, whatever the slope.
    assert float(optax.warmup_cosine_decay_schedule(0, 1e-3, 1, 2)(0)) == 0
    np.testing.assert_allclose(found.dictionaries[0].encoder, d.encoder * scale, rtol=1e-5)


@pytest.mark.parametrize("kind", TRAINED)
def test_the_mean_that_inputs_are_read_without_has_its_slope_through_the_biases(kind, monkeypatch):
    rng = np.random.default_rng(0)
    how = options(kind)
    d = jax.tree.map(lambda a: a[0], begin(how, jnp.ones((1, D))).dictionary)
    d = jax.tree.map(lambda a: a + 0.1 * rng.standard_normal(a.shape, np.float32), d)
    x, dead = jnp.asarray(rng.standard_normal((64, D), np.float32)), jnp.arange(2 * F) < 9

    def slope(d):
        how = {"kind": kind, "k": 2, "auxiliary": 0.5}
        return jax.value_and_grad(lambda d: loss(d, x, jnp.float32(0.5), dead, **how).total)(d)

    ours, ours_slope = slope(d)
    monkeypatch.setattr(losses, "_mean_apart", lambda d: d)
    plain, plain_slope = slope(d)
    assert ours == plain, "the value has the same bits"
    for one, other in zip(*map(jax.tree.leaves, (ours_slope, plain_slope)), strict=True):
        assert np.abs(other).max() > 0
        np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(other).max())


def test_a_step_without_dead_features_makes_no_second_reconstruction(planted):
    _, x = planted
    with_it, without = (
        fit([x], [0], options(steps=40, auxiliary=share, dead_after=10**6)) for share in (0.5, 0.0)
    )
    assert np.array_equal(with_it.error, without.error)
    dead = fit([x], [0], options(steps=40, auxiliary=0.5, dead_after=256))
    assert not np.array_equal(dead.error, without.error)


def test_the_largest_of_a_batch_are_counted():
    values = jnp.asarray(np.random.default_rng(0).exponential(size=(64, 100)), jnp.float32)
    for count in (1, 10, 640, 6399):
        assert int((values > largest_above(values, count)).sum()) == count
    tied = jnp.asarray([3.0, 2.0, 2.0, 1.0])
    assert int((tied > largest_above(tied, 2)).sum()) <= 2


def test_dead_features_begin_anew_at_what_is_missed(planted):
    _, x = planted
    how = options(dead_after=100, steps=10)
    start = begin(how, jnp.asarray(x.mean(axis=0))[None])
    start = start.replace(step=jnp.int32(5), fired=start.fired.at[0, :40].set(5))
    keys = jax.random.split(jax.random.key(0), 1)
    after = resampled(start, jnp.asarray(x)[None], jnp.array([0]), keys, options=how)
    before, now = start.dictionary.decoder[0], after.dictionary.decoder[0]
    assert np.array_equal(before[:40], now[:40])
    assert (np.abs(before[40:] - now[40:]).max(axis=1) > 1e-3).all()
    assert np.allclose(np.linalg.norm(now, axis=1), 1, atol=1e-5)


def test_early_end(planted):
    _, x = planted
    fitted = fit([x], [0], options(steps=400, tolerance=0.9))
    assert fitted.ended == "converged"
    assert fitted.steps < 400
    assert fit([x], [0], options(steps=40)).ended == "steps"


def test_what_cannot_be_trained_is_refused(planted):
    _, x = planted
    with pytest.raises(InputError, match="there are 100 tokens, and a batch is 256"):
        fit([x[:100]], [0], options())
    with pytest.raises(InputError, match="the activations do not vary"):
        fit([np.ones((300, D), np.float32)], [0], options())
    with pytest.raises(InputError, match="2 penalties for 1 seeds"):
        options("relu", penalties=(0.1, 0.2))
    with pytest.raises(InputError, match=r"--k is 50. give 1 to 48"):
        options(k=50)


# The command.


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("trained") / "model")


SMALL = ("--features", 48, "--k", 4, "--steps", 20, "--batch", 64, "--tokens", 2000, "--window", 32)


def train(model, output, *more):
    return run("train-sae", "--model", model, "--device", "cpu", "--texts", "demo", *SMALL,
               "--output", output, *more)  # fmt: skip


def test_the_command_writes_a_dictionary_of_each_layer_and_says_how_good_it_is(model, tmp_path):
    ran = train(model, tmp_path / "sae")
    assert ran.code == 0, ran.err
    assert {p.name for p in (tmp_path / "sae").iterdir()} == {"resid.0", "resid.1"}
    assert re.search(r"resid\.1 \*? *[-0-9.]+ +4\.0", ran.out), ran.out
    found = open_dictionary(tmp_path / "sae" / "resid.1")
    facts = found.facts
    assert (facts.point, facts.step, facts.prepend_bos) == ("resid", 2, False)
    assert len(facts.weights_sha256) == 64
    assert facts.training["options"]["k"] == 4
    assert 0 <= facts.training["quality"]["dead"] <= 1
    again = train(model, tmp_path / "again")
    assert again.code == 0
    ours, theirs = (
        (tmp_path / name / "resid.1" / "sae_weights.safetensors").read_bytes()
        for name in ("sae", "again")
    )
    assert ours == theirs, "same seed, same bits"


def test_seeds_and_penalties_are_dictionaries_of_their_own(model, tmp_path):
    ran = run(
        "train-sae", "--model", model, "--device", "cpu", "--texts", "demo", "--layers", 0,
        "--kind", "relu", "--features", 48, "--steps", 10, "--batch", 64, "--tokens", 2000,
        "--window", 32, "--seeds", "1,2", "--penalties", "0.1,0.5", "--output", tmp_path,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    names = {f"resid.0.seed{s}.penalty{p}" for s in (1, 2) for p in ("0.1", "0.5")}
    assert {path.name for path in tmp_path.iterdir()} == names
    content = json.loads((tmp_path / "resid.0.seed2.penalty0.5" / "cfg.json").read_text())
    said = content["metadata"]["jaxalign"]["training"]["options"]
    assert (said["seed"], said["penalty"]) == (2, 0.5)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--layers", "7"), "the model has no resid after L7"),
        (("--layers", "0,0"), "--layers: expected numbers, each once"),
        (("--layers", "a"), "argument --layers: 'a' is no whole number"),
        (("--penalties", "0.1"), "--penalties has no use beside --kind topk"),
        (("--kind", "relu"), "--k has no use beside --kind relu"),
        (("--expansion", "4"), "--expansion has no use beside --features"),
        (("--seeds", "-1"), "--seeds: -1 is not in 0 … 4294967295"),
        (("--site", "pattern"), "--site 'pattern' is unknown"),
        (("--layout", "gemma_scope"), "--layout gemma_scope cannot hold a topk dictionary"),
        (("--kind", "batchtopk", "--layout", "sparsify"), "out --layout, or give --kind topk"),
    ],
)
def test_options_that_cannot_be_used_are_refused(model, tmp_path, more, said):
    given = ("train-sae", "--model", model, "--device", "cpu", "--texts", "demo", *SMALL)
    assert said in refusal(*given, "--output", tmp_path / "sae", *more)
    assert not (tmp_path / "sae").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--tokens", 9000, "--features", 48), "the activations of 2 places take"),
        (("--tokens", 2000, "--features", 4800), "2 dictionaries of 4800 features take about"),
    ],
)
def test_activations_and_trainings_that_do_not_fit_are_refused(model, tmp_path, more, said):
    given = ("train-sae", "--model", model, "--device", "cpu", "--texts", "demo", "--k", 4)
    given = (*given, "--site", "mlp_hidden", "--memory-gb", 0.002, "--output", tmp_path / "sae")
    assert said in refusal(*given, *more)
    assert not (tmp_path / "sae").exists()


def test_texts_that_are_too_few_are_refused(model, tmp_path):
    (tmp_path / "one.txt").write_text("One short text.")
    (tmp_path / "none.txt").write_text("")
    given = ("train-sae", "--model", model, "--device", "cpu", *SMALL, "--output", tmp_path / "o")
    assert "has 1 document, expected 2 or more" in refusal(*given, "--texts", tmp_path / "one.txt")
    assert "none.txt" in refusal(*given, "--texts", tmp_path / "none.txt")
    assert "is no file" in refusal(*given, "--texts", tmp_path / "missing.txt")


def test_an_interruption_while_quality_is_measured_keeps_the_training(model, tmp_path, monkeypatch):
    def interrupted(sums):
        raise KeyboardInterrupt

    given = ("train-sae", "--model", model, "--device", "cpu", "--texts", "demo", *SMALL)
    with monkeypatch.context() as patched:
        patched.setattr("jaxalign.commands.train_sae.quality_of", interrupted)
        assert run(*given, "--output", tmp_path).code == 2
    assert [*(tmp_path / ".training").rglob("training-*.npz")]
    with monkeypatch.context() as patched:
        patched.setattr("jaxalign.dictionaries.fit.advance", None)  # nothing is trained again
        ran = run(*given, "--output", tmp_path)
    assert ran.code == 0, ran.err
    assert not (tmp_path / ".training").exists()
