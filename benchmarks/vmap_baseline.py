"""What a JAX user would write without the wave: ``vmap`` of a whole run over one mask a head.

With the study's metric that is ``sweep`` with the plan "vmap". ``answer_pair`` asks for less, the
difference of two given logits, so it needs no unembedding at all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import jaxalign
from benchmarks import workload
from jaxalign.edit import Edit, HeadEdit, head_ablation_masks
from jaxalign.measures.metrics import Answer
from jaxalign.model import ModelConfig, Params, forward
from jaxalign.prompts import batches
from jaxalign.shapes import Array, Bool, Float, Int, Tokens
from jaxalign.studies.heads.calls import Runner


def _masks(config: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
    masks = head_ablation_masks(config.num_layers, config.num_heads)
    return masks, np.zeros((config.num_layers, 1, 1, 1, 1), np.float32)


@functools.partial(jaxalign.jit, static_argnames=("config",))
def answer_pair(
    params: Params,
    tokens: Tokens,
    target: Int[Array, " B"],
    other: Int[Array, " B"],
    *,
    config: ModelConfig,
) -> Float[Array, "M B"]:
    """Importance of every head for ``logit(target) − logit(other)``, one whole run a head."""
    masks, zero = _masks(config)
    matrix = params.embed if params.unembed is None else params.unembed
    direction = matrix[target] - matrix[other]

    def run(mask: Bool[Array, "L 1 1 H"]) -> Float[Array, " B"]:
        edit = Edit(head=HeadEdit(mask, zero))
        out = forward(params, tokens, config, edit=edit, capture=("final_norm",), last_only=True)
        return (out.activations["final_norm"][:, -1] * direction).sum(axis=-1)

    m = jax.vmap(run)(jnp.concatenate([jnp.zeros_like(masks[:1]), masks]))
    return m[:1] - m[1:]


@functools.partial(jaxalign.jit, static_argnames=("config",))
def answer_pair_by_wave(
    params: Params,
    tokens: Tokens,
    target: Int[Array, " B"],
    other: Int[Array, " B"],
    *,
    config: ModelConfig,
) -> Float[Array, "M B"]:
    """The same by the wave, to compare with."""
    edit = Edit(head=HeadEdit(*_masks(config)))
    [out] = jaxalign.sweep(
        params,
        tokens,
        jnp.full(tokens.shape[0], tokens.shape[1]),
        config,
        [edit],
        Answer(target, other),
    )
    m = out.distractor_diff
    return m[:1] - m[1:]


def importance(
    runner: Runner,
    tokens: np.ndarray,
    target: np.ndarray,
    batch_size: int,
    first: int | None = None,
) -> np.ndarray:
    """The study's importance with the plan "vmap", ``[P, L·H]``; all heads in any case."""
    work = list(batches(tokens.tolist(), batch_size, runner.config.max_positions))
    return workload.importance(runner, workload.Prompts(tokens, target), work, plan="vmap")


def pair_importance(
    runner: Runner,
    tokens: np.ndarray,
    target: np.ndarray,
    batch_size: int,
    first: int | None = None,
    by: Callable[..., Array] = answer_pair,
) -> np.ndarray:
    """Importance for the target's logit less that of the target before it, ``[P, L·H]``."""
    other = np.roll(target, 1)
    found = []
    for start in range(0, len(tokens), batch_size):
        part = slice(start, start + batch_size)
        m = by(runner.model.params, tokens[part], target[part], other[part], config=runner.config)
        found.append(np.asarray(m).T)
    return np.concatenate(found)
