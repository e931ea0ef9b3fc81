"""AWQ, GPTQ and SmoothQuant as functions of a matrix and of what its layer reads."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.errors import InputError
from jaxalign.numerics import jit, scheme_named
from jaxalign.numerics.methods.awq import clip, scale_candidates, search_clip, search_scale
from jaxalign.numerics.methods.gptq import gptq, inverse_factor
from jaxalign.numerics.methods.smoothquant import smoothing_scale, static_input_scale
from jaxalign.numerics.moments import moments, output_error
from jaxalign.numerics.qtensor import unpack, unpack_nibbles
from jaxalign.numerics.quantize import quantize
from jaxalign.numerics.scheme import WeightFormat

INPUTS, OUTPUTS, TOKENS = 128, 24, 400
INT4 = scheme_named("int4-g32").weights
INT8 = WeightFormat("int8", levels=127)
search = jit(search_scale, static_argnames=("form",))
limits = jit(search_clip, static_argnames=("form",))
compensated = jit(gptq, static_argnames=("form", "damping", "act_order", "static_groups"))


def correlated_inputs(seed=0, shared=24):
    """Activations that a few directions explain for the most part."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((shared, INPUTS)) / np.sqrt(shared)
    x = rng.standard_normal((TOKENS, shared)) @ mix + 0.2 * rng.standard_normal((TOKENS, INPUTS))
    return x.astype(np.float32)


def inputs_with_outliers(seed=0, channels=(3, 40, 77), times=60):
    """Activations of which three channels are many times the others, as in language models."""
    x = np.random.default_rng(seed).standard_normal((TOKENS, INPUTS)).astype(np.float32)
    x[:, list(channels)] *= times
    return x


def matrix(seed=1, *out):
    return np.random.default_rng(seed).standard_normal((INPUTS, *(out or (OUTPUTS,)))).astype("f4")


def of(x):
    return moments(jnp.asarray(x), jnp.ones(len(x), bool))


def relative_error(x, w, rounded):
    """``|x(Ŵ − W)|² / |xW|²``, in f64."""
    x, w, rounded = (np.asarray(a, np.float64) for a in (x, w, rounded))
    return float(((x @ (rounded - w)) ** 2).sum() / ((x @ w) ** 2).sum())


# Moments


def test_moments_see_tokens_and_not_padding():
    x = np.random.default_rng(0).standard_normal((3, 5, 8)).astype(np.float32)
    real = np.arange(5)[None] < np.array([5, 2, 0])[:, None]
    loud = np.where(real[..., None], x, np.nan).astype(np.float32)
    found = moments(jnp.asarray(loud), jnp.asarray(real))
    own = x[real]
    assert found.count == 7
    np.testing.assert_allclose(found.mean_absolute, np.abs(own).mean(axis=0), rtol=1e-6)
    np.testing.assert_array_equal(found.largest, np.abs(own).max(axis=0))
    np.testing.assert_allclose(found.mean_second, own.T @ own / 7, rtol=1e-5, atol=1e-6)


def test_moments_add_up_and_divide():
    x = correlated_inputs()
    whole, parts = of(x), of(x[:150]) + of(x[150:])
    scale = np.random.default_rng(0).uniform(0.1, 5, INPUTS).astype(np.float32)
    for ours, expected in ((parts, whole), (whole.divided(jnp.asarray(scale)), of(x / scale))):
        assert ours.count == expected.count
        for name in ("absolute", "largest", "second"):
            a, b = getattr(ours, name), getattr(expected, name)
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


def test_output_error_of_second_moments_is_that_of_the_activations():
    x, change = correlated_inputs(), 0.01 * matrix()
    direct = ((x.astype(np.float64) @ change) ** 2).sum(axis=1).mean()
    assert output_error(jnp.asarray(change), of(x).mean_second) == pytest.approx(direct, rel=1e-5)


# AWQ


