"""The map of damage: every component alone, beside noise of its size, and the sum of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from jaxalign.measures import estimates
from jaxalign.measures.estimates import NOTHING, Estimate, number
from jaxalign.measures.stats import bootstrap_weights, generator, interval
from jaxalign.model.params import Params
from jaxalign.studies.plan.calls import Bench, Effect
from jaxalign.studies.plan.components import Component, rows_of
from jaxalign.studies.plan.noise_test import UNTESTED, Tested, verdicts
from jaxalign.studies.plan.result import (
    ComponentDamage,
    DamageMap,
    Kind,
    Metric,
    SumAgainstWhole,
    Summed,
)
from jaxalign.study.calls import Late


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Every component alone, and noise in its place.

    Attributes:
        components: which.
        effect: of each.
        noisy: which components noise can stand in for.
        noises: their effects under each draw.
    """

    components: list[Component]
    effect: Effect
    noisy: list[int]
    noises: list[Effect]


def measure_map(bench: Bench, low: Params | Late, noises: Sequence[Params | Late]) -> Measured:
    """Quantize one component at a time, and put noise of the same size in its place.

    Args:
        bench: the f32 model and all prompts.
        low: the scheme's parameters.
        noises: draws of f32 parameters with noise as large as the scheme's error.

    Raises:
        InputError: the clean run is not finite, or the memory does not hold one row.
    """
    components = bench.parts.components()
    effect = bench.measure(low, rows_of(components, bench.parts), "damage", needed=False)
    noisy = [i for i, part in enumerate(components) if _has_noise(part, bench)]
    rows = rows_of([components[i] for i in noisy], bench.parts)
    found = [
        bench.measure(noise, rows, f"noise {draw}", needed=False)
        for draw, noise in enumerate(noises if noisy else ())
    ]
    return Measured(components=components, effect=effect, noisy=noisy, noises=found)


def describe_map(measured: Measured, seed: int) -> DamageMap:
    """The map of what was measured, beside noise, and the sums against the whole.

    Args:
        measured: from ``measure_map``.
        seed: of resampling.
    """
    effect, noisy = measured.effect, measured.noisy
    tested = _tested(measured)
    described = []
    for i, part in enumerate(measured.components):
        at = noisy.index(i) if i in noisy else None
        beside = [] if at is None else [noise.take(np.array(at)) for noise in measured.noises]
        found = tested[at] if tested and at is not None else UNTESTED
        described.append(_describe(part, effect.take(np.array(i)), beside, found, seed))
    return DamageMap(
        components=tuple(described),
        sums=tuple(_sums(measured, seed)),
        clean=estimate(effect.clean, seed, "clean"),
        prompts=len(effect.clean),
    )


def _tested(measured: Measured) -> list[Tested]:
    """The test of every component that noise can stand in for; none without noise."""
    if not measured.noises:
        return []
    own = measured.effect.kl.mean(axis=1)[measured.noisy]
    return verdicts(own, np.array([noise.kl.mean(axis=1) for noise in measured.noises]).T)


def _has_noise(part: Component, bench: Bench) -> bool:
    """Whether a component is matrices alone, so that noise can stand in for all of its change."""
    return bench.parts.packs and (part.kind in ("matrix", "head") or not bench.parts.sites)


def estimate(x: Float[np.ndarray, " P"], seed: int, *names: str) -> Estimate:
    """Mean over prompts and its 95 % bootstrap interval."""
    return estimates.estimate(x, generator(seed, *names))


def ratio_of_means(
    x: Float[np.ndarray, " P"], y: Float[np.ndarray, " P"], seed: int, *names: str
) -> Estimate:
    """Ratio of two averages over the same prompts and its interval; None where ``y``'s is 0.

    Args:
        x, y: a value a prompt, in the same unit.
        seed, names: of the bootstrap.
    """
    if not y.mean():
        return NOTHING
    if len(x) < 2:
        return Estimate(float(x.mean() / y.mean()), None, None, None)
    weights = bootstrap_weights(len(x), generator(seed, *names))
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = interval((weights @ x) / (weights @ y))
    return Estimate(float(x.mean() / y.mean()), low, high, None)


def _describe(
    part: Component,
    own: Effect,
    noises: list[Effect],
    tested: Tested,
    seed: int,
) -> ComponentDamage:
    p, corrected, verdict = tested
    noise_kl = tuple(float(noise.kl.mean()) for noise in noises)
    ratio = NOTHING
    if noises:
        ratio = ratio_of_means(own.kl, np.mean([n.kl for n in noises], axis=0), seed, "noise")
    return ComponentDamage(
        kind=part.kind,
        layer=part.layer,
        name=part.name,
        kl=estimate(own.kl, seed, "kl"),
        change=estimate(own.change, seed, "change"),
        moved=estimate(own.moved, seed, "moved"),
        noise_kl=noise_kl,
        noise_moved=tuple(float(noise.moved.mean()) for noise in noises),
        ratio=ratio,
        verdict=verdict,
        p=number(p),
        corrected=number(corrected),
    )


def _ratio_of_sums(
    total: Float[np.ndarray, " P"], whole: Float[np.ndarray, " P"], seed: int
) -> Estimate:
    """Sum over whole, where the whole is surely not 0."""
    known = estimate(whole, seed, "sum")
    if known.low is not None and known.high is not None and known.low <= 0 <= known.high:
        return NOTHING
    return ratio_of_means(total, whole, seed, "sum")


def _sums(measured: Measured, seed: int) -> list[SumAgainstWhole]:
    """Sums of what makes up the whole without overlap: matrices and sites, or whole layers."""
    components, effect, noises = measured.components, measured.effect, measured.noises
    found = []
    outside = [p.kind == "site" and p.layer is None for p in components]
    sums: dict[Summed, tuple[Kind, ...]] = {
        "matrices and sites": ("matrix", "site"),
        "layers": ("layer",),
    }
    metrics: tuple[Metric, ...] = ("kl", "change")
    for name, kinds in sums.items():
        own = np.array([p.kind in kinds for p in components]) | np.array(outside)
        for metric in metrics:
            values = getattr(effect, metric)
            total, whole = values[own].sum(axis=0), values[-1]
            ratios = []
            if len(measured.noisy) == len(components):
                ratios = [getattr(noise, metric) for noise in noises]
                ratios = [float(n[own].sum(0).mean() / n[-1].mean()) for n in ratios]
            found.append(
                SumAgainstWhole(
                    parts=name,
                    metric=metric,
                    sum=estimate(total, seed, "sum"),
                    whole=estimate(whole, seed, "sum"),
                    difference=estimate(total - whole, seed, "sum"),
                    ratio=_ratio_of_sums(total, whole, seed),
                    noise_ratios=tuple(ratios),
                )
            )
    return found
