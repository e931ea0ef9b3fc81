"""What one pass over texts adds up of every feature, in f32 and in another precision.

Sums are of ``a``, the activation in f32, and of ``d = â − a``, what the other precision changes. A
correlation near 1 is then as exact as one near 0: ``1 − ρ`` is made of small numbers and not the
difference of two large ones.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from jaxalign.dictionaries.dictionary import Dictionary
from jaxalign.engine.activations import Place, activations_at, activations_below
from jaxalign.measures.metrics import kl_divergence
from jaxalign.measures.perplexity import next_token_loss
from jaxalign.model.config import ModelConfig
from jaxalign.model.decoder import forward
from jaxalign.model.params import Params
from jaxalign.numerics.scheme import F32, Scheme
from jaxalign.runtime.compile import jit
from jaxalign.shapes import Array, Bool, Int, Leaf, Lengths, Tokens
from jaxalign.studies.features.accumulate import LARGEST, feature_sums
from jaxalign.study.calls import deal_prompts


@struct.dataclass
class Moments:
    """Sums over the tokens of each segment of the texts.

    Attributes:
        tokens: ``[U]``, how many.
        a, d, aa, dd, ad: ``[U, features]``, of activations in f32, of what changes, of squares and
            products.
        fired, low_fired, both: ``[U, features]``, tokens on which a feature is active in f32, in
            the other precision, in both.
        top, low_top: ``[U, features]``, the largest activations.
        x, low_x: ``[U, D]``, of what is read. xx, low_xx: ``[U]``, of its squares.
        missed, low_missed: ``[U]``, of the squares of what the reconstruction misses.
        moved: ``[U]``, of the squares of what the other precision changes in the reconstruction.
    """

    tokens: Leaf
    a: Leaf
    d: Leaf
    aa: Leaf
    dd: Leaf
    ad: Leaf
    fired: Leaf
    low_fired: Leaf
    both: Leaf
    top: Leaf
    low_top: Leaf
    x: Leaf
    low_x: Leaf
    xx: Leaf
    low_xx: Leaf
    missed: Leaf
    low_missed: Leaf
    moved: Leaf


@struct.dataclass
class Predictions:
    """Sums over tokens of each segment, ``[U]``.

    Attributes:
        loss, low_loss: of the next token, nats; predicted: of how many.
        kl: ``KL(f32 ‖ other)`` of the next token, nats; same: tokens where both put the same one
            first; read: of how many.
    """

    loss: Leaf
    low_loss: Leaf
    predicted: Leaf
    kl: Leaf
    same: Leaf
    read: Leaf


@struct.dataclass
class Compared:
    """What a call returns.

    Attributes:
        features: of each dictionary.
        predictions: of the model; None where they were not asked for.
    """

    features: tuple[Moments, ...]
    predictions: Predictions | None


@functools.partial(
    jit,
    static_argnames=(
        "config",
        "scheme",
        "places",
        "segments",
        "predict",
        "alone",
        "chance",
        "mesh",
    ),
    keep_unused=True,
)
def compare(
    high: Params,
    low: Params,
    dictionaries: tuple[Dictionary, ...],
    tokens: Tokens,
    lengths: Lengths,
    counted: Bool[Array, "B S"],
    predicted: Bool[Array, "B S"],
    segment: Int[Array, " B"],
    *,
    config: ModelConfig,
    scheme: Scheme,
    places: tuple[Place, ...],
    segments: int,
    predict: bool = True,
    alone: bool = False,
    chance: bool = False,
    mesh: Mesh | None = None,
) -> Compared:
    """Run both models on windows of text and add up what every feature does in both.

    Args:
        high: f32 parameters.
        low: of the other model, in the dtype of ``scheme``.
        dictionaries: one at each place.
        tokens: ``[B, S]``, padded on the right.
        lengths: ``[B]`` real tokens.
        counted: positions that features are read at.
        predicted: tokens whose loss counts.
        segment: which segment of the call each window is of.
        config: the architecture (static).
        scheme: of ``low`` (static).
        places: point and step of each dictionary (static).
        segments: how many there are (static).
        predict: whether both models' predictions are compared, which takes the blocks above the
            places, too (static).
        alone: the other model runs window by window (static).
        chance: the other model's activations are those of other tokens, which have nothing to do
            with these (static).
        mesh: whose devices share the windows (static).
    """
    run = functools.partial(
        _windows, config=config, scheme=scheme, places=places, segments=segments, predict=predict,
        alone=alone, chance=chance,
    )  # fmt: skip
    split = tokens, lengths, counted, predicted, segment
    found: Compared = deal_prompts(mesh, run, (high, low, dictionaries), split)

    def together(name: str, value: Array) -> Array:
        """Each device's sums of its own windows, added up."""
        parts = value.reshape(-1, segments, *value.shape[1:])
        return parts.max(axis=0) if name in LARGEST else parts.sum(axis=0)

    return jax.tree.map(
        lambda part: type(part)(**{n: together(n, v) for n, v in vars(part).items()}),
        found,
        is_leaf=lambda part: isinstance(part, (Moments, Predictions)),
    )


