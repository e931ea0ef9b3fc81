"""A race of heads as compiled calls: who runs, on which prompts, and what that costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from jaxalign.errors import counted
from jaxalign.shapes import Float
from jaxalign.studies.heads.calls import Runner, Variant
from jaxalign.studies.heads.importance import Ablations, Importance, importance, importance_calls
from jaxalign.studies.heads.race import MeanEstimate, leading, mean_estimate
from jaxalign.study.call_log import operations
from jaxalign.study.calls import Call

Calls = list[Call[Any]]


@dataclass
class Race:
    """Heads that race: what was found, and what it cost.

    Attributes:
        runner, asked, f32: the study's.
        order: of the prompts.
        first_order: ``[P, N]``, or None.
        sampled: the random sample, drawn before.
        budget: what may be spent, of each cost (``cost_of``).
        spent: what was.
        alive: heads that race; done: prompts that they have run on.
        found: importance so far; estimate, ran: of every head, and on how many prompts.
    """

    runner: Runner
    asked: Ablations
    f32: Variant
    order: np.ndarray
    first_order: np.ndarray | None
    sampled: np.ndarray
    budget: Float[np.ndarray, "2"]
    spent: Float[np.ndarray, "2"]
    alive: np.ndarray
    done: int = 0
    found: Importance | None = None
    estimate: MeanEstimate = field(init=False)
    ran: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        nothing = (np.zeros(self.runner.num_heads) for _ in range(3))
        self.estimate = MeanEstimate(**dict(zip(("mean", "error", "slope"), nothing, strict=True)))
        self.ran = np.zeros(self.runner.num_heads)

    def calls(self, prompts: int) -> Calls:
        """The racing heads and the sample on the next prompts."""
        index = self.order[self.done : self.done + prompts]
        asked = self.asked.of_heads(self.runner, index, self.running(), ("zero",))
        phase = f"screen {self.done}"
        return importance_calls(
            self.runner, asked, self.f32, ("zero",), self.runner.options.engine, phase
        )

    def running(self) -> np.ndarray:
        """Heads that race, and those of the sample."""
        return np.union1d(self.alive, self.sampled)

    def affordable(self, costs: Float[np.ndarray, "2"], least: int = 0) -> int:
        """How many of the next prompts can be run for these costs, ``least`` in any case.

        Args:
            costs: that may be spent.
            least: prompts, if there are as many.
        """
        low, high = min(least, len(self.order) - self.done), len(self.order) - self.done
        while low < high:  # padding and filler cost, too, so only the calls tell
            middle = (low + high + 1) // 2
            fits = bool((cost_of(self.calls(middle), self.runner) <= costs).all())
            low, high = (middle, high) if fits else (low, middle - 1)
        return low

    def run(self, prompts: int) -> None:
        """Run the racing heads and the sample on the next prompts."""
        if not prompts:
            return
        calls, clean = self.calls(prompts), self.asked.clean.metrics.logit_diff
        count = len(self.running())
        name = f"screen, {counted(count, 'head')} on {counted(prompts, 'prompt')}"
        own = importance(self.runner, name, calls, clean[: len(self.order)], needed=True)
        self.found = own if self.found is None else _merged(self.found, own)
        self.spent = self.spent + cost_of(calls, self.runner)
        self.done += prompts

    def drop(self, keep: int) -> None:
        """Estimate the racing heads, and drop all but the ``keep`` leading ones."""
        assert self.found is not None
        heads, ran = self.alive, self.order[: self.done]
        known = None if self.first_order is None else self.first_order[:, heads]
        found = mean_estimate(self.found.answer["zero"][:, heads], ran, known)
        for name, values in vars(found).items():
            getattr(self.estimate, name)[heads] = values
        self.ran[heads] = self.done
        self.alive = heads[leading(found, keep)]


def _merged(first: Importance, second: Importance) -> Importance:
    """What either found, the second where both have a value."""

    def both(name: str) -> dict[Any, np.ndarray]:
        a, b = getattr(first, name), getattr(second, name)
        return {kind: np.where(np.isnan(b[kind]), a[kind], b[kind]) for kind in a}

    return replace(first, answer=both("answer"), distractor=both("distractor"))


def cost_of(calls: Sequence[Call[Any]], runner: Runner) -> Float[np.ndarray, "2"]:
    """Passes of runs through blocks that calls make, and operations, padding and filler included.

    Args:
        calls: whose arguments are there.
        runner: the study's.
    """
    passes = [call.layer_rows for call in calls]
    return np.array(
        [
            sum(own() if callable(own) else own for own in passes),
            sum(operations(call, runner.config) for call in calls),
        ],
        np.float64,
    )
