"""Each scheme beside the one of at most its size that does least damage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from jaxtyping import Float

from jaxalign.measures import stats
from jaxalign.measures.estimates import estimate, number
from jaxalign.numerics.scheme import F32
from jaxalign.studies.schemes.result import Rival, SchemeRow

LEVEL = 0.05


def with_rivals(
    rows: Sequence[SchemeRow], kl: Mapping[str, Float[np.ndarray, " P"]], seed: int
) -> list[SchemeRow]:
    """The rows, each with its rival: tested prompt by prompt, corrected, and held to the lottery.

    Args:
        rows: one a scheme, f32 among them.
        kl: of each scheme by name, nats, a number a prompt.
        seed: of the bootstrap and the test.
    """
    chosen = {row.scheme: rival for row in rows if (rival := _least(row, rows)) is not None}
    found = {
        name: estimate(
            kl[name] - kl[rival.scheme],
            stats.generator(seed, "schemes", name, "rival"),
            test=True,
        )
        for name, rival in chosen.items()
    }
    raw = np.array([np.nan if each.p is None else each.p for each in found.values()], float)
    corrected = dict(zip(found, map(number, stats.corrected(raw)), strict=True))

    def rival_of(row: SchemeRow) -> Rival | None:
        if row.scheme not in chosen:
            return None
        p, chance = corrected[row.scheme], _lotteries_meet(row, chosen[row.scheme])
        verdict: Literal["less", "more", "not told apart"] = "not told apart"
        difference = found[row.scheme]
        if p is not None and p <= LEVEL and not chance and difference.value is not None:
            verdict = "less" if difference.value < 0 else "more"
        return Rival(
            scheme=chosen[row.scheme].scheme,
            difference=difference,
            corrected=p,
            within_lottery=chance,
            verdict=verdict,
        )

    return [replace(row, rival=rival_of(row)) for row in rows]


def _least(row: SchemeRow, rows: Sequence[SchemeRow]) -> SchemeRow | None:
    """Of the other schemes with at most as many bits, the one with the least KL."""
    others = [
        each
        for each in rows
        if each.bits <= row.bits
        and each.scheme not in (row.scheme, F32.name)
        and each.kl.value is not None
    ]
    if row.scheme == F32.name or row.kl.value is None or not others:
        return None
    return min(others, key=lambda each: each.kl.value or 0.0)


def _lotteries_meet(one: SchemeRow, other: SchemeRow) -> bool:
    """Whether what chance moves one scheme over reaches the other; never without a lottery."""
    if one.lottery is None and other.lottery is None:
        return False

    def reach(row: SchemeRow) -> tuple[float, float]:
        value = row.kl.value or 0.0
        return (value, value) if row.lottery is None else (row.lottery.low, row.lottery.high)

    (low, high), (least, most) = reach(one), reach(other)
    return low <= most and least <= high
