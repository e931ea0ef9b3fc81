"""Do the same heads matter in a low precision? Importance against importance, beside noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxalign.measures import stats
from jaxalign.measures.correlation import correlate_means
from jaxalign.measures.estimates import NOTHING, Estimate, estimate, number
from jaxalign.shapes import Float, Int
from jaxalign.studies.heads.average import comparable
from jaxalign.studies.heads.findings import Agreement, Likeness, Replacement
from jaxalign.studies.heads.result import PromptResult

# From two maps of importance, ``[*rows, N]`` each, to one number a row.
Measure = Callable[[np.ndarray, np.ndarray], np.ndarray]


def agreement(
    prompts: Sequence[PromptResult], task: str, precision: str, kind: Replacement, seed: int
) -> Agreement | None:
    """Compare importance in f32 with importance in a precision; None where it was not measured.

    Args:
        prompts: of the task, or all.
        task: their name.
        precision: the low one.
        kind: what stands in for a head.
        seed: of the bootstraps.
    """
    prompts = [p for p in prompts if kind in p.precisions[precision].importance]
    if not prompts:
        return None
    heads = prompts[0].zero_importance.shape[1]
    high = _maps([p.importance(kind) for p in prompts])
    low = _maps([p.precisions[precision].importance[kind] for p in prompts])
    kept, finite = comparable(high, low)
    if not finite.any():
        return None  # everything overflowed
    high, low = high[kept][:, finite], low[kept][:, finite]
    prompts = [p for p, own in zip(prompts, kept, strict=True) if own]
    others = [draw[:, finite] for draw in _noise(prompts, precision, kind)]
    again = _reordered(prompts, precision, kind, finite)
    named = (seed, "agreement", task, precision, kind)

    weights = stats.bootstrap_weights(len(high), stats.generator(*named)) if len(high) > 1 else None

    def of_means(name: str, measure: Measure, **known: Any) -> Likeness:
        """A measure of the averages over prompts."""

        def measured(a: np.ndarray, b: np.ndarray) -> float:
            return float(measure(a.mean(axis=0), b.mean(axis=0)))

        # A resample's own noise adds to a distance, so its percentiles lie above it: no interval.
        if "over_prompts" not in known and weights is not None and name != "error":
            known["over_prompts"] = _ends(measure(weights @ high, weights @ low))
        return _likeness(name, measured, high, low, others, again, **known)

    def of_prompts(name: str, measure: Measure) -> Likeness:
        """A measure of each prompt's heads, averaged over prompts."""

        def measured(a: np.ndarray, b: np.ndarray) -> float:
            return _finite_mean(measure(a, b))

        found = estimate(measure(high, low), stats.generator(*named, name, "prompt"))
        ends = None if found.low is None or found.high is None else (found.low, found.high)
        return _likeness(name, measured, high, low, others, again, over_prompts=ends)

    def correlated(rank: bool) -> dict[str, Any]:
        rng = stats.generator(*named, "spearman" if rank else "pearson")
        found = correlate_means(high, low, rng, rank=rank)
        intervals = {"over_prompts": found.over_prompts, "over_heads": found.over_heads}
        return {**intervals, "chance_p": found.p}

    count = int(finite.sum())
    head, change = _largest(high, low, finite, heads, stats.generator(*named, "largest"))
    return Agreement(
        task=task,
        precision=precision,
        replacement=kind,
        prompts=len(high),
        heads=count,
        pearson=of_means("pearson", stats.pearson, **correlated(rank=False)),
        spearman=of_means("spearman", _spearman, **correlated(rank=True)),
        prompt_pearson=of_prompts("pearson", stats.pearson),
        prompt_spearman=of_prompts("spearman", _spearman),
        relative_error=of_means("error", relative_error),
        top5=of_means("top", _top(5), chance=_chance(5, count)),
        top10=of_means("top", _top(10), chance=_chance(10, count)),
        largest=head,
        largest_change=change,
    )


