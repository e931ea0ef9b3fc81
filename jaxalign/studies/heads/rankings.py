"""Choices drawn by seed: resampling partners, the orders in which heads are restored, masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxalign.measures.stats import generator
from jaxalign.prompts import Prompt
from jaxalign.shapes import Bool, Float, Int
from jaxalign.studies.heads.findings import RANKINGS, Ranking

DRAWS = 4  # donors of a prompt
RANDOM_ORDERS = 8
SAME_LAYERS = 4  # orders of heads of the same layers, for each ranking
ORDERS_BESIDE = RANDOM_ORDERS + SAME_LAYERS * len(RANKINGS)
VECTORS = 8
STEPS = 3  # values of k at which controls are run


@dataclass(frozen=True)
class Donors:
    """``draws`` int ``[P, DRAWS]``: donor prompts; a prompt without partners is its own donor.

    ``partners`` int ``[P]``: how many prompts of the task are as long and have other tokens.
    """

    draws: Int[np.ndarray, "P N"]
    partners: Int[np.ndarray, " P"]


def choose_donors(prompts: Sequence[Prompt], seed: int) -> Donors:
    """Draw each prompt's donors among the prompts of its task that are as long and not the same.

    A prompt of the same tokens has the same activations, and to put those in would change nothing.
    Without repetition where there are enough partners, with repetition where there are fewer.

    Args:
        prompts: all that are kept.
        seed: the study's.
    """
    groups: dict[tuple[str, int], list[int]] = {}
    for i, prompt in enumerate(prompts):
        groups.setdefault((prompt.task, len(prompt.tokens)), []).append(i)
    rng = generator(seed, "resample donors")
    draws, partners = [], []
    for i, prompt in enumerate(prompts):
        alike = groups[prompt.task, len(prompt.tokens)]
        others = [j for j in alike if prompts[j].tokens != prompt.tokens]
        chosen = rng.choice(others or [i], DRAWS, replace=len(others) < DRAWS)
        draws.append(chosen)
        partners.append(len(others))
    return Donors(np.array(draws), np.array(partners))


def descending(scores: Float[np.ndarray, "P N"]) -> Int[np.ndarray, "P N"]:
    """Heads from the highest score to the lowest; NaN comes last, ties keep the heads' order."""
    return np.argsort(-np.nan_to_num(scores, nan=-np.inf), axis=-1, kind="stable")


def control_steps(longest: int) -> tuple[int, ...]:
    """The values of k at which controls are run: about evenly spread on a logarithmic scale.

    Args:
        longest: how many heads are restored at most.

    Example:
        >>> control_steps(10)
        (1, 3, 10)
    """
    return tuple(int(k) for k in np.unique(np.round(np.geomspace(1, longest, STEPS))))


def repair_orders(
    importance: Float[np.ndarray, "P N"],
    drift: Float[np.ndarray, "P N"],
    predicted: Float[np.ndarray, "P N"],
) -> dict[Ranking, Int[np.ndarray, "P N"]]:
    """The orders to try by ranking, each prompt its own.

    Args:
        importance, drift, predicted: of every head, by prompt; logits, a ratio, logits.

    Returns:
        zero-importance (the original), drift, importance × drift, and the size of the first-order
        prediction.
    """
    scores = (importance, drift, importance * drift, np.abs(predicted))
    return {name: descending(score) for name, score in zip(RANKINGS, scores, strict=True)}


def random_orders(
    prompts: int, heads: int, rng: np.random.Generator
) -> Int[np.ndarray, "orders P N"]:
    """Orders of all heads, drawn anew for each prompt.

    Args:
        prompts: ``P``.
        heads: ``N``.
        rng: draws them.
    """
    return rng.permuted(np.broadcast_to(np.arange(heads), (RANDOM_ORDERS, prompts, heads)), axis=-1)


def same_layer_orders(
    order: Int[np.ndarray, "P N"], num_heads: int, rng: np.random.Generator
) -> Int[np.ndarray, "orders P N"]:
    """An order's layers with other heads: each layer's heads exchanged at random.

    The first k heads of each are as many of every layer as the first k of ``order``, so what
    the ranking wins beyond them it does not win by its choice of layers.

    Args:
        order: a ranking's, head ``l·H + h``.
        num_heads: ``H``.
        rng: draws the exchanges, anew for each prompt.
    """
    prompts, heads = order.shape
    layers = heads // num_heads
    shape = (SAME_LAYERS, prompts, layers, num_heads)
    mixed = rng.permuted(np.broadcast_to(np.arange(num_heads), shape), axis=-1)
    layer, head = np.divmod(order, num_heads)
    return layer * num_heads + mixed[:, np.arange(prompts)[:, None], layer, head]


def top_k_masks(
    orders: Int[np.ndarray, "O B N"], steps: Sequence[int], num_layers: int
) -> Bool[np.ndarray, "M L B 1 H"]:
    """Masks of the first k heads of each order, for each k: ``M = O·steps``, order by order.

    Args:
        orders: heads from the first to be restored to the last.
        steps: the values of k.
        num_layers: ``L``.
    """
    place = np.argsort(orders, axis=-1, kind="stable")
    masks = place[:, None] < np.asarray(steps)[:, None, None]  # [O, k, B, N]
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
