"""Can one tell from f32 alone which features survive? Statistics, and a classifier made of them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.dictionaries.dictionary import Dictionary
from jaxalign.engine.activations import Place
from jaxalign.measures import stats
from jaxalign.measures.estimates import Estimate, number
from jaxalign.model.config import ModelConfig
from jaxalign.model.decoder import unembed
from jaxalign.model.layers import normalize
from jaxalign.model.params import Params
from jaxalign.runtime.compile import jit
from jaxalign.shapes import Array, Bool, Float, Int
from jaxalign.studies.features.moments import Moments

FOLDS = 5
PENALTY = 1.0  # of the squared weights of standardized statistics
STEPS = 25  # of Newton's method, which is at rest long before
PERMUTATIONS = 200
FEWEST = 10  # features on either side
LOGIT_BYTES = 1 << 27
STREAMS = ("resid", "mlp_out", "attn_out")


@functools.partial(jit, static_argnames=("config",))
def said_alone(
    params: Params, directions: Float[Array, "features D"], *, config: ModelConfig
) -> tuple[Float[Array, " features"], Float[Array, " features"]]:
    """What each direction says to the unembedding (logit lens, nostalgebraist 2020).

    Args:
        params: f32.
        directions: what features write to the stream.
        config: the architecture (static).

    Returns:
        The largest cosine with a token's direction in the unembedding, and the entropy, nats, of
        the next token where the stream is the direction alone.
    """
    matrix = params.embed if params.unembed is None else params.unembed
    tokens = matrix / jnp.maximum(jnp.linalg.norm(matrix, axis=-1, keepdims=True), 1e-12)

    def one(direction: Array) -> tuple[Array, Array]:
        normed = direction / jnp.maximum(jnp.linalg.norm(direction), 1e-12)
        logits = unembed(params, normalize(direction, params.final_norm, config), config)
        logp = jax.nn.log_softmax(logits)
        return (tokens @ normed).max(), -(jnp.exp(logp) * logp).sum()

    size = max(1, LOGIT_BYTES // (16 * len(matrix)))
    found: tuple[jax.Array, jax.Array] = jax.lax.map(
        one, directions, batch_size=min(size, len(directions))
    )
    return found


def statistics(
    params: Params, config: ModelConfig, dictionary: Dictionary, place: Place, moments: Moments
) -> dict[str, Float[np.ndarray, " features"]]:
    """What is known of every feature without another precision, by name.

    Args:
        params: f32.
        config: the architecture.
        dictionary: at the place.
        place: point and step; what tokens a feature promotes is known of streams alone.
        moments: of groups of documents.
    """
    tokens = moments.tokens.sum()
    total, squares, fired = (getattr(moments, n).sum(axis=0) for n in ("a", "aa", "fired"))
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = total / tokens
        found = {
            "peak": moments.top.max(axis=0),
            "rate": fired / tokens,
            "mean": mean,
            "spread": np.sqrt(np.maximum(squares / tokens - mean**2, 0)),
            "size when active": np.where(fired > 0, total / fired, np.nan),
        }
    found["norm written"] = np.linalg.norm(np.asarray(dictionary.decoder), axis=-1)
    if place[0] in STREAMS:
        cosine, entropy = said_alone(params, dictionary.decoder, config=config)
        found["cosine with a token"] = np.asarray(cosine, np.float64)
        found["logit lens entropy"] = np.asarray(entropy, np.float64)
    return found


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """How well f32 alone tells which features survive.

    Attributes:
        auc: area under the curve of the classifier on features that it was not fitted to, with its
            interval over features, and the p of "as well with labels exchanged".
        exchanged: the mean of it with labels exchanged.
        single: of each statistic alone, by name; above 0.5 where the larger survive.
    """

    auc: Estimate
    exchanged: float | None
    single: Mapping[str, Estimate]


def predict(
    known: Mapping[str, Float[np.ndarray, " features"]],
    survives: Bool[np.ndarray, " features"],
    rng: np.random.Generator,
) -> Predicted | None:
    """Fit a logistic regression with a penalty, fold by fold, and read it on the fold left out.

    Statistics enter as ranks, standardized, since they spread over decades.

    Args:
        known: statistics of the features that are judged, by name.
        survives: which of them survive.
        rng: deals features into folds, resamples them, exchanges labels.

    Returns:
        None where fewer than 10 features are on either side.
    """
    y = np.asarray(survives, float)
    if min(y.sum(), (1 - y).sum()) < FEWEST:
        return None
    x = np.stack([_standardized(value) for value in known.values()], axis=1)
    labels = np.stack([y, *(rng.permutation(y) for _ in range(PERMUTATIONS))])
    folds = np.stack([_folds(one, rng) for one in labels])
    scores = _left_out(x, labels, folds)
    areas = np.array([auc(s, one) for s, one in zip(scores, labels, strict=True)])
    drawn = rng.integers(0, len(y), (stats.BOOTSTRAP_SAMPLES, len(y)))

    def estimate(score: np.ndarray, p: float | None = None) -> Estimate:
        resampled = auc(score[drawn], y[drawn])
        low, high = stats.interval(resampled)
        return Estimate(number(float(auc(score, y))), number(low), number(high), p)

    p = (1 + int((areas[1:] >= areas[0] - stats.TIE).sum())) / (1 + PERMUTATIONS)
    return Predicted(
        auc=estimate(scores[0], p),
        exchanged=number(areas[1:].mean()),
        single={name: estimate(value) for name, value in known.items() if np.ptp(value) > 0},
    )


def auc(
    score: Float[np.ndarray, "*rows features"], label: Float[np.ndarray, "*rows features"]
) -> Float[np.ndarray, "*rows"]:
    """The share of pairs, one of either label, of which the one with label 1 has the larger score;
    ties count half (Mann and Whitney 1947).

    Args:
        score: of each feature.
        label: 1 or 0.
    """
    positive = label.sum(axis=-1)
    negative = label.shape[-1] - positive
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Float[np.ndarray, "*rows"] = (
            (stats.ranks(score) * label).sum(axis=-1) - positive * (positive + 1) / 2
        ) / (positive * negative)
    return found


def _standardized(value: np.ndarray) -> np.ndarray:
    ranks = stats.ranks(np.nan_to_num(value))
    spread = ranks.std()
    return (ranks - ranks.mean()) / (spread if spread > 0 else 1)


def _folds(label: np.ndarray, rng: np.random.Generator) -> Int[np.ndarray, " features"]:
    """Which fold each feature is in, both labels spread evenly."""
    out = np.empty(len(label), int)
    for value in (0, 1):
        own = np.flatnonzero(label == value)
        out[rng.permutation(own)] = np.arange(len(own)) % FOLDS
    return out


def _left_out(x: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Of every row of labels, each feature's score by the fit to the other folds."""
    x = np.concatenate([np.ones((len(x), 1)), x], axis=1)
    scores = np.empty(labels.shape)
    for fold in range(FOLDS):
        out = folds == fold
        weights = fit_logistic(x, labels, (~out).astype(float))
        scores[out] = (weights @ x.T)[out]
    return scores


def fit_logistic(
    x: Float[np.ndarray, "features known"],
    labels: Float[np.ndarray, "rows features"],
    counts: Float[np.ndarray, "rows features"],
) -> Float[np.ndarray, "rows known"]:
    """Logistic regressions by Newton's method, all rows at once.

    Minimizes ``Σ log loss + ½ ‖w‖²``, the first column's weight (the constant) left free.

    Args:
        x: statistics, a column of ones first.
        labels: 1 or 0.
        counts: 1 for features that are fitted to, 0 for others.
    """
    ridge = np.full(x.shape[1], PENALTY)
    ridge[0] = 0
    weights = np.zeros((len(labels), x.shape[1]))
    for _ in range(STEPS):
        p = 1 / (1 + np.exp(-np.clip(weights @ x.T, -30, 30)))
        slope = (counts * (p - labels)) @ x + ridge * weights
        curve = np.einsum("rf,fi,fj->rij", counts * p * (1 - p), x, x, optimize=True)
        curve = curve + np.diag(ridge + 1e-9)
        weights = weights - np.linalg.solve(curve, slope[..., None])[..., 0]
    return weights
