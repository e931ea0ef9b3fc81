"""Alignment against plain NumPy and SciPy, against what it must be, and against chance."""

import jaxtyping
import numpy as np
import pytest
from scipy import stats as scipy_stats
from scipy.linalg import orthogonal_procrustes, svd
from scipy.optimize import linear_sum_assignment

from jaxalign.errors import InputError
from jaxalign.measures import cosines, stats
from jaxalign.measures.alignment import Aligned, align, seed_floor
from jaxalign.measures.cka import centred, debiased_cka, linear_cka
from jaxalign.measures.cosines import directions, neighbours

DICTIONARIES = ["raw", "mutual", "procrustes", "mutual_procrustes", "held_out"]
CLOSE = 1e-5  # f32 products of rows of norm 1


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def as_users_have_it():
    """Types in signatures are checked in tests alone; users have our own words."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


def random_rotation(width, rng):
    return np.linalg.qr(rng.standard_normal((width, width)))[0]


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def values_of(first, second, **options):
    return {name: one.value for name, one in align(first, second, draws=0, **options).items()}


def plain_mutual(cosines_of):
    rows, columns = cosines_of.argmax(axis=1), cosines_of.argmax(axis=0)
    return sum(columns[j] == i for i, j in enumerate(rows)) / min(cosines_of.shape)


def plain_gram_cka(x, y, hsic):
    k, m = x @ x.T, y @ y.T
    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


def plain_hsic(k, m):
    n = len(k)
    centring = np.eye(n) - 1 / n
    return np.trace(k @ centring @ m @ centring)


def plain_unbiased_hsic(k, m):
    """Song et al.'s three terms, of Gram matrices without their diagonals."""
    n, ones = len(k), np.ones(len(k))
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    middle = (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))
    return (np.trace(k @ m) + middle - 2 / (n - 2) * (ones @ k @ m @ ones)) / (n * (n - 3))


def test_values_of_dictionaries_equal_plain_numpy(rng):
    first = rng.standard_normal((60, 12)) * rng.uniform(0.1, 9, (60, 1))
    second = first + rng.standard_normal((60, 12))
    found = values_of(first, second, seed=3)
    a, b = unit(first), unit(second)
    raw = a @ b.T
    u, _, vt = svd(a.T @ b)
    turned = a @ u @ vt @ b.T
    assert list(found) == DICTIONARIES
    assert found["raw"] == pytest.approx(raw.max(axis=1).mean(), abs=CLOSE)
    assert found["mutual"] == pytest.approx(plain_mutual(raw))
    assert found["procrustes"] == pytest.approx(turned.max(axis=1).mean(), abs=CLOSE)
    assert found["mutual_procrustes"] == pytest.approx(plain_mutual(turned))
    ours, theirs = linear_sum_assignment(-raw)
    order = stats.generator(3, "alignment", "split").permutation(60)
    fit, score = order[:30], order[30:]
    rotation, _ = orthogonal_procrustes(a[ours[fit]], b[theirs[fit]])
    held_out = (a[ours[score]] @ rotation * b[theirs[score]]).sum(axis=1).mean()
    assert found["held_out"] == pytest.approx(held_out, abs=CLOSE)


def test_the_rotation_is_the_best_one_feature_by_feature(rng):
    a, b = (directions(rng.standard_normal((40, 6)), "x") for _ in range(2))
    best = (cosines.rotated(a, b, a) * b).sum()
    others = [(a @ random_rotation(6, rng) * b).sum() for _ in range(50)]
    assert best > max(others)
    assert best == pytest.approx(np.linalg.svd(a.T @ b, compute_uv=False).sum(), rel=1e-5)


@pytest.mark.parametrize("at_once", [1, 35 * 7, 35 * 50, 2**25])
def test_cosines_by_blocks_equal_all_at_once(rng, at_once, monkeypatch):
    monkeypatch.setattr(cosines, "COSINES_AT_ONCE", at_once)
    a, b = (directions(rng.standard_normal((n, 5)), "x") for n in (50, 35))
    product = a @ b.T
    found = neighbours(a, b)
    assert found.cosine == pytest.approx(product.max(axis=1), abs=CLOSE)
    assert (found.nearest == product.argmax(axis=1)).all()
    assert (found.mutual == (product.argmax(axis=0)[found.nearest] == np.arange(50))).all()


