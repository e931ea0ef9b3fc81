"""Whose activations stand in for a prompt's own: other prompts of the same length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxalign.prompts import Prompt
from jaxalign.shapes import Int
from jaxalign.stats import generator

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