def _likeness(
    name: str,
    measured: Callable[[np.ndarray, np.ndarray], float],
    high: Float[np.ndarray, "P N"],
    low: Float[np.ndarray, "P N"],
    others: Sequence[Float[np.ndarray, "P N"]],
    again: tuple[np.ndarray, np.ndarray] | None,
    **known: Any,
) -> Likeness:
    """A measure between f32 and the precision, beside the same of every draw of noise."""
    noise = tuple(measured(high, other) for other in others)
    value = number(measured(high, low)) if high.size else None
    tested = _transformed(name, value, noise)
    return Likeness(
        value=value,
        noise=tuple(v for v in noise if np.isfinite(v)),
        p=None if tested is None else number(float(stats.beyond_draws(*tested))),
        reordered=None if again is None else number(measured(*again)),
        **known,
    )


def _ends(samples: np.ndarray) -> tuple[float, float] | None:
    low, high = stats.interval(samples)
    return (low, high) if np.isfinite(low) else None


def _maps(maps: Sequence[Any]) -> Float[np.ndarray, "P N"]:
    return np.array([np.ravel(one) for one in maps], np.float64)


def _noise(
    prompts: Sequence[PromptResult], precision: str, kind: Replacement
) -> list[Float[np.ndarray, "P N"]]:
    """Importance in f32 with noise in the weights, one array a draw."""
    lows = [p.precisions[precision].noise for p in prompts]
    found = [low.importance.get(kind) for low in lows if low is not None]
    if not found or len(found) < len(prompts) or any(one is None for one in found):
        return []
    return [_maps(draw) for draw in zip(*found, strict=True)]


def _reordered(
    prompts: Sequence[PromptResult], precision: str, kind: Replacement, finite: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """The precision's importance with its roundings in two orders."""
    lows = [p.precisions[precision] for p in prompts]
    if kind != "zero" or any(low.reordered is None for low in lows):
        return None
    own = _maps([low.importance[kind] for low in lows])[:, finite]
    other = _maps([low.reordered.importance for low in lows if low.reordered])[:, finite]
    kept = np.isfinite(other).all(axis=1)
    return (own[kept], other[kept]) if kept.any() else None


def _transformed(
    name: str, value: float | None, noise: tuple[float, ...]
) -> tuple[float, np.ndarray] | None:
    """Value and draws on a scale where draws are near to normal; None where that says nothing."""
    if value is None or len(noise) < 2 or name == "top":
        return None
    both = np.array([value, *noise])
    with np.errstate(divide="ignore", invalid="ignore"):
        both = np.log(both) if name == "error" else np.arctanh(np.clip(both, -1, 1))
    return (float(both[0]), both[1:]) if np.isfinite(both).all() else None


def _spearman(a: Float[np.ndarray, "*rows N"], b: Float[np.ndarray, "*rows N"]) -> np.ndarray:
    return stats.pearson(stats.ranks(a), stats.ranks(b))


def _finite_mean(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return float(values.mean()) if values.size else float("nan")


def relative_error(
    high: Float[np.ndarray, "*rows N"], low: Float[np.ndarray, "*rows N"]
) -> Float[np.ndarray, "*rows"]:
    """``‖I_q − I‖ / ‖I‖``.

    Args:
        high: importance in f32, ``I``.
        low: in the precision, ``I_q``.
    """
    size = np.linalg.norm(high, axis=-1)
    return np.where(
        size == 0, np.nan, np.linalg.norm(low - high, axis=-1) / np.maximum(size, 1e-300)
    )


def _top(k: int) -> Measure:
    def shared(high: np.ndarray, low: np.ndarray) -> np.ndarray:
        first, second = (largest(each, k)[..., None] for each in (high, low))
        return (first == second.swapaxes(-1, -2)).sum(axis=(-1, -2)).astype(float)

    return shared


def largest(importance: Float[np.ndarray, "*rows N"], k: int) -> Int[np.ndarray, "*rows k"]:
    """The ``k`` heads of largest ``|importance|``, the largest first."""
    return np.argsort(-np.abs(importance), axis=-1, kind="stable")[..., :k]


def _chance(k: int, heads: int) -> float | None:
    """How many of the top ``k`` two random orders share on average."""
    return min(k, heads) ** 2 / heads if heads else None


def _largest(
    high: np.ndarray, low: np.ndarray, finite: np.ndarray, num_heads: int, rng: Any
) -> tuple[tuple[int, int] | None, Estimate]:
    change = low - high
    if not change.size:
        return None, NOTHING
    i = int(np.abs(change.mean(axis=0)).argmax())
    head = int(np.flatnonzero(finite)[i])
    return (head // num_heads, head % num_heads), estimate(change[:, i], rng)
