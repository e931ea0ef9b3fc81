"""Does a screen find the heads that matter most, and for how much of the exact sweep?

The exact values are those of the kept studies (``results/demo``, ``results/smollm2``). The study's
own screen runs once on the model, and its exact values must be theirs. Then its calls are answered
from the kept values, so that it can be repeated with many seeds (orders of prompts, samples) and
on other prompts: each task by itself, and random halves. Beside it stand what else a user may do:
the heads of largest first-order estimate (attribution), and all heads on a fifth of the prompts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

import jaxalign
from benchmarks.record import ROOT, answer, grammar
from jaxalign.checkpoints import Model
from jaxalign.errors import InputError
from jaxalign.measures import stats
from jaxalign.numerics.scheme import F32
from jaxalign.prompts import Prompt, PromptSet, PromptText, tokenize
from jaxalign.shapes import Float
from jaxalign.studies.heads import HEADS, HeadsOptions
from jaxalign.studies.heads.calls import Clean, Runner, Variant
from jaxalign.studies.heads.edited import Effects
from jaxalign.studies.heads.importance import Ablations
from jaxalign.studies.heads.race import BUDGET
from jaxalign.studies.heads.rankings import choose_donors
from jaxalign.studies.heads.screening import Screened, first_order, screen_heads
from jaxalign.study.calls import Call
from jaxalign.study.tables import text_table

NAME = "screen"
TOP, ENOUGH = 10, 9  # heads that are to be found, and how many of them are asked for
TOLERANCE = 1e-4  # logits, between the screen's exact values and the kept ones
QUICK_PROMPTS, QUICK_SEEDS = 40, 3


class Kept:
    """A kept study: the model, its prompts, and exact importance.

    Attributes:
        model: the same.
        prompts: tokenized.
        exact: ``[P, L·H]``, zero-importance in f32.
        work, clean: the prompts' batches and clean runs.
        attributed: ``[P, L·H]``, first-order estimates.
    """

    def __init__(self, name: str, most: int | None) -> None:
        file = ROOT / "results" / name / "experiment.json"
        if not file.exists():
            raise InputError(f"there is no kept study of {name} ({file})", "name another model")
        result = HEADS.read(file)
        own = result.prompts[:: max(1, len(result.prompts) // most)] if most else result.prompts
        self.model: Model = jaxalign.load(name)
        tasks: dict[str, list[PromptText]] = {}
        for one in own:
            tasks.setdefault(one.task, []).append(
                PromptText(one.prompt, one.target, one.distractor)
            )
        given = PromptSet({task: tuple(items) for task, items in tasks.items()}, ())
        self.prompts, _, _ = tokenize(given, self.model.tokenizer, self.model.config)
        maps = {(one.task, one.prompt): one.zero_importance.ravel() for one in own}
        self.exact = np.array([maps[p.task, p.text.prompt] for p in self.prompts])
        runner = Runner(self.model, HeadsOptions(ablations=("zero",)))
        self.work = runner.study_batches(self.prompts)
        self.clean = runner.clean(self.prompts, self.work)
        self.attributed = first_order(runner, self.clean, len(self.prompts))

    def question(self, runner: Runner, index: Sequence[int]) -> tuple[Ablations, Variant]:
        """Some of the prompts, and the model with their clean runs."""
        prompts: list[Prompt] = [self.prompts[i] for i in index]
        clean: Clean = self.clean.take(index)
        asked = Ablations(
            prompts=prompts,
            work=runner.study_batches(prompts),
            clean=clean,
            donors=choose_donors(prompts, runner.options.seed),
        )
        variant = Variant("f32", self.model.params, F32)
        variant.clean = runner.as_low(clean)
        return asked, variant


def answered(exact: Float[np.ndarray, "P N"]) -> Callable[..., Iterator[tuple[Call[Any], Effects]]]:
    """Runs calls by looking their results up."""

    def run(
        name: str, calls: Sequence[Call[Any]], *, needed: bool = True
    ) -> Iterator[tuple[Call[Any], Effects]]:
        for call in calls:
            heads: Any = call.static["heads"]
            chosen = list(heads)[slice(*call.static["rows"])]  # type: ignore[misc]
            effects = call.batch.fill(list(exact[:, chosen])).T[None]
            yield call, Effects(effects, effects, np.zeros(effects.shape[-1]))

    return run


def screened(kept: Kept, index: Sequence[int], n: int, seed: int) -> Screened:
    """The study's screen, its calls answered from the kept values."""
    options = HeadsOptions(screen=n, ablations=("zero",), seed=seed)
    runner = Runner(kept.model, options, run=answered(kept.exact[list(index)]))
    return screen_heads(runner, *kept.question(runner, index))


