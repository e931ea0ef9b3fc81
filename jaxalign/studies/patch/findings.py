"""Effects of all pairs made into maps: means, intervals, tests against control, and the screen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from jaxalign.errors import counted
from jaxalign.measures import stats
from jaxalign.measures.correlation import HeadEstimate, correlate_means
from jaxalign.measures.estimates import LEVEL, Estimate, number
from jaxalign.shapes import Bool, Float, Int
from jaxalign.studies.patch.result import PatchMap, Screen

AT_ONCE = 256  # places tested in one product of signs and differences


def mapped(
    names: tuple[str, str, str],
    labels: tuple[tuple[str, ...], tuple[str, ...]],
    effect: Float[np.ndarray, "P M"],
    control: Float[np.ndarray, "P M"],
    seed: int,
) -> PatchMap:
    """One map of the effects of all pairs.

    Args:
        names: sweep, direction, task.
        labels: of the map's rows and columns; ``M`` is their product, row by row.
        effect: of each pair and place; not finite where there is none.
        control: the same of the control.
        seed: of resamples and signs.
    """
    shape = tuple(map(len, labels))
    rng = stats.generator(seed, "patch", *names)
    low, high = _intervals(effect, rng)
    p = stats.corrected(_signs_p(effect - control, rng))
    sweep, direction, task = names
    return PatchMap(
        sweep=sweep,
        direction=direction,
        task=task,
        pairs=len(effect),
        rows=labels[0],
        columns=labels[1],
        effect=_mean(effect).reshape(shape),
        low=low.reshape(shape),
        high=high.reshape(shape),
        control=_mean(control).reshape(shape),
        p=p.reshape(shape),
    )


def _mean(x: Float[np.ndarray, "P M"]) -> Float[np.ndarray, " M"]:
    """The mean over pairs that have a place; NaN where none has."""
    there = np.isfinite(x)
    count = there.sum(axis=0)
    total = np.where(there, x, 0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _intervals(
    x: Float[np.ndarray, "P M"], rng: np.random.Generator
) -> tuple[Float[np.ndarray, " M"], Float[np.ndarray, " M"]]:
    """95 % bootstrap intervals over pairs, as ``stats.mean_interval``, of all places at once."""
    there = np.isfinite(x)
    weights = stats.bootstrap_weights(len(x), rng)
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn = (weights @ np.where(there, x, 0)) / (weights @ there)
    few = there.sum(axis=0) < 2
    low, high = np.array([stats.interval(drawn[:, i]) for i in range(x.shape[1])]).T
    return np.where(few, np.nan, low), np.where(few, np.nan, high)


def _signs_p(x: Float[np.ndarray, "P M"], rng: np.random.Generator) -> Float[np.ndarray, " M"]:
    """p-values of "the mean is 0", as ``stats.sign_flip_p``, of all places at once."""
    there = np.isfinite(x)
    x = np.where(there, x, 0)
    total = np.abs(x.sum(axis=0))
    tie = stats.TIE * np.maximum(np.abs(x).sum(axis=0), stats.TIE)
    signs = rng.integers(0, 2, size=(stats.PERMUTATIONS, len(x))) * 2.0 - 1
    hits = [
        (np.abs(signs @ x[:, a : a + AT_ONCE]) >= (total - tie)[a : a + AT_ONCE]).sum(axis=0)
        for a in range(0, x.shape[1], AT_ONCE)
    ]
    p = (1 + np.concatenate(hits)) / (1 + stats.PERMUTATIONS)
    return np.where(there.sum(axis=0) < 2, np.nan, p)


def too_few(maps: Sequence[PatchMap]) -> list[str]:
    """A note for every task with too few pairs for any place to be told.

    Args:
        maps: of the study.
    """
    notes = {}
    for each in maps:
        if each.too_few:
            share = each.least_p / LEVEL
            then = (
                "nothing in their maps can be told"
                if share >= 1
                else f"a place is told only where more than {100 * share:.0f} % of its map's are"
            )
            notes[each.task] = (
                f"{counted(each.pairs, 'pair')} of {each.task!r} are too few for the test against "
                f"the control: no p-value is below {each.least_p:.2g}, and {then}"
            )
    return [*notes.values()]


def chosen(
    estimates: Float[np.ndarray, "P M"], count: int, seed: int, *names: str
) -> tuple[Int[np.ndarray, " first"], Int[np.ndarray, " drawn"]]:
    """The places that estimates put first, and as many drawn at random from all.

    Args:
        estimates: of each pair and place.
        count: how many of each.
        seed: of the draw.
        names: of the map.
    """
    size = np.nan_to_num(np.abs(_mean(estimates)), nan=-1.0)
    some = np.flatnonzero(size >= 0)
    count = min(count, len(some))
    first = np.argsort(-size, kind="stable")[:count]
    rng = stats.generator(seed, "screen", *names)
    return first, np.sort(rng.choice(some, count, replace=False))


def screened(
    exact: PatchMap,
    estimates: Float[np.ndarray, "P M"],
    effects: Float[np.ndarray, "P M"],
    places: tuple[Int[np.ndarray, " first"], Int[np.ndarray, " drawn"]],
    seed: int,
) -> PatchMap:
    """A map with the estimates of all its places beside the exact effects of some.

    Args:
        exact: the map of the exact effects.
        estimates, effects: of each pair and place.
        places: from ``chosen``.
        seed: of resamples and permutations.
    """
    first, drawn = places
    marks: Bool[np.ndarray, "2 M"] = np.zeros((2, effects.shape[1]), bool)
    marks[0, first] = marks[1, drawn] = True
    shape = exact.effect.shape
    rng = stats.generator(seed, "agreement", exact.sweep, exact.direction, exact.task)
    x, y = estimates[:, drawn], effects[:, drawn]
    whole = np.isfinite(x).all(axis=1) & np.isfinite(y).all(axis=1)
    x, y = x[whole], y[whole]
    few = len(x) < 2 or x.shape[1] < 3
    sizes = np.abs(exact.effect).ravel()
    rest = drawn[~np.isin(drawn, first)]
    worst = rest[np.nanargmax(sizes[rest])] if np.isfinite(sizes[rest]).any() else None
    return replace(
        exact,
        screen=Screen(
            estimate=_mean(estimates).reshape(shape),
            first=marks[0].reshape(shape).astype(float),
            drawn=marks[1].reshape(shape).astype(float),
            spearman=HeadEstimate() if few else correlate_means(x, y, rng, rank=True),
            slope=Estimate() if few else _slope(x, y, rng),
            missed="" if worst is None else exact.name(*map(int, np.unravel_index(worst, shape))),
            missed_effect=None if worst is None else number(sizes[worst]),
            first_effect=number(np.nanmin(sizes[first])) if len(first) else None,
        ),
    )


def _slope(
    x: Float[np.ndarray, "P M"], y: Float[np.ndarray, "P M"], rng: np.random.Generator
) -> Estimate:
    """``Σ x y / Σ x²`` of means over pairs, with its interval over pairs."""

    def of(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        size = (a**2).sum(axis=-1)
        return np.where(size > 0, (a * b).sum(axis=-1) / np.where(size > 0, size, 1), np.nan)

    weights = stats.bootstrap_weights(len(x), rng)
    low, high = stats.interval(of(weights @ x, weights @ y))
    return Estimate(number(float(of(x.mean(axis=0), y.mean(axis=0)))), number(low), number(high))
