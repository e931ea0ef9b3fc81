"""How alike the directions of two dictionaries are: best cosines, Procrustes, mutual neighbours.

A dictionary is a matrix ``[features, width]`` of decoder or encoder directions, a row a feature.
Functions of two dictionaries take rows of norm 1 in f32 (``directions``): no measure sees a norm.

A value is no evidence by itself, since a rotation fits chance: two independent Gaussian
dictionaries have a mean cosine near ``8 / (3π) · √(width / features)`` after Procrustes where
features are many times the width (the mean singular value of a Gaussian matrix), 0.41 at width 2048
and 8192 features. ``measures.alignment`` has the nulls.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from scipy.linalg import orthogonal_procrustes
from scipy.optimize import linear_sum_assignment

from jaxalign.errors import InputError, counted
from jaxalign.measures import stats
from jaxalign.runtime.products import f32_product
from jaxalign.shapes import Array, Bool, Float, Int, Leaf

RAW, MUTUAL = "raw", "mutual"
PROCRUSTES, MUTUAL_PROCRUSTES, HELD_OUT = "procrustes", "mutual_procrustes", "held_out"
DICTIONARY_MEASURES = (RAW, MUTUAL, PROCRUSTES, MUTUAL_PROCRUSTES, HELD_OUT)

FEWEST_FEATURES = 2
# Matching needs all cosines at once and a time that grows with the cube of the features.
MOST_MATCHED = 8192
COSINES_AT_ONCE = 2**25  # of one block of rows: 128 MB


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """The best cosines of one dictionary's features with another's.

    Attributes:
        cosine: of each feature of the first with its nearest of the second, f32 ``[features]``.
        nearest: which feature of the second that is, the first of equals, int ``[features]``.
        mutual: whether the second's nearest has no nearer feature in the first, bool
            ``[features]``; equal cosines count.
    """

    cosine: Float[np.ndarray, " features"]
    nearest: Int[np.ndarray, " features"]
    mutual: Bool[np.ndarray, " features"]


def directions(dictionary: Leaf, name: str) -> Float[np.ndarray, "features width"]:
    """A dictionary's features as directions: f32, of norm 1.

    Args:
        dictionary: real, ``[features, width]``, a row a feature, any unit.
        name: of the dictionary, for errors.

    Raises:
        InputError: it is no matrix, has fewer than 2 features, values that are not finite or
            features of norm 0.
    """
    rows = finite_matrix(dictionary, name, "[features, width]")
    if len(rows) < FEWEST_FEATURES:
        raise InputError(
            f"{name} has {counted(len(rows), 'feature')}, expected {FEWEST_FEATURES} or more",
            "give a row a feature",
        )
    norm = np.sqrt(np.einsum("fd,fd->f", rows, rows, dtype=np.float64))
    dead = int((norm == 0).sum())
    if dead:
        said = f"{name} has {counted(dead, 'feature')} of norm 0, without a direction"
        raise InputError(said, "leave dead features out")
    return (rows / norm[:, None]).astype(np.float32)


def finite_matrix(values: Leaf, name: str, axes: str) -> Float[np.ndarray, "rows columns"]:
    """Real numbers as a NumPy matrix in f32, or in f64 where they are given so.

    Args:
        values: an array of NumPy's or JAX's.
        name: of the array, for errors.
        axes: what its axes are, for errors: ``[features, width]``.

    Raises:
        InputError: it is no matrix of real numbers, or has values that are not finite.
    """
    array = np.asarray(values)
    if array.ndim != 2 or not array.size or not jnp.issubdtype(array.dtype, jnp.floating):
        found = f"{array.dtype}{list(array.shape)}"
        raise InputError(f"{name} is {found}, expected real numbers {axes}", "give a matrix")
    array = array if array.dtype == np.float64 else array.astype(np.float32)
    wrong = array.size - int(np.isfinite(array).sum())
    if wrong:
        said = f"{name} has {wrong} of {array.size} values not finite"
        raise InputError(said, "leave their rows out")
    return array


def neighbours(
    first: Float[np.ndarray, "features width"], second: Float[np.ndarray, "others width"]
) -> Neighbours:
    """The nearest feature of ``second`` for each of ``first``, and whether that is mutual.

    All cosines are computed, a block of rows at a time, and never held together: memory beside the
    dictionaries is ``COSINES_AT_ONCE`` numbers.

    Args:
        first, second: rows of norm 1, f32.
    """
    block = max(1, min(len(first), COSINES_AT_ONCE // len(second)))
    cosine, nearest, best = _nearest(jnp.asarray(first), jnp.asarray(second), block)
    cosine, nearest = np.asarray(cosine), np.asarray(nearest)
    return Neighbours(cosine=cosine, nearest=nearest, mutual=np.asarray(best)[nearest] == cosine)


@partial(jax.jit, static_argnames="block")
def _nearest(
    first: Float[Array, "features width"], second: Float[Array, "others width"], block: int
) -> tuple[Float[Array, " features"], Int[Array, " features"], Float[Array, " others"]]:
    """Best cosine of each row and where it is, and the best cosine of each column."""
    count, width = first.shape
    padded = jnp.pad(first, ((0, -count % block), (0, 0)))
    blocks = padded.reshape(-1, block, width)
    real = (jnp.arange(len(padded)) < count).reshape(-1, block)

    def step(best: Array, rows: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        cosines = f32_product(rows[0], second.T)
        ours = jnp.where(rows[1][:, None], cosines, -jnp.inf).max(axis=0)
        return jnp.maximum(best, ours), (cosines.max(axis=1), cosines.argmax(axis=1))

    start = jnp.full(len(second), -jnp.inf)
    best, (cosine, nearest) = lax.scan(step, start, (blocks, real))
    return cosine.reshape(-1)[:count], nearest.reshape(-1)[:count], best


def mutual_share(found: Neighbours, others: int) -> float:
    """The share of features that are each other's nearest, of the smaller dictionary's.

    Not 0 by chance: two independent Gaussian dictionaries of n features have about
    ``n / (2n − 1)``, near 0.5 at any size. A cosine is mutual where it is the largest of its row
    and column, 2n − 1 nearly exchangeable numbers, and there are n² cosines for n features.

    Args:
        found: ``neighbours(first, second)``.
        others: how many features ``second`` has.
    """
    return float(found.mutual.sum() / min(len(found.mutual), others))


def rotated(
    first: Float[np.ndarray, "features width"],
    second: Float[np.ndarray, "features width"],
    turned: Float[np.ndarray, "rows width"],
) -> Float[np.ndarray, "rows width"]:
    """``turned @ R`` with the orthogonal R that takes ``first`` nearest to ``second``, row by row.

    Args:
        first, second: pairs that R is fitted on, rows of norm 1, f32.
        turned: what it is applied to, rows of norm 1, f32.

    Returns:
        Rows of norm 1 up to f32's rounding.

    Source:
        Schönemann 1966, by ``scipy.linalg.orthogonal_procrustes``: ``R = U Vᵀ`` of
        ``firstᵀ second = U S Vᵀ``.
    """
    rotation, _ = orthogonal_procrustes(first, second)
    return turned @ rotation.astype(np.float32)


def held_out_cosine(
    first: Float[np.ndarray, "features width"],
    second: Float[np.ndarray, "others width"],
    rng: np.random.Generator,
) -> float:
    """Mean cosine, after a rotation, of matched pairs that the rotation was not fitted on.

    Features are matched one to one so that the sum of their cosines is largest. A random half of
    the pairs (the larger one of an odd number) fits the rotation, the rest are scored. What the
    *rotation* fits by chance is gone; what the *matching* picks by chance is not, since it saw
    all pairs, so this has a null of its own.

    Args:
        first, second: rows of norm 1, f32; the smaller one is matched whole.
        rng: splits the pairs.

    Source:
        Kuhn 1955 (the Hungarian method), by ``scipy.optimize.linear_sum_assignment``.
    """
    ours, theirs = linear_sum_assignment(first @ second.T, maximize=True)
    order = rng.permutation(len(ours))
    fitted, scored = np.split(order, [(len(order) + 1) // 2])
    turned = rotated(first[ours[fitted]], second[theirs[fitted]], first[ours[scored]])
    return float(np.einsum("fd,fd->f", turned, second[theirs[scored]]).mean(dtype=np.float64))


def unavailable(features: int, others: int, width: int) -> dict[str, str]:
    """The measures that two dictionaries' sizes rule out, and why.

    Args:
        features, others: how many features the first and the second have.
        width: of both.
    """
    found: dict[str, str] = {}
    if features != others:
        why = f"feature i is fitted to feature i, and there are {features} and {others}"
        found |= dict.fromkeys((PROCRUSTES, MUTUAL_PROCRUSTES), why)
    fitted = (min(features, others) + 1) // 2
    if max(features, others) > MOST_MATCHED:
        found[HELD_OUT] = f"more than {MOST_MATCHED} features are not matched one to one"
    elif fitted < width:
        found[HELD_OUT] = f"{fitted} pairs do not determine a rotation of width {width}"
    return found


def dictionary_values(
    first: Float[np.ndarray, "features width"],
    second: Float[np.ndarray, "others width"],
    seed: int,
) -> dict[str, float]:
    """Every measure of two dictionaries that their sizes allow, by name.

    ``raw``: mean cosine of the first's features with their nearest of the second. ``mutual``:
    share of mutual nearest neighbours. ``procrustes`` and ``mutual_procrustes``: both after the
    rotation fitted feature i to feature i. ``held_out``: ``held_out_cosine``.

    Args:
        first, second: rows of norm 1, f32, of one width.
        seed: splits the matched pairs of ``held_out``.
    """
    missing = unavailable(len(first), len(second), first.shape[1])
    found = neighbours(first, second)
    values = {RAW: _mean(found), MUTUAL: mutual_share(found, len(second))}
    if PROCRUSTES not in missing:
        found = neighbours(rotated(first, second, first), second)
        values |= {PROCRUSTES: _mean(found), MUTUAL_PROCRUSTES: mutual_share(found, len(second))}
    if HELD_OUT not in missing:
        split = stats.generator(seed, "alignment", "split")
        values[HELD_OUT] = held_out_cosine(first, second, split)
    return values


def _mean(found: Neighbours) -> float:
    return float(found.cosine.mean(dtype=np.float64))
