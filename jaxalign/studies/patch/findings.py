"""Effects of all pairs made into maps: means, intervals, tests against control, and the screen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from jaxalign.errors import counted
from jaxalign.measures import stats
from jaxalign.measures.estimates import LEVEL, number
from jaxalign.measures.screen import agreement
from jaxalign.shapes import Bool, Float, Int
from jaxalign.studies.patch.result import PatchMap, Screen


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
    low, high = stats.mean_intervals(effect, rng)
    p = stats.corrected(stats.sign_flip_ps(effect - control, rng))
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
    places: tuple[Int[np.ndarray, " first"], Int[np.ndarray, " drawn"]],
    seed: int,
) -> PatchMap:
    """A map with the estimates of all its places beside the exact effects of some.

    Args:
        exact: the map of the exact effects.
        estimates: of each pair and place.
        places: from ``chosen``.
        seed: of resamples and permutations.
    """
    first, drawn = places
    marks: Bool[np.ndarray, "2 M"] = np.zeros((2, estimates.shape[1]), bool)
    marks[0, first] = marks[1, drawn] = True
    shape = exact.effect.shape
    rng = stats.generator(seed, "agreement", exact.sweep, exact.direction, exact.task)
    means = _mean(estimates), exact.effect.ravel()
    both = drawn[np.isfinite(means[0][drawn]) & np.isfinite(means[1][drawn])]
    sizes = np.abs(exact.effect).ravel()
    rest = drawn[~np.isin(drawn, first)]
    worst = rest[np.nanargmax(sizes[rest])] if np.isfinite(sizes[rest]).any() else None
    return replace(
        exact,
        screen=Screen(
            estimate=means[0].reshape(shape),
            first=marks[0].reshape(shape).astype(float),
            drawn=marks[1].reshape(shape).astype(float),
            agreement=agreement(means[0][both], means[1][both], rng),
            missed="" if worst is None else exact.name(*map(int, np.unravel_index(worst, shape))),
            missed_effect=None if worst is None else number(sizes[worst]),
            first_effect=number(np.nanmin(sizes[first])) if len(first) else None,
        ),
    )