def sets_of(kept: Kept, seeds: int) -> dict[str, list[tuple[int, list[int]]]]:
    """By name, a seed and prompts for each repetition: all, halves, each task."""
    every = list(range(len(kept.prompts)))
    rng = stats.generator(0, "halves")
    half = [sorted(rng.permutation(every)[: len(every) // 2].tolist()) for _ in range(seeds)]
    tasks = list(dict.fromkeys(prompt.task for prompt in kept.prompts))
    own = {task: [i for i in every if kept.prompts[i].task == task] for task in tasks}
    repeated = {"all prompts": [every] * seeds, "random halves": half}
    repeated |= {task: [index] * seeds for task, index in own.items()}
    return {name: list(enumerate(chosen)) for name, chosen in repeated.items()}


def largest(values: Float[np.ndarray, " N"], count: int) -> set[int]:
    """The heads of the largest size."""
    return {*np.argsort(-np.abs(values), kind="stable")[:count].tolist()}


def found_in(kept: Kept, name: str, chosen: list[tuple[int, list[int]]], n: int) -> dict[str, Any]:
    """How many of the true top ten are found, over seeds: by the screen and by other ways."""
    hits: dict[str, list[int]] = {"screen": [], "attribution alone": [], "a fifth of prompts": []}
    costs, operations, exact, agreement = [], [], [], []
    for seed, index in chosen:
        true = largest(kept.exact[index].mean(axis=0), TOP)
        try:
            found = screened(kept, index, n, seed).screen
        except InputError:
            return {"prompts": len(index), "refused": True}
        H = kept.model.config.num_heads
        hits["screen"].append(len(true & {layer * H + head for layer, head in found.top}))
        attributed = largest(kept.attributed[index].mean(axis=0), n)
        hits["attribution alone"].append(len(true & attributed))
        rng = stats.generator(seed, "a fifth", name)
        few = rng.choice(index, max(1, int(BUDGET * len(index))), replace=False)
        hits["a fifth of prompts"].append(len(true & largest(kept.exact[few].mean(axis=0), n)))
        costs.append(found.cost)
        operations.append(found.operations / found.exact_operations)
        exact.append(len(found.prompts))
        agreement.append(found.agreement.spearman.value)
    known = [rho for rho in agreement if rho is not None]
    return {
        "prompts": len(chosen[0][1]),
        "seeds": len(chosen),
        "found": {way: float(np.mean(own)) for way, own in hits.items()},
        "enough": {way: float(np.mean(np.array(own) >= ENOUGH)) for way, own in hits.items()},
        "passes": max(costs),
        "operations": max(operations),
        "exact on prompts": float(np.mean(exact)),
        "spearman": float(np.median(known)) if known else None,
    }


def once(kept: Kept, n: int) -> dict[str, Any]:
    """The screen computed on the model, with the study's seed."""
    runner = Runner(kept.model, HeadsOptions(screen=n, ablations=("zero",)))
    asked = kept.question(runner, range(len(kept.prompts)))
    start = time.perf_counter()
    found = screen_heads(runner, *asked)
    seconds = time.perf_counter() - start
    true = largest(kept.exact.mean(axis=0), TOP)
    H = kept.model.config.num_heads
    return {
        "seconds": round(seconds, 1),
        "found": len(true & {layer * H + head for layer, head in found.screen.top}),
        "passes": found.screen.cost,
        "largest_difference": float(
            np.nanmax(np.abs(found.importance.answer["zero"] - kept.exact))
        ),
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Every model, computed once and answered with many seeds."""
    seeds = QUICK_SEEDS if options.quick else options.seeds
    models = {}
    for name in ["demo"] if options.quick else options.models.split(","):
        kept = Kept(name, QUICK_PROMPTS if options.quick else None)
        models[name] = {
            "heads": kept.exact.shape[1],
            "computed": once(kept, options.screen),
            "sets": {
                each: found_in(kept, each, chosen, options.screen)
                for each, chosen in sets_of(kept, seeds).items()
            },
        }
    agrees = all(m["computed"]["largest_difference"] <= TOLERANCE for m in models.values())
    return {"screen": options.screen, "agrees": agrees, "models": models}


def table(record: dict[str, Any]) -> str:
    """The record for people."""
    ways = ("screen", "attribution alone", "a fifth of prompts")
    parts = []
    for name, model in record["models"].items():
        rows = []
        for each, one in model["sets"].items():
            if one.get("refused"):
                rows.append([each, str(one["prompts"]), "refused: too few prompts"])
                continue
            found = [f"{one['found'][w]:.1f} ({one['enough'][w]:.0%})" for w in ways]
            cost = [f"{one['passes']:.3f}", f"{one['operations']:.3f}"]
            rho = "–" if one["spearman"] is None else f"{one['spearman']:+.2f}"
            exact = [f"{one['exact on prompts']:.0f}", rho]
            rows.append([each, str(one["prompts"]), *found, *cost, *exact])
        ran = model["computed"]
        parts.append(
            f"{name}: {record['screen']} of {model['heads']} heads; of the true top {TOP}, mean "
            f"(share of seeds with {ENOUGH} or more)\n"
            + text_table(
                ("prompts", "", *ways, "passes", "operations", "exact on", "rho of sample"),
                [row + [""] * (9 - len(row)) for row in rows],
            )
            + f"\ncomputed once: {ran['found']} found, {ran['passes']:.3f} of the passes, "
            f"{ran['seconds']} s; from the kept values by {ran['largest_difference']:.1e} logits"
        )
    return "\n\n".join(parts)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = grammar(NAME, __doc__)
    parser.add_argument("--models", default="demo,smollm2", metavar="LIST", help="kept studies")
    parser.add_argument("--screen", type=int, default=16, metavar="N", help="heads that are left")
    parser.add_argument("--seeds", type=int, default=20, metavar="N", help="repetitions")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    return answer(parse(arguments), NAME, measure, table)


if __name__ == "__main__":
    raise SystemExit(main())