def awq(x, w, form=INT4):
    """The rounded matrix in the coordinates of the unscaled input, as a layer would act."""
    found = of(x)
    scale = search([w], found.mean_absolute, found.mean_second, form=form)
    scaled, found = w * scale[:, None], found.divided(scale)
    limit = limits(scaled, found.mean_second, form=form)
    return unpack(quantize(clip(scaled, limit), form)) / scale[:, None]


def test_awq_beats_rounding_where_inputs_have_outlier_channels():
    x, w = inputs_with_outliers(), matrix()
    plain = relative_error(x, w, unpack(quantize(jnp.asarray(w), INT4)))
    ours = relative_error(x, w, awq(x, jnp.asarray(w)))
    assert ours < 0.25 * plain, f"AWQ {ours:.2e}, rounding to the nearest {plain:.2e}"


def test_awq_scale_is_the_best_of_its_twenty_candidates_on_the_activations():
    x, first, second = inputs_with_outliers(times=8), matrix(1), matrix(2, 7)
    found = of(x)
    candidates = np.asarray(scale_candidates(found.mean_absolute))
    errors = []
    for scale in candidates:
        error = 0.0
        for w in (first, second):
            rounded = np.asarray(unpack(quantize(jnp.asarray(w * scale[:, None]), INT4)))
            error += ((x @ (rounded / scale[:, None] - w)) ** 2).sum()
        errors.append(error)
    weights = [jnp.asarray(first), jnp.asarray(second)]
    chosen = search(weights, found.mean_absolute, found.mean_second, form=INT4)
    assert 0 < np.argmin(errors) < len(errors) - 1, "neither end of the grid tests a search"
    np.testing.assert_allclose(chosen, candidates[np.argmin(errors)], rtol=1e-6)


def test_awq_candidates_are_powers_of_the_mean_about_a_middle_of_one():
    mean = jnp.array([0.0, 1e-3, 1.0, 50.0])
    candidates = np.asarray(scale_candidates(mean))
    assert candidates.shape == (20, 4)
    np.testing.assert_array_equal(candidates[0], 1)
    np.testing.assert_allclose(np.sqrt(candidates.max(axis=1) * candidates.min(axis=1)), 1, 1e-6)
    ratio = candidates[10, 3] / candidates[10, 2]
    assert ratio == pytest.approx(np.sqrt(50), rel=1e-5), "r = 10/20 is a square root"
    assert (candidates > 0).all(), "an input that is always 0 has a scale, too"


def test_awq_clips_each_group_to_its_best_limit_on_the_activations():
    x, w = correlated_inputs(), matrix()
    w[5, :8] *= 6  # a weight that widens its group's range
    limit = np.asarray(limits(jnp.asarray(w), of(x).mean_second, form=INT4))
    largest = np.abs(w).reshape(4, 32, -1).max(axis=1)
    errors = []
    for step in range(10):
        clipped = clip(jnp.asarray(w), jnp.asarray(largest * (1 - np.float32(step) / 20)))
        change = np.asarray(unpack(quantize(clipped, INT4))) - w
        moved = np.einsum("tga,gao->tgo", x.reshape(-1, 4, 32), change.reshape(4, 32, -1))
        errors.append((moved.astype(np.float64) ** 2).mean(axis=0))
    best = largest * (1 - np.argmin(errors, axis=0) / 20)
    # Sums in another order may tip a group between two limits that do equally well.
    assert np.isclose(limit, best, rtol=1e-5).mean() > 0.98
    assert (limit < largest).mean() > 0.5, "clipping pays in most groups of 4-bit codes"


# GPTQ


