"""Deficit, harm, repair: what the shift of a site along damaged features costs the model.

Quantization moves the activations of a site by ``s = y − x``. Its part along the directions of
some features, ``P s`` (the orthogonal projection on what these features write), is put into the f32
model and taken out of the other one:

* *deficit* ``D``: how far the other model's predictions are from f32's;
* *harm* ``H``: how far f32's are with ``x + P s`` in the place of ``x``;
* *left* ``R``: how far the other model's are with ``y − P s`` in the place of ``y``; ``D − R`` is
  repaired.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from jaxalign.edits import Edit, Replace
from jaxalign.engine.activations import Place, activations_at, unit_shape
from jaxalign.engine.sweep import sweep
from jaxalign.measures.metrics import kl_divergence
from jaxalign.measures.perplexity import next_token_loss
from jaxalign.model.config import ModelConfig
from jaxalign.model.params import Params
from jaxalign.numerics.scheme import F32, Scheme
from jaxalign.runtime.compile import jit
from jaxalign.shapes import Array, Bool, Float, Leaf, Lengths, Tokens
from jaxalign.studies.features.quality import place_mask
from jaxalign.study.calls import deal_prompts


@struct.dataclass
class Shifted:
    """Sums over the tokens of each window; rows: nothing, the whole shift, then each subspace.

    Attributes:
        kl: ``[B, rows]``, ``KL(f32 ‖ run)`` of the next token, nats, of f32 with the shift put in.
        low_kl: of the other model with it taken out: its first row is the deficit.
        loss, low_loss: of the next token, nats.
        size: ``[B, rows]``, of the squares of what is shifted.
        tokens, predicted: ``[B]``, of how many.
    """

    kl: Leaf
    low_kl: Leaf
    loss: Leaf
    low_loss: Leaf
    size: Leaf
    tokens: Leaf
    predicted: Leaf


@functools.partial(jit, static_argnames=("config", "scheme", "place", "scaled", "mesh"))
def shifted(
    high: Params,
    low: Params,
    bases: Float[Array, "rows D k"],
    tokens: Tokens,
    lengths: Lengths,
    counted: Bool[Array, "B S"],
    *,
    config: ModelConfig,
    scheme: Scheme,
    place: Place,
    scaled: tuple[bool, ...],
    mesh: Mesh | None = None,
) -> Shifted:
    """Put the shift of a place into f32 and take it out of the other model, subspace by subspace.

    Args:
        high: f32.
        low: in the scheme's dtype.
        bases: orthonormal columns of each subspace.
        tokens: ``[B, S]``, padded on the right.
        lengths: ``[B]`` real tokens.
        counted: positions that are shifted and read.
        config: the architecture (static).
        scheme: of ``low`` (static).
        place: point and step (static).
        scaled: of each subspace, whether the shift is given the size, at every position, that it
            has along the first (static).
        mesh: whose devices share the windows (static).
    """
    run = functools.partial(_windows, config=config, scheme=scheme, place=place, scaled=scaled)
    found: Shifted = deal_prompts(mesh, run, (high, low, bases), (tokens, lengths, counted))
    return found


def _windows(
    high: Params, low: Params, bases: Array, tokens: Tokens, lengths: Lengths, counted: Array, *,
    config: ModelConfig, scheme: Scheme, place: Place, scaled: tuple[bool, ...],
) -> Shifted:  # fmt: skip
    (x,), out = activations_at(high, tokens, lengths, config, (place,))
    (y,), _ = activations_at(low, tokens, lengths, config, (place,), scheme)
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    shift = jnp.where(counted[..., None], y - x, 0)
    shifts = jnp.concatenate([shift[None], along(shift, bases, scaled)])
    later = counted[:, 1:] & counted[:, :-1]

    def measure(logits: Array) -> tuple[Array, Array]:
        kl = jnp.where(counted, kl_divergence(out.logits, logits), 0)
        loss = jnp.where(later, next_token_loss(logits, tokens), 0)
        return kl.sum(axis=1), loss.sum(axis=1)

    point, unit = place[0], unit_shape(place[0], config)
    at = jnp.minimum(jnp.arange(tokens.shape[1])[None], lengths[:, None] - 1)
    mask = place_mask(place, config, counted)
    mask = jnp.broadcast_to(mask, (len(shifts), *mask.shape))
    mask = mask.reshape(*mask.shape, *[1] * len(unit))

    def swept(params: Params, values: Array, how: Scheme) -> tuple[Array, Array]:
        own = values.reshape(*values.shape[:-1], *unit)
        edit = Edit(Replace(point, mask, own=own))
        [found] = sweep(
            params, tokens, lengths, config, [edit], measure, scheme=how, single_step=True, at=at,
            suffixes=(),
        )  # fmt: skip
        kl, loss = found
        return kl.T, loss.T

    kl, loss = swept(high, x[None] + shifts, F32)
    low_kl, low_loss = swept(low, y[None] - shifts, scheme)
    size = (shifts**2).sum(axis=(2, 3))
    return Shifted(
        kl=kl, low_kl=low_kl, loss=loss, low_loss=low_loss,
        size=jnp.concatenate([jnp.zeros_like(size[:1]), size]).T,
        tokens=counted.sum(axis=1, dtype=jnp.float32),
        predicted=later.sum(axis=1, dtype=jnp.float32),
    )  # fmt: skip


def along(
    shift: Float[Array, "*rows D"], bases: Float[Array, "spaces D k"], scaled: tuple[bool, ...]
) -> Float[Array, "spaces *rows D"]:
    """The parts of a shift in some subspaces.

    Args:
        shift: of a site.
        bases: orthonormal columns of each subspace.
        scaled: of each, whether its part is given the length of the part in the first.
    """

    def one(basis: Array) -> Array:
        return (shift @ basis) @ basis.T

    parts = jax.lax.map(one, bases)
    length = jnp.linalg.norm(parts, axis=-1, keepdims=True)
    wanted = jnp.where(length > 0, length[:1] / jnp.where(length > 0, length, 1), 0)
    keep = jnp.asarray(scaled).reshape(-1, *[1] * (parts.ndim - 1))
    return jnp.where(keep, parts * wanted, parts)
