"""Claims about ``model.run``: what it computes, and that it compiles once for a shape."""

import importlib
from dataclasses import replace

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from tiny_run import write_model

import jaxalign
from jaxalign import Edit, HeadEdit, InputError, Replace
from jaxalign.edits import POINTS
from jaxalign.engine import compiled
from jaxalign.measures.metrics import Answer, kl_divergence
from jaxalign.model.checks import points_of

TEXT = "The capital of France is"
TEXTS = [TEXT, "When Mary and John went to the shop, John gave a book to"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return jaxalign.load(str(write_model(tmp_path_factory.mktemp("run") / "model")))


@pytest.fixture(scope="module")
def prompts(model):
    return model.encode(TEXTS, special=True)


@pytest.fixture
def as_users_have_it():
    """Shapes in signatures are checked in tests alone; users have our own words."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def traced(monkeypatch):
    """How often ``forward`` or ``sweep`` was traced, which is before each compilation."""
    count = []
    for name in ("forward", "sweep"):
        own = getattr(compiled, name)

        def counted(*given, own=own, **named):
            count.append(own.__name__)
            return own(*given, **named)

        monkeypatch.setattr(compiled, name, counted)
    return count


def forward(model, prompts, **how):
    tokens, lengths = prompts
    return jaxalign.forward(model.params, tokens, model.config, lengths=lengths, **how)


def test_it_is_forward_for_a_text_texts_and_tokens(model, prompts):
    expected = forward(model, prompts, last_only=True).logits
    for given in (TEXTS, prompts, tuple(map(np.asarray, prompts))):
        np.testing.assert_allclose(model.run(given).logits, expected, atol=1e-4)
    np.testing.assert_allclose(model.run(TEXT).logits, expected[:1], atol=1e-4)


def test_activations_and_all_logits_have_the_length_of_the_texts(model, prompts):
    size = prompts[0].shape[1]
    assert size % compiled.BUCKET, "or nothing is cut"
    names = ["embed", *points_of(model.config)]
    expected = forward(model, prompts, capture=names)
    found = model.run(TEXTS, capture=names, every_position=True)
    assert found.activations.keys() == {*names}
    for at, length in enumerate(prompts[1].tolist()):
        for name, values in found.activations.items():
            wanted = expected.activations[name]
            assert values.shape == wanted.shape
            axis = 0 if name == "embed" or not POINTS[name].layers else 1
            own, other = (np.moveaxis(np.asarray(a), axis, 0)[at] for a in (values, wanted))
            axis = -2 if name in ("scores", "pattern") else axis
            own, other = (np.moveaxis(a, axis, 0)[:length] for a in (own, other))
            np.testing.assert_allclose(own, other, atol=1e-4, err_msg=name)
        np.testing.assert_allclose(
            found.logits[at, :length], expected.logits[at, :length], atol=1e-4
        )


def test_one_activation_may_be_asked_for_by_its_name(model):
    found = model.run(TEXT, capture="z").activations
    assert found.keys() == {"z"}
    assert np.array_equal(found["z"], model.run(TEXT, capture=("z",)).activations["z"])
    with pytest.raises(ValueError, match="capture asks for"):
        model.run(TEXT, capture="zz")


def test_batches_of_edits_are_a_sweep_whose_first_row_is_clean(model, prompts):
    heads = jaxalign.zero_ablation(2, 2)
    answers = model.encode([" Paris", " Mary"])[0][:, 0]

    def lead(logits):
        return jaxalign.logit_difference(logits, answers)

    [expected] = jaxalign.jit(
        lambda params: jaxalign.sweep(params, *prompts, model.config, [heads], lead)
    )(model.params)
    for how in ({"target": [" Paris", " Mary"]}, {"metric": lead}):
        np.testing.assert_allclose(model.run(TEXTS, edits=heads, **how), expected, atol=1e-4)
        np.testing.assert_allclose(model.run(TEXTS, **how), expected[0], atol=1e-4)
    for found in model.run(TEXTS, edits=[heads, heads], metric=lead):
        np.testing.assert_allclose(found, expected, atol=1e-4)


def identity(logits):
    return logits


def test_runs_are_compared_with_the_clean_one_and_read_at_named_tokens(model):
    heads, tokens = jaxalign.zero_ablation(2, 2), jnp.array([[5, 6], [7, 8]])
    logits = model.run(TEXTS, edits=heads, metric=identity)
    clean = jnp.repeat(logits[:1], len(logits), axis=0)
    kl = model.run(TEXTS, edits=heads, metric=jaxalign.FromClean(kl_divergence))
    np.testing.assert_allclose(kl, kl_divergence(clean, logits), rtol=1e-3, atol=1e-6)
    read = jaxalign.AnswersDifference(tokens, jnp.array([[1.0, -1.0]]))
    found = model.run(TEXTS, edits=heads, metric=read)
    first, second = (logits[:, jnp.arange(2), tokens[:, i]] for i in range(2))
    np.testing.assert_allclose(found, first - second, atol=1e-4 * jnp.abs(logits).max())
    with pytest.raises(InputError, match=r"metric is a FromClean, .* edits= is not given"):
        model.run(TEXTS, metric=jaxalign.FromClean(kl_divergence))


@pytest.mark.slow
def test_edits_of_single_positions_act_where_they_acted(model):
    """Texts are padded to few lengths; edits have to be, too."""
    prompts = model.encode([TEXT], special=True)
    size = prompts[0].shape[1]
    masks = jaxalign.residual_patch_masks(2, size)
    edit = Edit(
        Replace("resid", masks, np.ones((3, 1, size, model.config.hidden_size), np.float32))
    )
    answer = model.encode([" Paris"])[0][:, 0]

    def lead(logits):
        return jaxalign.logit_difference(logits, answer)

    [expected] = jaxalign.sweep(model.params, *prompts, model.config, [edit], lead)
    np.testing.assert_allclose(model.run(TEXT, edits=edit, metric=lead), expected, atol=1e-4)
    single = Edit(Replace("resid", masks[size + 1], edit.sites[0].value))
    np.testing.assert_allclose(
        lead(model.run(TEXT, edit=single).logits), expected[1 + size + 1], atol=1e-4
    )


def test_a_shape_is_compiled_once_whatever_the_texts_edits_and_targets(model, traced):
    heads = jaxalign.zero_ablation(2, 2)
    model.run(TEXT, edits=heads, target=" Paris")
    model.run(TEXT)
    del traced[:]
    for text in (TEXT, "The capital of Japan is", "The cat", "The day was long"):
        model.run(text)
        for target in (" Paris", " Rome"):
            model.run(text, edits=jaxalign.zero_ablation(2, 2), target=target)
    other = HeadEdit(np.array(heads.sites[0].mask[::-1]), heads.sites[0].value + 1)
    model.run(TEXT, edits=Edit(other), target=" Paris")
    assert traced == []
    model.run(TEXT, edits=heads, metric=lambda logits: logits[:, 0])  # compiled in
    assert traced == ["sweep"]


def test_a_precision_is_named_and_its_weights_are_made_once(model, monkeypatch):
    model, made = replace(model), []  # which holds no weights that another test made
    own = jaxalign.cast

    def cast(params, scheme):
        made.append(scheme.name)
        return own(params, scheme)

    monkeypatch.setattr(importlib.import_module("jaxalign.checkpoints.load"), "cast", cast)
    for _ in range(2):
        low = model.run(TEXT, scheme="int4-g8").logits
    model.run(TEXT, scheme=jaxalign.F32)
    model.run(TEXT, scheme="int8-sim")
    assert made == ["int4-g8"]
    params = jaxalign.cast(model.params, "int4-g8")
    tokens, lengths = model.encode([TEXT], special=True)
    expected = jaxalign.forward(params, tokens, model.config, lengths=lengths, last_only=True)
    np.testing.assert_allclose(low, expected.logits, atol=1e-4)
    assert np.abs(low - model.run(TEXT).logits).max() > 1e-3


@pytest.mark.parametrize(
    ("texts", "how", "said"),
    [
        (7, {}, "texts is 7 (an int), expected a text, a list of texts"),
        ([TEXT, 3], {}, "texts are neither all texts nor (tokens, lengths)"),
        (
            TEXT,
            {"edits": "heads", "target": " x"},
            "edits is heads (a str), expected a list of Edit",
        ),
        (TEXT, {"edits": [3], "target": " x"}, "edits[0] is 3 (an int), expected an Edit"),
        (TEXT, {"edits": []}, "give edits= and one of metric= and target="),
        (TEXT, {"edit": 3}, "edit is 3 (an int), expected an Edit"),
        (TEXT, {"metric": 3}, "metric is 3 (an int), expected a function of logits"),
        (TEXT, {"metric": abs, "target": " x"}, "metric and target are both given"),
        (TEXT, {"target": [" a", " b"]}, "target names 2 answers of 1 text."),
        (TEXT, {"target": " x", "capture": ["z"]}, "read the last position alone"),
        (TEXT, {"scheme": 3}, "scheme is 3 (an int), expected a scheme or its name"),
        (TEXT, {"scheme": "nf5"}, "unknown precision scheme 'nf5'"),
        (TEXT, {"every_position": "yes"}, "every_position is yes (a str), expected True or False"),
        (TEXT, {"target": ""}, "target[0] is empty"),
        (TEXT, {"target": [5]}, "target[0] is 5 (an int), expected a text"),
        (TEXT, {"capture": 3}, "capture is 3 (an int), expected the name of an activation"),
        ([1, 2], {}, "tokens and lengths have shapes () and (), expected [B, S] and [B]"),
        ((np.ones((1, 999), int), np.array([999])), {}, "tokens have 999 positions, more than"),
        (
            [TEXT] * 2,
            {"metric": Answer(jnp.array([5]), jnp.array([6]))},
            "the answer has targets of shape (1,) for 2 texts",
        ),
        ([TEXT] * 2, {"metric": jnp.sum}, "metric gives shape () for logits of 2 texts"),
        ([TEXT] * 2, {"metric": lambda x: x[0]}, "return a value for each text: [2, …]"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(model, texts, how, said, as_users_have_it):
    with pytest.raises(InputError) as refused:
        model.run(texts, **how)
    assert said in str(refused.value)


def test_a_model_with_other_parameters_begins_without_the_precisions_of_the_first(model):
    model.run(TEXT, scheme="int4-g8")
    other = replace(model, params=jax.tree.map(lambda a: 2 * a, model.params))
    assert np.abs(other.run(TEXT, scheme="int4-g8").logits - model.run(TEXT).logits).max() > 1e-3
    assert [*other._low] != []
    assert other._low is not model._low


def test_an_edit_of_another_shape_is_refused_with_the_texts_own_length(model):
    size = model.encode([TEXT], special=True)[0].shape[1]
    wrong = jaxalign.Scale("mlp_out", np.ones((2, 1, size + 1, 1), np.float32))
    with pytest.raises(ValueError, match=rf"expected \[2, 1, {size}\|1, "):
        model.run(TEXT, edit=Edit(wrong))
