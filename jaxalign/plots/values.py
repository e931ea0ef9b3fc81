"""What the figures take from a result: averages over prompts, statistics, words for numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np

from jaxalign.results import Estimate, HeadsResult, PromptResult, mean_maps

ALL = "all"
PRECISION_NAMES = {"f32": "f32", "f16": "f16", "int8-sim": "simulated int8"}
# A log scale is worth its harder reading once the values spread this many decades.
LOG_FROM = 1.5
LONGEST_NAME = 20  # characters

Record = TypeVar("Record")


def precision_name(name: str) -> str:
    """The precision in words."""
    return PRECISION_NAMES.get(name, name)


def head_names(shape: tuple[int, int]) -> list[str]:
    """``L0H3`` for every head, in the order of a flattened ``[L, H]`` map."""
    return [f"L{layer}H{head}" for layer in range(shape[0]) for head in range(shape[1])]


def mean_map(
    prompts: Iterable[PromptResult], read: Callable[[PromptResult], np.ndarray | None]
) -> np.ndarray | None:
    """Mean over prompts of an ``[L, H]`` map, as ``results.mean_maps`` has it.

    None without a prompt that has the map.
    """
    maps = [found for prompt in prompts if (found := read(prompt)) is not None]
    return mean_maps(maps)[0] if maps else None


def importance(result: HeadsResult, task: str = ALL) -> np.ndarray:
    """Mean zero-ablation importance of each head, ``[L, H]``, logits."""
    found = mean_map(of_task(result, task), lambda prompt: prompt.zero_importance)
    assert found is not None
    return found


def drift_percent(result: HeadsResult, precision: str, task: str = ALL) -> np.ndarray:
    """Mean drift of each head, ``[L, H]``, in per cent of the norm of its f32 output."""
    found = mean_map(of_task(result, task), lambda prompt: prompt.precisions[precision].drift)
    assert found is not None
    return 100 * found


def of_task(result: HeadsResult, task: str) -> list[PromptResult]:
    """The prompts of a task; of every task for "all"."""
    return [prompt for prompt in result.prompts if task in (ALL, prompt.task)]


def groups(result: HeadsResult) -> tuple[str, ...]:
    """Tasks with statistics of their own, "all" last; a single task is only found as "all"."""
    return (*result.tasks, ALL) if len(result.tasks) > 1 else (ALL,)


def group_name(result: HeadsResult, task: str) -> str:
    """The group in words, short enough for an axis; the caption has the whole name."""
    if task == ALL and len(result.tasks) > 1:
        return "all tasks"
    name = result.tasks[0] if task == ALL else task
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def find(records: Sequence[Record], **fields: str) -> Record | None:
    """The record with these values, or None."""
    for record in records:
        if all(getattr(record, name) == value for name, value in fields.items()):
            return record
    return None


def spans_decades(values: np.ndarray) -> bool:
    """Whether the positive values spread so far that a log scale reads better."""
    positive = values[np.isfinite(values) & (values > 0)]
    return positive.size > 1 and math.log10(positive.max() / positive.min()) > LOG_FROM


def significant(value: float, digits: int = 2) -> str:
    """The value with ``digits`` significant digits and no exponent."""
    if not math.isfinite(value) or value == 0:
        return "0" if value == 0 else "–"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{places}f}".replace("-", "−")


def signed(value: float, places: int) -> str:
    """The value with its sign, typeset; no sign where it rounds to 0."""
    text = f"{value:+.{places}f}".replace("-", "−")
    return text if text.strip("+−0.") else text[1:]


def p_text(p: float) -> str:
    """``p = 0.012``; never ``p = 0.000``."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.0995 else f"p = {p:.2f}"


def complete(estimate: Estimate | None, prompts: int) -> bool:
    """Whether a value has the interval and p-value that it must not be shown without.

    An interval over a single prompt has no width and says nothing.
    """
    parts = () if estimate is None else (estimate.value, estimate.low, estimate.high, estimate.p)
    return bool(parts) and prompts > 1 and None not in parts


def correlation_text(symbol: str, estimate: Estimate | None, prompts: int) -> str:
    """A correlation with its 95 % interval and p-value, or the words that there is none."""
    if not complete(estimate, prompts):
        why = "needs more than one prompt" if prompts == 1 else "cannot be estimated"
        return f"{symbol}: {why}"
    assert estimate is not None
    return f"{symbol} = {numbers_text(estimate, 2)}"


def numbers_text(estimate: Estimate, places: int) -> str:
    """``0.31 [0.10, 0.50], p = 0.012``, with the parts that there are."""
    if estimate.value is None:
        return "not estimated"
    text = signed(estimate.value, places)
    if estimate.low is not None and estimate.high is not None:
        text += f" [{signed(estimate.low, places)}, {signed(estimate.high, places)}]"
    return text + (f", {p_text(estimate.p)}" if estimate.p is not None else "")


def places_for(*values: float | None) -> int:
    """Decimal places that show three significant digits of the largest of these values."""
    sizes = [abs(v) for v in values if v]
    return min(6, max(2, 2 - math.floor(math.log10(max(sizes))))) if sizes else 2
