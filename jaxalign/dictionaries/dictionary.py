"""Sparse dictionaries: features of an activation, and the activation that they stand for.

``f = encode(x)`` are the features, sparse and not negative, ``x̂ = decode(f)`` what they stand for.

============  ===============================================================  ====================
kind          features                                                         source
============  ===============================================================  ====================
``relu``      ``relu(p)``                                                      Bricken et al. 2023
``topk``      the ``k`` largest ``p``, then ``relu``; others 0                 arXiv 2406.04093, 2.3
``jumprelu``  ``p · (p > θ)``, strict                                          arXiv 2407.14435, 3
``gated``     ``(c·W + b_gate > 0) · relu(c·W·exp(r) + b_mag)``                arXiv 2404.16014, 3.2
``sigmoid``   ``sigmoid(c·W_gate + b_gate) · relu(p)``: a soft gate            the original method
============  ===============================================================  ====================

``c`` is the input, scaled where the dictionary was trained on scaled inputs and less ``b_dec``
where it is ``centered``; ``p = c·W + b``. BatchTopK (arXiv 2412.06410) chooses among the tokens of
a batch while it trains and is ``jumprelu`` with one threshold afterwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from jaxalign.errors import InputError
from jaxalign.numerics.dot import dot
from jaxalign.shapes import Array, Float, Leaf, lead

if TYPE_CHECKING:
    Kind = Literal["relu", "topk", "jumprelu", "gated", "sigmoid"]
    Scaling = Literal["none", "layer_norm", "unit_rms"]
else:
    Kind = Scaling = str  # another word is refused below, by an error that a user reads
KINDS: tuple[Kind, ...] = ("relu", "topk", "jumprelu", "gated", "sigmoid")
SCALINGS: tuple[Scaling, ...] = ("none", "layer_norm", "unit_rms")
EPSILON = 1e-5  # beside the standard deviation of a token, as SAELens has it
# A topk dictionary of so many times k features or more adds up the decoder's rows that it needs. On
# two cores they cost as much as the product with all rows at 8 to 24 times.
FEW = 32
Features = Float[Array, "*rows features"]


@struct.dataclass
class Dictionary:
    """A dictionary of ``features`` directions of an activation of width ``D``; all arrays f32.

    Attributes:
        encoder: ``W``, ``[D, features]``.
        decoder: ``[features, O]``; ``O`` is ``D`` but for a transcoder.
        encoder_bias: ``b``, ``[features]``; of ``gated`` dictionaries ``b_mag``.
        decoder_bias: ``b_dec``, ``[O]``.
        threshold: ``θ``, ``[features]``, of ``jumprelu``.
        gate: ``W_gate``, ``[D, features]``, of ``sigmoid``.
        gate_bias: ``b_gate``, ``[features]``, of ``gated`` and ``sigmoid``.
        log_magnitude: ``r``, ``[features]``, of ``gated``.
        skip: ``[D, O]``, of a transcoder that adds a linear map of its input.
        kind: how features are computed (static).
        k: how many there are at most, of ``topk`` (static).
        centered: whether ``b_dec`` is taken from the input first (static).
        scaling: what is done to each input, and undone by ``decode``: ``layer_norm`` takes away its
            mean and divides by its standard deviation (unbiased), ``unit_rms`` divides by its
            root mean square (static).
    """

    encoder: Leaf
    decoder: Leaf
    encoder_bias: Leaf
    decoder_bias: Leaf
    threshold: Leaf = None
    gate: Leaf = None
    gate_bias: Leaf = None
    log_magnitude: Leaf = None
    skip: Leaf = None
    kind: Kind = struct.field(pytree_node=False, default="relu")
    k: int | None = struct.field(pytree_node=False, default=None)
    centered: bool = struct.field(pytree_node=False, default=True)
    scaling: Scaling = struct.field(pytree_node=False, default="none")

    @property
    def width(self) -> int:
        """``D``, of what it reads."""
        return int(self.encoder.shape[-2])

    @property
    def out(self) -> int:
        """``O``, of what it stands for."""
        return int(self.decoder.shape[-1])

    @property
    def features(self) -> int:
        """How many features it has."""
        return int(self.encoder.shape[-1])


# What each kind has beside the two matrices and their biases.
OF_KIND: dict[str, tuple[str, ...]] = {
    "relu": (),
    "topk": (),
    "jumprelu": ("threshold",),
    "gated": ("gate_bias", "log_magnitude"),
    "sigmoid": ("gate", "gate_bias"),
}
OWN = ("threshold", "gate", "gate_bias", "log_magnitude")


def check_dictionary(dictionary: Dictionary, called: str = "the dictionary") -> Dictionary:
    """The dictionary, refused where its parts do not fit each other.

    Args:
        dictionary: one, not a stack of them.
        called: what an error calls it.

    Raises:
        InputError: an unknown kind, missing or needless parts, another shape than the matrices ask
            for, NaN or infinity, a threshold below 0, or a ``k`` that no ``topk`` can have.
    """
    kind, remedy = dictionary.kind, "give the dictionary as it was trained"
    if kind not in KINDS:
        raise InputError(f"{called} is of kind {kind!r}", f"use {', '.join(KINDS)}")
    if dictionary.scaling not in SCALINGS:
        raise InputError(f"{called} scales by {dictionary.scaling!r}", f"use {', '.join(SCALINGS)}")
    for name in OWN:
        if (getattr(dictionary, name) is not None) != (name in OF_KIND[kind]):
            has = "has no" if name in OF_KIND[kind] else "has a"
            raise InputError(f"{called} is {kind} and {has} {name}", remedy)
    D, features, out = dictionary.width, dictionary.features, dictionary.out
    wanted = {
        "encoder": (D, features),
        "gate": (D, features),
        "decoder": (features, out),
        "decoder_bias": (out,),
        "skip": (D, out),
    }
    for name in ("encoder", "decoder", "encoder_bias", "decoder_bias", "skip", *OWN):
        value = getattr(dictionary, name)
        if value is None:
            continue
        expected = wanted.get(name, (features,))
        if tuple(value.shape) != expected:
            raise InputError(
                f"{called}: {name} is {list(value.shape)}, expected {list(expected)}", remedy
            )
        if bad := int((~np.isfinite(np.asarray(value))).sum()):
            raise InputError(f"{called}: {name} has {bad} values that are NaN or infinite", remedy)
    below = 0 if dictionary.threshold is None else int((np.asarray(dictionary.threshold) < 0).sum())
    if below:
        raise InputError(f"{called} has {below} thresholds below 0, expected 0 or more", remedy)
    _check_k(dictionary, called)
    if dictionary.centered and out != D:
        raise InputError(
            f"{called} reads width {D} and stands for width {out}, so its decoder's bias cannot be "
            "taken from the input",
            "give centered=False",
        )
    return dictionary


def _check_k(dictionary: Dictionary, called: str) -> None:
    k, features = dictionary.k, dictionary.features
    if (k is not None) != (dictionary.kind == "topk"):
        raise InputError(
            f"{called} is {dictionary.kind} and k is {k}", "give k to a topk dictionary alone"
        )
    whole = isinstance(k, int) and not isinstance(k, bool)
    if k is not None and not (whole and 1 <= k <= features):
        raise InputError(f"{called} has k {k}, expected 1 … {features}", "give such a number")


def encode(dictionary: Dictionary, x: Float[Array, "*rows D"]) -> Features:
    """Features of activations.

    Args:
        dictionary: what reads them.
        x: f32 activations.

    Returns:
        f32, 0 where a feature is not active.
    """
    dictionary = jax.tree.map(jnp.asarray, dictionary)
    centered, product = _product(dictionary, x)

    def own(a: Array) -> Array:
        return lead(a, product)

    if dictionary.kind == "gated":
        size = product * jnp.exp(own(dictionary.log_magnitude)) + own(dictionary.encoder_bias)
        return jnp.where(product + own(dictionary.gate_bias) > 0, jax.nn.relu(size), 0)
    pre = product + own(dictionary.encoder_bias)
    if dictionary.kind == "sigmoid":
        gate = dot(centered, dictionary.gate) + own(dictionary.gate_bias)
        return jax.nn.sigmoid(gate) * jax.nn.relu(pre)
    if dictionary.kind == "jumprelu":
        return jnp.where(pre > own(dictionary.threshold), jax.nn.relu(pre), 0)
    if dictionary.kind == "topk":
        return top_k(pre, dictionary.k or 0)
    return jax.nn.relu(pre)


def encode_decode(
    dictionary: Dictionary, x: Float[Array, "*rows D"]
) -> tuple[Features, Float[Array, "*rows O"]]:
    """``encode`` and ``decode`` at once, a matrix product less where few features are active.

    Of a ``topk`` dictionary the rows of the decoder that stand for a token's ``k`` features are
    added up, in place of a product with all of them.

    Args:
        dictionary: one.
        x: f32 activations.

    Returns:
        The features, and what they stand for: of ``decode`` up to the rounding of sums.
    """
    k = dictionary.k or 0
    if dictionary.kind != "topk" or dictionary.features < FEW * k:
        features = encode(dictionary, x)
        return features, decode(dictionary, features, x)
    dictionary = jax.tree.map(jnp.asarray, dictionary)
    product = _product(dictionary, x)[1]
    pre = product + lead(dictionary.encoder_bias, product)
    values, places = _largest(pre, k)
    y = _rows_added(values, places, dictionary.decoder).reshape(*pre.shape[:-1], dictionary.out)
    features = _spread(values, places, dictionary.features).reshape(pre.shape)
    return features, _decoded(dictionary, y, x)


def _product(dictionary: Dictionary, x: Array) -> tuple[Array, Array]:
    """The input as it is read, and times the encoder."""
    centered = _scaled(dictionary, x)[0]
    if dictionary.centered:
        centered = centered - lead(dictionary.decoder_bias, centered)
    return centered, dot(centered, dictionary.encoder)


def top_k(pre: Features, k: int) -> Features:
    """The ``k`` largest of each row and 0 elsewhere, none below 0.

    Args:
        pre: pre-activations.
        k: how many; of equal ones the first count.
    """
    return _spread(*_largest(pre, k), pre.shape[-1]).reshape(pre.shape)


def _largest(pre: Array, k: int) -> tuple[Array, Array]:
    """The ``k`` largest of each row, none below 0, and their places: ``[N, k]``."""
    values, places = lax.top_k(pre.reshape(-1, pre.shape[-1]), k)
    return jax.nn.relu(values), places


def _spread(values: Array, places: Array, features: int) -> Array:
    """Each row's values at their places, 0 elsewhere."""
    rows = jnp.arange(len(values))[:, None]
    empty = jnp.zeros((len(values), features), values.dtype)
    return empty.at[rows, places].set(values, unique_indices=True)


