"""A few features to look at closely, spread over how well they survive; their activations."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxalign.dictionaries.dictionary import Dictionary, encode
from jaxalign.engine.activations import Place, activations_below
from jaxalign.measures import stats
from jaxalign.model.config import ModelConfig
from jaxalign.model.params import Params
from jaxalign.numerics.scheme import Scheme
from jaxalign.runtime.compile import jit
from jaxalign.shapes import Array, Bool, Float, Int, Lengths, Tokens
from jaxalign.study.calls import deal_prompts


def spread_over_survival(
    lost: Float[np.ndarray, "schemes features"], kept: Bool[np.ndarray, " features"], count: int
) -> Int[np.ndarray, " chosen"]:
    """Features at even steps of the order of what they lose, the one that loses least first.

    Args:
        lost: of each scheme; the order is by the mean over schemes of a feature's rank.
        kept: features that are judged.
        count: how many are wanted; fewer where fewer are judged.
    """
    known = np.flatnonzero(kept)
    order = known[np.argsort(stats.ranks(lost[:, known]).mean(axis=0), kind="stable")]
    count = min(count, len(order))
    places = (np.arange(count) + 0.5) * len(order) / max(1, count)
    return order[places.astype(int)]


@functools.partial(jit, static_argnames=("config", "scheme", "place", "mesh"))
def activations_of(
    params: Params,
    dictionary: Dictionary,
    features: Int[Array, " chosen"],
    tokens: Tokens,
    lengths: Lengths,
    counted: Bool[Array, "B S"],
    *,
    config: ModelConfig,
    scheme: Scheme,
    place: Place,
    mesh: Mesh | None = None,
) -> Float[Array, "B S chosen"]:
    """Activations of some features on every token; 0 at positions that do not count.

    Args:
        params: in the scheme's dtype.
        dictionary: at the place.
        features: which of its features.
        tokens: ``[B, S]``, padded on the right.
        lengths: ``[B]`` real tokens.
        counted: positions that count.
        config: the architecture (static).
        scheme: the precision (static).
        place: point and step (static).
        mesh: whose devices share the windows (static).
    """

    def run(
        params: Params, dictionary: Dictionary, features: Array, tokens: Array, lengths: Array,
        counted: Array,
    ) -> Array:  # fmt: skip
        (x,) = activations_below(params, tokens, lengths, config, (place,), scheme)
        found = encode(dictionary, x.astype(jnp.float32))[..., features]
        return jnp.where(counted[..., None], found, 0)

    shared = params, dictionary, features
    found: jax.Array = deal_prompts(mesh, run, shared, (tokens, lengths, counted))
    return found
