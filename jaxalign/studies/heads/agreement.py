"""Do the same heads matter in a low precision? Importance against importance, beside noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxalign.measures import stats
from jaxalign.measures.correlation import correlate_means
from jaxalign.measures.estimates import estimate, number
from jaxalign.shapes import Float, Int
from jaxalign.studies.heads.average import comparable, flat
from jaxalign.studies.heads.findings import Agreement, Likeness, Replacement
from jaxalign.studies.heads.result import PromptResult

# From two maps of importance, ``[*rows, N]`` each, to one number a row.
Measure = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Profiles:
    """Importance of heads that can be compared, ``[P, N]``.

    Attributes:
        high, low: in f32, and inside the precision.
        noise: in f32 with noise in the weights, one a draw.
        reordered: the precision's with its roundings in two orders; None where there are none.
        seed, names: of the bootstraps.
    """

    high: Float[np.ndarray, "P N"]
    low: Float[np.ndarray, "P N"]
    noise: list[Float[np.ndarray, "P N"]]
    reordered: tuple[np.ndarray, np.ndarray] | None
    seed: int
    names: tuple[str, ...]

    def rng(self, *names: str) -> np.random.Generator:
        """A stream of its own for each named use."""
        return stats.generator(self.seed, "agreement", *self.names, *names)

    def of_means(self, name: str, measure: Measure, **known: Any) -> Likeness:
        """A measure of the averages over prompts.

        Args:
            name: "pearson", "spearman", "error" or "top".
            measure: of two rows of heads.
            known: fields of the likeness.
        """
        # A resample's own noise adds to a distance, so its percentiles lie above it: no interval.
        if "over_prompts" not in known and len(self.high) > 1 and name != "error":
            weights = stats.bootstrap_weights(len(self.high), self.rng())
            low, high = stats.interval(measure(weights @ self.high, weights @ self.low))
            known["over_prompts"] = (low, high) if np.isfinite(low) else None
        return self._beside(
            name, lambda a, b: float(measure(a.mean(axis=0), b.mean(axis=0))), known
        )

    def of_prompts(self, name: str, measure: Measure) -> Likeness:
        """A measure of each prompt's heads, averaged over prompts.

        Args:
            name: "pearson" or "spearman".
            measure: of two rows of heads.
        """
        found = estimate(measure(self.high, self.low), self.rng(name, "prompt"))
        ends = None if found.low is None or found.high is None else (found.low, found.high)
        return self._beside(name, lambda a, b: _finite_mean(measure(a, b)), {"over_prompts": ends})

    def correlated(self, *, rank: bool) -> Likeness:
        """The correlation of the averages over prompts, with both intervals.

        Args:
            rank: Spearman's instead of Pearson's.
        """
        name, measure = ("spearman", _spearman) if rank else ("pearson", stats.pearson)
        found = correlate_means(self.high, self.low, self.rng(name), rank=rank)
        return self.of_means(
            name,
            measure,
            over_prompts=found.over_prompts,
            over_heads=found.over_heads,
            chance_p=found.p,
        )

    def shared(self, k: int) -> Likeness:
        """How many of the ``k`` heads of largest ``|importance|`` are the same."""
        heads = self.high.shape[1]
        return self.of_means("top", _top(k), chance=min(k, heads) ** 2 / heads)

    def _beside(
        self, name: str, measured: Callable[[np.ndarray, np.ndarray], float], known: dict[str, Any]
    ) -> Likeness:
        """A measure between f32 and the precision, beside the same of every draw of noise."""
        noise = tuple(measured(self.high, other) for other in self.noise)
        value = number(measured(self.high, self.low))
        tested = _transformed(name, value, noise)
        return Likeness(
            value=value,
            noise=tuple(v for v in noise if np.isfinite(v)),
            p=None if tested is None else number(float(stats.beyond_draws(*tested))),
            reordered=None if self.reordered is None else number(measured(*self.reordered)),
            **known,
        )


def agreement(
    prompts: Sequence[PromptResult], task: str, precision: str, kind: Replacement, seed: int
) -> Agreement | None:
    """Compare importance in f32 with importance in a precision.

    Args:
        prompts: of the task, or all.
        task: their name.
        precision: the low one.
        kind: what stands in for a head.
        seed: of the bootstraps.

    Returns:
        None where importance was not measured, or nothing is finite in every prompt.
    """
    prompts = [p for p in prompts if kind in p.precisions[precision].importance]
    if not prompts:
        return None
    high = flat([p.importance(kind) for p in prompts])
    low = flat([p.precisions[precision].importance[kind] for p in prompts])
    kept, finite = comparable(high, low)
    if not finite.any():
        return None
    prompts = [p for p, own in zip(prompts, kept, strict=True) if own]
    both = Profiles(
        high=high[kept][:, finite],
        low=low[kept][:, finite],
        noise=[draw[:, finite] for draw in _noise(prompts, precision, kind)],
        reordered=_reordered(prompts, precision, kind, finite),
        seed=seed,
        names=(task, precision, kind),
    )
    change = both.low - both.high
    most = int(np.abs(change.mean(axis=0)).argmax())
    layer, head = divmod(int(np.flatnonzero(finite)[most]), prompts[0].zero_importance.shape[1])
    return Agreement(
        task=task,
        precision=precision,
        replacement=kind,
        prompts=len(both.high),
        heads=int(finite.sum()),
        pearson=both.correlated(rank=False),
        spearman=both.correlated(rank=True),
        prompt_pearson=both.of_prompts("pearson", stats.pearson),
        prompt_spearman=both.of_prompts("spearman", _spearman),
        relative_error=both.of_means("error", relative_error),
        top5=both.shared(5),
        top10=both.shared(10),
        largest=(layer, head),
        largest_change=estimate(change[:, most], both.rng("largest")),
    )


def _noise(
    prompts: Sequence[PromptResult], precision: str, kind: Replacement
) -> list[Float[np.ndarray, "P N"]]:
    """Importance in f32 with noise in the weights, one array a draw."""
    lows = [p.precisions[precision].noise for p in prompts]
    found = [low.importance.get(kind) for low in lows if low is not None]
    if not found or len(found) < len(prompts) or any(one is None for one in found):
        return []
    return [flat(draw) for draw in zip(*found, strict=True)]


def _reordered(
    prompts: Sequence[PromptResult], precision: str, kind: Replacement, finite: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """The precision's importance with its roundings in two orders."""
    lows = [p.precisions[precision] for p in prompts]
    if kind != "zero" or any(low.reordered is None for low in lows):
        return None
    own = flat([low.importance[kind] for low in lows])[:, finite]
    other = flat([low.reordered.importance for low in lows if low.reordered])[:, finite]
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
