"""The compiled programs of a patching study: runs of a pair, and rows that exchange places."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from jaxalign.edits.anywhere import Replace
from jaxalign.edits.points import POINTS
from jaxalign.edits.site import Edit
from jaxalign.engine.knockouts import cut_from_last
from jaxalign.engine.patching import attribution_patching, value_at
from jaxalign.engine.paths import along_paths
from jaxalign.engine.sweep import sweep
from jaxalign.measures.metrics import AnswersDifference
from jaxalign.model.config import ModelConfig
from jaxalign.model.decoder import forward
from jaxalign.model.params import Params
from jaxalign.runtime.compile import jit
from jaxalign.shapes import Array, Bool, Float, Int, Leaf, Tokens
from jaxalign.study.calls import deal_prompts


@struct.dataclass
class Prompts:
    """The prompts of a call that an answer is read from.

    Attributes:
        tokens: ``[B, S]``; lengths: ``[B]``.
        answers, weights: ``[B, answers]``, as ``measures.metrics.answer_weights`` has them.
    """

    tokens: Leaf
    lengths: Leaf
    answers: Leaf
    weights: Leaf

    @property
    def metric(self) -> AnswersDifference:
        """The mean logit of the answers less that of the wrong answers."""
        return AnswersDifference(self.answers, self.weights)


@functools.partial(jit, static_argnames=("config", "mesh"), keep_unused=True)
def score(
    params: Params, prompts: Prompts, *, config: ModelConfig, mesh: Mesh | None = None
) -> Float[Array, " B"]:
    """The metric of runs without edits.

    Args:
        params: f32.
        prompts: of either side.
        config, mesh: static.
    """

    def run(params: Params, prompts: Prompts) -> Array:
        out = forward(params, prompts.tokens, config, lengths=prompts.lengths, last_only=True)
        return prompts.metric(out.logits)

    return deal_prompts(mesh, run, (params,), (prompts,))


@functools.partial(
    jit, static_argnames=("config", "point", "apart", "suffix", "mesh"), keep_unused=True
)
def exchange(
    params: Params,
    rows: Int[Array, "M 3"],
    prompts: Prompts,
    source: Tokens,
    groups: Int[Array, "B 2 S"],
    keys: Array,
    *,
    config: ModelConfig,
    point: str,
    apart: str,
    suffix: int | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, "B kinds R"]:
    """The metric where a place has another run's value, and where it has a random one as far away.

    The random value is as far from the run's own, at every position and head, as the other run's:
    ``own + ‖other − own‖ · direction``. Of attention patterns the direction keeps the sum over the
    positions that are seen.

    Args:
        params: f32.
        rows: layer (of ``resid`` the step), group of positions and head of each; what ``apart``
            does not name is not read.
        prompts: the runs that are changed.
        source: the prompts whose values are put there.
        groups: of each position, by role and by word (``groups.Groups``).
        keys: of each prompt's random directions.
        config, point, apart, mesh: static; ``apart`` as ``options.Sweep`` has it.
        suffix: how many of the prompts' last positions the rows change at the most (static); None
            for all.

    Returns:
        ``[B, 2, 1 + M]``: first the other run's values, then random ones; row 0 is the run itself.
    """

    def run(params: Params, rows: Array, prompts: Prompts, *split: Array) -> Array:
        source, groups, keys = split
        how: dict[str, Any] = {"lengths": prompts.lengths, "last_only": True}
        names = ("embed", point) if point == "resid" else (point,)
        own, other = (
            value_at(forward(params, tokens, config, capture=names, **how), point)
            for tokens in (prompts.tokens, source)
        )
        mask = _places(rows, groups, own.shape, point, apart)
        edits = [
            Edit(Replace(point, mask, value)) for value in (other, _random(keys, own, other, point))
        ]
        held = () if suffix is None else ((suffix,) * len(rows),) * len(edits)
        found = sweep(
            params, prompts.tokens, prompts.lengths, config, edits, prompts.metric,
            single_step=True, suffixes=held,
        )  # fmt: skip
        return jnp.moveaxis(jnp.stack(found), -1, 0)

    return deal_prompts(mesh, run, (params, rows), (prompts, source, groups, keys))


def _places(
    rows: Int[Array, "M 3"], groups: Int[Array, "B 2 S"], shape: tuple[int, ...], point: str,
    apart: str,
) -> Bool[Array, "M *point"]:  # fmt: skip
    """Where each row acts: its layer, and its group of positions and its head where it has one."""
    axes = POINTS[point].axes
    size = dict(zip(axes, shape, strict=True))
    layer, group, head = (rows[:, i].reshape(-1, *[1] * len(axes)) for i in range(3))

    def along(letter: str) -> Array:
        """The places of one axis, with 1 for all others and for the rows."""
        here = [1, *(size[letter] if axis == letter else 1 for axis in axes)]
        return jnp.arange(size[letter]).reshape(here)

    mask = along(axes[0]) == layer
    if "S" in apart:
        here = [1, *(size[axis] if axis in "BS" else 1 for axis in axes)]
        roles, words = (groups[:, kind].reshape(here) for kind in range(2))
        mask = mask & ((roles == group) | (words == group))
    if "H" in apart:
        [letter] = [axis for axis in axes if axis in ("H", "K")]
        mask = mask & (along(letter) == head)
    return mask


def _random(keys: Array, own: Array, other: Array, point: str) -> Array:
    """Values as far from the run's own as another run's are, in random directions."""
    pairs = "Q" in POINTS[point].axes
    apart = own.shape[3:] if not pairs else (own.shape[2], own.shape[4])
    positions = own.shape[2] if not pairs else own.shape[3]

    def draw(key: Array) -> Array:
        """One prompt's directions, position by position: the same however long the padding is."""
        each = jax.vmap(lambda at: jax.random.fold_in(key, at))(jnp.arange(positions))
        return jax.vmap(lambda k: jax.random.normal(k, (own.shape[0], *apart)))(each)

    drawn = jnp.moveaxis(jax.vmap(draw)(keys), 2, 0)  # [L, B, S, …], of patterns [L, B, Q, H, S]
    change = (other - own).astype(jnp.float32)
    if pairs:
        drawn = jnp.moveaxis(drawn, 2, 3)
        seen = own > 0
        count = seen.sum(-1, keepdims=True).astype(jnp.float32)
        mean = jnp.where(seen, drawn, 0).sum(-1, keepdims=True) / jnp.maximum(count, 1)
        drawn = jnp.where(seen, drawn - mean, 0)
    norm = jnp.linalg.norm(drawn, axis=-1, keepdims=True)
    size = jnp.linalg.norm(change, axis=-1, keepdims=True)
    return own + drawn * jnp.where(norm > 0, size / jnp.where(norm > 0, norm, 1), 0)


