"""The map of damage: every component alone, beside noise of its size, and the sum of them."""

from __future__ import annotations

import jax
import numpy as np
from jaxtyping import Float

from jaxalign.experiments.damage.components import Component, rows_of
from jaxalign.experiments.damage.measure import Bench, Effect
from jaxalign.model.params import Params
from jaxalign.numerics.compile import jit
from jaxalign.results.damage import ComponentDamage, DamageMap, SumAgainstWhole
from jaxalign.results.types import Estimate
from jaxalign.stats import bootstrap_weights, generator, interval, mean_interval
from jaxalign.study.weight_noise import noisy

noisy_compiled = jit(noisy, static_argnames=("config",))
NONE = Estimate(None, None, None, None)


def damage_map(bench: Bench, low: Params, draws: int, seed: int) -> DamageMap:
    """Quantize one component at a time, and put noise of the same size in its place.

    Args:
        bench: the f32 model and all prompts.
        low: the scheme's parameters.
        draws: of noise.
        seed: of noise and resampling.

    Raises:
        InputError: the clean run is not finite, or the memory does not hold one row.
    """
    components = bench.parts.components()
    effect = bench.measure(low, rows_of(components, bench.parts))
    noisy_parts = [i for i, part in enumerate(components) if _has_noise(part, bench)]
    rows = rows_of([components[i] for i in noisy_parts], bench.parts)
    noises = []
    for draw in range(draws if noisy_parts else 0):
        key = jax.random.fold_in(jax.random.key(seed), draw)
        other = noisy_compiled(bench.params, low, key, config=bench.config)
        noises.append(bench.measure(other, rows))
    described = []
    for i, part in enumerate(components):
        at = noisy_parts.index(i) if i in noisy_parts else None
        beside = [] if at is None else [noise.take(np.array(at)) for noise in noises]
        described.append(_describe(part, effect.take(np.array(i)), beside, seed))
    return DamageMap(
        components=tuple(described),
        sums=tuple(_sums(components, effect, noises, noisy_parts, seed)),
        clean=estimate(effect.clean, seed, "clean"),
        prompts=len(bench.prompts),
    )


def _has_noise(part: Component, bench: Bench) -> bool:
    """Whether a component is matrices alone, so that noise can stand in for all of its change."""
    return bench.parts.packs and (part.kind in ("matrix", "head") or not bench.parts.sites)


def estimate(x: Float[np.ndarray, " P"], seed: int, *names: str) -> Estimate:
    """Mean over prompts and its 95 % bootstrap interval."""
    value, low, high = mean_interval(x, generator(seed, *names))
    finite = np.isfinite([low, high]).all()
    return Estimate(value, low if finite else None, high if finite else None, None)


def ratio_of_means(
    x: Float[np.ndarray, " P"], y: Float[np.ndarray, " P"], seed: int, *names: str
) -> Estimate:
    """Ratio of two averages over the same prompts and its interval; None where ``y``'s is 0."""
    if not y.mean():
        return NONE
    if len(x) < 2:
        return Estimate(float(x.mean() / y.mean()), None, None, None)
    weights = bootstrap_weights(len(x), generator(seed, *names))
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = interval((weights @ x) / (weights @ y))
    return Estimate(float(x.mean() / y.mean()), low, high, None)


def _describe(part: Component, own: Effect, noises: list[Effect], seed: int) -> ComponentDamage:
    noise_kl = tuple(float(noise.kl.mean()) for noise in noises)
    ratio = NONE
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
        verdict=_verdict(float(own.kl.mean()), noise_kl, ratio),
    )


def _verdict(kl: float, noise: tuple[float, ...], ratio: Estimate) -> str:
    if ratio.value is None or ratio.low is None or ratio.high is None:
        return ""
    if ratio.low > 1 and kl > max(noise):
        return "more than noise"
    return "less than noise" if ratio.high < 1 and kl < min(noise) else "like noise"


def _ratio_of_sums(
    total: Float[np.ndarray, " P"], whole: Float[np.ndarray, " P"], seed: int
) -> Estimate:
    """Sum over whole, where the whole is surely not 0."""
    known = estimate(whole, seed, "sum")
    if known.low is not None and known.high is not None and known.low <= 0 <= known.high:
        return NONE
    return ratio_of_means(total, whole, seed, "sum")


def _sums(
    components: list[Component],
    effect: Effect,
    noises: list[Effect],
    noisy_parts: list[int],
    seed: int,
) -> list[SumAgainstWhole]:
    """Sums of what makes up the whole without overlap: matrices and sites, or whole layers."""
    found = []
    outside = [p.kind == "site" and p.layer is None for p in components]
    for name, kinds in (("matrices and sites", ("matrix", "site")), ("layers", ("layer",))):
        own = np.array([p.kind in kinds for p in components]) | np.array(outside)
        for metric in ("kl", "change"):
            values = getattr(effect, metric)
            total, whole = values[own].sum(axis=0), values[-1]
            ratios = []
            if len(noisy_parts) == len(components):
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
