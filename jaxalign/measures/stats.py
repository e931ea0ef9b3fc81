"""Intervals, p-values and correlations, vectorised; pure functions of arrays and a seed.

Intervals are 95 % percentile bootstraps, p-values ``(1 + hits) / (1 + n)`` and two-sided, so a
p-value is never 0 (Phipson & Smyth 2010).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy import stats as scipy_stats

BOOTSTRAP_SAMPLES = 1000
PERMUTATIONS = 10_000
INTERVAL = (2.5, 97.5)
# Differences this small between statistics are rounding, so they count as ties.
TIE = 1e-12
# Fewer draws of noise say next to nothing of their own spread.
FEWEST_DRAWS = 3


def generator(seed: int, *names: str) -> np.random.Generator:
    """A stream of its own for each named use, the same whatever else is drawn."""
    words = [seed, *(int.from_bytes(name.encode(), "little") for name in names)]
    return np.random.default_rng(np.random.SeedSequence(words))


def interval(samples: Float[np.ndarray, " samples"]) -> tuple[float, float]:
    """The 95 % percentile interval; NaN samples (degenerate resamples) do not count."""
    kept = samples[np.isfinite(samples)]
    if not kept.size:
        return float("nan"), float("nan")
    low, high = np.percentile(kept, INTERVAL)
    return float(low), float(high)


def pearson(
    x: Float[np.ndarray, "*rows items"], y: Float[np.ndarray, "*rows items"]
) -> Float[np.ndarray, "*rows"]:
    """Pearson's correlation along the last axis; NaN where one side does not vary."""
    dx = x - x.mean(axis=-1, keepdims=True)
    dy = y - y.mean(axis=-1, keepdims=True)
    scale = np.sqrt((dx**2).sum(axis=-1) * (dy**2).sum(axis=-1))
    product = (dx * dy).sum(axis=-1)
    tiny = scale <= TIE * np.abs(x).max(initial=0) * np.abs(y).max(initial=0)
    return np.where(tiny, np.nan, product / np.where(tiny, 1, scale))


def ranks(x: Float[np.ndarray, "*rows items"]) -> Float[np.ndarray, "*rows items"]:
    """Ranks from 1 along the last axis; equal values share the average of theirs."""
    order = np.argsort(x, axis=-1)
    ordered = np.take_along_axis(x, order, axis=-1)
    place = np.arange(1.0, x.shape[-1] + 1)
    changes = ordered[..., 1:] != ordered[..., :-1]
    edge = np.ones((*x.shape[:-1], 1), bool)
    # The first and the last place of each run of equal values, at every place of the run.
    first = np.maximum.accumulate(np.where(np.concatenate([edge, changes], -1), place, 0), -1)
    after = np.where(np.concatenate([changes, edge], -1), place, np.inf)
    last = np.minimum.accumulate(after[..., ::-1], -1)[..., ::-1]
    out = np.empty(x.shape)
    np.put_along_axis(out, order, (first + last) / 2, axis=-1)
    return out


def correlation_of_means(
    x: Float[np.ndarray, "P items"],
    y: Float[np.ndarray, "P items"],
    rng: np.random.Generator,
    rank: bool = False,
    samples: int = BOOTSTRAP_SAMPLES,
    permutations: int = PERMUTATIONS,
) -> tuple[float, float, float, float]:
    """Correlation over items (heads) of two prompt averages, its interval and its p-value.

    The bootstrap resamples prompts, both sides together, because prompts are the sample; the
    permutation exchanges items of one side, because its null is that items do not correspond.

    Args:
        x, y: one value a prompt and item.
        rng: draws the resamples and the permutations.
        rank: Spearman's instead of Pearson's.
        samples: how often prompts are resampled.
        permutations: how often items are exchanged.

    Returns:
        ``(value, low, high, p)``; NaN where the correlation is not defined.
    """

    def prepare(means: np.ndarray) -> np.ndarray:
        return ranks(means) if rank else means

    mean_x, mean_y = prepare(x.mean(axis=0)), prepare(y.mean(axis=0))
    value = float(pearson(mean_x, mean_y)) if x.shape[1] > 2 else float("nan")
    # One prompt has no spread to resample, so there is no interval and nothing to report.
    if not np.isfinite(value) or len(x) < 2:
        return (float("nan"),) * 4
    weights = bootstrap_weights(len(x), rng, samples)
    low, high = interval(pearson(prepare(weights @ x), prepare(weights @ y)))
    shuffled = rng.permuted(np.broadcast_to(mean_y, (permutations, len(mean_y))), axis=1)
    # Exchanging items moves neither the mean nor the spread of a side, only the product.
    dx, dy = mean_x - mean_x.mean(), mean_y - mean_y.mean()
    null = shuffled @ dx / np.sqrt((dx**2).sum() * (dy**2).sum())
    hits = int((np.abs(null) >= abs(value) - TIE).sum())
    return value, low, high, (1 + hits) / (1 + permutations)