def reference_gptq(w, second, form, act_order=False, static_groups=False):
    """One column after another with the whole inverse, f64: optimal brain quantization.

    After each column the inverse of what is left comes from Gaussian elimination, so that neither
    blocks nor a Cholesky factor are used.
    """
    w, hessian = w.astype(np.float64), 2 * second.astype(np.float64)
    inputs = len(w)
    dead = np.diag(hessian) == 0
    hessian[dead, dead], w[dead] = 1, 0
    order = np.argsort(-np.diag(hessian), kind="stable") if act_order else np.arange(inputs)
    w, hessian = w[order], hessian[order][:, order]
    hessian += 0.01 * np.diag(hessian).mean() * np.eye(inputs)
    inverse = np.linalg.inv(hessian)
    size = form.group or inputs
    natural = w[np.argsort(order)].copy()
    codes, values = np.zeros_like(w), np.zeros_like(w)
    for i in range(inputs):
        if static_groups:
            start = order[i] // size * size
            scale, zero = reference_grid(natural[start : start + size], form)
        elif i % size == 0:
            scale, zero = reference_grid(w[i : i + size], form)
        low, high = (0, form.levels) if form.zero else ((-8, 7) if form.bits == 4 else (-127, 127))
        codes[i] = np.clip(np.round(w[i] / scale) + zero, low, high)
        values[i] = (codes[i] - zero) * scale
        error = (w[i] - values[i]) / inverse[i, i]
        w -= np.outer(inverse[:, i], error)
        inverse -= np.outer(inverse[:, i], inverse[i]) / inverse[i, i]
        inverse[i, i] = 1  # eliminated; its row and column are 0
    back = np.argsort(order)
    return codes[back], values[back]


def reference_grid(w, form):
    if form.zero:
        scale = np.maximum(w.max(axis=0) - w.min(axis=0), 1e-5) / form.levels
        return scale, np.clip(-np.round(w.min(axis=0) / scale), 0, form.levels)
    return np.maximum(np.abs(w).max(axis=0), 1e-5) / form.levels, 0.0


def codes_of(packed):
    if packed.format.bits == 8:
        return np.asarray(packed.codes, np.float64)
    offset = 0 if packed.format.zero else 8
    return np.asarray(unpack_nibbles(packed.codes, 0), np.float64) - offset


@pytest.mark.parametrize(
    ("form", "options"),
    [
        (INT4, {}),
        (INT4, {"act_order": True}),
        (INT4, {"act_order": True, "static_groups": True}),
        (scheme_named("int4-sym-channel").weights, {}),
        (INT8, {}),
    ],
    ids=["g32", "act-order", "static", "sym-channel", "int8"],
)
def test_gptq_equals_optimal_brain_quantization_column_by_column(form, options):
    x, w = correlated_inputs(), matrix()
    x[:, 9] = 0
    second = of(x).mean_second
    ours = compensated(jnp.asarray(w), second, form=form, **options)
    codes, values = reference_gptq(w, np.asarray(second), form, **options)
    # f32 sums tip a code at a tie, and later inputs then differ, too.
    equal = (codes_of(ours) == codes).mean()
    assert equal > 0.99, f"{equal:.2%} of codes"
    errors = [relative_error(x, w, rounded) for rounded in (unpack(ours), values)]
    assert errors[0] == pytest.approx(errors[1], rel=0.02)


@pytest.mark.parametrize("options", [{}, {"act_order": True}], ids=["in order", "act-order"])
def test_gptq_beats_rounding_where_inputs_are_correlated(options):
    x, w = correlated_inputs(), matrix()
    plain = relative_error(x, w, unpack(quantize(jnp.asarray(w), INT4)))
    packed = compensated(jnp.asarray(w), of(x).mean_second, form=INT4, **options)
    ours = relative_error(x, w, unpack(packed))
    assert ours < 0.4 * plain, f"GPTQ {ours:.2e}, rounding to the nearest {plain:.2e}"


def test_gptq_is_rounding_to_the_nearest_where_inputs_are_independent_and_equal():
    w = jnp.asarray(matrix())
    packed = compensated(w, jnp.eye(INPUTS), form=INT4)
    nearest = quantize(w, INT4)
    assert np.array_equal(packed.codes, nearest.codes)
    assert np.array_equal(packed.scale, nearest.scale)


