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

AT_ONCE = 256  # columns tested in one product of signs and differences


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


def bootstrap_weights(
    n: int, rng: np.random.Generator, samples: int | None = None
) -> Float[np.ndarray, "samples n"]:
    """How often each of ``n`` observations is drawn in each resample, as a share.

    Args:
        n: how many observations there are.
        rng: draws them.
        samples: how many resamples, ``BOOTSTRAP_SAMPLES`` by default.
    """
    samples = BOOTSTRAP_SAMPLES if samples is None else samples
    drawn = rng.integers(0, n, (samples, n)) + n * np.arange(samples)[:, None]
    return np.bincount(drawn.ravel(), minlength=samples * n).reshape(samples, n) / n


def mean_interval(
    x: Float[np.ndarray, " P"], rng: np.random.Generator, samples: int | None = None
) -> tuple[float, float, float]:
    """Mean of observations with its bootstrap interval, NaN for one: ``(value, low, high)``.

    Args:
        x: one value a prompt.
        rng: draws the resamples.
        samples: how many of them, ``BOOTSTRAP_SAMPLES`` by default.
    """
    if len(x) < 2:
        return float(x.mean()), float("nan"), float("nan")
    low, high = interval(bootstrap_weights(len(x), rng, samples) @ x)
    return float(x.mean()), low, high


def sign_flip_p(
    x: Float[np.ndarray, " P"], rng: np.random.Generator, permutations: int | None = None
) -> float:
    """p-value of "the mean of these paired differences is 0", by flipping signs.

    Args:
        x: one difference a prompt.
        rng: draws the signs.
        permutations: how often all signs are drawn, ``PERMUTATIONS`` by default.
    """
    permutations = PERMUTATIONS if permutations is None else permutations
    signs = rng.integers(0, 2, size=(permutations, len(x))) * 2.0 - 1
    null = (signs @ x) / len(x)
    hits = int((np.abs(null) >= abs(float(x.mean())) - TIE).sum())
    return (1 + hits) / (1 + permutations)


def mean_intervals(
    x: Float[np.ndarray, "P M"], rng: np.random.Generator
) -> tuple[Float[np.ndarray, " M"], Float[np.ndarray, " M"]]:
    """Bootstrap intervals of many means over the same prompts, which are drawn together.

    Args:
        x: a column a mean; not finite where a prompt has no value. NaN for fewer than two.
        rng: draws the resamples.
    """
    there = np.isfinite(x)
    weights = bootstrap_weights(len(x), rng)
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn = (weights @ np.where(there, x, 0)) / (weights @ there)
    few = there.sum(axis=0) < 2
    low, high = np.array([interval(column) for column in drawn.T]).T
    return np.where(few, np.nan, low), np.where(few, np.nan, high)


def sign_flip_ps(x: Float[np.ndarray, "P M"], rng: np.random.Generator) -> Float[np.ndarray, " M"]:
    """``sign_flip_p`` of many columns over the same prompts, with the same signs for all.

    Args:
        x: a column a test; not finite where a prompt has no value. NaN for fewer than two.
        rng: draws the signs.
    """
    there = np.isfinite(x)
    x = np.where(there, x, 0)
    total = np.abs(x.sum(axis=0))
    tie = TIE * np.maximum(np.abs(x).sum(axis=0), TIE)
    signs = rng.integers(0, 2, size=(PERMUTATIONS, len(x))) * 2.0 - 1
    hits = [
        (np.abs(signs @ x[:, a : a + AT_ONCE]) >= (total - tie)[a : a + AT_ONCE]).sum(axis=0)
        for a in range(0, x.shape[1], AT_ONCE)
    ]
    p = (1 + np.concatenate(hits)) / (1 + PERMUTATIONS)
    return np.where(there.sum(axis=0) < 2, np.nan, p)


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


def beyond_draws(
    value: Float[np.ndarray, "*rows"] | float, draws: Float[np.ndarray, "*rows R"]
) -> Float[np.ndarray, "*rows"]:
    """p-values, two-sided, of "this value is one more draw of these": a t-test of one new value.

    ``t = (value − mean) / (s √(1 + 1/R))`` with ``R − 1`` degrees of freedom.

    Args:
        value: what was found.
        draws: what chance gave, near to normal (transform correlations by ``arctanh``).

    Returns:
        NaN for fewer than ``FEWEST_DRAWS`` draws, or draws without spread.
    """
    count = draws.shape[-1]
    if count < FEWEST_DRAWS:
        return np.full(draws.shape[:-1], np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = draws.std(axis=-1, ddof=1) * np.sqrt(1 + 1 / count)
        statistic = np.abs(value - draws.mean(axis=-1)) / spread
    varies = np.isfinite(spread) & (spread > TIE * np.abs(draws).max(axis=-1))
    return np.where(varies, 2 * scipy_stats.t.sf(statistic, count - 1), np.nan)


def beyond_pairs(value: float, pairs: Float[np.ndarray, " pairs"]) -> float:
    """p-value, two-sided, of "this value is one more pair of such items".

    Pairs share items, so they vary less among each other than from a new pair. In the least
    favourable case a pair is the sum of what its two items add: then the ``K = k (k − 1) / 2``
    pairs of ``k`` items have the sample variance ``2 − 2 (k − 2) / (K − 1)`` in the mean, in units
    of one item's, and a new pair lies from their mean with ``2 + 4 / k``. ``t`` is scaled by that
    and has ``k − 1`` degrees of freedom. Where pairs vary by themselves, too, the p-value is larger
    than it need be.

    Args:
        value: of the new pair.
        pairs: of every pair of the items.

    Returns:
        NaN for fewer than ``FEWEST_DRAWS`` items, or pairs without spread.
    """
    count = pairs.size
    items = int((1 + np.sqrt(1 + 8 * count)) / 2)
    spread = pairs.std(ddof=1) if count > 1 else 0.0
    if items < FEWEST_DRAWS or spread <= TIE * np.abs(pairs).max():
        return np.nan
    among = 2 - 2 * (items - 2) / (count - 1)
    statistic = abs(value - pairs.mean()) / (spread * np.sqrt((2 + 4 / items) / among))
    return float(2 * scipy_stats.t.sf(statistic, items - 1))


def one_more_draw_p(
    own: Float[np.ndarray, " N"], draws: Float[np.ndarray, "N R"]
) -> Float[np.ndarray, " N"]:
    """Two-sided p-values of "this mean KL is one more draw of the noise": ``beyond_draws``.

    The test is of ``1 / √KL``, which is nearly normal over draws (docs/plan.md has how that was
    found; the logarithm still leans to the right). Ranks among draws would need ``2 N / 0.05``
    draws to outlast a correction for ``N`` tests. The prompts are the same in every draw, so the
    verdict is on these prompts.

    Args:
        own: mean KL in a scheme, nats.
        draws: mean KL under each draw of noise of the scheme's size.

    Returns:
        NaN as ``beyond_draws``; 0 where noise does something and the scheme does not.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return beyond_draws(own**-0.5, draws**-0.5)
