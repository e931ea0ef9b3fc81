"""The study: the map on all prompts, the plan on one half, its validation on the other."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

from jaxalign.errors import InputError
from jaxalign.measures.stats import generator
from jaxalign.model.params import Params
from jaxalign.numerics.scheme import Scheme, WeightFormat
from jaxalign.prompts import Prompt
from jaxalign.studies.plan.calls import Bench, Effect
from jaxalign.studies.plan.components import parts_of, rows_with
from jaxalign.studies.plan.cost import Unit, bits_per_weight, budget_bytes, units_of
from jaxalign.studies.plan.map import Measured, describe_map, measure_map
from jaxalign.studies.plan.options import PlanOptions
from jaxalign.studies.plan.planner import (
    Measure,
    Scores,
    best,
    greedy,
    random_choices,
    refine,
    score,
    whole_layers,
)
from jaxalign.studies.plan.result import DamageMap, PlanResult
from jaxalign.studies.plan.uniform import formats_within, measure_uniform
from jaxalign.studies.plan.validate import Candidates, size_of, validate
from jaxalign.study.calls import Late
from jaxalign.study.session import Session
from jaxalign.study.weight_noise import late_noise

FEWEST_PROMPTS = 4
# Shares of what could be kept, at which the curve is drawn.
CURVE = (0.0, 1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1.0)


def run(session: Session, options: PlanOptions) -> PlanResult:
    """Map the damage of a weight scheme and plan what to keep in 16 bit within a budget.

    Args:
        session: model, prompts, devices.
        options: scheme, budget, controls.

    Raises:
        InputError: a scheme that packs no weights or does more than that, a budget that cannot be
            met, too few prompts, or a model that is not finite.
    """
    units = units_of(session.config, _weights(options.scheme))
    budget = budget_bytes(options.budget, units)
    choosing, validating = split(session.prompts, options.seed)
    bench, low = _bench(session, options.scheme)
    measured = _measured(session, bench, low, options)
    measure = _mixtures(bench.on(choosing), low, units, "choosing")
    candidates = _candidates(measure, units, score(measure, units), budget, options)
    formats = formats_within(session.config, size_of(candidates.plan, units), options.scheme)
    uniform = measure_uniform(session, bench, formats, choosing, validating)
    held = _mixtures(bench.on(validating), low, units, "validating", needed=False)

    def last(kept: Bool[np.ndarray, "R U"]) -> Effect:
        effect = held(kept)
        session.end_of_calls()
        return effect

    plan, curve = validate(last, units, candidates, options.budget, budget, options.seed, uniform)
    least, most = (sum(getattr(unit, name) for unit in units) for name in ("low", "high"))
    return PlanResult(
        scheme=options.scheme.name,
        damage=describe_map(measured, options.seed),
        plan=plan,
        curve=curve,
        choosing=tuple(choosing.tolist()),
        validating=tuple(validating.tolist()),
        bits_low=bits_per_weight(least, units),
        bits_high=bits_per_weight(most, units),
        provenance=session.provenance(),
    )


def damage_of(session: Session, options: PlanOptions) -> DamageMap:
    """The damage map alone; also of schemes that round activations and pack no weights.

    Args:
        session: model, prompts, devices.
        options: scheme, noise draws, seed; the rest is not looked at.

    Raises:
        InputError: as ``run``.
    """
    if options.scheme.weights is not None or not options.scheme.int8_sites:
        _weights(options.scheme)
    bench, low = _bench(session, options.scheme)
    measured = _measured(session, bench, low, options)
    session.end_of_calls()
    return describe_map(measured, options.seed)


def split(
    prompts: Sequence[Prompt], seed: int
) -> tuple[Int[np.ndarray, " C"], Int[np.ndarray, " W"]]:
    """Which prompts choose and which validate: half of each task, drawn by the seed.

    Raises:
        InputError: fewer than four prompts.
    """
    if len(prompts) < FEWEST_PROMPTS:
        raise InputError(
            f"{len(prompts)} prompts cannot be split into a half that chooses and one that "
            "validates",
            f"give {FEWEST_PROMPTS} prompts or more",
        )
    rng = generator(seed, "plan split")
    tasks = list(dict.fromkeys(prompt.task for prompt in prompts))
    order = np.concatenate(
        [rng.permutation([i for i, p in enumerate(prompts) if p.task == task]) for task in tasks]
    )
    return np.sort(order[::2]), np.sort(order[1::2])


def _weights(scheme: Scheme) -> WeightFormat:
    """How a scheme packs weights; raises where it packs none, or does more than that."""
    if scheme.weights is None:
        raise InputError(
            f"scheme {scheme.name!r} packs no weights, so there is nothing to keep in 16 bit",
            "use a scheme with packed weights, such as nf4 or int4-g32",
        )
    if scheme.inputs is not None or scheme.compute_dtype != "float32":
        raise InputError(
            f"scheme {scheme.name!r} also changes activations, and damage is that of weights alone",
            "use a scheme of weights without @, such as nf4 or int4-g32",
        )
    return scheme.weights


def _bench(session: Session, scheme: Scheme) -> tuple[Bench, Params | Late]:
    """What measures rows of the study, and the scheme's parameters."""
    low = session.late_low(scheme)
    params = session.model.params
    bench = Bench(
        params,
        session.config,
        scheme,
        parts_of(params, session.config, scheme),
        session.prompts,
        session.free(params, low),
        session.mesh,
        session.run,
    )
    return bench, low


def _measured(session: Session, bench: Bench, low: Params | Late, options: PlanOptions) -> Measured:
    draws = range(options.noise_draws)
    return measure_map(bench, low, [late_noise(session, options.scheme, draw) for draw in draws])


def _mixtures(
    bench: Bench, low: Params | Late, units: list[Unit], phase: str, *, needed: bool = True
) -> Measure:
    """From units to keep to what the model does that has all others in the low scheme."""
    names, numbers = bench.parts.names, itertools.count()

    def measure(kept: Bool[np.ndarray, "R U"]) -> Effect:
        matrices = np.zeros((len(kept), bench.parts.layers, len(names)), bool)
        for u, unit in enumerate(units):
            for name in unit.matrices:
                matrices[:, unit.layer, names.index(name)] = ~kept[:, u]
        name = f"{phase} {next(numbers)}"
        return bench.measure(low, rows_with(matrices, bench.parts), name, needed=needed)

    return measure


def _candidates(
    measure: Measure, units: list[Unit], scores: Scores, budget: int, options: PlanOptions
) -> Candidates:
    """Everything that is going to be validated, chosen without sight of the validating prompts."""
    least, full = sum(unit.low for unit in units), sum(unit.extra for unit in units)
    allowance = budget - least
    by, first, kl = best(measure, greedy(units, scores, allowance))
    kept, kl, exchanges = refine(measure, units, scores, first, kl, allowance)
    _, layers, _ = best(measure, whole_layers(units, scores, allowance))
    steps = sorted({int(share * full) for share in CURVE})
    rng = generator(options.seed, "random choices")
    return Candidates(
        plan=kept,
        greedy=first,
        layers=layers,
        random=random_choices(units, allowance, options.random_choices, rng),
        curve_budgets=[least + step for step in steps],
        curve_greedy=[best(measure, greedy(units, scores, step))[1] for step in steps],
        curve_layers=[best(measure, whole_layers(units, scores, step))[1] for step in steps],
        curve_random=[random_choices(units, s, options.curve_choices, rng) for s in steps],
        found_by=f"{by} a byte, {exchanges} exchange{'' if exchanges == 1 else 's'}",
        predicted_kl=float(scores.single[~kept].sum()),
        chosen_kl=kl,
    )
