"""Choices drawn by seed: resampling partners, the orders in which heads are restored, masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxalign.measures.stats import generator
from jaxalign.prompts import Prompt
from jaxalign.shapes import Bool, Float, Int
from jaxalign.studies.heads.result import RANKINGS

RANDOM_ORDERS = 8
DRAWS = 4


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


def repair_orders(
    importance: Float[np.ndarray, "P N"],
    drift: Float[np.ndarray, "P N"],
    predicted: Float[np.ndarray, "P N"],
    seed: int,
    scheme: str,
) -> tuple[dict[str, Int[np.ndarray, "P N"]], Int[np.ndarray, "orders P N"]]:
    """The orders to try, each prompt its own.

    Args:
        importance, drift, predicted: of every head, by prompt; logits, a ratio, logits.
        seed: the study's.
        scheme: its name, which the random orders depend on.

    Returns:
        By ranking of ``RANKINGS``: zero-importance (the original), drift, importance × drift, and
        the size of the first-order prediction; and the seeded random orders, the control.
    """
    scores = (importance, drift, importance * drift, np.abs(predicted))
    orders: dict[str, np.ndarray] = {
        name: descending(score) for name, score in zip(RANKINGS, scores, strict=True)
    }
    rng = generator(seed, "random orders", scheme)
    heads = np.arange(importance.shape[1])
    random = np.broadcast_to(heads, (RANDOM_ORDERS, *importance.shape))
    return orders, rng.permuted(random, axis=-1)


def top_k_masks(
    orders: Int[np.ndarray, "O B N"], k: int, num_layers: int
) -> Bool[np.ndarray, "M L B 1 H"]:
    """Masks of the first 1 … k heads of each order: ``M = O·k``, order by order.

    Args:
        orders: heads from the first to be restored to the last.
        k: how many at most.
        num_layers: ``L``.
    """
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
