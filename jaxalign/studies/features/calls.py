"""The calls of the study: windows of text in batches, both models in each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxalign.engine.activations import Place, blocks_below
from jaxalign.numerics.scheme import F32, Scheme
from jaxalign.prompts import Batch, Windows
from jaxalign.studies.features.accumulate import LARGEST, block_rows
from jaxalign.studies.features.floors import late_pruned
from jaxalign.studies.features.moments import (
    Compared,
    Moments,
    Predictions,
    compare,
    losses,
)
from jaxalign.studies.features.quality import first_left_out, padded
from jaxalign.studies.features.sources import Source
from jaxalign.study.batching import too_small
from jaxalign.study.calls import Call
from jaxalign.study.session import Session

# What a pass is for, the first part of its key; draws of noise have their number behind it.
CHANCE, BATCHING, SCHEME = "chance", "batching", "scheme"
NOISE, GROUP_NOISE, PRUNING = "noise", "group noise", "pruning"
# Documents are resampled in so many groups at most, each of documents that follow one another.
GROUPS = 64
AT_ONCE = 1 << 13  # positions of a call
BLOCKS = 10  # arrays of a block of tokens' features that are alive at once


@dataclass(frozen=True, kw_only=True)
class Work:
    """The texts of a study, in calls.

    Attributes:
        windows: of the texts.
        counted: bool ``[N, W]``, positions that features are read at.
        group: int ``[N]``, which group of documents each window is of.
        groups: how many there are.
        rows: windows of a call.
        segments: groups that a call has at most.
    """

    windows: Windows
    counted: np.ndarray
    group: np.ndarray
    groups: int
    rows: int
    segments: int


def work_of(session: Session, sources: Sequence[Source], windows: Windows, last: bool) -> Work:
    """How windows are read.

    Args:
        session: whose memory holds a call.
        sources: dictionaries.
        windows: of the texts.
        last: whether features are read at the last position of each window alone.

    Raises:
        InputError: not even one window fits into the memory.
    """
    counted = first_left_out(windows)
    if last:
        end = np.arange(windows.window) == windows.lengths[:, None] - 1
        counted = counted & end
    groups = min(GROUPS, windows.documents)
    # Of about as many tokens each: a document belongs to the group that its middle falls into.
    tokens = np.bincount(windows.document, windows.counted.sum(axis=1), windows.documents)
    middle = tokens.cumsum() - tokens / 2
    of_document = np.minimum((middle / tokens.sum() * groups).astype(int), groups - 1)
    _, of_document = np.unique(of_document, return_inverse=True)  # without gaps
    group = of_document[windows.document]
    rows = _rows(session, sources, windows.window, len(group))
    spans = [len(set(group[i : i + rows])) for i in range(0, len(group), rows)]
    return Work(
        windows=windows,
        counted=counted,
        group=group,
        groups=int(group.max()) + 1,
        rows=rows,
        segments=max(spans),
    )


def _rows(session: Session, sources: Sequence[Source], window: int, count: int) -> int:
    """How many windows make a call: of devices that share them each has as many."""
    config, params = session.config, session.model.params
    stream = 4 * config.num_layers * (config.hidden_size + config.intermediate_size)
    need = 4.0 * window * (6 * config.vocab_size + stream)
    # A block of tokens is encoded at a time, whatever there are of windows.
    widest = max(source.dictionary.features for source in sources)
    free = session.free(params, params, *(source.dictionary for source in sources))
    free -= BLOCKS * 4.0 * block_rows(widest) * widest
    if free < need:
        raise too_small(f"one window of {window} tokens", need, free)
    return in_equal_calls(count, min(int(free // need), AT_ONCE // window), session.devices)


def in_equal_calls(count: int, most: int, devices: int) -> int:
    """How many windows make a call, so that all calls have about as many and little filler.

    Args:
        count: of windows.
        most: that a device holds.
        devices: that share them.
    """
    most = max(1, most) * devices
    calls = -(-count // most)
    return -(-count // (calls * devices)) * devices


def calls(
    session: Session,
    work: Work,
    sources: Sequence[Source],
    phase: str,
    scheme: Scheme,
    low: Any,
    **how: Any,
) -> Iterator[Call[Compared]]:
    """One pass over the texts.

    Args:
        session: of the study.
        work: the texts.
        sources: dictionaries.
        phase: what the pass is for, a part of every call's key.
        scheme: whose weights they are; ``low`` runs in ``scheme.run``, noise in f32.
        low: parameters, or ``Late`` ones.
        how: other static arguments of ``compare``.
    """
    places: tuple[Place, ...] = tuple(source.place for source in sources)
    dictionaries = tuple(source.dictionary for source in sources)
    own = "+".join(source.trained.facts.sha256[:12] for source in sources)
    how = {"scheme": F32 if phase.startswith((NOISE, GROUP_NOISE)) else scheme.run, **how}
    rows, layers = work.rows, session.config.num_layers
    if not how.get("predict", True):
        layers = blocks_below(places, session.config)
    for number, (batch, part) in enumerate(batches_of(work)):
        _, segment = np.unique(work.group[part], return_inverse=True)
        yield Call(
            key=(phase, scheme.name, own, number),
            program=compare,
            arguments=(
                session.model.params,
                low,
                dictionaries,
                batch.tokens,
                batch.lengths,
                padded(work.counted[part], rows),
                padded(work.windows.counted[part], rows),
                padded(segment.astype(np.int32), rows),
            ),
            static={
                "config": session.config,
                "places": places,
                "segments": work.segments,
                "mesh": session.mesh,
                **how,
            },
            batch=batch,
            rows=2,
            layer_rows=2 * layers * rows,
        )


def loss_calls(
    session: Session, work: Work, share: float
) -> Iterator[Call[tuple[np.ndarray, np.ndarray]]]:
    """The next-token loss of the texts without the smallest weights.

    Args:
        session: of the study.
        work: the texts.
        share: of the weights of each matrix that are removed.
    """
    for number, (batch, part) in enumerate(batches_of(work)):
        yield Call(
            key=("pruned", f"{share:.17g}", number),
            program=losses,
            arguments=(
                late_pruned(session, share),
                batch.tokens,
                batch.lengths,
                padded(work.windows.counted[part], work.rows),
            ),
            static={"config": session.config},
            batch=batch,
            layer_rows=session.config.num_layers * work.rows,
        )


def batches_of(work: Work) -> Iterator[tuple[Batch, slice]]:
    """The windows of every call, filled up to one shape."""
    windows, rows = work.windows, work.rows
    for start in range(0, len(work.group), rows):
        part = slice(start, start + rows)
        index = tuple(range(len(work.group)))[part]
        tokens, lengths = padded(windows.tokens[part], rows), padded(windows.lengths[part], rows, 1)
        yield Batch(index, tokens, lengths), part


@dataclass
class Added:
    """Passes over the texts, added up group by group, f64.

    Attributes:
        work: the texts.
        features: by phase and scheme: of each dictionary its moments ``[groups, …]``.
        predictions: of the passes that compare them.
    """

    work: Work
    features: dict[tuple[str, str], list[Moments]] = field(default_factory=dict)
    predictions: dict[tuple[str, str], Predictions] = field(default_factory=dict)

    def add(self, call: Call[Compared], values: Compared) -> None:
        """Add what a call returned.

        Args:
            call: which.
            values: its result.
        """
        key = str(call.key[0]), str(call.key[1])
        groups = np.unique(self.work.group[list(call.batch.index)])
        if key not in self.features:
            self.features[key] = [self._zeros(each) for each in values.features]
        for own, new in zip(self.features[key], values.features, strict=True):
            self._add(own, new, groups)
        if values.predictions is not None:
            if key not in self.predictions:
                self.predictions[key] = self._zeros(values.predictions)
            self._add(self.predictions[key], values.predictions, groups)

    def _add(self, own: Any, new: Any, groups: np.ndarray) -> None:
        for name, value in vars(new).items():
            total = getattr(own, name)
            part = np.asarray(value, np.float64)[: len(groups)]
            if name in LARGEST:
                total[groups] = np.maximum(total[groups], part)
            else:
                total[groups] += part

    def _zeros(self, like: Any) -> Any:
        return type(like)(
            **{n: np.zeros((self.work.groups, *v.shape[1:])) for n, v in vars(like).items()}
        )
