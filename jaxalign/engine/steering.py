"""Steering: a direction added at a point, by several coefficients, and what is said then."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxalign.edits.anywhere import Add
from jaxalign.edits.points import POINTS
from jaxalign.edits.site import Edit
from jaxalign.engine.patching import Metric
from jaxalign.engine.sweep import sweep
from jaxalign.errors import InputError
from jaxalign.model.checks import points_of
from jaxalign.model.config import ModelConfig
from jaxalign.model.generate import generate
from jaxalign.model.params import Params
from jaxalign.numerics.scheme import F32, Scheme
from jaxalign.runtime.compile import jit
from jaxalign.shapes import Array, ArrayLeaf, Float, Lengths, Tokens

STREAMS = tuple(name for name, point in POINTS.items() if point.unit == ("D",) and point.layers)


@struct.dataclass
class Steered:
    """What a direction does, by its coefficient.

    Attributes:
        clean: ``[B]``, the metric without it.
        metric: ``[C, B]``, a row a coefficient.
        random: ``[C, draws, B]``, of random directions of the same length.
        tokens: ``[C, B, steps]``, the greedy continuation.
    """

    clean: ArrayLeaf
    metric: ArrayLeaf
    random: ArrayLeaf
    tokens: ArrayLeaf


def steer(
    params: Params,
    tokens: Tokens,
    lengths: Lengths,
    config: ModelConfig,
    metric: Metric,
    direction: Float[Array, " D"] | Float[np.ndarray, " D"],
    coefficients: Sequence[float],
    *,
    step: int,
    point: str = "resid",
    steps: int = 8,
    draws: int = 8,
    seed: int = 0,
    scheme: Scheme | str = F32,
) -> Steered:
    """Add ``coefficient · direction`` at every position of a point, the prompt's and the new ones'
    (Turner et al. 2023, arXiv 2308.10248), beside random directions of the same length.

    Not inside ``jit``, since ``generate`` is compiled by itself.

    Args:
        params: in the scheme's dtype.
        tokens: ``[B, S]``, padded on the right.
        lengths: ``[B]`` real tokens.
        config: the architecture (static).
        metric: from f32 logits ``[B, V]`` at the last real position to ``[B]``.
        direction: ``[D]``, in the units of the stream.
        coefficients: ``C`` of them, a row each; 0 changes nothing.
        step: where: the layer, of ``resid`` the step: 0 the embedding, ``l + 1`` after block ``l``.
        point: a point of width ``D`` (static).
        steps: new tokens (static).
        draws: random directions beside it, each at every coefficient; 0 for none (static).
        seed: of them.
        scheme: the precision, or its name (static).

    Raises:
        InputError: a point that is no stream or has no such step, a direction of another width, or
            no coefficient.

    Example:
        >>> found = steer(model.params, tokens, lengths, model.config, m, unembed[paris],
        ...               [0, 2, 4], step=4)
        >>> [model.tokenizer.decode(row[0]) for row in found.tokens]
    """
    layers, by = _checked(point, step, direction, coefficients, config)
    noise = jax.random.normal(jax.random.key(seed), (draws, config.hidden_size))
    noise = noise / jnp.linalg.norm(noise, axis=-1, keepdims=True) * jnp.linalg.norm(direction)
    every = jnp.concatenate([jnp.asarray(direction, jnp.float32)[None], noise])  # [1 + draws, D]
    where = (jnp.arange(layers) == step).astype(jnp.float32).reshape(-1, 1, 1, 1)
    rows = by[:, None, None, None, None] * where[None]  # [C, L, 1, 1, 1]
    edit = Edit(Add(point, jnp.repeat(rows, len(every), axis=0), jnp.tile(every, (len(by), 1))))
    # As one program: step by step it would be compiled in a hundred pieces.
    run = jit(
        lambda params, tokens, lengths: sweep(
            params, tokens, lengths, config, [edit], metric, scheme=scheme, single_step=True
        )
    )
    [m] = run(params, tokens, lengths)
    values = m[1:].reshape(len(by), len(every), -1)

    def said(row: ArrayLeaf) -> ArrayLeaf:
        own = Edit(Add(point, row, every[0]))
        return generate(
            params, tokens, lengths, config, steps=steps, scheme=scheme, edit=own
        ).tokens

    return Steered(m[0], values[:, 0], values[:, 1:], jnp.stack([said(row) for row in rows]))


def _checked(
    point: str,
    step: int,
    direction: Float[Array, " D"] | Float[np.ndarray, " D"],
    coefficients: Sequence[float],
    config: ModelConfig,
) -> tuple[int, Float[np.ndarray, " C"]]:
    """Steps of the point, and the coefficients as an array."""
    streams = [name for name in STREAMS if name in points_of(config)]
    if point not in streams:
        raise InputError(f"{point!r} is no stream to steer", f"use {', '.join(streams)}")
    if jnp.shape(direction) != (config.hidden_size,):
        raise InputError(
            f"the direction is {list(jnp.shape(direction))}, expected [{config.hidden_size}]",
            "give a vector of the model's width",
        )
    layers = config.num_layers + (POINTS[point].layers == ("L+1",))
    if not 0 <= step < layers:
        raise InputError(f"{point} has no step {step}", f"give 0 to {layers - 1}")
    by = np.asarray(coefficients, np.float32)
    if by.ndim != 1 or not by.size or not np.isfinite(by).all():
        raise InputError("the coefficients are no list of numbers", "give one or more: [0, 2, 4]")
    return layers, by
