"""What the figures of a heads study take from its result: means, statistics, names, a caption."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np

from jaxalign.errors import counted
from jaxalign.measures.estimates import ALL_TASKS, Estimate
from jaxalign.plots.scales import drawable
from jaxalign.plots.words import (
    listed,
    model_words,
    p_text,
    short_name,
    short_names,
    signed,
)
from jaxalign.studies.heads.average import mean_maps
from jaxalign.studies.heads.findings import Likeness
from jaxalign.studies.heads.result import HeadsResult, PromptResult
from jaxalign.study.tables import estimate_text, head_label

HEAD_MODES = {
    "true": "true attention heads",
    "edge-align": "head mode edge-align: blocks of the residual stream, not attention heads",
}
# What one page can hold, and a minute can draw: panels of a figure are tasks × precisions.
MAX_TASKS, MAX_PRECISIONS, MAX_PANELS = 6, 18, 36


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Which tasks and precisions the figures draw, in the order of the result."""

    tasks: tuple[str, ...]
    precisions: tuple[str, ...]


def drawn(result: HeadsResult) -> Drawn:
    """The first precisions, and the tasks with the most prompts (of as many: the first)."""
    precisions = result.precisions[:MAX_PRECISIONS]
    most = min(MAX_TASKS, MAX_PANELS // max(1, len(precisions)))
    counts = Counter(prompt.task for prompt in result.prompts)
    chosen = {task for task, _ in counts.most_common(most)}  # keeps the order of equal counts
    return Drawn(tasks=tuple(task for task in counts if task in chosen), precisions=precisions)


def left_out(result: HeadsResult, *, tasks: bool = False) -> str:
    """A sentence for the reading aid that says what is not drawn; empty where all is.

    Args:
        result: the study.
        tasks: whether the figure draws tasks apart.
    """
    shown, sentences = drawn(result), ""
    more = len(result.tasks) - len(shown.tasks)
    if tasks and more:
        sentences += (
            f" Drawn are the {counted(len(shown.tasks), 'task')} with the most prompts (of as "
            f"many, the first in the file); {more} of {len(result.tasks)} tasks are left out, but "
            'counted in "all tasks".'
        )
    more = len(result.precisions) - len(shown.precisions)
    if more:
        sentences += (
            f" Drawn are the first {len(shown.precisions)} of {len(result.precisions)} "
            f"precisions; {more} are left out."
        )
    return sentences


def caption(result: HeadsResult) -> str:
    """Model, revision, device, prompts and head mode, and what stands in for what."""
    origin, counts = result.provenance.model, Counter(prompt.task for prompt in result.prompts)
    by_task = listed([f"{count} {short_name(task, 60)}" for task, count in counts.items()])
    parts = (
        *model_words(vars(origin)),
        f"device {result.provenance.environment.device}",
        f"{counted(len(result.prompts), 'prompt')} ({by_task})",
        HEAD_MODES[result.head_mode],
    )
    note = " ".join(origin.note.split())
    return "; ".join(parts) + "." + (f" Note: {note.rstrip('.')}." if note else "")


def head_names(result: HeadsResult) -> list[str]:
    """The name of every head, in the order of a flattened ``[L, H]`` map."""
    layers, heads = range(result.num_layers), range(result.num_heads)
    return [head_label(layer, head) for layer in layers for head in heads]


def mean_map(
    prompts: Iterable[PromptResult], read: Callable[[PromptResult], np.ndarray | None]
) -> np.ndarray | None:
    """Mean over prompts of an ``[L, H]`` map, as ``results.mean_maps`` has it.

    None without a prompt that has the map.
    """
    maps = [found for prompt in prompts if (found := read(prompt)) is not None]
    return drawable(mean_maps(maps)[0]) if maps else None


def importance(result: HeadsResult, task: str = ALL_TASKS) -> np.ndarray:
    """Mean zero-ablation importance of each head, ``[L, H]``, logits."""
    found = mean_map(of_task(result, task), lambda prompt: prompt.zero_importance)
    assert found is not None
    return found


def drift_percent(result: HeadsResult, precision: str, task: str = ALL_TASKS) -> np.ndarray:
    """Mean drift of each head, ``[L, H]``, in ``measure.DRIFT``'s unit, per cent.

    Args:
        result: the study's.
        precision: name of the scheme.
        task: whose prompts; "all" for every task.
    """
    found = mean_map(of_task(result, task), lambda prompt: prompt.precisions[precision].drift)
    assert found is not None
    return drawable(100 * found)


def of_task(result: HeadsResult, task: str) -> list[PromptResult]:
    """The prompts of a task; of every task for "all"."""
    return [prompt for prompt in result.prompts if task in (ALL_TASKS, prompt.task)]


def groups(result: HeadsResult) -> tuple[str, ...]:
    """Groups drawn apart: tasks, "all" last; a single task is only found as "all"."""
    return (*drawn(result).tasks, ALL_TASKS) if len(result.tasks) > 1 else (ALL_TASKS,)


def group_name(result: HeadsResult, task: str) -> str:
    """The group in words, short enough for an axis; the caption has a longer name."""
    if task == ALL_TASKS and len(result.tasks) > 1:
        return "all tasks"
    tasks = drawn(result).tasks
    return short_names(tasks)[tasks[0] if task == ALL_TASKS else task]


def complete(estimate: Estimate | None, prompts: int) -> bool:
    """Whether a value has the interval and p-value that it must not be shown without.

    An interval over a single prompt has no width and says nothing.
    """
    parts = () if estimate is None else (estimate.value, estimate.low, estimate.high, estimate.p)
    return bool(parts) and prompts > 1 and None not in parts


def correlation_text(symbol: str, estimate: Estimate | None, prompts: int) -> str:
    """A correlation with its 95 % interval and p-value, or the words that there is none.

    Args:
        symbol: "r" or "ρ".
        estimate: None where there is none.
        prompts: how many it is of.
    """
    if estimate is None or not complete(estimate, prompts):
        why = "needs more than one prompt" if prompts == 1 else "cannot be estimated"
        return f"{symbol}: {why}"
    return f"{symbol} = {numbers_text(estimate, 2)}"


def numbers_text(estimate: Estimate, places: int) -> str:
    """``0.31 [0.10, 0.50], p = 0.012``, with the parts that there are."""
    return estimate_text(estimate, partial(signed, places=places), p=p_text)


def likeness_text(symbol: str, likeness: Likeness | None) -> str:
    """How alike two importance profiles are, with its interval and what noise leaves of it.

    Args:
        symbol: "Pearson r".
        likeness: None where it was not measured.
    """
    if likeness is None or None in (likeness.value, likeness.over_heads, likeness.chance_p):
        return f"{symbol}: cannot be estimated"
    low, high = likeness.over_heads or (None, None)
    estimate = Estimate(likeness.value, low, high, likeness.chance_p)
    text = f"{symbol} = {numbers_text(estimate, 3)}"
    return f"{text}; noise {np.mean(likeness.noise):.3f}" if likeness.noise else text
