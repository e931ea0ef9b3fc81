"""The compiled calls of the heads study: arrays in, arrays out, one program a batch shape.

A head's *state* is what its contribution is computed from: ``z`` for true heads; for edge-align's
blocks the attention output itself, cut into ``H`` blocks. Both are ``[L, B, S, H, h]``, ``H`` times
smaller than the contributions of true heads, so states are what the study keeps.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxalign.edit import Edit, HeadEdit, head_ablation_masks
from jaxalign.metrics import (
    AnswerMetrics,
    Drift,
    answer_metrics,
    first_order,
    head_drift,
    logit_difference,
)
from jaxalign.model.config import ModelConfig
from jaxalign.model.decoder import forward, head_contributions
from jaxalign.model.params import Params
from jaxalign.numerics.compile import jit
from jaxalign.numerics.scheme import Scheme
from jaxalign.shapes import Array, Bool, Float, Int, Leaf
from jaxalign.sweep import Readout, schedule, sweep

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

    def readout(self) -> Readout:
        """From last-position logits to ``AnswerMetrics``."""
        return lambda logits: answer_metrics(logits, self.target, self.distractor)


def contributions(
    params: Params, state: Float[Array, "L *rows H h"], head_mode: str
) -> Float[Array, "L *rows H C"]:
    """Every head's contribution in f32, from its state."""
    if head_mode == "edge-align":
        return state.astype(jnp.float32)
    return jax.vmap(head_contributions)(state, params.blocks.attention.out)


@functools.partial(jit, static_argnames=("config", "scheme", "head_mode"))
def clean_run(
    params: Params, question: Question, *, config: ModelConfig, scheme: Scheme, head_mode: str
) -> tuple[AnswerMetrics, State]:
    """The model without edits: its answers and every head's state."""
    site = "attn_out" if head_mode == "edge-align" else "z"
    out = forward(
        params,
        question.tokens,
        config,
        lengths=question.lengths,
        scheme=scheme,
        capture=(site,),
        last_only=True,
    )
    state = out.activations[site]
    heads = (*state.shape[:3], config.num_heads, config.head_size)
    return question.readout()(out.logits), state.reshape(heads)


@functools.partial(jit, static_argnames=("config", "head_mode", "rows", "wave"))
def importance_run(
    params: Params,
    question: Question,
    means: Float[Array, "L H C"],
    donors: Float[Array, "N L B S H h"],
    *,
    config: ModelConfig,
    head_mode: str,
    rows: tuple[int, int],
    wave: bool = True,
) -> tuple[Float[Array, "3 M B"], Float[Array, "3 M B"]]:
    """``m(clean) − m(head replaced)`` by zero, mean and resampling, in f32, in one call.

    Args:
        means: each head's mean contribution over the reference texts.
        donors: states of other prompts, one for each draw.
        rows: which heads, counted layer by layer, ``[start, stop)``.
        wave: False for the plain path.

    Returns:
        The importance for ``logit_diff`` and for ``distractor_diff``; resampling is the mean over
        draws.
    """
    masks = head_ablation_masks(config.num_layers, config.num_heads)[slice(*rows)]
    zero = jnp.zeros((config.num_layers, 1, 1, 1, 1))
    resampled = [contributions(params, donor, head_mode) for donor in donors]
    values = [zero, means[:, None, None], *resampled]
    edits = [Edit(head=HeadEdit(masks, value, head_mode)) for value in values]
    plan = schedule(edits) if wave else None
    outs = sweep(
        params, question.tokens, question.lengths, config, edits, question.readout(), plan=plan
    )
    effects = [
        jax.tree.map(lambda m: m[:1] - m[1:], (o.logit_diff, o.distractor_diff)) for o in outs
    ]
    draws = jax.tree.map(lambda *draw: jnp.stack(draw).mean(axis=0), *effects[2:])
    return jax.tree.map(lambda *kinds: jnp.stack(kinds), effects[0], effects[1], draws)


