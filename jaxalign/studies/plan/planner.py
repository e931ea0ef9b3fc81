"""What to keep in 16 bit within a budget: chosen on some prompts, judged on others.

Gains are damage avoided a byte. A matrix's damage is measured twice: alone in the f32 model, and as
what giving it back repairs in the low model, where its neighbours are quantized, too. Both rankings
are filled into the budget and measured as whole models; the better one is improved by exchanging
one kept unit for others as long as that lowers the measured KL beyond doubt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from jaxalign.measures.stats import generator, mean_interval
from jaxalign.studies.plan.calls import Effect
from jaxalign.studies.plan.cost import Unit

# From which units are kept, bool [R, U], to what the mixed models change.
Measure = Callable[[Bool[np.ndarray, "R U"]], Effect]

# Exchanges that are measured in a round, the most promising first, and rounds at most.
EXCHANGES = 48
ROUNDS = 3


@dataclass(frozen=True)
class Scores:
    """KL on the choosing prompts, by unit.

    Attributes:
        single: of the f32 model with that unit alone quantized, ``[U]``.
        restored: what the low model's KL falls by where that unit alone is kept, ``[U]``.
        layer_single, layer_restored: the same for all units of a layer, ``[L]``.
        low: of the low model.
    """

    single: Float[np.ndarray, " U"]
    restored: Float[np.ndarray, " U"]
    layer_single: Float[np.ndarray, " L"]
    layer_restored: Float[np.ndarray, " L"]
    low: float


def layer_members(units: Sequence[Unit]) -> Bool[np.ndarray, "L U"]:
    """Which units each layer has."""
    layers = np.array([unit.layer for unit in units])
    return np.arange(layers.max() + 1)[:, None] == layers[None]


def score(measure: Measure, units: Sequence[Unit]) -> Scores:
    """Measure every unit and every layer alone, in the f32 and in the low model, in one call."""
    alone, layers = np.eye(len(units), dtype=bool), layer_members(units)
    none = np.zeros((1, len(units)), bool)
    kl = measure(np.concatenate([~alone, alone, ~layers, layers, none])).kl.mean(axis=1)
    single, restored, layer_single, layer_restored, [low] = np.split(
        kl, np.cumsum([len(alone), len(alone), len(layers), len(layers)])
    )
    return Scores(single, low - restored, layer_single, low - layer_restored, float(low))


def fill(order: Sequence[int], sizes: Sequence[int], allowance: int) -> Bool[np.ndarray, " N"]:
    """Take things in this order, each if it still fits.

    Args:
        order: their numbers.
        sizes: bytes of each.
        allowance: bytes that there is room for.
    """
    kept = np.zeros(len(sizes), bool)
    for i in order:
        if sizes[i] <= allowance:
            kept[i], allowance = True, allowance - sizes[i]
    return kept


def by_density(gain: Float[np.ndarray, " N"], sizes: Sequence[int]) -> list[int]:
    """Most gain a byte first; equals in their own order."""
    return sorted(range(len(sizes)), key=lambda i: (-gain[i] / sizes[i], i))


def greedy(
    units: Sequence[Unit], scores: Scores, allowance: int
) -> dict[str, Bool[np.ndarray, " U"]]:
    """The choice that each ranking of units makes.

    Args:
        units: what can be kept.
        scores: from ``score``.
        allowance: bytes that may be added to the low model.
    """
    sizes = [unit.extra for unit in units]
    gains = {"single damage": scores.single, "damage repaired": scores.restored}
    return {name: fill(by_density(gain, sizes), sizes, allowance) for name, gain in gains.items()}


def whole_layers(
    units: Sequence[Unit], scores: Scores, allowance: int
) -> dict[str, Bool[np.ndarray, " U"]]:
    """Choices of whole layers: by each ranking of layers, and every run of neighbours that fits.

    Args:
        units: what can be kept.
        scores: from ``score``.
        allowance: bytes that may be added to the low model.
    """
    members = layer_members(units)
    sizes = (members @ np.array([unit.extra for unit in units])).tolist()
    found = {}
    for name, gain in (("single", scores.layer_single), ("repaired", scores.layer_restored)):
        found[name] = fill(by_density(gain, sizes), sizes, allowance) @ members
    for start in range(len(sizes)):
        count = int((np.cumsum(sizes[start:]) <= allowance).sum())
        found[f"from {start}"] = members[start : start + count].any(axis=0)
    return found


def random_choices(
    units: Sequence[Unit], allowance: int, count: int, rng: np.random.Generator
) -> Bool[np.ndarray, "R U"]:
    """Choices filled in random orders.

    Args:
        units: what can be kept.
        allowance: bytes that may be added to the low model.
        count: ``R``.
        rng: draws the orders.
    """
    sizes = [unit.extra for unit in units]
    return np.array(
        [fill(rng.permutation(len(units)).tolist(), sizes, allowance) for _ in range(count)]
    )


def best(
    measure: Measure, candidates: dict[str, Bool[np.ndarray, " U"]]
) -> tuple[str, Bool[np.ndarray, " U"], float]:
    """The candidate with the least measured KL, the first of equals."""
    names = list(candidates)
    kl = measure(np.array([candidates[name] for name in names])).kl.mean(axis=1)
    i = int(np.argmin(kl))
    return names[i], candidates[names[i]], float(kl[i])


def refine(
    measure: Measure,
    units: Sequence[Unit],
    scores: Scores,
    kept: Bool[np.ndarray, " U"],
    kl: float,
    allowance: int,
) -> tuple[Bool[np.ndarray, " U"], float, int]:
    """Exchange one kept unit for others, measured each time; returns the choice, KL, exchanges.

    What a removal frees is filled again by ``restored`` a byte, starting with each unit in turn.
    An exchange counts if its gain's 95 % interval over the choosing prompts leaves out 0: taking
    any lower mean fits those prompts and nothing else.

    Args:
        measure: from choices to what they change.
        units: what can be kept.
        scores: from ``score``.
        kept: the choice to begin with.
        kl: its measured KL, nats.
        allowance: bytes that may be added to the low model.
    """
    for done in range(ROUNDS):
        neighbours = _exchanges(units, scores, kept, allowance)
        if not len(neighbours):
            return kept, kl, done
        found = measure(np.concatenate([kept[None], neighbours])).kl
        i = 1 + int(np.argmin(found[1:].mean(axis=1)))
        _, _, high = mean_interval(found[i] - found[0], generator(0, "exchange"))
        if not high < 0:
            return kept, kl, done
        kept, kl = neighbours[i - 1], float(found[i].mean())
    return kept, kl, ROUNDS


def _exchanges(
    units: Sequence[Unit], scores: Scores, kept: Bool[np.ndarray, " U"], allowance: int
) -> Bool[np.ndarray, "R U"]:
    sizes = np.array([unit.extra for unit in units])
    rest = by_density(scores.restored, sizes.tolist())
    found: dict[bytes, np.ndarray] = {}
    for out in np.flatnonzero(kept):
        stay = [int(i) for i in np.flatnonzero(kept) if i != out]
        for into in np.flatnonzero(~kept):
            order = [*stay, int(into), *(i for i in rest if i != out)]
            choice = fill(order, sizes.tolist(), allowance)
            if choice[into]:
                found.setdefault(choice.tobytes(), choice)
    ranked = sorted(found.values(), key=lambda choice: -float(scores.restored[choice].sum()))
    return np.array(ranked[:EXCHANGES])
