"""The heads study's compiled runs without edits: arrays in, arrays out, one program a batch shape.

A head's *state* is what its contribution is computed from: ``z`` for true heads; for edge-align's
blocks the attention output itself, cut into ``H`` blocks. Both are ``[L, B, S, H, h]``, ``H`` times
smaller than the contributions of true heads, so states are what the study keeps.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxalign.edits import Add, Edit, HeadMode
from jaxalign.engine import Engine
from jaxalign.measures.metrics import (
    Answer,
    AnswerMetrics,
    Drift,
    first_order,
    head_drift,
    kl_divergence,
)
from jaxalign.model.config import ModelConfig
from jaxalign.model.decoder import forward, head_contributions
from jaxalign.model.params import Params
from jaxalign.numerics.scheme import F32, Scheme
from jaxalign.runtime.compile import jit
from jaxalign.shapes import Array, Float, Int, Leaf

State = Float[Array, "L B S H h"]


@struct.dataclass
class Question:
    """A batch of prompts and their answers.

    ``tokens`` ``[B, S]``, ``lengths`` ``[B]``, ``target`` ``[B]``, ``distractor`` ``[B]`` (the
    target again where there is none).
    """

    tokens: Leaf
    lengths: Leaf
    target: Leaf
    distractor: Leaf

    @property
    def answer(self) -> Answer:
        """What is read off the logits."""
        return Answer(self.target, self.distractor)


def contributions(
    params: Params, state: Float[Array, "L *rows H h"], head_mode: HeadMode
) -> Float[Array, "L *rows H C"]:
    """Every head's contribution in f32, from its state.

    Args:
        params: of the model.
        state: of every head.
        head_mode: what a head is.
    """
    if head_mode == "edge-align":
        return state.astype(jnp.float32)
    c = jax.vmap(head_contributions)(state, params.blocks.attention.out)
    return jnp.moveaxis(c, 1, -2)


@functools.partial(jit, static_argnames=("head_mode",))
def mean_contributions(
    params: Params, state: Float[Array, "L N H h"], *, head_mode: HeadMode
) -> Float[Array, "L H C"]:
    """Each head's mean contribution over some states, f32.

    Args:
        params: of the model that has them.
        state: ``N`` of them.
        head_mode: what a head is (static).
    """
    return contributions(params, state, head_mode).mean(axis=1)


def _clean(
    params: Params,
    question: Question,
    config: ModelConfig,
    scheme: Scheme,
    head_mode: HeadMode,
    edit: Edit | None = None,
) -> tuple[Float[Array, "B V"], State]:
    """The model's logits and every head's state."""
    site = "attn_out" if head_mode == "edge-align" else "z"
    out = forward(
        params,
        question.tokens,
        config,
        lengths=question.lengths,
        scheme=scheme,
        edit=edit,
        capture=(site,),
        last_only=True,
    )
    state = out.activations[site]
    width = config.edge_size if head_mode == "edge-align" else config.head_size
    heads = (*state.shape[:3], config.num_heads, width)
    return out.logits, state.reshape(heads)


@functools.partial(jit, static_argnames=("config", "head_mode"))
def clean_run(
    params: Params, question: Question, *, config: ModelConfig, head_mode: HeadMode
) -> tuple[AnswerMetrics, Float[Array, "B L H"], State, Float[Array, "L B S *heads C"]]:
    """The f32 model without edits: its answers, the size ``‖c‖`` of each head's contribution at the
    last position, every head's state, and ``∂m / ∂c``.

    All true heads of a layer write to the same stream, so they share one gradient, that of the
    attention output; edge-align's blocks have each their own part of it.

    Args:
        params: f32.
        question: the prompts and their answers.
        config: the architecture (static).
        head_mode: what a head is (static).
    """
    shape = (config.num_layers, *question.tokens.shape, config.hidden_size)
    everywhere = np.ones((config.num_layers, 1, 1, 1), bool)

    def total(added: Array) -> tuple[Array, tuple[AnswerMetrics, State]]:
        steered = Edit(Add("attn_out", everywhere, value=added))
        logits, state = _clean(params, question, config, F32, head_mode, steered)
        metrics = question.answer(logits)
        return metrics.logit_diff.sum(), (metrics, state)

    gradient, (metrics, state) = jax.grad(total, has_aux=True)(jnp.zeros(shape))
    if head_mode == "edge-align":
        gradient = gradient.reshape(*shape[:3], config.num_heads, config.edge_size)
    last = (question.lengths - 1)[None, :, None, None, None]
    ends = jnp.take_along_axis(state, last, axis=2)[:, :, 0]
    size = jnp.linalg.norm(contributions(params, ends, head_mode), axis=-1)
    return metrics, size.swapaxes(0, 1), state, gradient


@functools.partial(jit, static_argnames=("head_mode",))
def attributed(
    params: Params,
    state: Float[Array, "L S H h"],
    gradient: Float[Array, "L S *heads C"],
    *,
    head_mode: HeadMode,
) -> Float[Array, "L H"]:
    """``∇m · c`` of each head, summed over positions: what its loss costs to first order.

    Args:
        params: f32.
        state, gradient: of one prompt, from ``clean_run``, without its padding.
        head_mode: what a head is (static).
    """
    slope = gradient if head_mode == "edge-align" else gradient[:, :, None]
    return (contributions(params, state, head_mode) * slope).sum(axis=(1, 3))


@struct.dataclass
class LowRun:
    """A low-precision model without edits, beside f32.

    Attributes:
        metrics: its answers, ``[B]``.
        kl: ``[B]``, ``KL(f32 ‖ low)`` of the next token, nats.
        drift: of its heads from f32, ``[L, B, H]``.
        predicted: ``[L, B, H]`` first-order effect of giving each head its f32 contribution back.
        state: ``[L, B, S, H, h]``, every head's, as f32 numbers.
    """

    metrics: AnswerMetrics
    kl: Leaf
    drift: Drift
    predicted: Leaf
    state: Leaf


@functools.partial(jit, static_argnames=("config", "scheme", "head_mode"))
def low_run(
    params: Params,
    low_params: Params,
    question: Question,
    state: State,
    gradient: Float[Array, "L B S *heads C"],
    *,
    config: ModelConfig,
    scheme: Scheme,
    head_mode: HeadMode,
) -> LowRun:
    """The low-precision model without edits, beside f32.

    Args:
        params: f32.
        low_params: the same model in ``scheme``.
        question: the prompts and their answers.
        state, gradient: of the f32 run, from ``clean_run``.
        config: the architecture (static).
        head_mode: what a head is (static).
        scheme: the precision (static).
    """
    reference = forward(
        params, question.tokens, config, lengths=question.lengths, last_only=True
    ).logits
    logits, low_state = _clean(low_params, question, config, scheme, head_mode)

    def layer(arrays: tuple[Any, ...]) -> tuple[Drift, Array]:
        high, low, gradient, w_high, w_low = arrays
        if head_mode == "edge-align":
            base, moved = high.astype(jnp.float32), low.astype(jnp.float32)
        else:
            base, moved = (
                jnp.moveaxis(head_contributions(z, w), 0, -2)
                for z, w in ((high, w_high), (low, w_low))
            )
        lengths = question.lengths
        return head_drift(moved, base, lengths), first_order(gradient, moved, base, lengths)

    weights = params.blocks.attention.out, low_params.blocks.attention.out
    drift, predicted = jax.lax.map(layer, (state, low_state, gradient, *weights))
    return LowRun(
        metrics=question.answer(logits),
        kl=kl_divergence(reference, logits),
        drift=drift,
        predicted=predicted,
        state=low_state.astype(jnp.float32),
    )


def layer_rows(config: ModelConfig, births: Int[np.ndarray, " N"], engine: Engine) -> int:
    """Passes of one edited copy of one prompt through one block, summed over copies.

    Args:
        config: the architecture.
        births: the block in which each copy starts: block ``l`` is 1 + l; a copy costs nothing in
            that block but its fork.
        engine: of the sweep.
    """
    L = config.num_layers
    return int((L - births).sum()) if engine == "wave" else L * len(births)