def test_features_of_different_numbers_are_compared_but_not_paired(rng):
    small, large = rng.standard_normal((30, 8)), rng.standard_normal((50, 8))
    large[5:35] = small
    found = align(small, large, draws=4)
    assert found["raw"].value == pytest.approx(1)
    assert found["mutual"].value == 1
    assert found["held_out"].value == pytest.approx(1, abs=CLOSE)
    for name in ("procrustes", "mutual_procrustes"):
        assert found[name] == Aligned(missing=found[name].missing)
        assert "30 and 50" in found[name].missing
    assert values_of(large, small)["mutual"] == 1


def test_a_dictionary_is_itself_whatever_its_norms(rng):
    dictionary = rng.standard_normal((48, 8))
    norms = np.logspace(-18, 18, 48)[:, None]
    for other in (dictionary, dictionary * norms, (dictionary * norms).astype(np.float32)):
        found = values_of(dictionary, other)
        assert all(value == pytest.approx(1, abs=CLOSE) for value in found.values()), found


def test_equal_features_are_mutual_neighbours_of_themselves(rng):
    dictionary = np.repeat(rng.standard_normal((20, 8)), 2, axis=0)
    assert values_of(dictionary, dictionary)["mutual"] == 1


def test_a_rotated_dictionary_is_found_by_procrustes_alone(rng):
    dictionary = rng.standard_normal((96, 16))
    found = values_of(dictionary, dictionary @ random_rotation(16, rng))
    assert found["raw"] < 0.7
    assert found["mutual"] < 0.7
    assert found["procrustes"] == pytest.approx(1, abs=CLOSE)
    assert found["mutual_procrustes"] == 1
    # Pairs are matched before the rotation, by cosines that say nothing here.
    assert found["held_out"] < 0.7


def test_permuted_features_are_found_by_matching_and_not_by_feature(rng):
    dictionary = rng.standard_normal((96, 16))
    found = values_of(dictionary, rng.permutation(dictionary))
    assert found["raw"] == pytest.approx(1)
    assert found["mutual"] == 1
    assert found["procrustes"] < 0.7
    assert found["held_out"] == pytest.approx(1, abs=CLOSE)


def test_held_out_pairs_need_enough_features_and_not_too_many(rng, monkeypatch):
    few = align(*rng.standard_normal((2, 20, 11)), draws=0)["held_out"]
    assert few == Aligned(missing="10 pairs do not determine a rotation of width 11")
    monkeypatch.setattr(cosines, "MOST_MATCHED", 39)
    many = align(*rng.standard_normal((2, 40, 11)), draws=0)["held_out"]
    assert many == Aligned(missing="more than 39 features are not matched one to one")


@pytest.mark.parametrize(("tokens", "widths"), [(30, (40, 25)), (90, (7, 12))])
def test_cka_equals_plain_numpy_on_either_side(rng, tokens, widths):
    x = rng.standard_normal((tokens, widths[0])) + 3
    y = x @ rng.standard_normal(widths) + 2 * rng.standard_normal((tokens, widths[1]))
    found = values_of(x, y, kind="activations")
    assert list(found) == ["cka", "debiased_cka"]
    assert found["cka"] == pytest.approx(plain_gram_cka(x, y, plain_hsic))
    # Not centred: the unbiased estimator does that itself.
    assert found["debiased_cka"] == pytest.approx(plain_gram_cka(x, y, plain_unbiased_hsic))


@pytest.mark.parametrize("tokens", [30, 90])
def test_cka_does_not_see_rotations_scales_and_shifts(rng, tokens):
    x, y = rng.standard_normal((2, tokens, 40))
    y += x
    moved = 1e-3 * y @ random_rotation(40, rng) + 5
    for cka in (linear_cka, debiased_cka):
        expected = cka(centred(x, "x"), centred(y, "y"))
        assert cka(centred(x, "x"), centred(moved, "y")) == pytest.approx(expected)
        assert cka(centred(1e20 * x, "x"), centred(x, "x")) == pytest.approx(1)
        sheared = y @ rng.standard_normal((40, 40))
        assert cka(centred(x, "x"), centred(sheared, "y")) != pytest.approx(expected, abs=0.01)


