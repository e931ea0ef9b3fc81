"""How good a dictionary is: what it misses, how sparse it is, what the model loses by it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxalign.dictionaries.dictionary import Dictionary, decode, encode
from jaxalign.dictionaries.fit import Rows
from jaxalign.edits import Edit, Scale, Splice
from jaxalign.edits.points import POINTS
from jaxalign.engine.activations import Place, activations_at
from jaxalign.measures.perplexity import next_token_loss
from jaxalign.model.config import ModelConfig
from jaxalign.model.decoder import forward
from jaxalign.model.params import Params
from jaxalign.numerics.scheme import F32
from jaxalign.prompts import Windows
from jaxalign.runtime.compile import jit
from jaxalign.shapes import Array, Bool, Float, Leaf, Lengths, Tokens

DEAD = 1e-6  # the largest activation of a feature that counts as dead
RARE, FREQUENT = 0.01, 0.5  # shares of tokens
VALID = 0.7  # explained variance below which a dictionary is marked


@dataclass(frozen=True, kw_only=True)
class Quality:
    """How good a dictionary is on some texts.

    Attributes:
        explained: share of the variance of the activations that it stands for.
        active: features a token.
        recovered: share of the model's loss, between the place zeroed and the clean run, that is
            back where the reconstruction stands in; NaN where the model was not run.
        dead, rare, common, frequent: shares of the features by how often they are active: never,
            below 1 % of the tokens, below 50 %, above.
        tokens: how many were read.
    """

    explained: float
    active: float
    recovered: float
    dead: float
    rare: float
    common: float
    frequent: float
    tokens: int

    def valid(self, line: float = VALID) -> bool:
        """Whether what it says of features is worth reading.

        Args:
            line: of the explained variance.
        """
        return self.explained >= line


@struct.dataclass
class Sums:
    """What batches add up to.

    Attributes:
        x: ``[D]``, of activations. ``xx``: of their squares. ``missed``: of the squares of what is
            missed.
        active: of features a token.
        fired: ``[features]``, tokens on which each is active. ``top``: ``[features]``, its largest.
        tokens: how many.
        loss: ``[3]``, next-token losses of the clean run, with the reconstruction, with the place
            zeroed. ``predicted``: of how many tokens.
    """

    x: Leaf
    xx: Leaf
    missed: Leaf
    active: Leaf
    fired: Leaf
    top: Leaf
    tokens: Leaf
    loss: Leaf
    predicted: Leaf


@functools.partial(jit, static_argnames=("config", "place"))
def batch_sums(
    params: Params,
    tokens: Tokens,
    lengths: Lengths,
    counted: Bool[Array, "B S"],
    dictionary: Dictionary,
    *,
    config: ModelConfig,
    place: Place,
) -> Sums:
    """The sums of one batch of windows.

    Args:
        params: f32.
        tokens: ``[B, S]``.
        lengths: ``[B]``.
        counted: which positions count.
        dictionary: at the place.
        config: the architecture (static).
        place: point and step (static).
    """
    (value,), clean = activations_at(params, tokens, lengths, config, (place,))
    x = value.reshape(-1, value.shape[-1]).astype(jnp.float32)
    sums = _seen(x, counted.reshape(-1), dictionary)
    point = place[0]
    where = place_mask(place, config, counted)
    splice = Splice(point, where, dictionary, encode, decode, keep_error=False)
    unit = POINTS[point].unit
    zero = Scale(point, -where.reshape(*where.shape, *[1] * len(unit)).astype(jnp.float32))

    def loss(logits: Array) -> Array:
        return jnp.where(counted[:, 1:], next_token_loss(logits, tokens), 0).sum()

    edited = [
        forward(params, tokens, config, lengths=lengths, scheme=F32, edit=Edit(site)).logits
        for site in (splice, zero)
    ]
    return replace(
        sums,
        loss=jnp.stack([loss(logits) for logits in (clean.logits, *edited)]),
        predicted=counted[:, 1:].sum(dtype=jnp.int32),
    )


def _seen(x: Float[Array, "rows D"], counted: Bool[Array, " rows"], dictionary: Dictionary) -> Sums:
    """The sums over rows of activations, but for the model's loss."""
    real = counted[:, None]
    f = jnp.where(real, encode(dictionary, x), 0)
    missed = jnp.where(real, x - decode(dictionary, f, x), 0)
    kept = jnp.where(real, x, 0)
    return Sums(
        x=kept.sum(axis=0),
        xx=(kept**2).sum(),
        missed=(missed**2).sum(),
        active=(f > 0).sum(dtype=jnp.float32),
        fired=(f > 0).sum(axis=0, dtype=jnp.int32),
        top=f.max(axis=0),
        tokens=counted.sum(dtype=jnp.int32),
        loss=jnp.zeros(3),
        predicted=jnp.zeros((), jnp.int32),
    )


