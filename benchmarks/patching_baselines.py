"""Patching as users write it: hooks in PyTorch, all rows in batches, and in TransformerLens.

A row puts one value into the run of every prompt, at a step of the stream (``resid``, the embedding
first) or before ``W_O`` of a layer (``z``), at one position, of one head. In PyTorch many rows make
one batch of rows × prompts, and a hook writes every row's own value in place: next to no work
beside the passes. TransformerLens patches a row a pass, as its ``patching`` module does.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from benchmarks.pytorch_baseline import last_logits, on_device

Change = Callable[[Any], Any]


@contextmanager
def hooked(model: Any, point: str, changes: Mapping[int, Change]) -> Iterator[None]:
    """While open, each step's value at ``point`` is what its change returns.

    Args:
        model: ``pytorch.load``'s.
        point: "resid" or "z".
        changes: by step, from the value ``[N, S, D]`` to another.
    """
    inner = model.gpt_neox
    handles = []
    for step, change in changes.items():
        if point == "z":

            def before(module: Any, inputs: Any, change: Change = change) -> Any:
                return (change(inputs[0]),)

            dense = inner.layers[step].attention.dense
            handles.append(dense.register_forward_pre_hook(before))
        else:

            def after(module: Any, inputs: Any, out: Any, change: Change = change) -> Any:
                return change(out)

            module = inner.layers[step - 1] if step else inner.embed_in
            handles.append(module.register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def values_at(model: Any, tokens: np.ndarray, point: str) -> list[Any]:
    """By step, ``[P, S, U, width]``: what stands at a point, in ``U`` heads or one vector."""
    import torch

    layers = model.config.num_hidden_layers
    units = model.config.num_attention_heads if point == "z" else 1
    found: dict[int, Any] = {}

    def seen(step: int, x: Any) -> Any:
        found[step] = x.clone().reshape(*x.shape[:2], units, -1)
        return x

    steps = range(layers if point == "z" else layers + 1)
    with (
        torch.inference_mode(),
        hooked(model, point, {step: functools.partial(seen, step) for step in steps}),
    ):
        last_logits(model, on_device(tokens), "last")
    return [found[step] for step in steps]


def zeros(values: list[Any]) -> list[Any]:
    """What ablates: values of the same shapes, all 0."""
    return [value.new_zeros(value.shape) for value in values]


def changes_of(places: np.ndarray, values: list[Any]) -> dict[int, Change]:
    """What hooks do to a batch of rows × prompts.

    Args:
        places: int ``[n, 3]``: step, position and head of each row; −1 is the last position.
        values: by step, ``[P, S, U, width]``.
    """

    def put(x: Any, step: int) -> Any:
        rows = np.flatnonzero(places[:, 0] == step)
        position, head = (on_device(column) for column in places[rows, 1:].T)
        prompts, _, units, _ = values[step].shape
        each = x.view(len(places), prompts, x.shape[1], units, -1)
        new = values[step][:, position, head]
        each[on_device(rows), :, position, head] = new.transpose(0, 1)
        return x

    return {int(step): functools.partial(put, step=int(step)) for step in np.unique(places[:, 0])}


def difference(logits: Any, pair: np.ndarray) -> np.ndarray:
    """``logit(first) − logit(second)`` of each prompt, ``[n, P]``, from logits ``[n·P, V]``."""
    each = logits.reshape(-1, len(pair), logits.shape[-1])
    first, second = (
        each.gather(-1, on_device(column)[None, :, None].expand(len(each), -1, 1))
        for column in pair.T
    )
    found: np.ndarray = (first - second)[..., 0].cpu().numpy()
    return found


def by_rows(
    model: Any,
    tokens: np.ndarray,
    pair: np.ndarray,
    point: str,
    values: list[Any],
    places: np.ndarray,
    size: int,
    unembed: str = "last",
) -> np.ndarray:
    """The metric of every row, ``[M, P]``, ``size`` rows of all prompts in one pass.

    Args:
        model: ``pytorch.load``'s.
        tokens: int ``[P, S]``, of the runs that are edited.
        pair: int ``[P, 2]``, tokens whose logits are compared.
        point, values, places: as for ``changes_of``.
        size: rows of a pass.
        unembed: logits at "all" positions or at the "last".
    """
    import torch

    ids, found = on_device(tokens), []
    with torch.inference_mode():
        for start in range(0, len(places), size):
            part = places[start : start + size]
            with hooked(model, point, changes_of(part, values)):
                logits = last_logits(model, ids.repeat(len(part), 1), unembed)
            found.append(difference(logits, pair))
    return np.concatenate(found)


def after_prefix(
    model: Any,
    tokens: np.ndarray,
    pair: np.ndarray,
    values: list[Any],
    places: np.ndarray,
    size: int,
) -> np.ndarray:
    """As ``by_rows`` at ``z``, of edits of the last position alone: it alone is run for each row.

    Keys and values before it are computed once a prompt, and repeated for the rows of a pass.
    """
    import torch
    from transformers import DynamicCache

    named = inspect.signature(model.gpt_neox.forward).parameters
    keyword = "past_key_values" if "past_key_values" in named else "cache"
    ids, found = on_device(tokens), []
    prefix: Any = DynamicCache(config=model.config)

    def repeated(count: int) -> Any:
        wide: Any = DynamicCache(config=model.config)
        for number, layer in enumerate(prefix.layers):
            kv = (a.repeat(count, 1, 1, 1) for a in (layer.keys, layer.values))
            wide.update(*kv, number)
        return wide

    with torch.inference_mode():
        model.gpt_neox(ids[:, :-1], use_cache=True, **{keyword: prefix})
        wide, count = prefix, 0
        for start in range(0, len(places), size):
            part = places[start : start + size]
            if len(part) != count:
                wide, count = repeated(len(part)), len(part)
            with hooked(model, "z", changes_of(part, values)):
                last = ids[:, -1:].repeat(count, 1)
                logits = last_logits(model, last, "last", use_cache=True, **{keyword: wide})
            wide.crop(-1)  # without the token that was just run
            found.append(difference(logits, pair))
    return np.concatenate(found)


def by_lens(
    bridge: Any,
    tokens: np.ndarray,
    pair: np.ndarray,
    point: str,
    values: list[Any],
    places: np.ndarray,
) -> np.ndarray:
    """The metric of every row, ``[M, P]``, in TransformerLens: a pass of all prompts a row.

    Arguments as for ``by_rows``; ``bridge`` is ``transformer_lens_baseline.load``'s.
    """
    import torch

    def put(x: Any, hook: Any, value: Any, position: int, head: int) -> Any:
        if point == "z":
            x[:, position, head] = value[:, position, head]
        else:
            x[:, position] = value[:, position, 0]
        return x

    def name(step: int) -> str:
        if point == "z":
            return f"blocks.{step}.attn.hook_z"
        return f"blocks.{step - 1}.hook_resid_post" if step else "blocks.0.hook_resid_pre"

    ids, found = on_device(tokens), []
    with torch.inference_mode():
        for step, position, head in places.tolist():
            hook = functools.partial(put, value=values[step], position=position, head=head)
            logits = bridge.run_with_hooks(ids, fwd_hooks=[(name(step), hook)])
            found.append(difference(logits[:, -1], pair))
    return np.concatenate(found)