def test_debiased_cka_of_independent_activations_is_near_0_and_cka_is_not(rng):
    x, y = (centred(rng.standard_normal((200, 300)), "x") for _ in range(2))
    assert linear_cka(x, y) == pytest.approx(300 / 500, abs=0.02)
    assert abs(debiased_cka(x, y)) < 0.02


def test_a_value_stands_beside_the_null_that_the_docstring_says(rng):
    x, y = rng.standard_normal((2, 40, 6))
    y += 0.3 * x
    found = align(x, y, kind="activations", draws=9, seed=7)["cka"]
    draws = [stats.generator(7, "alignment", "null", str(i)) for i in range(9)]
    null = [plain_gram_cka(x, y[one.permutation(40)], plain_hsic) for one in draws]
    assert found.null_mean == pytest.approx(np.mean(null))
    assert found.null_sd == pytest.approx(np.std(null, ddof=1))
    assert found.z == pytest.approx((found.value - np.mean(null)) / np.std(null, ddof=1))
    assert found.p == (1 + sum(one >= found.value for one in null)) / 10
    found = align(x, y[:30], draws=9, seed=7)["raw"]
    draws = [stats.generator(7, "alignment", "null", str(i)) for i in range(9)]
    drawn = [unit(one.standard_normal((30, 6), np.float32)) for one in draws]
    null = [(unit(x) @ one.T).max(axis=1).mean() for one in drawn]
    assert found.null_mean == pytest.approx(np.mean(null), abs=CLOSE)
    assert found.null_sd == pytest.approx(np.std(null, ddof=1), abs=CLOSE)


def test_planted_alignment_has_the_smallest_p_and_less_than_chance_is_no_hit(rng):
    first = rng.standard_normal((64, 8))
    second = first + 0.2 * rng.standard_normal((64, 8))
    found = align(first, second, draws=19)
    assert [one.p for one in found.values()] == [1 / 20] * len(DICTIONARIES)
    assert all(one.z > 4 for one in found.values())
    for one in align(first, second, kind="activations", draws=19).values():
        assert one.p == 1 / 20
    # All features of the second in one direction: farther from the first than random ones.
    crowded = np.ones((64, 8)) + 0.01 * rng.standard_normal((64, 8))
    assert align(first, crowded, draws=19)["raw"].p == 1


def test_p_values_are_uniform_where_nothing_is_shared():
    p = {name: [] for name in (*DICTIONARIES, "cka", "debiased_cka")}
    for seed in range(40):
        pair = np.random.default_rng(seed).standard_normal((2, 24, 4))
        pair[0] += 1  # the first has a geometry of its own
        for kind in ("dictionaries", "activations"):
            for name, one in align(*pair, kind=kind, draws=19, seed=seed).items():
                p[name].append(one.p)
    for name, values in p.items():
        assert min(values) >= 1 / 20
        assert 0.35 < np.mean(values) < 0.7, name
        if "mutual" not in name:  # shares have ties, which push p up
            assert scipy_stats.kstest(values, "uniform").pvalue > 1e-3, name


def test_without_draws_or_spread_there_is_no_test(rng):
    pair = rng.standard_normal((2, 40, 6))
    found = align(*pair, draws=0)["raw"]
    assert found == Aligned(value=found.value)
    found = align(*pair, draws=1)["raw"]
    assert found.null_sd is None
    assert found.z is None
    assert found.p in (0.5, 1)


