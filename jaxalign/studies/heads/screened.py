"""What a screened study says of its screen: which heads are exact, and how good estimates are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jaxalign.measures.screen import Agreement
from jaxalign.shapes import Bool, Float
from jaxalign.studies.heads.findings import Head

TOP = 10  # heads that a screen is to find


@dataclass(frozen=True, kw_only=True)
class Screen:
    """A screen of zero-importance in f32: few heads exact, all others estimated.

    Maps are ``[L, H]``, averages over prompts, logits.

    Attributes:
        top: the heads that the race left, the largest ``|importance|`` first: exact.
        sampled: heads drawn at random before the race that dropped out of it: exact, too. They are
            a random sample of all that dropped out, and say how good the estimates are.
        prompts: on which these heads are exact, places in ``HeadsResult.prompts``: all of them, or
            as many as a fifth of the exact sweep's cost allows.
        estimate: of every head, over all prompts, from the rounds before it dropped out or came to
            the top; never from the prompts after.
        error: the standard error of ``estimate``, over the choice of prompts.
        ran: on how many prompts a head had been ablated when it was estimated.
        first_order: mean of ``∇m · c``, the estimate of one backward pass alone; None where that
            pass would have cost more than a quarter of the budget, and was not made use of.
        agreement: of ``estimate`` with the exact values, over ``sampled``.
        missed: how many of ``sampled`` are larger than the last of the best ten of ``top``.
        missed_at_most: how many of all dropped heads may be, at 95 % confidence.
        layer_rows, exact_layer_rows: passes of one run of one prompt through one block: of the
            screen, the backward pass included where it was used, and of zeroing every head.
        operations, exact_operations: the same in floating point, logits included.
    """

    top: tuple[Head, ...]
    sampled: tuple[Head, ...]
    prompts: tuple[int, ...]
    estimate: Float[np.ndarray, "L H"]
    error: Float[np.ndarray, "L H"]
    ran: Float[np.ndarray, "L H"]
    first_order: Float[np.ndarray, "L H"] | None
    agreement: Agreement
    missed: int
    missed_at_most: int
    layer_rows: int
    exact_layer_rows: int
    operations: float
    exact_operations: float

    @property
    def exact(self) -> Bool[np.ndarray, "L H"]:
        """Which heads are exact; the others are estimated."""
        found = np.zeros(self.estimate.shape, bool)
        found[tuple(np.array([*self.top, *self.sampled], int).reshape(-1, 2).T)] = True
        return found

    @property
    def cost(self) -> float:
        """The screen's operations as a share of the exact sweep's; or its passes, if more."""
        passes = self.layer_rows / self.exact_layer_rows
        return max(passes, self.operations / self.exact_operations)