@jax.custom_vjp
def _rows_added(values: Array, places: Array, decoder: Array) -> Array:
    """The decoder's rows at some places, each times its value, added up."""

    def add(i: Array, y: Array) -> Array:
        return y + values[:, i, None] * decoder[places[:, i]]

    return lax.fori_loop(0, values.shape[1], add, jnp.zeros((len(values), decoder.shape[1])))


def _rows_added_slope(kept: tuple[Array, ...], slope: Array) -> tuple[Array, None, Array]:
    """Of the values row by row, too; of the decoder by a product, whose sums have one order."""
    values, places, decoder = kept

    def times(i: Array, found: Array) -> Array:
        return found.at[:, i].set((slope * decoder[places[:, i]]).sum(axis=-1))

    by_value = lax.fori_loop(0, values.shape[1], times, jnp.zeros_like(values))
    features = _spread(values, places, len(decoder))
    return by_value, None, dot(features.T, slope)


_rows_added.defvjp(lambda *given: (_rows_added(*given), given), _rows_added_slope)


def decode(
    dictionary: Dictionary, features: Features, x: Float[Array, "*rows D"]
) -> Float[Array, "*rows O"]:
    """What features stand for.

    Args:
        dictionary: whose features they are.
        features: of ``encode``, or changed.
        x: what ``encode`` has read: only a dictionary that scales its inputs or has a skip looks at
            it.
    """
    dictionary = jax.tree.map(jnp.asarray, dictionary)
    return _decoded(dictionary, dot(features, dictionary.decoder), x)


