"""A training from its beginning to its end, in parts that resume."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.dictionaries.dictionary import Dictionary
from jaxalign.dictionaries.training import (
    Steps,
    Training,
    TrainingOptions,
    advance,
    batches_of,
    begin,
    finished,
    resampled,
    scale_of,
)
from jaxalign.errors import InputError
from jaxalign.shapes import Float, Int

PARTS = 20  # of a training: after each of them it can be resumed, and may end early


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
    data: Sequence[Float[np.ndarray, "tokens D"]],
    sites: Sequence[int],
    options: TrainingOptions,
    *,
    parts: Parts = NOWHERE,
    track: Callable[[Sequence[int]], Iterable[int]] = lambda parts: parts,
) -> Fitted:
    """Train a stack of dictionaries, each on the activations of one site.

    Args:
        data: activations of each site, as the model has them; of one width.
        sites: which of them each dictionary of ``options.seeds`` reads.
        options: of the training.
        parts: keeps parts of the training, so that it goes on from the last one.
        track: shows how far it is.

    Raises:
        InputError: fewer tokens than a batch, sites of different sizes, or activations that do not
            vary.

    Example:
        >>> options = TrainingOptions(features=1024, k=16, seeds=(0, 1), steps=2000)
        >>> fit([activations], [0, 0], options).dictionaries[1].decoder.shape
        (1024, 128)
    """
    shapes = {a.shape for a in data}
    if len(shapes) != 1:
        raise InputError(f"the sites have activations {sorted(shapes)}", "train them apart")
    [(tokens, _)] = shapes
    if tokens < options.batch:
        raise InputError(
            f"there are {tokens} tokens, and a batch is {options.batch}",
            "give more or longer texts, or a smaller --batch",
        )
    scaled, means, scales = [], [], []
    for each in data:
        scale, mean = scale_of(each)
        scaled.append(each * scale)
        means.append(mean * scale)
        scales.append(scale)
    place = np.asarray(sites, np.int32)
    shared = jnp.asarray(np.stack(scaled))
    training = begin(options, jnp.asarray(np.stack(means)[place]))
    none = np.zeros((0, len(place)), np.float32)
    seen = Steps(error=none, total=none, active=none)
    ends = np.unique(np.linspace(0, options.steps, PARTS + 1).astype(int)).tolist()
    begun = max((part for part in range(len(ends) - 1) if parts.has(part)), default=0)
    converged = False
    for part in track(range(begun, len(ends) - 1)):
        first, last = ends[part], ends[part + 1]

        def compute(before: Any = (training, seen), first: int = first, last: int = last) -> Any:
            return _part(before[0], before[1], shared, place, first, last, options)

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


def _part(
    training: Training, seen: Steps, data: Any, sites: Any, first: int, last: int,
    options: TrainingOptions,
) -> tuple[Training, Steps]:  # fmt: skip
    """Some steps behind those seen; before them dead features begin anew, where it is time."""
    training = jax.tree.map(jnp.array, training)  # the program takes it over
    if options.resample and first and first <= options.steps // 2:
        begun = first // options.resample
        if begun != (first - (last - first)) // options.resample:
            keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), first))(
                jnp.asarray(options.seeds, jnp.uint32)
            )
            training = resampled(training, data, sites, keys, options=options)
    chosen = batches_of(options, first, last - first, data.shape[1])
    training, new = jax.device_get(advance(training, data, sites, chosen, options=options))
    return training, jax.tree.map(lambda a, b: np.concatenate([a, b]), seen, new)


def _converged(error: Float[np.ndarray, "steps stack"], options: TrainingOptions) -> bool:
    """Whether no error has fallen by the tolerance over the last tenth of the steps."""
    window = max(2, options.steps // 10)
    if not options.tolerance or len(error) < 2 * window:
        return False
    before, now = error[-2 * window : -window].mean(axis=0), error[-window:].mean(axis=0)
    return bool((now >= before * (1 - options.tolerance)).all())