def test_act_order_says_which_group_each_input_is_of():
    x, w = inputs_with_outliers(channels=(100, 3), times=9), matrix()
    packed = compensated(jnp.asarray(w), of(x).mean_second, form=INT4, act_order=True)
    group_of = np.asarray(packed.group_of)
    assert {group_of[100], group_of[3]} == {0}, "the loudest inputs come first"
    assert np.bincount(group_of).tolist() == [32] * 4


def test_an_input_that_is_always_zero_changes_nothing_else_and_stands_for_zero():
    x, w = correlated_inputs(), matrix()
    x[:, 9] = 0
    loud = w.copy()
    loud[9] *= 100
    packed = [compensated(jnp.asarray(a), of(x).mean_second, form=INT4) for a in (w, loud)]
    assert np.array_equal(*(p.codes for p in packed))
    assert not np.asarray(unpack(packed[0]))[9].any()


def test_matrices_with_several_output_axes_are_rounded_as_flat_ones():
    x, w = correlated_inputs(), matrix(1, 2, 12)
    second = of(x).mean_second
    stacked = compensated(jnp.asarray(w), second, form=INT4)
    flat = compensated(jnp.asarray(w.reshape(INPUTS, -1)), second, form=INT4)
    assert stacked.shape == w.shape
    assert np.array_equal(unpack(stacked).reshape(INPUTS, -1), unpack(flat))


def test_factor_of_the_inverse_is_upper_and_squares_to_it():
    second = np.asarray(of(correlated_inputs()).mean_second, np.float64)
    factor = np.asarray(inverse_factor(jnp.asarray(second, jnp.float32), 0.01), np.float64)
    damped = second + 0.01 * np.diag(second).mean() * np.eye(INPUTS)
    assert not np.tril(factor, -1).any()
    np.testing.assert_allclose(factor.T @ factor @ damped, np.eye(INPUTS), atol=2e-4)


def test_moments_without_a_cholesky_factor_leave_no_scale():
    packed = compensated(jnp.asarray(matrix()), jnp.ones((INPUTS, INPUTS)), form=INT4, damping=-1.0)
    assert np.isnan(packed.scale).all()


def test_gptq_refuses_what_it_cannot_round():
    w, second = jnp.asarray(matrix()), jnp.eye(INPUTS)
    with pytest.raises(InputError, match="128 inputs, which groups of 48"):
        gptq(w, second, scheme_named("int4-g48").weights)
    with pytest.raises(ValueError, match="nf4"):
        gptq(w, second, scheme_named("nf4").weights)


# SmoothQuant


def test_smoothing_scale_is_its_definition():
    x, w, v = inputs_with_outliers(), matrix(1), matrix(2, 5)
    largest = np.abs(x).max(axis=0)
    for alpha in (0.5, 0.8):
        widest = np.maximum(np.abs(w).max(axis=1), np.abs(v).max(axis=1))
        expected = largest**alpha / widest ** (1 - alpha)
        ours = smoothing_scale([jnp.asarray(w), jnp.asarray(v)], jnp.asarray(largest), alpha)
        np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_smoothed_int8_products_beat_plain_ones_where_inputs_have_outlier_channels():
    x, w = inputs_with_outliers(), matrix()
    scale = np.asarray(smoothing_scale([jnp.asarray(w)], of(x).largest))

    def product(x, w):
        step = functools.partial(np.max, axis=1, keepdims=True)
        codes = np.round(x / (step(np.abs(x)) / 127)) * (step(np.abs(x)) / 127)
        return codes @ np.asarray(unpack(quantize(jnp.asarray(w), INT8)))

    exact = x @ w
    plain, smooth = (
        np.linalg.norm(product(a, b) - exact) for a, b in ((x, w), (x / scale, w * scale[:, None]))
    )
    assert smooth < 0.5 * plain


def test_static_scale_is_the_largest_activation_over_127():
    assert static_input_scale(jnp.array([2.0, 254.0, 0.0])) == 2
    assert static_input_scale(jnp.zeros(3)) > 0
