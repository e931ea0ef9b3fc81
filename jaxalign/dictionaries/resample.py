"""Dead features of a training begun anew."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.dictionaries.dictionary import Dictionary
from jaxalign.dictionaries.losses import loss
from jaxalign.dictionaries.training import Training, TrainingOptions
from jaxalign.runtime.compile import jit
from jaxalign.shapes import Array, Float, Int


@functools.partial(jit, static_argnames=("options",))
def resampled(
    training: Training,
    data: Float[Array, "sets tokens D"],
    sets: Int[Array, " stack"],
    keys: Array,
    *,
    options: TrainingOptions,
) -> Training:
    """Dead features begun anew at tokens drawn by the square of how badly they are reconstructed
    (Bricken et al. 2023, "Neuron resampling"): what they write is what is missed there, and they
    read it with a fifth of the mean norm of the others.

    Args:
        training: so far.
        data: scaled activations of tokens drawn at random.
        sets: which of them each dictionary reads.
        keys: a random key for each dictionary.
        options: of the training (static).
    """
    dead = (training.step - training.fired) * options.batch > options.dead_after

    def one(d: Dictionary, moments: Any, dead: Array, own: Array, key: Array) -> tuple[Any, Any]:
        x = data[own]
        found = loss(
            d, x, jnp.zeros(()), dead, kind=options.kind, k=options.k, auxiliary=0.0
        ).features
        missed = x - (found @ d.decoder + d.decoder_bias[None])
        badly = (missed**2).sum(axis=-1)
        chosen = jax.random.categorical(key, 2 * jnp.log(badly + 1e-12), shape=dead.shape)
        new = missed[chosen] / (jnp.linalg.norm(missed[chosen], axis=-1, keepdims=True) + 1e-8)
        norms = jnp.linalg.norm(d.encoder, axis=0)
        size = 0.2 * jnp.where(dead, 0, norms).sum() / jnp.maximum((~dead).sum(), 1)
        fresh = replace(
            d,
            decoder=jnp.where(dead[:, None], new, d.decoder),
            encoder=jnp.where(dead[None], size * new.T, d.encoder),
            encoder_bias=jnp.where(dead, 0, d.encoder_bias),
        )
        forget = lambda m: _forget(m, dead)  # noqa: E731
        return fresh, moments._replace(mu=forget(moments.mu), nu=forget(moments.nu))

    dictionary, moments = jax.vmap(one)(training.dictionary, training.moments, dead, sets, keys)
    return replace(
        training,
        dictionary=dictionary,
        moments=moments,
        fired=jnp.where(dead, training.step, training.fired),
    )


def _forget(moments: Dictionary, dead: Array) -> Dictionary:
    """Adam's moments, 0 for the dead features."""
    return replace(
        moments,
        decoder=jnp.where(dead[:, None], 0, moments.decoder),
        encoder=jnp.where(dead[None], 0, moments.encoder),
        encoder_bias=jnp.where(dead, 0, moments.encoder_bias),
    )