def _decoded(dictionary: Dictionary, y: Array, x: Array) -> Array:
    """What the decoder's rows add up to, with all else that belongs to a reconstruction."""
    y = y + lead(dictionary.decoder_bias, y)
    if dictionary.scaling != "none":
        _, mean, size = _scaled(dictionary, x)
        y = y * size + mean
    if dictionary.skip is not None:
        y = y + dot(x, dictionary.skip)
    return y


def reconstruct(dictionary: Dictionary, x: Float[Array, "*rows D"]) -> Float[Array, "*rows O"]:
    """``decode(encode(x))``, up to the rounding of sums.

    Args:
        dictionary: one.
        x: f32 activations.
    """
    return encode_decode(dictionary, x)[1]


def _scaled(dictionary: Dictionary, x: Array) -> tuple[Array, Any, Any]:
    """The input as the dictionary reads it, and the mean and the size that were taken from it."""
    if dictionary.scaling == "layer_norm":
        mean = x.mean(axis=-1, keepdims=True)
        size = x.std(axis=-1, keepdims=True, ddof=1)
        return (x - mean) / (size + EPSILON), mean, size
    if dictionary.scaling == "unit_rms":
        size = jnp.linalg.norm(x, axis=-1, keepdims=True) / np.sqrt(x.shape[-1]).astype(np.float32)
        return x / size, 0, size
    return x, 0, 1