@functools.partial(jit, static_argnames=("config", "head_mode"))
def gradient_run(
    params: Params, question: Question, *, config: ModelConfig, head_mode: str
) -> Float[Array, "L B S *heads C"]:
    """``∂m / ∂c`` for every head, in f32, in one backward pass.

    All true heads of a layer write to the same stream, so they share one gradient, that of the
    attention output; edge-align's blocks have each their own part of it.
    """
    shape = (config.num_layers, *question.tokens.shape, config.hidden_size)

    def total(added: Array) -> Array:
        edit = Edit(attn_add=added)
        out = forward(
            params,
            question.tokens,
            config,
            lengths=question.lengths,
            edit=edit,
            last_only=True,
        )
        return logit_difference(out.logits, question.target).sum()

    gradient = jax.grad(total)(jnp.zeros(shape))
    if head_mode == "edge-align":
        return gradient.reshape(*shape[:3], config.num_heads, config.head_size)
    return gradient


@functools.partial(jit, static_argnames=("head_mode",))
def compare_run(
    params: Params,
    low_params: Params,
    state: State,
    low_state: State,
    gradient: Float[Array, "L B S *heads C"],
    lengths: Int[Array, " B"],
    *,
    head_mode: str,
) -> tuple[Drift, Float[Array, "L B H"]]:
    """Drift of every head between two runs, and its first-order effect, layer by layer."""

    def layer(arrays: tuple[Array, ...]) -> tuple[Drift, Array]:
        high, low, gradient, w_high, w_low = arrays
        if head_mode == "edge-align":
            base, moved = high.astype(jnp.float32), low.astype(jnp.float32)
        else:
            base, moved = head_contributions(high, w_high), head_contributions(low, w_low)
        return head_drift(moved, base, lengths), first_order(gradient, moved, base, lengths)

    weights = params.blocks.attention.out, low_params.blocks.attention.out
    return jax.lax.map(layer, (state, low_state, gradient, *weights))


def _restored_margins(
    params: Params,
    low_params: Params,
    question: Question,
    state: State,
    masks: Bool[Array, "M L #B 1 H"] | Bool[np.ndarray, "M L #B 1 H"],
    config: ModelConfig,
    scheme: Scheme,
    head_mode: str,
    wave: bool,
) -> Float[Array, "1+M B"]:
    """``m`` of the low-precision model with masked heads' f32 contributions; row 0 is clean."""
    edits = [Edit(head=HeadEdit(masks, contributions(params, state, head_mode), head_mode))]
    [out] = sweep(
        low_params,
        question.tokens,
        question.lengths,
        config,
        edits,
        question.readout(),
        plan=schedule(edits) if wave else None,
        scheme=scheme,
    )
    return out.logit_diff


@functools.partial(jit, static_argnames=("config", "scheme", "head_mode"))
def repair_run(
    params: Params,
    low_params: Params,
    question: Question,
    state: State,
    masks: Bool[Array, "M L B 1 H"],
    *,
    config: ModelConfig,
    scheme: Scheme,
    head_mode: str,
) -> Float[Array, "1+M B"]:
    """``m`` clean and under each mask of restored heads.

    Each prompt has its own masks and nearly every row begins in the first layer, so this is the
    plain path: it computes what the wave would, and compiles once for all masks.
    """
    return _restored_margins(
        params, low_params, question, state, masks, config, scheme, head_mode, wave=False
    )


@functools.partial(jit, static_argnames=("config", "scheme", "head_mode", "rows"))
def restore_run(
    params: Params,
    low_params: Params,
    question: Question,
    state: State,
    *,
    config: ModelConfig,
    scheme: Scheme,
    head_mode: str,
    rows: tuple[int, int],
) -> Float[Array, "M B"]:
    """Gain in ``m`` of restoring each head of ``rows`` alone in the low-precision model."""
    masks = head_ablation_masks(config.num_layers, config.num_heads)[slice(*rows)]
    m = _restored_margins(
        params, low_params, question, state, masks, config, scheme, head_mode, wave=True
    )
    return m[1:] - m[:1]


def wave_layer_rows(config: ModelConfig, groups: int, rows: tuple[int, int]) -> int:
    """Passes of one row through one block in a wave over the heads ``rows``, ``groups`` times."""
    births = 1 + np.arange(*rows) // config.num_heads
    return int(config.num_layers + groups * (config.num_layers - births).sum())
