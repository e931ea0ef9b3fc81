"""In which order heads are restored, and the masks that restore them."""

from __future__ import annotations

import numpy as np

from jaxalign.results import RANKINGS
from jaxalign.shapes import Bool, Float, Int
from jaxalign.stats import generator

RANDOM_ORDERS = 8


def descending(scores: Float[np.ndarray, "P N"]) -> Int[np.ndarray, "P N"]:
    """Heads from the highest score to the lowest; NaN comes last, ties keep the heads' order."""
    return np.argsort(-np.nan_to_num(scores, nan=-np.inf), axis=-1, kind="stable")


def repair_orders(
    importance: Float[np.ndarray, "P N"],
    drift: Float[np.ndarray, "P N"],
    predicted: Float[np.ndarray, "P N"],
    seed: int,
    scheme: str,
) -> tuple[dict[str, Int[np.ndarray, "P N"]], Int[np.ndarray, "orders P N"]]:
    """The orders to try, each prompt its own.

    Returns:
        By ranking of ``RANKINGS``: zero-importance (the original), drift, importance × drift, and
        the size of the first-order prediction; and the seeded random orders, the control.
    """
    scores = (importance, drift, importance * drift, np.abs(predicted))
    orders = {name: descending(score) for name, score in zip(RANKINGS, scores, strict=True)}
    rng = generator(seed, "random orders", scheme)
    heads = np.arange(importance.shape[1])
    random = np.broadcast_to(heads, (RANDOM_ORDERS, *importance.shape))
    return orders, rng.permuted(random, axis=-1)


def top_k_masks(
    orders: Int[np.ndarray, "O B N"], k: int, num_layers: int
) -> Bool[np.ndarray, "M L B 1 H"]:
    """Masks of the first 1 … k heads of each order: ``M = O·k``, order by order."""
    place = np.argsort(orders, axis=-1, kind="stable")
    masks = place[:, None] < np.arange(1, k + 1)[:, None, None]  # [O, k, B, N]
    masks = masks.reshape(-1, orders.shape[1], num_layers, orders.shape[2] // num_layers)
    return masks.transpose(0, 2, 1, 3)[:, :, :, None]


def distinct(
    masks: Bool[np.ndarray, "M L B 1 H"],
) -> tuple[Bool[np.ndarray, "M L B 1 H"], Int[np.ndarray, "M B"]]:
    """Clears every mask that repeats an earlier mask of the same prompt.

    The sweep then computes each distinct edit once. Repeats are common: orders begin with a head
    that is also restored alone, and often agree on the first few.

    Returns:
        The masks, empty where they would repeat; and which row each would repeat, or itself.
    """
    rows = np.packbits(masks.transpose(2, 0, 1, 3, 4).reshape(masks.shape[2], len(masks), -1), -1)
    first = np.empty(masks.shape[::2][:2], int)
    for prompt, own in enumerate(rows):
        _, index, inverse = np.unique(own, axis=0, return_index=True, return_inverse=True)
        first[:, prompt] = index[inverse.ravel()]
    repeats = first != np.arange(len(masks))[:, None]
    return masks & ~repeats[:, None, :, None, None], first
