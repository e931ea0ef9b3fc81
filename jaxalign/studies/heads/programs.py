"""The compiled calls of the heads study: arrays in, arrays out, one program a batch shape.

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
from jax.sharding import Mesh

from jaxalign.devices.deal import sharded_sweep
from jaxalign.edits import AttentionAdd, Edit, HeadEdit, HeadMode, head_ablation_masks
from jaxalign.engine import Engine
from jaxalign.measures.metrics import (
    Answer,
    AnswerMetrics,
    Drift,
    first_order,
    head_drift,
)
from jaxalign.model.config import ModelConfig
from jaxalign.model.decoder import forward, head_contributions
from jaxalign.model.params import Params
from jaxalign.numerics.scheme import F32, Scheme
from jaxalign.runtime.compile import jit
from jaxalign.shapes import Array, Bool, Float, Int, Leaf

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


added = jit(contributions, static_argnames=("head_mode",))


def _clean(
    params: Params,
    question: Question,
    config: ModelConfig,
    scheme: Scheme,
    head_mode: HeadMode,
    edit: Edit | None = None,
) -> tuple[AnswerMetrics, State]:
    """The model's answers and every head's state."""
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
    return question.answer(out.logits), state.reshape(heads)


@functools.partial(jit, static_argnames=("config", "head_mode"))
def clean_run(
    params: Params, question: Question, *, config: ModelConfig, head_mode: HeadMode
) -> tuple[AnswerMetrics, State, Float[Array, "L B S *heads C"]]:
    """The f32 model without edits: its answers, every head's state, and ``∂m / ∂c``.

    All true heads of a layer write to the same stream, so they share one gradient, that of the
    attention output; edge-align's blocks have each their own part of it.

    Args:
        params: f32.
        question: the prompts and their answers.
        config: the architecture (static).
        head_mode: what a head is (static).
    """
    shape = (config.num_layers, *question.tokens.shape, config.hidden_size)
    everywhere = np.ones((config.num_layers, 1, 1), bool)

    def total(added: Array) -> tuple[Array, tuple[AnswerMetrics, State]]:
        steered = Edit(AttentionAdd(everywhere, added))
        out = _clean(params, question, config, F32, head_mode, steered)
        return out[0].logit_diff.sum(), out

    gradient, (metrics, state) = jax.grad(total, has_aux=True)(jnp.zeros(shape))
    if head_mode == "edge-align":
        gradient = gradient.reshape(*shape[:3], config.num_heads, config.edge_size)
    return metrics, state, gradient


@functools.partial(jit, static_argnames=("config", "head_mode", "rows", "engine", "mesh"))
def importance_run(
    params: Params,
    question: Question,
    means: Float[Array, "L H C"],
    donors: Float[Array, "N L B S H h"],
    *,
    config: ModelConfig,
    head_mode: HeadMode,
    rows: tuple[int, int],
    engine: Engine = "wave",
    mesh: Mesh | None = None,
) -> tuple[Float[Array, "3 M B"], Float[Array, "3 M B"]]:
    """``m(clean) − m(head replaced)`` by zero, mean and resampling, in f32, in one call.

    Args:
        params: f32.
        question: the prompts and their answers.
        config: the architecture (static).
        head_mode: what a head is (static).
        means: each head's mean contribution over the reference texts.
        donors: states of other prompts, one for each draw.
        rows: which heads, counted layer by layer, ``[start, stop)``.
        engine, mesh: of the sweep.

    Returns:
        The importance for ``logit_diff`` and for ``distractor_diff``; resampling is the mean over
        draws.
    """
    masks = head_ablation_masks(config.num_layers, config.num_heads)[slice(*rows)]
    zero = jnp.zeros((config.num_layers, 1, 1, 1, 1))
    resampled = [contributions(params, donor, head_mode) for donor in donors]
    values = [zero, means[:, None, None], *resampled]
    edits = [Edit(HeadEdit(masks, value, head_mode)) for value in values]
    outs = sharded_sweep(
        mesh,
        params,
        question.tokens,
        question.lengths,
        config,
        edits,
        question.answer,
        engine=engine,
    )
    effects = [
        jax.tree.map(lambda m: m[:1] - m[1:], (o.logit_diff, o.distractor_diff)) for o in outs
    ]
    draws = jax.tree.map(lambda *draw: jnp.stack(draw).mean(axis=0), *effects[2:])
    return jax.tree.map(lambda *kinds: jnp.stack(kinds), effects[0], effects[1], draws)


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
) -> tuple[AnswerMetrics, Drift, Float[Array, "L B H"]]:
    """The low-precision model's answers, its heads' drift from f32, and their first-order effects.

    Args:
        params: f32.
        low_params: the same model in ``scheme``.
        question: the prompts and their answers.
        state, gradient: of the f32 run, from ``clean_run``.
        config: the architecture (static).
        head_mode: what a head is (static).
        scheme: the precision (static).
    """
    metrics, low_state = _clean(low_params, question, config, scheme, head_mode)

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
    return metrics, drift, predicted


@functools.partial(jit, static_argnames=("config", "scheme", "head_mode", "engine", "mesh"))
def repair_run(
    params: Params,
    low_params: Params,
    question: Question,
    state: State,
    masks: Bool[Array, "M L B 1 H"] | Bool[np.ndarray, "M L B 1 H"],
    *,
    config: ModelConfig,
    scheme: Scheme,
    head_mode: HeadMode,
    engine: Engine = "wave",
    mesh: Mesh | None = None,
) -> Float[Array, "1+M B"]:
    """``m`` of the low-precision model, clean and with the f32 contributions of each mask's heads.

    Every prompt has its own masks, and each run starts in the block where they begin.

    Args:
        params: f32.
        low_params: the same model in ``scheme``.
        question: the prompts and their answers.
        state: of the f32 run, from ``clean_run``.
        masks: which heads of each prompt are given back in each run.
        config: the architecture (static).
        head_mode: what a head is (static).
        scheme: the precision (static).
        engine, mesh: of the sweep (static).
    """
    edits = [Edit(HeadEdit(masks, contributions(params, state, head_mode), head_mode))]
    [out] = sharded_sweep(
        mesh,
        low_params,
        question.tokens,
        question.lengths,
        config,
        edits,
        question.answer,
        engine=engine,
        scheme=scheme,
    )
    return out.logit_diff


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
