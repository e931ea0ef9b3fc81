"""What features do: taken away and added, in f32 and in another precision, as rows of one sweep.

A feature that survives as a number may still do something else. So each chosen feature is

* *ablated*: ``x − a · d`` in the place of ``x``, with the model's own activation ``a`` and the
  direction ``d`` that the feature writes (the dictionary's error is kept, Marks et al. 2024,
  arXiv 2403.19647);
* *steered with*: ``x + c · d`` at every position, ``c`` the mean of the activations in f32 where it
  is active (Turner et al. 2023, arXiv 2308.10248);

and the same is done with a random direction of the same norm in place of ``d``: what any change of
this size does.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from jaxalign.dictionaries.dictionary import Dictionary, decode, encode
from jaxalign.edits import Add, Edit, Splice
from jaxalign.engine.activations import Place, unit_shape
from jaxalign.engine.readout import FromClean
from jaxalign.engine.sweep import sweep
from jaxalign.measures.metrics import kl_divergence
from jaxalign.measures.perplexity import next_token_loss
from jaxalign.model.config import ModelConfig
from jaxalign.model.params import Params
from jaxalign.numerics.scheme import Scheme
from jaxalign.runtime.compile import jit
from jaxalign.shapes import Array, Bool, Float, Int, Leaf, Lengths, Tokens
from jaxalign.studies.features.quality import place_mask
from jaxalign.study.calls import deal_prompts

# What is done with each feature, in the order of the rows.
KINDS = ("ablate", "steer", "ablate at random", "steer at random")


@struct.dataclass
class Effects:
    """Sums over the tokens of each window, of every edited run against the clean one of its model.

    Attributes:
        loss: ``[rows, B]``, change of the next token's loss, nats.
        kl: ``[rows, B]``, ``KL(clean ‖ edited)`` of the next token, nats.
        change: ``[rows, B, V]``, change of the logits, less their mean over tokens of the
            vocabulary, which no probability sees.
    """

    loss: Leaf
    kl: Leaf
    change: Leaf


@functools.partial(jit, static_argnames=("config", "scheme", "place", "mesh"))
def feature_effects(
    params: Params,
    dictionary: Dictionary,
    features: Int[Array, " E"],
    doses: Float[Array, " E"],
    random: Float[Array, "E D"],
    tokens: Tokens,
    lengths: Lengths,
    counted: Bool[Array, "B S"],
    *,
    config: ModelConfig,
    scheme: Scheme,
    place: Place,
    mesh: Mesh | None = None,
) -> tuple[Effects, Float[Array, "B 2"]]:
    """Ablate features and steer with them, each in a row of its own.

    Args:
        params: in the scheme's dtype.
        dictionary: at the place.
        features: which of its features.
        doses: how much of each is added when steering.
        random: a direction for each, of the norm of what the feature writes.
        tokens: ``[B, S]``, padded on the right.
        lengths: ``[B]`` real tokens.
        counted: positions that are edited, and whose next token is read.
        config: the architecture (static).
        scheme: the precision (static).
        place: point and step (static).
        mesh: whose devices share the windows (static).

    Returns:
        Effects, ``KINDS`` by features in rows, their
        ``change`` summed over the windows ``[rows, V]``; and over how many tokens ``kl`` and
        ``loss`` of each window are.
    """
    run = functools.partial(_rows, config=config, scheme=scheme, place=place)
    shared = params, dictionary, features, doses, random
    found, read = deal_prompts(mesh, run, shared, (tokens, lengths, counted))
    found = jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1), found)
    return replace(found, change=found.change.sum(axis=1)), read


def _rows(
    params: Params,
    dictionary: Dictionary,
    features: Array,
    doses: Array,
    random: Array,
    tokens: Tokens,
    lengths: Lengths,
    counted: Array,
    *,
    config: ModelConfig,
    scheme: Scheme,
    place: Place,
) -> tuple[Effects, Array]:
    """The sums of each window, ``[B, rows, …]``."""
    point = place[0]
    where = place_mask(place, config, counted)
    rows = jnp.broadcast_to(where, (len(features), *where.shape))
    off = -jnp.ones((len(features), 1))
    coefficient = rows.astype(jnp.float32) * doses.reshape(-1, *[1] * where.ndim)
    coefficient = coefficient.reshape(*coefficient.shape, *[1] * len(unit_shape(point, config)))
    shape = (len(features), *unit_shape(point, config))
    edits = []
    written = dictionary.decoder[features]
    moved = replace(dictionary, decoder=dictionary.decoder.at[features].set(random))
    both = ((dictionary, written), (moved, random))
    for own, directions in both:
        splice = Splice(point, rows, own, encode, decode, features[:, None], off)
        edits += [Edit(splice), Edit(Add(point, coefficient, directions.reshape(shape)))]
    at = jnp.minimum(jnp.arange(tokens.shape[1])[None], lengths[:, None] - 1)
    later = counted[:, 1:] & counted[:, :-1]

    def over(logits: Array) -> Array:
        return jnp.where(counted[..., None], logits, 0).sum(axis=1)

    def measure(clean: Array, edited: Array) -> Effects:
        loss = next_token_loss(edited, tokens) - next_token_loss(clean, tokens)
        return Effects(
            loss=jnp.where(later, loss, 0).sum(axis=1),
            kl=jnp.where(counted, kl_divergence(clean, edited), 0).sum(axis=1),
            change=_centred(over(edited) - over(clean)),
        )

    found = sweep(
        params, tokens, lengths, config, edits, FromClean(measure), scheme=scheme,
        single_step=True, at=at, suffixes=(),
    )  # fmt: skip
    together = jax.tree.map(lambda *parts: jnp.concatenate([p[1:] for p in parts]), *found)
    by_window = jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), together)
    counts = jnp.stack([counted.sum(axis=1), later.sum(axis=1)], axis=1).astype(jnp.float32)
    return by_window, counts


def _centred(change: Array) -> Array:
    return change - change.mean(axis=-1, keepdims=True)
