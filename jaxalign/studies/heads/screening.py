"""Screen, then certify: exact importance for the heads that a race leaves, estimates for the rest.

The exact sweep zeroes every head on every prompt. A screen zeroes all heads on a few prompts, and
ever fewer heads on more (``race``); it stops at a fifth of the exact sweep's passes. A random
sample of heads, drawn before the race, runs to its end, too: those of it that drop out say how good
the estimates of all that dropped out are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxalign.errors import InputError, counted
from jaxalign.measures.screen import agreement, missed_at_most
from jaxalign.measures.stats import generator
from jaxalign.runtime.progress import span
from jaxalign.shapes import Float
from jaxalign.studies.heads import programs
from jaxalign.studies.heads.calls import Clean, Runner, Variant
from jaxalign.studies.heads.findings import TOP, Replacement, Screen
from jaxalign.studies.heads.importance import Ablations, Importance, importance_calls
from jaxalign.studies.heads.race import (
    BUDGET,
    FEWEST_PROMPTS,
    RACED,
    WORTH,
    interleaved,
    survivors,
)
from jaxalign.studies.heads.racing import Calls, Race, cost_of
from jaxalign.study.call_log import machine_rate
from jaxalign.study.calls import Call
from jaxalign.study.estimate import REACHED

LONG = 600.0  # seconds of the exact sweeps from which a screen is suggested
LEAST = 1e12  # operations: fewer take no machine that long
SUGGESTED = 16  # heads


@dataclass(frozen=True, kw_only=True)
class Screened:
    """What a screen leaves to the study.

    Attributes:
        asked: the exact heads on the prompts on which they are exact.
        importance: of the zero ablation; NaN but for these.
        ranked: ``[P, L·H]``, the same with estimates in the place of NaN: what heads are ranked by.
        screen: for the result.
    """

    asked: Ablations
    importance: Importance
    ranked: Float[np.ndarray, "P N"]
    screen: Screen


def screen_heads(runner: Runner, asked: Ablations, f32: Variant) -> Screened:
    """Screen all heads, and compute those that lead and a random sample exactly.

    Args:
        runner: the study's; ``options.screen`` heads are left by the race.
        asked: all prompts.
        f32: the model, whose clean runs are there.

    Raises:
        InputError: there are too few prompts to race on.
    """
    race, exact = _start(runner, asked, f32)
    rounds = survivors(runner.num_heads, _wanted(runner))
    final = (1 - RACED) * (race.budget - race.spent)
    for number, keep in enumerate(rounds):
        share = (race.budget - race.spent - final) / (len(rounds) - number)
        race.run(race.affordable(share, least=0 if number else FEWEST_PROMPTS))
        race.drop(keep)
    race.run(race.affordable(race.budget - race.spent))
    return _certified(race, exact)


def _start(runner: Runner, asked: Ablations, f32: Variant) -> tuple[Race, Calls]:
    """The race before its first round, and the calls of the exact sweep, which are not made."""
    exact = importance_calls(runner, asked, f32, ("zero",), runner.options.engine)
    budget, seed = BUDGET * cost_of(exact, runner), runner.options.seed
    backward = cost_of(runner.clean_calls(asked.prompts, asked.work), runner)
    useful = bool((backward <= WORTH * budget).all())
    count = len(asked.prompts)
    race = Race(
        runner=runner,
        asked=asked,
        f32=f32,
        order=interleaved(
            [prompt.task for prompt in asked.prompts], generator(seed, "screen prompts")
        ),
        first_order=first_order(runner, asked.clean, count) if useful else None,
        sampled=_sample(runner),
        budget=budget,
        spent=backward if useful else np.zeros(2),
        alive=np.arange(runner.num_heads),
    )
    few = count <= FEWEST_PROMPTS
    if few or not race.affordable(race.budget - race.spent) >= FEWEST_PROMPTS:
        raise _too_few(count)
    return race, exact


def _too_few(prompts: int) -> InputError:
    return InputError(
        f"--screen races every head on {FEWEST_PROMPTS} prompts first, and of {prompts} prompts "
        f"in all that is more than the {BUDGET:.0%} of the exact sweep that a screen may take",
        "give about 15 prompts or more in all that the model answers (--limit counts those of each "
        "task), or leave --screen out to compute all heads",
    )


def refuse_few(screen: int | None, prompts: int) -> None:
    """Refuse a screen that no race fits into; says it before any work.

    How long prompts are and how many of them the model answers is known later, and may be a reason
    to refuse it then.

    Args:
        screen: how many heads are to be left; None for no screen.
        prompts: given, of all tasks.

    Raises:
        InputError: the first round alone takes more than a screen may.
    """
    if screen is not None and prompts * BUDGET < FEWEST_PROMPTS:
        raise _too_few(prompts)


def refuse_all(screen: int | None, heads: int) -> None:
    """Refuse a screen that would leave every head; says it before any work.

    Args:
        screen: how many heads are to be left; None for no screen.
        heads: of the model.

    Raises:
        InputError: there are no more heads than are asked for.
    """
    if screen is not None and screen >= heads:
        raise InputError(
            f"--screen {screen} is to leave {screen} heads, and the model has {heads} heads",
            "give fewer, or leave --screen out to compute all",
        )


def _wanted(runner: Runner) -> int:
    """How many heads are to be left."""
    assert runner.options.screen is not None
    return runner.options.screen


def _sample(runner: Runner) -> np.ndarray:
    """Heads drawn at random, half as many as are to be left, at least three."""
    rng = generator(runner.options.seed, "screen sample")
    count = min(max(3, math.ceil(_wanted(runner) / 2)), runner.num_heads)
    return np.sort(rng.choice(runner.num_heads, count, replace=False))


def first_order(runner: Runner, clean: Clean, count: int) -> Float[np.ndarray, "P N"]:
    """Attribution: ``∇m · c`` of each head, summed over positions: what its loss costs ``m`` to
    first order, from the gradient that the clean run has.

    Args:
        runner: the study's.
        clean: runs of the prompts.
        count: how many of them.
    """
    params, mode = runner.model.params, runner.options.head_mode
    pairs = zip(clean.states[:count], clean.gradients[:count], strict=True)
    found = [programs.attributed(params, *pair, head_mode=mode) for pair in pairs]
    return np.array([np.asarray(one, np.float64).ravel() for one in found])


def _certified(race: Race, exact: Calls) -> Screened:
    """What the race left, the sample beside it, and how well they agree."""
    assert race.found is not None
    runner, H = race.runner, race.runner.config.num_heads
    ran = np.sort(race.order[: race.done])
    heads = race.running()
    kept = _only(race.found, ran, heads)
    mean = kept.answer["zero"][ran].mean(axis=0)
    top = race.alive[np.argsort(-np.abs(mean[race.alive]), kind="stable")]
    dropped = np.setdiff1d(race.sampled, race.alive)
    dropped = dropped[np.isfinite(mean[dropped]) & np.isfinite(race.estimate.mean[dropped])]
    bar = np.abs(mean[top[:TOP]]).min()
    missed = int((np.abs(mean[dropped]) > bar).sum())
    shape = (runner.config.num_layers, H)
    return Screened(
        asked=race.asked.of_heads(runner, ran, heads, runner.options.ablations),
        importance=kept,
        ranked=_ranked(race, kept),
        screen=Screen(
            top=tuple((int(head) // H, int(head) % H) for head in top),
            sampled=tuple((int(head) // H, int(head) % H) for head in dropped),
            prompts=tuple(map(int, ran)),
            estimate=race.estimate.mean.reshape(shape),
            error=race.estimate.error.reshape(shape),
            ran=race.ran.reshape(shape),
            first_order=None
            if race.first_order is None
            else race.first_order.mean(axis=0).reshape(shape),
            agreement=agreement(
                race.estimate.mean[dropped],
                mean[dropped],
                generator(runner.options.seed, "screen agreement"),
            ),
            missed=missed,
            missed_at_most=missed_at_most(len(dropped), missed, runner.num_heads - len(race.alive)),
            layer_rows=int(race.spent[0]),
            exact_layer_rows=int(cost_of(exact, runner)[0]),
            operations=float(race.spent[1]),
            exact_operations=float(cost_of(exact, runner)[1]),
        ),
    )


def _ranked(race: Race, kept: Importance) -> Float[np.ndarray, "P N"]:
    """Exact importance where it is known, elsewhere the estimate of the head on the prompt."""
    guess = np.broadcast_to(race.estimate.mean, kept.answer["zero"].shape)
    if race.first_order is not None:
        known = race.first_order
        guess = guess + race.estimate.slope * (known - known.mean(axis=0))
    return np.where(np.isfinite(kept.answer["zero"]), kept.answer["zero"], guess)


def _only(found: Importance, prompts: np.ndarray, heads: np.ndarray) -> Importance:
    """Importance of heads that ran to the end, without what others left on the way."""
    chosen = np.zeros(found.answer["zero"].shape, bool)
    chosen[np.ix_(prompts, heads)] = True

    def masked(maps: dict[Any, np.ndarray]) -> dict[Any, np.ndarray]:
        return {kind: np.where(chosen, values, np.nan) for kind, values in maps.items()}

    return replace(found, answer=masked(found.answer), distractor=masked(found.distractor))


def others(kinds: tuple[Replacement, ...]) -> tuple[Replacement, ...]:
    """What a screen leaves to be run: all kinds of replacement but zero."""
    return tuple(kind for kind in kinds if kind != "zero")


def with_kinds(found: Importance, more: Importance) -> Importance:
    """Importance by zero, and by what else replaced the heads.

    Args:
        found: of the screen.
        more: by other kinds of replacement.
    """
    return replace(
        found,
        answer={**found.answer, **more.answer},
        distractor={**found.distractor, **more.distractor},
    )


def suggestion(runner: Runner, calls: Sequence[Call[Any]], devices: int) -> str:
    """How long the exact sweeps take and what a screen does, where that is long; "" elsewhere.

    Args:
        runner: the study's.
        calls: that replace every head, in all precisions.
        devices: that share them.
    """
    _, work = cost_of(calls, runner)
    if runner.num_heads <= SUGGESTED or work < LEAST:
        return ""
    rate = REACHED * devices * machine_rate()
    if work / rate <= LONG:
        return ""
    return (
        f"replacing each of {runner.num_heads} heads on {counted(len(prompts_of(calls)), 'prompt')}"
        f" is {work / 1e12:,.1f} TFLOP, at {rate / 1e9:,.0f} GFLOP/s {span(work / rate)}; "
        f"--screen {SUGGESTED} finds the heads that matter most for at most {BUDGET:.0%} of the "
        "sweep in f32, and replaces only those and a random sample in every precision"
    )


def prompts_of(calls: Sequence[Call[Any]]) -> set[int]:
    """The places of the prompts that calls are of."""
    return {place for call in calls for place in call.batch.index}
