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
from jaxalign.shapes import Array, Bool, Float, Leaf, UInt32
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
    jit,
    static_argnames=("config", "head_mode", "rows", "kinds", "heads", "scheme", "engine", "mesh"),
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
    heads: tuple[int, ...] | None = None,
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
        heads: the chosen ones, head ``l·H + h``, of which ``rows`` are counted; None for all
            (static).
        scheme: the precision (static).
        engine, mesh: of the sweep (static).
    """
    masks = head_ablation_masks(config.num_layers, config.num_heads)
    masks = (masks if heads is None else masks[list(heads)])[slice(*rows)]
    given: dict[Replacement, list[Array]] = {
        "zero": [jnp.zeros((config.num_layers, 1, 1, 1, 1))],
        "mean": [] if means is None else [means[:, None, None]],
        "resample": []
        if donors is None
        else [contributions(params, d, head_mode) for d in donors.astype(scheme.compute_dtype)],
    }
    outs = sharded_sweep(
        mesh,
        params,
        question.tokens,
        question.lengths,
        config,
        [Edit(HeadEdit(masks, value, head_mode)) for kind in kinds for value in given[kind]],
        question.answer,
        engine=engine,
        scheme=scheme,
    )
    ends = np.cumsum([len(given[kind]) for kind in kinds])[:-1].tolist()

    def by_kind(m: list[Array]) -> Array:
        effects = jnp.stack([each[:1] - each[1:] for each in m])
        return jnp.stack([own.mean(axis=0) for own in jnp.split(effects, ends)])

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
    masks: Bool[Array, "M L B 1 H"] | Bool[np.ndarray, "M L B 1 H"],
    low_state: State,
    seeds: UInt32[Array, "B 2"],
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
        seeds: of each prompt's vectors: the study's seed and the prompt's place in it, so that no
            two prompts share vectors, whatever calls they are in.
        draws: how many for each head and position (static).
    """
    own = contributions(low_params, low_state.astype(scheme.compute_dtype), head_mode)
    distance = jnp.linalg.norm(
        contributions(params, state, head_mode) - own, axis=-1, keepdims=True
    )

    def vector(seed: Array, draw: Array) -> Float[Array, "L S H C"]:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed[0]), seed[1]), draw)
        return jax.random.normal(key, (*own.shape[:1], *own.shape[2:]))

    def moved(draw: int) -> Float[Array, "L B S H C"]:
        way = jax.vmap(vector, in_axes=(0, None), out_axes=1)(seeds, jnp.uint32(draw))
        return own + way * (distance / jnp.linalg.norm(way, axis=-1, keepdims=True))

    outs = sharded_sweep(
        mesh,
        low_params,
        question.tokens,
        question.lengths,
        config,
        [Edit(HeadEdit(masks, moved(draw), head_mode)) for draw in range(draws)],
        question.answer,
        engine=engine,
        scheme=scheme,
    )
    return jnp.stack([out.logit_diff for out in outs])
