"""Ready-made sweeps: each place by the definition, estimates by the slope, the lens by its ends."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from jaxalign.edits import Add, Edit, Replace
from jaxalign.edits.points import POINTS
from jaxalign.engine.lens import direct_logit_attribution, head_scores, logit_lens
from jaxalign.engine.patching import (
    Patched,
    activation_patching,
    attribution_patching,
    value_at,
)
from jaxalign.errors import InputError
from jaxalign.model import forward
from jaxalign.model.checks import points_of
from jaxalign.numerics import jit
from testing.edits import prompt_pairs, tiny
from testing.edits import two_logits as metric

LENGTHS = jnp.array([6, 4])


@pytest.fixture(scope="module")
def pair():
    return prompt_pairs()


@pytest.mark.parametrize(
    ("point", "apart", "places"),
    [
        ("resid", "S", (4, 6)),
        ("mlp_out", "", (3,)),
        ("z", "H", (3, 4)),
        ("q", "SH", (3, 6, 4)),
        ("pattern", "H", (3, 4)),
        ("final_norm", "S", (6,)),
    ],
)
def test_each_place_is_one_run_with_that_place_of_the_clean_run(pair, point, apart, places):
    params, config = tiny(parallel=False)
    clean, corrupted = pair
    names = (point, "embed")
    call = jit(
        lambda c, d: activation_patching(
            params, c, d, LENGTHS, config, metric, point=point, apart=apart
        )
    )
    found = call(clean, corrupted)
    assert found.patched.shape == (*places, 2)
    one = jit(
        lambda t, e: forward(
            params, t, config, lengths=LENGTHS, edit=e, capture=names, last_only=True
        )
    )
    donor = one(clean, None)
    np.testing.assert_allclose(found.clean, metric(donor.logits), atol=1e-4)
    value = value_at(donor, point)
    rng = np.random.default_rng(1)
    for place in {tuple(int(rng.integers(n)) for n in places) for _ in range(6)}:
        mask = np.zeros(value.shape, bool)
        own = iter(place)
        index = tuple(
            next(own) if axis in (*apart, "L", "L+1") else slice(None)
            for axis in POINTS[point].axes
        )
        mask[index] = True
        expected = metric(one(corrupted, Edit(Replace(point, mask, value))).logits)
        np.testing.assert_allclose(found.patched[place], expected, atol=2e-4, err_msg=str(place))


def test_an_effect_is_one_where_all_comes_back_and_unknown_where_nothing_was_lost():
    found = Patched(jnp.array([3.0, 2.0]), jnp.array([-1.0, 2.0]), jnp.array([[3.0, 2.0], [1, 1]]))
    effect = np.asarray(found.effect)
    assert np.array_equal(effect[:, 0], [1, 0.5])
    assert np.isnan(effect[:, 1]).all()


@pytest.mark.parametrize(
    ("parallel", "few"),
    [
        (False, ("resid", "z", "pattern", "mlp_hidden")),
        pytest.param(False, (), marks=pytest.mark.slow),
        pytest.param(True, (), marks=pytest.mark.slow),
    ],
    ids=["few points", "every point", "every point, parallel"],
)
def test_an_estimate_is_the_slope_of_patching(pair, parallel, few):
    params, config = tiny(parallel)
    clean, corrupted = pair
    points = few or points_of(config)
    found = jit(
        lambda c, d: attribution_patching(params, c, d, LENGTHS, config, metric, points=points)
    )(clean, corrupted)
    names = ("embed", *points)
    run = jit(
        lambda t, e: forward(
            params, t, config, lengths=LENGTHS, edit=e, capture=names, last_only=True
        )
    )
    there, here = (run(tokens, None) for tokens in pair)
    small = 2.0**-7
    for point in points:
        change = value_at(there, point) - value_at(here, point)
        change = jnp.where(jnp.isfinite(change), change, 0)
        whole = found.estimates[point]
        assert whole.shape == change.shape[: whole.ndim]
        for at in range(len(change) if POINTS[point].layers else 1):
            mask = np.zeros((len(change) if POINTS[point].layers else 1, *[1] * (change.ndim - 1)))
            mask[at] = small
            ahead, behind = (
                metric(run(corrupted, Edit(Add(point, sign * mask, value=change))).logits)
                for sign in (1, -1)
            )
            slope = (ahead - behind) / (2 * small)
            own = whole[at] if POINTS[point].layers else whole
            ours = own.reshape(2, -1).sum(axis=1)
            np.testing.assert_allclose(ours, slope, rtol=0.02, atol=0.02, err_msg=f"{point} {at}")


def test_the_estimate_is_exact_where_the_metric_is_linear(pair):
    params, config = tiny()
    how = LENGTHS, config, metric
    exact = jit(lambda c, d: activation_patching(params, c, d, *how, point="final_norm"))(*pair)
    found = jit(lambda c, d: attribution_patching(params, c, d, *how, points="final_norm"))(*pair)
    moved = (exact.patched - exact.corrupted[None]).T  # [B, S]
    np.testing.assert_allclose(found.estimates["final_norm"], moved, atol=1e-4)
    last = np.asarray(LENGTHS) - 1
    assert (np.abs(np.asarray(moved)[np.arange(2), last]) > 1e-3).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"apart": "H"}, "resid has no axis 'H' to take apart. name some of S, D."),
        ({"apart": "B"}, "resid has no axis 'B'"),
        ({"apart": 5}, r"apart is 5 \(an int\), expected letters of the point's axes"),
        ({"point": "resid_mid"}, "the model has no point 'resid_mid'"),
        ({"point": "hook_z"}, "the model has no point 'hook_z'. use resid, q,"),
    ],
)
def test_places_that_are_not_there_are_refused(pair, change, said, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users have it
    params, config = tiny()
    with pytest.raises(InputError, match=said):
        activation_patching(params, *pair, LENGTHS, config, metric, **change)


def test_pairs_of_unequal_length_are_refused(pair, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users have it
    params, config = tiny()
    clean, corrupted = pair
    for sweep in (activation_patching, attribution_patching):
        with pytest.raises(InputError, match=r"prompts are \[2, 6\] and corrupted ones \[2, 5"):
            sweep(params, clean, corrupted[:, :5], LENGTHS, config, metric)


def test_the_lens_ends_with_what_the_model_says(pair):
    params, config = tiny(parallel=False)
    lens = jit(lambda t: logit_lens(params, t, LENGTHS, config))(pair[0])
    out = jit(
        lambda t: forward(params, t, config, lengths=LENGTHS, capture=("embed",), last_only=True)
    )(pair[0])
    np.testing.assert_allclose(lens[-1], out.logits, atol=1e-5 * np.abs(out.logits).max())
    first = out.activations["embed"][np.arange(2), np.asarray(LENGTHS) - 1]
    centred = first - first.mean(axis=-1, keepdims=True)
    normed = centred / np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + config.norm_eps)
    normed = normed * params.final_norm.scale[None] + params.final_norm.bias[None]
    matrix = params.embed if params.unembed is None else params.unembed
    np.testing.assert_allclose(lens[0], normed @ matrix.T, atol=1e-4)


def test_scores_of_heads_are_attention_to_the_places_they_name():
    params, config = tiny()
    scores = head_scores(params, config, length=5, count=3)
    rng = np.random.default_rng(0)
    once = np.stack([rng.choice(96, 5, replace=False) for _ in range(3)])
    out = forward(params, jnp.asarray(np.tile(once, 2)), config, capture=("pattern",))
    pattern = np.asarray(out.activations["pattern"])
    for name, back in {"previous token": 1, "duplicate token": 5, "induction": 4}.items():
        found = [pattern[..., q, q - back] for q in range(5, 10)]
        np.testing.assert_allclose(scores[name], np.mean(found, axis=(0, 2)), atol=1e-6)
    with pytest.raises(InputError, match="give 2 to"):
        head_scores(params, config, length=1)


def test_the_bundled_model_has_a_head_that_looks_back():
    import jaxalign

    model = jaxalign.load("demo")
    scores = jaxalign.head_scores(model.params, model.config)
    uniform = np.mean([1 / (q + 1) for q in range(24, 48)])
    assert all(score.shape == (6, 8) for score in scores.values())
    assert float(scores["previous token"].max()) > 5 * uniform
    assert jax.tree.all(jax.tree.map(lambda a: bool((a >= 0).all() and (a <= 1).all()), scores))


GEMMA = {"num_kv_heads": 2, "head_size": 12, "rotary_dims": 12, "gated": True, "mlp_bias": False}
GEMMA |= {"norm": "rms+1", "post_norms": True, "attention_bias": False}


@pytest.mark.parametrize(
    ("parallel", "settings"),
    [(True, {}), (False, {}), (False, GEMMA)],
    ids=["parallel", "sequential", "post norms"],
)
def test_what_the_parts_write_adds_up_to_the_difference_of_the_logits(pair, parallel, settings):
    params, config = tiny(parallel, **settings)
    target, other = jnp.array([3, 9]), jnp.array([7, 1])
    parts = jit(lambda t: direct_logit_attribution(params, t, LENGTHS, config, target, other))(
        pair[0]
    )
    out = jit(lambda t: forward(params, t, config, lengths=LENGTHS, last_only=True))(pair[0])
    wanted = out.logits[np.arange(2), target] - out.logits[np.arange(2), other]
    np.testing.assert_allclose(parts.total, wanted, atol=2e-4)
    assert parts.heads.shape == (3, 4, 2)
    assert (np.abs(parts.heads).max(axis=(0, 1)) > 1e-3).all()


def test_a_head_of_the_last_layer_writes_what_it_takes_away_with_it(pair):
    """Behind the last layer there is the norm alone, and a small enough change leaves its scale."""
    params, config = tiny()
    target, other = jnp.array([3, 9]), jnp.array([7, 1])
    parts = direct_logit_attribution(params, pair[0], LENGTHS, config, target, other)
    last = jax.tree.map(lambda a: a, params)
    rows = slice(8, 16)  # head 1
    out = last.blocks.attention.out.at[2, rows].multiply(1 - 2.0**-6)
    blocks = last.blocks.replace(attention=last.blocks.attention.replace(out=out))
    ends = [
        forward(p, pair[0], config, lengths=LENGTHS, capture=("resid",), last_only=True)
        for p in (params, params.replace(blocks=blocks))
    ]
    moved = (ends[0].activations["resid"] - ends[1].activations["resid"])[-1]
    moved = moved[np.arange(2), np.asarray(LENGTHS) - 1] * 2.0**6
    whole = ends[0].activations["resid"][-1][np.arange(2), np.asarray(LENGTHS) - 1]
    scale = params.final_norm.scale[None] / jnp.sqrt(
        whole.var(axis=-1, keepdims=True) + config.norm_eps
    )
    matrix = params.embed if params.unembed is None else params.unembed
    by_hand = ((moved - moved.mean(axis=-1, keepdims=True)) * scale) * (
        matrix[target] - matrix[other]
    )
    np.testing.assert_allclose(parts.heads[2, 1], by_hand.sum(axis=-1), rtol=2e-2, atol=2e-3)