def place_mask(
    place: Place, config: ModelConfig, counted: Bool[Array, "B S"]
) -> Bool[Array, "*steps B S"]:
    """True at the place and at positions that count.

    Args:
        place: point and step.
        config: the architecture.
        counted: positions.
    """
    point, step = place
    if step is None:
        return counted
    steps = config.num_layers + (POINTS[point].layers == ("L+1",))
    return (jnp.arange(steps) == step)[:, None, None] & counted[None]


def first_left_out(windows: Windows) -> Bool[np.ndarray, "N W"]:
    """Which positions count: those of the windows but the first, whose norm is enormous.

    Args:
        windows: of the texts.
    """
    counted = windows.counted.copy()
    counted[:, 0] = False
    return counted


def measure_quality(
    params: Params,
    config: ModelConfig,
    windows: Windows,
    dictionary: Dictionary,
    place: Place,
    *,
    rows: int,
) -> Quality:
    """How good a dictionary is on some texts.

    Args:
        params: f32.
        config: the architecture.
        windows: of the texts.
        dictionary: at the place.
        place: point and step.
        rows: windows a call.
    """
    return quality_of(text_sums(params, config, windows, dictionary, place, rows=rows))


def text_sums(
    params: Params,
    config: ModelConfig,
    windows: Windows,
    dictionary: Dictionary,
    place: Place,
    *,
    rows: int,
) -> Sums:
    """What a dictionary does on some texts, added up.

    Args:
        params: f32.
        config: the architecture.
        windows: of the texts.
        dictionary: at the place.
        place: point and step.
        rows: windows a call.
    """
    counted = first_left_out(windows)
    found = []
    for start in range(0, len(windows.tokens), rows):
        batch = [padded(a[start : start + rows], rows) for a in (windows.tokens, counted)]
        lengths = padded(windows.lengths[start : start + rows], rows, 1)
        found.append(
            batch_sums(params, batch[0], lengths, batch[1], dictionary, config=config, place=place)
        )
    return _total(found)


def row_sums(data: Rows, dictionary: Dictionary, *, batch: int = 1 << 12) -> Sums:
    """What a dictionary does on activations alone, added up: without the model's loss.

    Args:
        data: activations ``[tokens, D]``, in memory or on disk.
        dictionary: of them.
        batch: rows a call.
    """
    found = []
    for start in range(0, data.shape[0], batch):
        rows = np.asarray(data[start : start + batch])
        found.append(_rows_seen(padded(rows, batch), dictionary, np.arange(batch) < len(rows)))
    return _total(found)


@jit
def _rows_seen(
    x: Float[Array, "rows D"], dictionary: Dictionary, real: Bool[Array, " rows"]
) -> Sums:
    return _seen(x, real, dictionary)


def _total(found: Sequence[Sums]) -> Sums:
    """The sums of several calls, f64."""
    first, *others = (
        replace(one, **{n: np.asarray(v, np.float64) for n, v in vars(one).items()})
        for one in found
    )
    return functools.reduce(_added, others, first)


def quality_of(total: Sums) -> Quality:
    """How good a dictionary is.

    Args:
        total: what it does on all texts; without a predicted token, ``recovered`` is NaN.
    """
    n, (clean, spliced, zeroed) = float(total.tokens), total.loss
    known = float(total.predicted) > 0
    return Quality(
        explained=explained(total.x, total.xx, total.missed, n),
        active=float(total.active / n),
        recovered=float((zeroed - spliced) / (zeroed - clean)) if known else float("nan"),
        **rates(total.top, total.fired, n),
        tokens=int(n),
    )


def explained(x: Float[np.ndarray, " D"], xx: float, missed: float, tokens: float) -> float:
    """Share of the variance of activations that a dictionary stands for.

    Args:
        x: sum of the activations. xx: of their squares. missed: of the squares of what is missed.
        tokens: over which the sums are.
    """
    return float(1 - missed / (xx - (x**2).sum() / tokens))


def rates(
    top: Float[np.ndarray, " features"], fired: Float[np.ndarray, " features"], tokens: Any
) -> dict[str, float]:
    """Shares of the features that are dead, rare, common and frequent, by these names.

    Args:
        top: the largest activation of each.
        fired: tokens on which each is active.
        tokens: how many there are.
    """
    dead, rate = top < DEAD, fired / tokens
    return {
        "dead": float(dead.mean()),
        "rare": float((~dead & (rate < RARE)).mean()),
        "common": float(((rate >= RARE) & (rate < FREQUENT)).mean()),
        "frequent": float((rate >= FREQUENT).mean()),
    }


def _added(a: Sums, b: Sums) -> Any:
    sums = {name: value + getattr(b, name) for name, value in vars(a).items()}
    return Sums(**{**sums, "top": np.maximum(a.top, b.top)})


def padded(a: Float[np.ndarray, "rows ..."], rows: int, fill: int = 0) -> np.ndarray:
    """An array with filler rows, so that all calls have one shape.

    Args:
        a: rows.
        rows: how many are wanted.
        fill: what filler is.
    """
    more = rows - len(a)
    return np.concatenate([a, np.full((more, *a.shape[1:]), fill, a.dtype)]) if more else a
