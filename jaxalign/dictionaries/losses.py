"""What a dictionary is trained to make small, kind by kind.

Inputs are centred on nothing and scaled once so that their variance is 1 a coordinate: an error of
1 then is all of the variance, whatever the model. ``error`` is the mean over tokens and coordinates
of ``(x − x̂)²``.

=============  ====================================================================================
kind           beside the error
=============  ====================================================================================
``relu``       ``penalty · mean|f|`` over tokens and features (Bricken et al. 2023, up to the units)
``sigmoid``    the same (the original method)
``topk``       nothing: ``k`` says how many are active (arXiv 2406.04093)
``batchtopk``  nothing: the ``k`` a token that are largest in the whole batch (arXiv 2412.06410)
``gated``      ``penalty · mean relu(π)`` of the gates' own activations ``π`` and the error of what
               they alone would stand for, through a decoder that this term does not train (arXiv
               2404.16014, 3.2)
``jumprelu``   ``penalty ·`` features active on a token, with a gradient to the threshold from the
               activations within ``BANDWIDTH`` of it (arXiv 2407.14435, 3)
=============  ====================================================================================
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from jaxalign.dictionaries.dictionary import Dictionary, decode, encode, encode_decode, top_k
from jaxalign.numerics.dot import dot
from jaxalign.shapes import Array, Bool, Float, Leaf, lead

if TYPE_CHECKING:
    Trained = Literal["relu", "topk", "batchtopk", "gated", "sigmoid", "jumprelu"]
else:
    Trained = str
TRAINED: tuple[Trained, ...] = ("relu", "topk", "batchtopk", "gated", "sigmoid", "jumprelu")
BANDWIDTH = 1e-3
HALVINGS = 30  # of an interval that holds a threshold: below the last bit of what it is found among


@struct.dataclass
class Loss:
    """A batch's loss and what else a step wants to know of it.

    Attributes:
        total: what is made small.
        error: of the reconstruction.
        features: ``[B, features]``.
        least: the smallest activation that is left, of ``batchtopk``; 0 elsewhere.
    """

    total: Leaf
    error: Leaf
    features: Leaf
    least: Leaf


def loss(
    dictionary: Dictionary,
    x: Float[Array, "B D"],
    penalty: Float[Array, ""],
    dead: Bool[Array, " features"],
    *,
    kind: Trained,
    k: int,
    auxiliary: float,
) -> Loss:
    """The loss of a batch of tokens.

    Args:
        dictionary: being trained; of ``jumprelu`` its threshold is the logarithm of the threshold.
        x: scaled activations.
        penalty: the weight of what makes features sparse.
        dead: features that have not been active for long.
        kind: (static).
        k: features a token, of ``topk`` and ``batchtopk`` (static).
        auxiliary: the weight of a second reconstruction, of what the first one misses, by dead
            features alone (arXiv 2406.04093, A.2); 0 for none (static).
    """
    reads = _mean_apart(dictionary)
    if kind == "topk":
        sparse = least = jnp.zeros(())
        f, y = encode_decode(reads, x)
        y = y + lead(dictionary.decoder_bias - reads.decoder_bias, y)  # 0, with the bias's slope
    else:
        f, sparse, least = _FEATURES[kind](reads, x, penalty, k)
        y = decode(dictionary, f, x)
    error = _mean_square(x - y)
    total = error + sparse
    if auxiliary:
        total = total + auxiliary * _second(dictionary, x, lax.stop_gradient(x - y), dead)
    return Loss(total=total, error=error, features=f, least=least)


def _mean_apart(d: Dictionary) -> Dictionary:
    """The same dictionary, in which the slope of what is taken from inputs costs no product.

    The slope of the decoder's bias through every token's input is a matrix product as large as
    encoding. All tokens share that bias, so it is given the slope of the features' biases instead,
    through a vector ``zero`` that changes no value.
    """
    if not d.centered:
        return d
    frozen = lax.stop_gradient(d.decoder_bias)
    zero = (frozen - d.decoder_bias)[None]
    read = dot(zero, d.encoder)[0]
    size = 1 if d.log_magnitude is None else jnp.exp(d.log_magnitude)
    gate = d.gate_bias
    if gate is not None:
        gate = gate + (read if d.gate is None else dot(zero, d.gate)[0])
    bias = d.encoder_bias + size * read
    return replace(d, decoder_bias=frozen, encoder_bias=bias, gate_bias=gate)


def _mean_square(x: Array) -> Array:
    return (x**2).mean()


def _pre(dictionary: Dictionary, x: Array) -> Array:
    centered = x - lead(dictionary.decoder_bias, x) if dictionary.centered else x
    product = dot(centered, dictionary.encoder)
    return product + lead(dictionary.encoder_bias, product)


def _second(dictionary: Dictionary, x: Array, missed: Array, dead: Array) -> Array:
    """The share of what is missed that the dead features, ``D / 2`` a token, cannot stand for."""
    pre = jnp.where(lead(dead, x), _pre(dictionary, x), -jnp.inf)
    # Of features that are not dead nothing is taken, however few the dead ones are.
    f = top_k(pre, max(1, min(x.shape[-1] // 2, pre.shape[-1])))
    error = _mean_square(missed - dot(f, dictionary.decoder)) / (_mean_square(missed) + 1e-8)
    return jnp.where(dead.any(), error, 0)


def _relu(d: Dictionary, x: Array, penalty: Array, k: int) -> tuple[Array, Array, Array]:
    f = encode(d, x)
    return f, penalty * f.mean(), jnp.zeros(())


def _batchtopk(d: Dictionary, x: Array, penalty: Array, k: int) -> tuple[Array, Array, Array]:
    pre = jax.nn.relu(_pre(d, x))
    least = largest_above(lax.stop_gradient(pre), k * len(x))
    f = jnp.where(pre > least, pre, 0)
    return f, jnp.zeros(()), jnp.where(f > 0, f, jnp.inf).min()


def largest_above(values: Array, count: int) -> Array:
    """A number that at most ``count`` values are above, and the next one below it would be more.

    Args:
        values: not negative.
        count: how many.
    """

    def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        many = (values > middle).sum() > count
        return jnp.where(many, middle, low), jnp.where(many, high, middle)

    low, high = lax.fori_loop(0, HALVINGS, halve, (jnp.zeros(()), values.max()))
    return jnp.where((values > low).sum() > count, high, low)


def _gated(d: Dictionary, x: Array, penalty: Array, k: int) -> tuple[Array, Array, Array]:
    centered = x - lead(d.decoder_bias, x) if d.centered else x
    gates = dot(centered, d.encoder)
    gates = jax.nn.relu(gates + lead(d.gate_bias, gates))
    frozen = lax.stop_gradient
    alone = dot(gates, frozen(d.decoder))
    alone = _mean_square(x - alone - lead(frozen(d.decoder_bias), alone))
    return encode(d, x), penalty * gates.mean() + alone, jnp.zeros(())


def _jumprelu(d: Dictionary, x: Array, penalty: Array, k: int) -> tuple[Array, Array, Array]:
    pre = jax.nn.relu(_pre(d, x))
    threshold = jnp.broadcast_to(lead(jnp.exp(d.threshold), pre), pre.shape)
    active = _step(pre, threshold).sum(axis=-1).mean()
    return _jump(pre, threshold), penalty * active, jnp.zeros(())


@jax.custom_vjp
def _jump(pre: Array, threshold: Array) -> Array:
    return jnp.where(pre > threshold, pre, 0)


@jax.custom_vjp
def _step(pre: Array, threshold: Array) -> Array:
    return (pre > threshold).astype(pre.dtype)


def _near(pre: Array, threshold: Array) -> Array:
    """A rectangle of area 1 around the threshold."""
    return (jnp.abs(pre - threshold) < BANDWIDTH / 2).astype(pre.dtype) / BANDWIDTH


def _keep(pre: Array, threshold: Array) -> tuple[Array, Array]:
    return pre, threshold


_jump.defvjp(
    lambda pre, threshold: (_jump(pre, threshold), _keep(pre, threshold)),
    lambda kept, g: (
        jnp.where(kept[0] > kept[1], g, 0),
        -kept[1] * _near(*kept) * g,
    ),
)
_step.defvjp(
    lambda pre, threshold: (_step(pre, threshold), _keep(pre, threshold)),
    lambda kept, g: (jnp.zeros_like(kept[0]), -_near(*kept) * g),
)

_FEATURES = {
    "relu": _relu,
    "sigmoid": _relu,
    "batchtopk": _batchtopk,
    "gated": _gated,
    "jumprelu": _jumprelu,
}
