"""The forward and backward passes of a heads study in PyTorch with hooks, batched, f32 alone.

The study needs, of every batch of prompts: a clean run a precision; every head replaced by zero, by
its mean and by other prompts' activations; every head restored alone, and the first 1 … k heads of
every order restored, in each low precision; one backward pass. Here all of these run in f32, where
restoring a head puts back what stands there already: it costs the same and finds nothing. What a
study adds to its passes (drift, rankings, statistics, the file) is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks import pytorch_baseline as pytorch
from jaxalign.studies.heads.rankings import DRAWS, control_steps

Edits = dict[int, tuple[Any, Any]]  # ``pytorch_baseline.replaced``'s


@dataclass(frozen=True)
class Counts:
    """How much a study asks for: low precisions, those repaired, orders of heads and their length,
    and orders and random vectors beside them, which are run at a few lengths only."""

    low_precisions: int = 0
    repaired: int = 0
    orders: int = 0
    controls: int = 0
    most_restored: int = 0


@dataclass(frozen=True)
class Task:
    """Prompts of one length, and what replaces their heads.

    Attributes:
        start: the first prompt's place among all prompts of the study.
        ids, target: int tensors ``[P, S]``, ``[P]``.
        own: ``z`` of their clean runs, ``[L, P, S, H·h]``.
        means: ``[L, H·h]``, mean ``z`` over the reference texts.
        donors: int ``[P, DRAWS]``, which of the prompts stand in for each.
    """

    start: int
    ids: Any
    target: Any
    own: Any
    means: Any
    donors: np.ndarray


@dataclass(frozen=True)
class Pass:
    """One pass over the prompts ``rows`` of a task.

    Attributes:
        kind: what it is for.
        number: which of the heads it edits, or how many.
        run: makes the pass and returns ``m``, ``[B]``.
    """

    kind: str
    number: int
    task: Task
    rows: slice
    run: Callable[[], Any]


def states(model: Any, ids: Any) -> Any:
    """``z`` of every layer, ``[L, B, S, H·h]``."""
    import torch

    kept: list[Any] = []
    handles = [
        block.attention.dense.register_forward_pre_hook(lambda m, inputs: kept.append(inputs[0]))
        for block in model.gpt_neox.layers
    ]
    try:
        with torch.inference_mode():
            model.gpt_neox(ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(kept)


def passes(
    model: Any, task: Task, rows: slice, counts: Counts, unembed: str, seed: int = 0
) -> Iterator[Pass]:
    """Every pass over the prompts ``rows`` of a task, in the order of the study."""
    import torch

    config = model.config
    heads = pytorch.all_heads(config.num_hidden_layers, config.num_attention_heads)
    columns = [pytorch.head_columns(model, head) for _, head in heads]
    ids, target, own = task.ids[rows], task.target[rows], task.own[:, rows]

    def edited(edits: Edits) -> Any:
        with torch.inference_mode(), pytorch.replaced(model, edits):
            return pytorch.margins(model, ids, target, unembed)

    def each(kind: str, value: Callable[[int], Any]) -> Iterator[Pass]:
        for i, (layer, _) in enumerate(heads):

            def run(i: int = i, layer: int = layer) -> Any:
                return edited({layer: (columns[i], value(layer))})

            yield Pass(kind, i, task, rows, run)

    for _ in range(1 + counts.low_precisions):
        yield Pass("clean", 0, task, rows, lambda: edited({}))
    for low in ("", " in low precision"):
        for _ in range(counts.low_precisions if low else 1):
            yield from each(f"zero{low}", lambda layer: 0.0)
            yield from each(f"mean{low}", lambda layer: task.means[layer])
            for n in range(DRAWS):
                yield from each(
                    f"resample{low}",
                    lambda layer, n=n: task.own[layer, task.donors[rows, n]],  # type: ignore[misc]
                )
    yield Pass("backward", 0, task, rows, lambda: backward(model, ids, target, unembed))
    for _ in range(counts.low_precisions):
        yield from each("restore", lambda layer: own[layer])
    rng = np.random.default_rng(seed)
    for n in range(counts.repaired * (counts.orders + counts.controls)):
        order = rng.permuted(np.tile(np.arange(len(heads)), (len(ids), 1)), axis=1)
        curve = n < counts.repaired * counts.orders
        steps = range(1, counts.most_restored + 1) if curve else control_steps(counts.most_restored)
        for k in steps:
            edits = restored(model, order[:, :k], own)
            yield Pass("repair", k, task, rows, lambda edits=edits: edited(edits))  # type: ignore[misc]


def restored(model: Any, chosen: np.ndarray, own: Any) -> Edits:
    """Edits that put ``own`` back in each prompt's chosen heads, ``chosen`` ``[B, k]``."""
    config = model.config
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    mask = np.zeros((len(chosen), layers * heads), bool)
    np.put_along_axis(mask, chosen, True, axis=1)
    wide = mask.reshape(-1, layers, heads).repeat(config.hidden_size // heads, axis=2)
    touched = np.flatnonzero(wide.any(axis=(0, 2)))
    return {int(n): (pytorch.on_device(wide[:, n][:, None]), own[n]) for n in touched}


def backward(model: Any, ids: Any, target: Any, unembed: str) -> Any:
    """``m``, after its gradients with respect to every layer's attention output."""
    import torch

    kept: list[Any] = []

    def keep(module: Any, inputs: Any, out: Any) -> Any:
        # The parameters ask for no gradients, so the first output is where the graph begins.
        kept.append(out if kept else out.detach().requires_grad_())
        return kept[-1]

    handles = [block.attention.dense.register_forward_hook(keep) for block in model.gpt_neox.layers]
    try:
        m = pytorch.margins(model, ids, target, unembed)
        torch.autograd.grad(m.sum(), kept)
    finally:
        for handle in handles:
            handle.remove()
    return m.detach()
