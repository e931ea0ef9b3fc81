"""A plan on prompts that had no part in it, against random choices, layers, all and nothing."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from jaxalign.measures.stats import TIE
from jaxalign.studies.plan.calls import Effect
from jaxalign.studies.plan.cost import Unit, bits_per_weight
from jaxalign.studies.plan.map import estimate
from jaxalign.studies.plan.planner import Measure
from jaxalign.studies.plan.result import (
    Choice,
    ChoiceName,
    CurvePoint,
    KeptUnit,
    Plan,
    RandomChoices,
    Verdict,
)
from jaxalign.studies.plan.uniform import Uniform, describe_uniform, judge

LEVEL = 0.05


@dataclass(frozen=True)
class Candidates:
    """Choices to be validated, bool ``[U]`` or ``[R, U]``: True for units that are kept.

    Attributes:
        plan, greedy, layers, random: within the budget.
        curve_budgets: bytes; and for each the greedy choice, whole layers, random choices.
        found_by, predicted_kl, chosen_kl: as ``results.damage.Plan`` has them.
    """

    plan: Bool[np.ndarray, " U"]
    greedy: Bool[np.ndarray, " U"]
    layers: Bool[np.ndarray, " U"]
    random: Bool[np.ndarray, "R U"]
    curve_budgets: Sequence[int]
    curve_greedy: Sequence[np.ndarray]
    curve_layers: Sequence[np.ndarray]
    curve_random: Sequence[np.ndarray]
    found_by: str
    predicted_kl: float
    chosen_kl: float


def validate(
    measure: Measure,
    units: Sequence[Unit],
    candidates: Candidates,
    budget: str,
    budget_bytes: int,
    seed: int,
    uniform: Sequence[Uniform] = (),
) -> tuple[Plan, tuple[CurvePoint, ...]]:
    """Measure all candidates in one go and judge the plan.

    Args:
        measure: from choices to what they change, on the validating prompts.
        units: what can be kept.
        candidates: to be measured.
        budget: as it was typed.
        budget_bytes: the same in bytes.
        seed: of the bootstrap.
        uniform: formats of at most the plan's size, measured on the same prompts.
    """
    none, every = np.zeros(len(units), bool), np.ones(len(units), bool)
    named: dict[ChoiceName, np.ndarray] = {
        "plan": candidates.plan,
        "greedy": candidates.greedy,
        "layers": candidates.layers,
        "all low": none,
        "all high": every,
    }
    groups = [
        np.array(list(named.values())),
        candidates.random,
        *(
            np.concatenate([[g], [layers], random])
            for g, layers, random in zip(
                candidates.curve_greedy,
                candidates.curve_layers,
                candidates.curve_random,
                strict=True,
            )
        ),
    ]
    effect = measure(np.concatenate(groups))
    ends = np.cumsum([0, *map(len, groups)])
    parts = [effect.take(slice(a, b)) for a, b in itertools.pairwise(ends)]
    choices = tuple(
        _choice(name, kept, units, parts[0].take(np.array([i])), seed)
        for i, (name, kept) in enumerate(named.items())
    )
    plan = _judge(candidates, choices, parts, units, budget, budget_bytes, uniform, seed)
    curve = tuple(
        CurvePoint(
            bits=bits_per_weight(size, units),
            greedy=float(kl[0]),
            layers=float(kl[1]),
            random=tuple(kl[2:].tolist()),
            p=_p_values(kl[0], kl[2:])[0],
        )
        for size, kl in zip(
            candidates.curve_budgets,
            (part.kl.mean(axis=1) for part in parts[2:]),
            strict=True,
        )
    )
    return plan, curve


def size_of(kept: Bool[np.ndarray, " U"], units: Sequence[Unit]) -> int:
    """Bytes of a choice."""
    return sum(unit.high if own else unit.low for own, unit in zip(kept, units, strict=True))


def _choice(
    name: ChoiceName, kept: np.ndarray, units: Sequence[Unit], effect: Effect, seed: int
) -> Choice:
    size = size_of(kept, units)
    return Choice(
        name=name,
        bytes=size,
        bits=bits_per_weight(size, units),
        kl=estimate(effect.kl[0], seed, "validated"),
        change=estimate(effect.change[0], seed, "validated"),
        moved=estimate(effect.moved[0], seed, "validated"),
        answered=float((effect.clean + effect.change[0] > 0).mean()),
    )


def _judge(
    candidates: Candidates,
    choices: tuple[Choice, ...],
    parts: Sequence[Effect],
    units: Sequence[Unit],
    budget: str,
    budget_bytes: int,
    uniform: Sequence[Uniform],
    seed: int,
) -> Plan:
    named, random = parts[:2]
    kl, moved = random.kl.mean(axis=1), random.moved.mean(axis=1)
    better, worse = _p_values(float(named.kl[0].mean()), kl)
    p_moved, _ = _p_values(float(named.moved[0].mean()), moved)
    verdict: Verdict = "no better than random"
    if better <= LEVEL:
        verdict = "beats random"
    elif worse <= LEVEL:
        verdict = "worse than random"
    sizes = [size_of(choice, units) for choice in candidates.random]
    formats = describe_uniform(uniform, named.kl[0], units, seed)
    kept = [unit for own, unit in zip(candidates.plan, units, strict=True) if own]
    return Plan(
        budget=budget,
        budget_bytes=budget_bytes,
        kept=tuple(
            KeptUnit(
                layer=u.layer,
                matrices=u.matrices,
                modules=u.modules,
                weights=u.weights,
                extra_bytes=u.extra,
            )
            for u in kept
        ),
        found_by=candidates.found_by,
        predicted_kl=candidates.predicted_kl,
        chosen_kl=candidates.chosen_kl,
        choices=choices,
        random=RandomChoices(
            bits=bits_per_weight(round(float(np.mean(sizes))), units),
            kl=tuple(kl.tolist()),
            moved=tuple(moved.tolist()),
            p_kl=better,
            p_moved=p_moved,
        ),
        against_layers=estimate(named.kl[0] - named.kl[2], seed, "validated"),
        against_random=estimate(named.kl[0] - random.kl.mean(axis=0), seed, "validated"),
        verdict=verdict,
        uniform=formats,
        uniform_verdict=judge(formats),
    )


def _p_values(plan: float, draws: np.ndarray) -> tuple[float, float]:
    """How often a random choice is as good as the plan, and how often as bad; never 0."""
    tie = TIE * abs(plan)
    good, bad = int((draws <= plan + tie).sum()), int((draws >= plan - tie).sum())
    return (1 + good) / (1 + len(draws)), (1 + bad) / (1 + len(draws))
