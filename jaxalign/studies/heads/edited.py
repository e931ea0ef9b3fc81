"""The heads study's compiled runs with heads replaced: by zero, means, donors, f32's, vectors."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh

from jaxalign.devices.deal import sharded_sweep
from jaxalign.edits import Edit, HeadEdit, HeadMode, head_ablation_masks
from jaxalign.engine import Engine
from jaxalign.model.config import ModelConfig
from jaxalign.model.params import Params
from jaxalign.numerics.scheme import F32, Scheme
from jaxalign.runtime.compile import jit
from jaxalign.shapes import Array, Bool, Float, Int, Leaf
from jaxalign.studies.heads.findings import Replacement
from jaxalign.studies.heads.programs import Question, State, contributions


@struct.dataclass
class Effects:
    """What replacing heads does to the answer: ``m(clean) − m(head replaced)``.

    Attributes:
        answer, distractor: ``[K, M, B]`` of ``logit_diff`` and ``distractor_diff``, a kind of
            replacement each; resampling is the mean over draws.
        clean: ``[B]``, ``m`` of the clean row of the same call.
    """

    answer: Leaf
    distractor: Leaf
    clean: Leaf


@functools.partial(
    jit, static_argnames=("config", "head_mode", "rows", "kinds", "scheme", "engine", "mesh")
)
def importance_run(
    params: Params,
    question: Question,
    means: Float[Array, "L H C"] | None,
    donors: Float[Array, "N L B S H h"] | None,
    *,
    config: ModelConfig,
    head_mode: HeadMode,
    rows: tuple[int, int],
    kinds: tuple[Replacement, ...],
    scheme: Scheme = F32,
    engine: Engine = "wave",
    mesh: Mesh | None = None,
) -> Effects:
    """``m(clean) − m(head replaced)`` by zero, mean and resampling, in one call.

    Args:
        params: of the model that is ablated, in any precision.
        question: the prompts and their answers.
        config: the architecture (static).
        head_mode: what a head is (static).
        means: each head's mean contribution over the reference texts, in this model; None where
            ``kinds`` has no "mean".
        donors: this model's states of other prompts, one for each draw; None where ``kinds`` has no
            "resample".
        rows: which heads, counted layer by layer, ``[start, stop)`` (static).
        kinds: what stands in for a head (static).
        scheme: the precision (static).
        engine, mesh: of the sweep (static).
    """
    masks = head_ablation_masks(config.num_layers, config.num_heads)[slice(*rows)]
    values: list[Array] = []
    counts = []  # sweeps that each kind is the mean of
    for kind in kinds:
        if kind == "zero":
            given = [jnp.zeros((config.num_layers, 1, 1, 1, 1))]
        elif kind == "mean":
            assert means is not None
            given = [means[:, None, None]]
        else:
            assert donors is not None
            states = donors.astype(scheme.compute_dtype)
            given = [contributions(params, donor, head_mode) for donor in states]
        values += given
        counts.append(len(given))
    outs = sharded_sweep(
        mesh,
        params,
        question.tokens,
        question.lengths,
        config,
        [Edit(HeadEdit(masks, value, head_mode)) for value in values],
        question.answer,
        engine=engine,
        scheme=scheme,
    )

    def by_kind(m: list[Array]) -> Array:
        effects = [each[:1] - each[1:] for each in m]
        starts = np.cumsum([0, *counts])
        return jnp.stack(
            [
                jnp.stack(effects[start : start + count]).mean(axis=0)
                for start, count in zip(starts, counts, strict=False)
            ]
        )

    return Effects(
        answer=by_kind([out.logit_diff for out in outs]),
        distractor=by_kind([out.distractor_diff for out in outs]),
        clean=outs[0].logit_diff[0],
    )


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


@functools.partial(
    jit, static_argnames=("config", "scheme", "head_mode", "draws", "engine", "mesh")
)
def vector_run(
    params: Params,
    low_params: Params,
    question: Question,
    state: State,
    low_state: State,
    masks: Bool[Array, "M L B 1 H"] | Bool[np.ndarray, "M L B 1 H"],
    seed: Int[Array, ""],
    *,
    config: ModelConfig,
    scheme: Scheme,
    head_mode: HeadMode,
    draws: int,
    engine: Engine = "wave",
    mesh: Mesh | None = None,
) -> Float[Array, "draws 1+M B"]:
    """As ``repair_run``, but each head gets its own low-precision contribution plus a random vector
    as long as its distance from f32's: the control of what a change of that size does there.

    Args:
        params, low_params, question, state, masks, config, scheme, head_mode, engine, mesh: as in
            ``repair_run``.
        low_state: of the low-precision run.
        seed: of the vectors.
        draws: how many for each head and position (static).
    """
    own = contributions(low_params, low_state.astype(scheme.compute_dtype), head_mode)
    distance = jnp.linalg.norm(
        contributions(params, state, head_mode) - own, axis=-1, keepdims=True
    )

    def moved(key: jax.Array) -> Array:
        vector = jax.random.normal(key, own.shape)
        return own + vector * (distance / jnp.linalg.norm(vector, axis=-1, keepdims=True))

    keys = jax.random.split(jax.random.key(seed), draws)
    outs = sharded_sweep(
        mesh,
        low_params,
        question.tokens,
        question.lengths,
        config,
        [Edit(HeadEdit(masks, moved(key), head_mode)) for key in keys],
        question.answer,
        engine=engine,
        scheme=scheme,
    )
    return jnp.stack([out.logit_diff for out in outs])
