"""``forward`` and ``sweep`` compiled once for each shape, for calls made one by one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxalign.edits import batch as batches
from jaxalign.edits.declare import Declared
from jaxalign.edits.points import POINTS
from jaxalign.edits.site import Edit
from jaxalign.engine.readout import FromClean
from jaxalign.engine.suffix import Suffixes, suffixes_of
from jaxalign.engine.sweep import sweep
from jaxalign.measures.metrics import Answer, AnswersDifference
from jaxalign.model.checks import check_edit, check_prompts
from jaxalign.model.config import ModelConfig
from jaxalign.model.decoder import Output, forward
from jaxalign.model.params import Params
from jaxalign.numerics.scheme import Scheme
from jaxalign.runtime.compile import jit
from jaxalign.shapes import Array, Int, Lengths, Tokens

# Lengths are rounded up to a multiple of this, so that few shapes have to be compiled.
BUCKET = 8
POSITIONS = ("S|1", "Q|1")  # as sites declare such axes


def bucket_length(length: int, limit: int) -> int:
    """``length`` rounded up to a multiple of ``BUCKET``, at most the model's context.

    Args:
        length: positions.
        limit: the model's context.
    """
    return min(-(-length // BUCKET) * BUCKET, max(limit, length))


@functools.partial(jit, static_argnames=("config", "scheme", "capture", "last_only"))
def _forward(
    params: Params, tokens: Tokens, lengths: Lengths, edit: Edit | None, *, config: ModelConfig,
    scheme: Scheme, capture: tuple[str, ...], last_only: bool,
) -> Output:  # fmt: skip
    return forward(
        params, tokens, config, lengths=lengths, scheme=scheme, edit=edit, capture=capture,
        last_only=last_only,
    )  # fmt: skip


@functools.partial(jit, static_argnames=("config", "metric", "scheme", "single_step", "suffixes"))
def _sweep(
    params: Params, tokens: Tokens, lengths: Lengths, edits: list[Edit],
    answer: Answer | AnswersDifference | None, *,
    config: ModelConfig, metric: Callable[[Any], Any] | FromClean | None, scheme: Scheme,
    single_step: bool, suffixes: Suffixes,
) -> list[Any]:  # fmt: skip
    readout = answer if metric is None else metric
    assert readout is not None
    return sweep(
        params, tokens, lengths, config, edits, readout, scheme=scheme, single_step=single_step,
        suffixes=suffixes,
    )  # fmt: skip


def run_once(
    params: Params,
    tokens: Tokens,
    lengths: Lengths,
    config: ModelConfig,
    *,
    scheme: Scheme,
    edit: Edit | None = None,
    capture: Sequence[str] = (),
    last_only: bool = True,
) -> Output:
    """``forward``, compiled for the shapes on the first call and found again on later ones.

    Args:
        params, tokens, lengths, config, scheme, edit, capture, last_only: as for ``forward``.

    Raises:
        ValueError: as ``forward``; values of tokens and lengths are checked, too.
    """
    tokens, lengths = check_prompts(tokens, lengths, config)
    size, padded = tokens.shape[1], _padded(tokens, config)
    if edit is not None:  # before it is padded, too
        check_edit(edit, config, tokens.shape)
    edit = None if edit is None else _widened(edit, tokens, padded)
    out = _forward(
        params, padded, lengths, edit, config=config, scheme=scheme, capture=tuple(capture),
        last_only=last_only,
    )  # fmt: skip
    logits = out.logits if last_only else out.logits[:, :size]
    cut = {name: _cut(name, a, size) for name, a in out.activations.items()}
    return Output(logits=logits, activations=cut)


def _cut(name: str, a: Array, size: int) -> Array:
    """An activation without the positions that padding added."""
    if name == "embed" or not POINTS[name].layers:
        return a[:, :size]
    return a[:, :, :size] if POINTS[name].position else a[..., :size, :size]


def run_edits(
    params: Params,
    tokens: Tokens,
    lengths: Lengths,
    config: ModelConfig,
    edits: Sequence[Edit],
    readout: Callable[[Any], Any] | FromClean,
    *,
    scheme: Scheme,
) -> list[Any]:
    """``sweep``, compiled for the shapes on the first call and found again on later ones.

    Args:
        params, tokens, lengths, config, edits, scheme: as for ``sweep``.
        readout: an ``Answer`` or ``AnswersDifference``, whose tokens are data, or another, which is
            compiled in: the same function finds its program again, a new one is compiled.

    Raises:
        ValueError: as ``sweep``; values of tokens and lengths are checked, too.
    """
    tokens, lengths = check_prompts(tokens, lengths, config)
    padded = _padded(tokens, config)
    for edit in edits:
        check_edit(edit, config, tokens.shape, batch=True)
    answer = readout if isinstance(readout, (Answer, AnswersDifference)) else None
    wide = [_widened(edit, tokens, padded, batch=True) for edit in edits]
    suffixes = suffixes_of(wide, lengths, padded.shape[1], config, scheme)
    one_step = batches.touches_one_step(edits, len(tokens), together=bool(suffixes.sizes))
    return _sweep(
        params, padded, lengths, wide, answer, config=config, metric=None if answer else readout,
        scheme=scheme, single_step=one_step,
        suffixes=suffixes,
    )  # fmt: skip


def _padded(tokens: Tokens, config: ModelConfig) -> Int[Array, "B padded"]:
    """The tokens up to a multiple of ``BUCKET``, so that texts of similar length share programs."""
    size = tokens.shape[1]
    more = bucket_length(size, config.max_positions) - size
    return jnp.asarray(np.pad(np.asarray(tokens), ((0, 0), (0, more))))


def _widened(
    edit: Edit, tokens: Tokens, padded: Int[Array, "B padded"], *, batch: bool = False
) -> Edit:
    """The edit for the padded tokens: nothing acts behind them."""
    size, more = tokens.shape[1], padded.shape[1] - tokens.shape[1]

    def widen(declared: Declared, array: Any) -> Any:
        if declared.common:
            return array
        first = int(batch and declared.per_row)
        shape = np.shape(array)
        # An axis of size 1 broadcasts, and one of another size is wrong, which is said later.
        wide = [
            axis in POSITIONS and len(shape) > place and shape[place] == size > 1
            for place, axis in enumerate(declared.axes, first)
        ]
        if not more or not any(wide) or len(shape) != first + len(wide):
            return np.asarray(array)
        ends = [(0, 0)] * first + [(0, more if each else 0) for each in wide]
        return np.pad(np.asarray(array), ends)

    return edit.map_arrays(widen)