@functools.partial(jit, static_argnames=("config", "window", "mesh"), keep_unused=True)
def knock_out(
    params: Params,
    rows: Int[Array, "M 2"],
    prompts: Prompts,
    groups: Int[Array, "B 2 S"],
    *,
    config: ModelConfig,
    window: int,
    mesh: Mesh | None = None,
) -> Float[Array, "B 1 R"]:
    """The metric where the last position does not see a group of positions in some layers.

    Args:
        params: f32.
        rows: first layer of the window, and group, of each.
        prompts: the runs that are cut.
        groups: of each position, by role and by word (``groups.Groups``).
        config, window, mesh: static.
    """

    def run(params: Params, rows: Array, prompts: Prompts, groups: Array) -> Array:
        edit = cut_from_last(rows, groups, prompts.lengths, window, config)
        [found] = sweep(
            params, prompts.tokens, prompts.lengths, config, [edit], prompts.metric,
            single_step=window == 1,
            suffixes=((1,) * len(rows),),  # nothing but the last position changes
        )  # fmt: skip
        return found.T[:, None]

    return deal_prompts(mesh, run, (params, rows), (prompts, groups))


@functools.partial(jit, static_argnames=("config", "to_logits", "mesh"), keep_unused=True)
def send(
    params: Params,
    rows: Int[Array, "M 2"],
    receiver: Int[Array, " 2"],
    prompts: Prompts,
    source: Tokens,
    keys: Array,
    *,
    config: ModelConfig,
    to_logits: bool,
    mesh: Mesh | None = None,
) -> Float[Array, "B kinds R"]:
    """The metric where one head's change reaches one reader alone (``engine.paths``).

    Args:
        params: f32.
        rows: layer and head of the senders.
        receiver: layer and head that reads.
        prompts: the runs that are changed.
        source: the prompts whose ``z`` is put there.
        keys: of each prompt's random directions.
        config, mesh: static.
        to_logits: whether the logits read in the receiver's place (static).

    Returns:
        ``[B, 2, R]`` to the logits; ``[B, 6, R]`` to the receiver's query, key and value: first the
        other run's values, then random ones.
    """

    def run(params: Params, rows: Array, receiver: Array, prompts: Prompts, *split: Array) -> Array:
        source, keys = split
        how: dict[str, Any] = {"lengths": prompts.lengths, "last_only": True, "capture": ("z",)}
        own, other = (
            forward(params, tokens, config, **how).activations["z"]
            for tokens in (prompts.tokens, source)
        )
        base, found = along_paths(
            params, prompts.tokens, prompts.lengths, config, prompts.metric, rows,
            (other, _random(keys, own, other, "z")),
            receiver=None if to_logits else (receiver[0], receiver[1]),
        )  # fmt: skip
        found = found.reshape(-1, *found.shape[-2:])
        base = jnp.broadcast_to(base[None], (len(found), 1, base.shape[-1]))
        return jnp.moveaxis(jnp.concatenate([base, found], axis=1), -1, 0)

    return deal_prompts(mesh, run, (params, rows, receiver), (prompts, source, keys))


@functools.partial(jit, static_argnames=("config", "point", "apart", "mesh"), keep_unused=True)
def estimate(
    params: Params,
    rows: Int[Array, "M 3"],
    prompts: Prompts,
    source: Tokens,
    groups: Int[Array, "B 2 S"],
    *,
    config: ModelConfig,
    point: str,
    apart: str,
    mesh: Mesh | None = None,
) -> Float[Array, "B 1 R"]:
    """What ``exchange`` does to the metric, to first order, of every row in one backward pass.

    Args:
        params, rows, prompts, source, groups: as for ``exchange``.
        config, point, apart, mesh: static.
    """

    def run(params: Params, rows: Array, prompts: Prompts, *split: Array) -> Array:
        source, groups = split
        run = params, source, prompts.tokens, prompts.lengths, config, prompts.metric
        screen = attribution_patching(*run, points=point)
        found = screen.estimates[point]
        shape = (*found.shape, *[1] * (len(POINTS[point].axes) - found.ndim))
        whole = found.reshape(shape)

        def of(row: Array) -> Array:
            mask = _places(row[None], groups, shape, point, apart)[0]
            kept = jnp.where(mask, whole, 0)
            return kept.sum(axis=tuple(i for i in range(kept.ndim) if i != 1))

        base = screen.corrupted
        return jnp.concatenate([base[:, None], base[:, None] + jax.lax.map(of, rows).T], axis=1)[
            :, None
        ]

    return deal_prompts(mesh, run, (params, rows), (prompts, source, groups))
