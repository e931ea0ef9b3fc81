"""A training from its beginning to its end, in parts that resume.

Activations are rows that are read when a step needs them, from memory or from files: what is held
of them at a time are the batches of two calls, and the numbers are the same wherever the rows are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.dictionaries.dictionary import Dictionary
from jaxalign.dictionaries.resample import resampled
from jaxalign.dictionaries.training import (
    Steps,
    Training,
    TrainingOptions,
    advance,
    batches_of,
    begin,
    finished,
)
from jaxalign.errors import InputError
from jaxalign.shapes import Float, Int

PARTS = 20  # of a training: after each of them it can be resumed, and may end early
CALL_BYTES = 1 << 25  # of the batches that one call reads, unless a single step reads more
BLOCK_BYTES = 1 << 23  # of the rows that are read at a time where all of them are
DRAWN = 8  # batches' worth of tokens that dead features may begin anew at


@runtime_checkable
class Rows(Protocol):
    """Activations that are read by rows: an array ``[tokens, D]``, or what reads files."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Tokens and width."""

    def __getitem__(self, index: Any, /) -> Any:
        """Rows by a slice or by an array of their numbers, f32."""


class Parts:
    """Where the parts of a training are kept: here nowhere, so that it begins at its beginning."""

    def has(self, number: int) -> bool:
        """Whether a part is there.

        Args:
            number: of the part, from 0.
        """
        return False

    def keep(self, number: int, compute: Callable[[], Any]) -> Any:
        """What ``compute`` returns, or what it returned before; parts before it may be forgotten.

        Args:
            number: of the part.
            compute: runs it.
        """
        return compute()


NOWHERE = Parts()


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """Dictionaries, and how they came about.

    Attributes:
        dictionaries: one of each seed, of activations as the model has them.
        error: ``[steps, stack]``, share of the variance that each batch's reconstruction missed.
        active: ``[steps, stack]``, features a token.
        fired: ``[stack, features]``, the step after which each feature was last active; 0: never.
        steps: how many were done.
        ended: "steps", or "converged" where the tolerance ended it.
    """

    dictionaries: tuple[Dictionary, ...]
    error: Float[np.ndarray, "steps stack"]
    active: Float[np.ndarray, "steps stack"]
    fired: Int[np.ndarray, "stack features"]
    steps: int
    ended: Literal["steps", "converged"]


def fit(
    data: Sequence[Rows],
    sites: Sequence[int],
    options: TrainingOptions,
    *,
    parts: Parts = NOWHERE,
    track: Callable[[Sequence[int]], Iterable[int]] = lambda parts: parts,
) -> Fitted:
    """Train a stack of dictionaries, each on the activations of one site.

    Args:
        data: activations of each site, as the model has them; of one width. Rows are read when a
            step needs them, so they may be files (``checkpoints.activations``).
        sites: which of them each dictionary of ``options.seeds`` reads.
        options: of the training.
        parts: keeps parts of the training, so that it goes on from the last one.
        track: shows how far it is.

    Raises:
        InputError: fewer tokens than a batch, sites of different sizes, or activations that do not
            vary or are not finite.

    Example:
        >>> options = TrainingOptions(features=1024, k=16, seeds=(0, 1), steps=2000)
        >>> fit([activations], [0, 0], options).dictionaries[1].decoder.shape
        (1024, 128)
    """
    shapes = {tuple(a.shape) for a in data}
    if len(shapes) != 1:
        raise InputError(f"the sites have activations {sorted(shapes)}", "train them apart")
    [(tokens, _)] = shapes
    if tokens < options.batch:
        raise InputError(
            f"there are {tokens} tokens, and a batch is {options.batch}",
            "give more or longer texts, or a smaller --batch",
        )
    scales, means = zip(*map(scale_of, data), strict=True)
    feed = Feed.of(data, np.array(scales), sites, options)
    place = np.asarray(sites, np.int32)
    scaled = [mean * scale for mean, scale in zip(means, scales, strict=True)]
    training = begin(options, jnp.asarray(np.stack(scaled)[place]))
    none = np.zeros((0, len(place)), np.float32)
    seen = Steps(error=none, total=none, active=none)
    ends = np.unique(np.linspace(0, options.steps, PARTS + 1).astype(int)).tolist()
    begun = max((part for part in range(len(ends) - 1) if parts.has(part)), default=0)
    converged = False
    for part in track(range(begun, len(ends) - 1)):
        first, last = ends[part], ends[part + 1]

        def compute(before: Any = (training, seen), first: int = first, last: int = last) -> Any:
            return _part(before[0], before[1], feed, first, last, options)

        training, seen = parts.keep(part, compute)
        if converged := _converged(seen.error, options):
            break
    return Fitted(
        dictionaries=tuple(finished(training, np.array(scales)[place], options)),
        error=seen.error,
        active=seen.active,
        fired=np.asarray(training.fired),
        steps=len(seen.error),
        ended="converged" if converged else "steps",
    )