def _windows(
    high: Params,
    low: Params,
    dictionaries: tuple[Dictionary, ...],
    tokens: Tokens,
    lengths: Lengths,
    counted: Bool[Array, "B S"],
    predicted: Bool[Array, "B S"],
    segment: Int[Array, " B"],
    *,
    config: ModelConfig,
    scheme: Scheme,
    places: Sequence[Place],
    segments: int,
    predict: bool,
    alone: bool,
    chance: bool,
) -> Compared:
    """The sums of each segment, of one device's windows."""
    low_logits = logits = None
    if predict:
        values, out = activations_at(high, tokens, lengths, config, places)
        lows, low_out = activations_at(low, tokens, lengths, config, places, scheme)
        logits, low_logits = out.logits, low_out.logits
    else:
        values = activations_below(high, tokens, lengths, config, places)
        lows = _lows(low, tokens, lengths, config, scheme, places, alone)
    if chance:
        # Of windows half of all away, or of one window of tokens half of it away.
        axis = int(len(tokens) == 1)
        far = tokens.shape[axis] // 2
        lows = tuple(jnp.roll(value, far, axis=axis) for value in lows)
        counted = counted & jnp.roll(counted, far, axis=axis)
    features = tuple(
        Moments(**feature_sums(d, x, y, counted, segment, segments))
        for x, y, d in zip(values, lows, dictionaries, strict=True)
    )
    if logits is None or low_logits is None:
        return Compared(features=features, predictions=None)
    each = _predictions(logits, low_logits, tokens, counted, predicted)
    predictions = jax.tree.map(lambda v: jax.ops.segment_sum(v, segment, segments), each)
    return Compared(features=features, predictions=predictions)


def _lows(
    low: Params, tokens: Tokens, lengths: Lengths, config: ModelConfig, scheme: Scheme,
    places: Sequence[Place], alone: bool,
) -> tuple[Array, ...]:  # fmt: skip
    """The other model's activations, of all windows together or window by window."""
    if not alone:
        return activations_below(low, tokens, lengths, config, places, scheme)

    def one(row: tuple[Array, Array]) -> tuple[Array, ...]:
        return activations_below(low, row[0][None], row[1][None], config, places, scheme)

    return tuple(value[:, 0] for value in jax.lax.map(one, (tokens, lengths)))


def _predictions(
    logits: Array, lows: Array, tokens: Tokens, counted: Array, predicted: Array
) -> Predictions:
    def over(value: Array, where: Array) -> Array:
        return jnp.where(where, value, 0).sum(axis=1, dtype=jnp.float32)

    same = (logits.argmax(axis=-1) == lows.argmax(axis=-1)).astype(jnp.float32)
    later = predicted[:, 1:]
    return Predictions(
        loss=over(next_token_loss(logits, tokens), later),
        low_loss=over(next_token_loss(lows, tokens), later),
        predicted=later.sum(axis=1, dtype=jnp.float32),
        kl=over(kl_divergence(logits, lows), counted),
        same=over(same, counted),
        read=counted.sum(axis=1, dtype=jnp.float32),
    )


@functools.partial(jit, static_argnames=("config",))
def losses(
    params: Params,
    tokens: Tokens,
    lengths: Lengths,
    predicted: Bool[Array, "B S"],
    *,
    config: ModelConfig,
) -> tuple[Array, Array]:
    """The next-token loss of a batch of windows, and over how many tokens.

    Args:
        params: f32.
        tokens, lengths: of the windows.
        predicted: tokens whose loss counts.
        config: the architecture (static).
    """
    logits = forward(params, tokens, config, lengths=lengths, scheme=F32).logits
    each = jnp.where(predicted[:, 1:], next_token_loss(logits, tokens), 0)
    return each.sum(), predicted[:, 1:].sum(dtype=jnp.float32)