def test_the_same_seed_gives_the_same_and_another_one_another_null(rng):
    pair = rng.standard_normal((2, 40, 6))
    one, same, other = (align(*pair, draws=5, seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert one["raw"].value == other["raw"].value
    assert one["raw"].null_mean != other["raw"].null_mean


def test_the_seed_floor_is_every_pair_and_stands_beside_the_value(rng):
    seeds = list(rng.standard_normal((3, 40, 6)))
    floor = seed_floor(seeds)
    for number, (i, j) in enumerate([(0, 1), (0, 2), (1, 2)]):
        expected = values_of(seeds[i], seeds[j])
        assert {name: values[number] for name, values in floor.items()} == expected
    found = align(seeds[0], seeds[0], draws=2, floor=seeds)
    assert found == align(seeds[0], seeds[0], draws=2, floor=floor)
    for name, one in found.items():
        assert one.floor_mean == pytest.approx(np.mean(floor[name]))
        assert one.floor_sd == pytest.approx(np.std(floor[name], ddof=1))
    pair = align(seeds[0], seeds[1], draws=0, floor=seeds[:2])["raw"]
    assert pair.floor_mean == pair.value
    assert pair.floor_sd is None
    activations = seed_floor(seeds, kind="activations")
    assert [len(values) for values in activations.values()] == [3, 3]


def test_what_cannot_be_compared_is_refused_by_name(rng):
    good = rng.standard_normal((12, 4))
    holed, dead = good.copy(), good.copy()
    holed[2, 1:3] = np.nan
    dead[[1, 5]] = 0
    for pair, said in (
        ((good, good[:, :3]), "the first has width 4 and the second 3"),
        ((good, holed), "the second has 2 of 48 values not finite"),
        ((good[:1], good), "the first has 1 feature, expected 2 or more"),
        ((dead, good), "the first has 2 features of norm 0.*leave dead features out"),
        ((good[0], good), r"the first is float64\[4\], expected real numbers \[features, width\]"),
        ((good, good > 0), "the second is bool"),
    ):
        with pytest.raises(InputError, match=said):
            align(*pair)
    for pair, said in (
        ((good, good[:9]), "of 12 and of 9 tokens"),
        ((good[:3], good[:3]), "the first has 3 tokens, expected 4 or more"),
        ((good, np.ones((12, 2))), "the second is the same on every token"),
        ((good, np.eye(12)[:, :1]), "vary on one token alone"),
        ((holed, good), "the first has 2 of 48 values not finite"),
    ):
        with pytest.raises(InputError, match=said):
            align(*pair, kind="activations")


@pytest.mark.usefixtures("as_users_have_it")
def test_arguments_that_mean_nothing_are_refused(rng):
    good = rng.standard_normal((12, 4))
    for options, said in (
        ({"kind": "encoders"}, "kind 'encoders' is unknown"),
        ({"draws": -1}, "draws is -1"),
        ({"draws": 1.5}, "draws is 1.5"),
        ({"floor": [good]}, "a seed floor of 1 seed has no pair"),
        ({"floor": [good, good[:9]]}, r"seed 1 of the floor is \[9, 4\]"),
        ({"floor": [good, 0 * good]}, "seed 1 of the floor has 12 features of norm 0"),
    ):
        with pytest.raises(InputError, match=said):
            align(good, good, **options)


# What independent Gaussian numbers give, a width each: 8192 features, 1000 tokens.
CHANCE = {2048: {"procrustes": 0.413, "cka": 0.672}, 4096: {"procrustes": 0.568, "cka": 0.803}}


@pytest.mark.slow
@pytest.mark.parametrize("width", CHANCE)
def test_independent_dictionaries_and_activations_have_the_published_chance_levels(width, rng):
    first, second = (
        directions(rng.standard_normal((8192, width), np.float32), "x") for _ in range(2)
    )
    found = neighbours(first, second)
    assert cosines.mutual_share(found, 8192) == pytest.approx(0.50, abs=0.02)
    found = neighbours(cosines.rotated(first, second, first), second)
    assert found.cosine.mean() == pytest.approx(CHANCE[width]["procrustes"], abs=0.001)
    assert cosines.mutual_share(found, 8192) == pytest.approx(1, abs=0.005)
    x, y = (centred(rng.standard_normal((1000, width)), "x") for _ in range(2))
    assert linear_cka(x, y) == pytest.approx(CHANCE[width]["cka"], abs=0.0015)
    assert linear_cka(x, y) == pytest.approx(width / (1000 + width), abs=0.0015)
    assert abs(debiased_cka(x, y)) < 0.005