def scale_of(data: Rows) -> tuple[np.float32, Float[np.ndarray, " D"]]:
    """What activations are multiplied by to have variance 1 a coordinate, and their mean.

    Args:
        data: activations, read twice.

    Raises:
        InputError: they do not vary, or some are not finite.
    """
    tokens, width = data.shape
    block = max(1, BLOCK_BYTES // (4 * width))
    starts = range(0, tokens, block)
    total = np.zeros(width)
    for start in starts:
        with np.errstate(invalid="ignore"):  # of infinite ones, which are refused below
            total += np.asarray(data[start : start + block]).sum(axis=0, dtype=np.float64)
    if not np.isfinite(total).all():
        raise InputError(
            "some activations are not finite: they left the range of their precision",
            "use a precision of f32's range, as bf16 has",
        )
    mean = (total / tokens).astype(np.float32)
    squares = 0.0
    for start in starts:
        missed = np.asarray(data[start : start + block]) - mean
        squares += float((missed**2).sum(dtype=np.float64))
    variance = squares / (tokens * width)
    if not variance > 0:
        raise InputError("the activations do not vary", "give longer texts, or another site")
    return np.float32(variance**-0.5), mean


@dataclass(frozen=True, kw_only=True)
class Feed:
    """What reads the batches of a stack; dictionaries that read the same share a set of them.

    Attributes:
        data: activations of each site.
        scales: what each is multiplied by.
        sites: the site of each set.
        members: a dictionary of each set, whose seed orders its tokens.
        sets: ``[stack]``, the set of each dictionary.
    """

    data: Sequence[Rows]
    scales: Float[np.ndarray, " sites"]
    sites: tuple[int, ...]
    members: tuple[int, ...]
    sets: Int[np.ndarray, " stack"]

    @classmethod
    def of(
        cls,
        data: Sequence[Rows],
        scales: Float[np.ndarray, " sites"],
        sites: Sequence[int],
        options: TrainingOptions,
    ) -> Feed:
        """The feed of a stack.

        Args:
            data: activations of each site.
            scales: what each is multiplied by.
            sites: the site of each dictionary.
            options: whose seeds order the tokens.
        """
        keys = [*zip(sites, options.seeds, strict=True)]
        known = [*dict.fromkeys(keys)]
        return cls(
            data=data,
            scales=scales,
            sites=tuple(site for site, _ in known),
            members=tuple(keys.index(key) for key in known),
            sets=np.array([known.index(key) for key in keys], np.int32),
        )

    @property
    def tokens(self) -> int:
        """How many rows a site has."""
        return self.data[0].shape[0]

    def read(self, numbers: Int[np.ndarray, "steps sets B"]) -> Float[np.ndarray, "steps sets B D"]:
        """Scaled rows.

        Args:
            numbers: of the rows of each set.
        """
        out = np.empty((*numbers.shape, self.data[0].shape[1]), np.float32)
        for place, site in enumerate(self.sites):
            own = numbers[:, place]
            rows = self.data[site][own.reshape(-1)].reshape(*own.shape, -1)
            np.multiply(rows, self.scales[site], out=out[:, place])
        return out

    def calls(self, steps: int, batch: int) -> Iterator[slice]:
        """The steps of each call, as many as ``CALL_BYTES`` hold and of one length where they can.

        Args:
            steps: how many there are.
            batch: tokens of a step.
        """
        most = max(1, CALL_BYTES // (4 * len(self.sites) * batch * self.data[0].shape[1]))
        size = next((n for n in range(min(most, steps), most // 2, -1) if steps % n == 0), most)
        return (slice(start, start + size) for start in range(0, steps, size))


def bytes_of(options: TrainingOptions, sites: int, width: int) -> float:
    """About what a training holds at a time, beside its activations where they are in memory.

    Weights, their slopes and Adam's two moments; features of a batch and what comes back through
    them; batches of the call that runs and of the next one, each as read and as scaled.

    Args:
        options: of the whole stack.
        sites: how many it reads.
        width: of what is read.
    """
    stack, features = len(options.seeds), options.features
    step = 4.0 * sites * options.batch * width
    batches = 4 * max(step, min(CALL_BYTES, step * options.steps))
    return 4.0 * stack * features * (4 * (2 * width + 4) + 4 * options.batch) + batches


def _part(
    training: Training, seen: Steps, feed: Feed, first: int, last: int, options: TrainingOptions
) -> tuple[Training, Steps]:
    """Some steps behind those seen; before them dead features begin anew, where it is time."""
    training = jax.tree.map(jnp.array, training)  # the program takes it over
    if options.resample and first and first <= options.steps // 2:
        begun = first // options.resample
        if begun != (first - (last - first)) // options.resample:
            training = _begun_anew(training, feed, first, options)
    numbers = batches_of(options, first, last - first, feed.tokens)[:, feed.members]
    found, running = [seen], None
    for part in feed.calls(last - first, options.batch):
        rows = feed.read(numbers[part])  # while the call before still computes
        if running is not None:
            found.append(jax.device_get(running))
        training, running = advance(training, rows, feed.sets, options=options)
    found.append(jax.device_get(running))
    return jax.device_get(training), jax.tree.map(lambda *each: np.concatenate(each), *found)


def _begun_anew(training: Training, feed: Feed, step: int, options: TrainingOptions) -> Training:
    drawn = [
        np.random.default_rng([options.seeds[i], 8, step]).integers(
            feed.tokens, size=DRAWN * options.batch
        )
        for i in feed.members
    ]
    [rows] = feed.read(np.stack(drawn)[None])
    keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), step))(
        jnp.asarray(options.seeds, jnp.uint32)
    )
    return resampled(training, rows, feed.sets, keys, options=options)


def _converged(error: Float[np.ndarray, "steps stack"], options: TrainingOptions) -> bool:
    """Whether no error has fallen by the tolerance over the last tenth of the steps."""
    window = max(2, options.steps // 10)
    if not options.tolerance or len(error) < 2 * window:
        return False
    before, now = error[-2 * window : -window].mean(axis=0), error[-window:].mean(axis=0)
    return bool((now >= before * (1 - options.tolerance)).all())
