"""Linear centred kernel alignment (CKA) of two sets of activations of the same tokens.

With centred activations ``X [n, D]`` and ``Y [n, D']`` and their Gram matrices ``K = X Xᵀ`` and
``L = Y Yᵀ``, CKA is a normalised ``tr(K L) = ‖Xᵀ Y‖²``. That number is computed from the smaller
side, the Gram matrices ``[n, n]`` or the product ``[D, D']``, in f64. All else that CKA and
debiased CKA need are the diagonals of K and L. Memory: the activations in f64, and the smaller
side twice.

CKA of independent activations is not 0: Gaussian ones of width D have ``D / (n + D)``, by the
second moment of a Wishart matrix. So it says little where tokens are not many times as many as
dimensions. Debiased CKA is near 0 there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jaxalign.errors import InputError
from jaxalign.measures import stats
from jaxalign.measures.cosines import finite_matrix
from jaxalign.shapes import Float, Int, Leaf

CKA, DEBIASED_CKA = "cka", "debiased_cka"
ACTIVATION_MEASURES = (CKA, DEBIASED_CKA)

FEWEST_TOKENS = 4  # the unbiased estimator divides by n − 3
ROWS_AT_ONCE = 8192


@dataclass(frozen=True, kw_only=True)
class Centred:
    """Activations as CKA sees them.

    Attributes:
        x: activations minus their mean over tokens, of Frobenius norm 1, f64 ``[tokens, width]``.
        squares: ``‖x_i‖²`` of each token, the diagonal of the Gram matrix, ``[tokens]``.
    """

    x: Float[np.ndarray, "tokens width"]
    squares: Float[np.ndarray, " tokens"]


def centred(activations: Leaf, name: str) -> Centred:
    """Centre activations, and scale them as a whole, which CKA does not see.

    Args:
        activations: real, ``[tokens, width]``, any unit.
        name: of the set, for errors.

    Raises:
        InputError: they are no matrix, are fewer than 4 tokens, have values that are not finite,
            or are the same on every token.
    """
    given = finite_matrix(activations, name, "[tokens, width]").astype(np.float64)
    if len(given) < FEWEST_TOKENS:
        raise InputError(
            f"{name} has {len(given)} tokens, expected {FEWEST_TOKENS} or more", "give more tokens"
        )
    largest = np.abs(given).max()
    x = given / (largest or 1)
    x -= x.mean(axis=0)
    norm = np.linalg.norm(x)
    if norm <= stats.TIE:
        raise InputError(f"{name} is the same on every token", "give activations that vary")
    x /= norm
    return Centred(x=x, squares=np.einsum("nd,nd->n", x, x))


def linear_cka(first: Centred, second: Centred) -> float:
    """Linear CKA, biased: ``‖Xᵀ Y‖² / (‖Xᵀ X‖ ‖Yᵀ Y‖)``, from 0 to 1.

    Args:
        first, second: activations of the same tokens (``centred``).

    Source:
        Kornblith et al. 2019, section 3 (CKA, and its linear form by features).
    """
    return float(cka_of_orders(first, second, _as_it_is(first))[0, 0])


def debiased_cka(first: Centred, second: Centred) -> float:
    """Linear CKA from the unbiased estimator of HSIC; at most 1, negative by chance.

    Args:
        first, second: activations of the same tokens (``centred``).

    Raises:
        InputError: as ``cka_of_orders``.

    Source:
        Song et al. 2012, section 2 (the unbiased estimator HSIC₁); Kornblith et al. 2019,
        section 3 (CKA as normalised HSIC).
    """
    return float(cka_of_orders(first, second, _as_it_is(first))[0, 1])


def cka_of_orders(
    first: Centred, second: Centred, orders: Int[np.ndarray, "orders tokens"]
) -> Float[np.ndarray, "orders 2"]:
    """CKA and debiased CKA, with the second's tokens in several orders.

    The unbiased estimator takes the diagonals out of K and L. Rows of a centred Gram matrix sum to
    0, so without the diagonal they sum to minus the diagonal, and Song's three terms become
    ``tr(K L) − n/(n − 2) Σ k_ii l_ii + Σ k_ii Σ l_ii / ((n − 1)(n − 2))``, over ``n (n − 3)``,
    which cancels in CKA. Centring changes nothing of the estimator: it does not see what is added
    to a whole row or column.

    Args:
        first, second: activations of the same tokens (``centred``).
        orders: places of the second's tokens, a permutation a row.

    Returns:
        f64 ``[orders, 2]``: CKA, debiased CKA.

    Raises:
        InputError: the sets have different numbers of tokens, or one of them has no unbiased
            estimate of its own size above 0 (all its variation on one token).
    """
    n = len(first.x)
    if len(second.x) != n:
        raise InputError(
            f"the activations are of {n} and of {len(second.x)} tokens",
            "give activations of the same tokens in the same order",
        )
    own, own_unbiased = _traces(first, first, _as_it_is(first))
    other, other_unbiased = _traces(second, second, _as_it_is(second))
    if (own_unbiased <= stats.TIE * own) | (other_unbiased <= stats.TIE * other):
        raise InputError(
            "the activations vary on one token alone, so their debiased CKA is not defined",
            "give more tokens",
        )
    both, both_unbiased = _traces(first, second, orders)
    debiased = both_unbiased / np.sqrt(own_unbiased * other_unbiased)
    return np.stack([both / np.sqrt(own * other), debiased], axis=-1)


def _as_it_is(activations: Centred) -> Int[np.ndarray, "1 tokens"]:
    return np.arange(len(activations.x))[None]


def _traces(
    first: Centred, second: Centred, orders: Int[np.ndarray, "orders tokens"]
) -> tuple[Float[np.ndarray, " orders"], Float[np.ndarray, " orders"]]:
    """``tr(K L)`` and Song's three terms, of the second's tokens in each order."""
    n, k, diagonals = len(first.x), first.squares, second.squares[orders]
    trace = _cross_norms(first, second, orders)
    middle = k.sum() * diagonals.sum(axis=-1) / ((n - 1) * (n - 2))
    return trace, trace - n / (n - 2) * (diagonals @ k) + middle


def _cross_norms(
    first: Centred, second: Centred, orders: Int[np.ndarray, "orders tokens"]
) -> Float[np.ndarray, " orders"]:
    """``‖Xᵀ Y‖²`` with the rows of Y in each order, from the smaller of both sides."""
    x, y = first.x, second.x
    if len(x) ** 2 <= x.shape[1] * y.shape[1]:
        ours, theirs = x @ x.T, y @ y.T
        return np.array([np.vdot(ours, theirs[np.ix_(order, order)]) for order in orders])
    found = []
    for order in orders:
        product = np.zeros((x.shape[1], y.shape[1]))
        for start in range(0, len(x), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            product += x[rows].T @ y[order[rows]]
        found.append(np.vdot(product, product))
    return np.array(found)