def bootstrap_weights(
    n: int, rng: np.random.Generator, samples: int = BOOTSTRAP_SAMPLES
) -> Float[np.ndarray, "samples n"]:
    """How often each of ``n`` observations is drawn in each resample, as a share.

    Args:
        n: how many observations there are.
        rng: draws them.
        samples: how many resamples.
    """
    return rng.multinomial(n, np.full(n, 1 / n), size=samples) / n


def mean_interval(
    x: Float[np.ndarray, " P"], rng: np.random.Generator, samples: int = BOOTSTRAP_SAMPLES
) -> tuple[float, float, float]:
    """Mean of observations with its bootstrap interval, NaN for one: ``(value, low, high)``.

    Args:
        x: one value a prompt.
        rng: draws the resamples.
        samples: how many of them.
    """
    if len(x) < 2:
        return float(x.mean()), float("nan"), float("nan")
    low, high = interval(bootstrap_weights(len(x), rng, samples) @ x)
    return float(x.mean()), low, high


def sign_flip_p(
    x: Float[np.ndarray, " P"], rng: np.random.Generator, permutations: int = PERMUTATIONS
) -> float:
    """p-value of "the mean of these paired differences is 0", by flipping signs.

    Args:
        x: one difference a prompt.
        rng: draws the signs.
        permutations: how often all signs are drawn.
    """
    signs = rng.integers(0, 2, size=(permutations, len(x))) * 2.0 - 1
    null = (signs @ x) / len(x)
    hits = int((np.abs(null) >= abs(float(x.mean())) - TIE).sum())
    return (1 + hits) / (1 + permutations)


def corrected(p: Float[np.ndarray, " tests"]) -> Float[np.ndarray, " tests"]:
    """p-values of one family of tests, corrected for how many there are.

    Each becomes the false discovery rate at which its test would count. NaN (a test that could not
    be made) stays NaN and is not counted.

    Args:
        p: raw p-values.

    Source:
        Benjamini and Hochberg 1995, section 3.1.
    """
    made = np.isfinite(p)
    out = np.full(len(p), np.nan)
    out[made] = scipy_stats.false_discovery_control(p[made]) if made.any() else []
    return out


def one_more_draw_p(
    own: Float[np.ndarray, " N"], draws: Float[np.ndarray, "N R"]
) -> Float[np.ndarray, " N"]:
    """Two-sided p-values of "this mean KL is one more draw of the noise".

    The test is of ``1 / √KL``, which is nearly normal over draws (docs/plan.md has how that was
    found; the logarithm still leans to the right), so that one more draw less the mean of ``R``
    draws, over ``s √(1 + 1/R)``, follows Student's t with ``R − 1`` degrees of freedom. Ranks among
    draws would need ``2 N / 0.05`` draws to outlast a correction for ``N`` tests. The prompts are
    the same in every draw, so the verdict is on these prompts.

    Args:
        own: mean KL in a scheme, nats.
        draws: mean KL under each draw of noise of the scheme's size.

    Returns:
        NaN where there are fewer than ``FEWEST_DRAWS`` draws, or where they do not vary; 0 where
        noise does something and the scheme does not.
    """
    count = draws.shape[1]
    if count < FEWEST_DRAWS:
        return np.full(len(own), np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        one, beside = own**-0.5, draws**-0.5
        spread = beside.std(axis=1, ddof=1) * np.sqrt(1 + 1 / count)
        statistic = np.abs(one - beside.mean(axis=1)) / spread
    varies = np.isfinite(spread) & (spread > TIE * np.abs(beside).max(axis=1))
    return np.where(varies, 2 * scipy_stats.t.sf(statistic, count - 1), np.nan)
