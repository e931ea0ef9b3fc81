"""The compiled calls of the comparison: two models on the same prompts, arrays in, arrays out."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh

from jaxalign.devices.mesh import shard_packed
from jaxalign.measures.metrics import head_drift, kl_divergence, logit_difference
from jaxalign.model.config import ModelConfig
from jaxalign.model.decoder import forward, head_contributions, real_positions
from jaxalign.model.matrices import matrix_name
from jaxalign.model.params import Params
from jaxalign.numerics.scheme import F32, Scheme
from jaxalign.prompts import Batch
from jaxalign.runtime.compile import jit
from jaxalign.shapes import Array, Float, Int, Leaf, Lengths, Tokens
from jaxalign.study.batching import too_small
from jaxalign.study.calls import Call, Late, deal_prompts
from jaxalign.study.session import Session
from jaxalign.study.weight_noise import late_noise, moves_matrices

# What the lottery moves weights by, relative to each.
MOVED = 1e-6
ALONE = {"alone": True}
# More prompts at once gain nothing, since the weights are read often enough.
MOST_PROMPTS = 64


@struct.dataclass
class Comparison:
    """How far a model is from a reference, by prompt ``[B]``.

    Attributes:
        kl: ``KL(reference ‖ model)`` of the next token, nats, mean over real positions.
        agreement: the share of real positions where both put the same token first.
        margin: the model's ``m = logit(target) − max(other logits)`` at the last position.
        reference_margin: the reference's.
        drift: ``‖c − c_ref‖ / ‖c_ref‖`` of a head's contribution at the last position, mean over
            heads.
    """

    kl: Leaf
    agreement: Leaf
    margin: Leaf
    reference_margin: Leaf
    drift: Leaf


@functools.partial(
    jit, static_argnames=("config", "scheme", "reference_scheme", "alone", "mesh"), keep_unused=True
)
def compare(
    reference: Params,
    params: Params,
    tokens: Tokens,
    lengths: Lengths,
    target: Int[Array, " B"],
    *,
    config: ModelConfig,
    scheme: Scheme,
    reference_scheme: Scheme = F32,
    alone: bool = False,
    mesh: Mesh | None = None,
) -> Comparison:
    """Run the reference and the model on a batch of prompts and compare them.

    Args:
        reference: parameters, in the dtype of ``reference_scheme``.
        params: of the model, in the dtype of ``scheme``.
        tokens: ``[B, S]``, padded on the right; ``lengths`` real ones.
        lengths: int ``[B]``.
        target: token ids of the answers.
        config, scheme, reference_scheme: static.
        alone: the model runs prompt by prompt instead of all at once. Beside itself in a batch,
            that is the batching noise of its precision.
        mesh: whose devices share the prompts (static).
    """
    compared = functools.partial(
        _compare, config=config, scheme=scheme, reference_scheme=reference_scheme, alone=alone
    )
    return deal_prompts(mesh, compared, (reference, params), (tokens, lengths, target))


def _compare(
    reference: Params,
    params: Params,
    tokens: Tokens,
    lengths: Lengths,
    target: Int[Array, " B"],
    *,
    config: ModelConfig,
    scheme: Scheme,
    reference_scheme: Scheme,
    alone: bool,
) -> Comparison:
    base, base_heads = _run(reference, tokens, lengths, config, reference_scheme)
    if alone:
        one = lambda row: _run(params, row[0][None], row[1][None], config, scheme)  # noqa: E731
        logits, heads = jax.lax.map(one, (tokens, lengths))
        logits, heads = logits[:, 0], jnp.moveaxis(heads[:, :, 0], 0, 1)
    else:
        logits, heads = _run(params, tokens, lengths, config, scheme)
    real = real_positions(lengths, tokens.shape[1])

    def over_positions(values: Array) -> Array:
        return jnp.where(real, values, 0).sum(axis=-1) / lengths.astype(jnp.float32)

    last = (jnp.arange(len(lengths)), lengths - 1)
    same = (logits.argmax(axis=-1) == base.argmax(axis=-1)).astype(jnp.float32)
    moved = jax.vmap(head_drift, (0, 0, None))(heads, base_heads, lengths).last  # [L, B, H]
    return Comparison(
        kl=over_positions(kl_divergence(base, logits)),
        agreement=over_positions(same),
        margin=logit_difference(logits[last], target),
        reference_margin=logit_difference(base[last], target),
        drift=moved.mean(axis=(0, 2)),
    )


def _run(
    params: Params, tokens: Tokens, lengths: Lengths, config: ModelConfig, scheme: Scheme
) -> tuple[Float[Array, "B S V"], Float[Array, "L B S H D"]]:
    """Logits of every position and what every head adds to the stream."""
    out = forward(params, tokens, config, lengths=lengths, scheme=scheme, capture=("z",))
    heads = jax.vmap(head_contributions)(out.activations["z"], params.blocks.attention.out)
    return out.logits, jnp.moveaxis(heads, 1, -2)


def batches(session: Session) -> list[Batch]:
    """The study's prompts in batches: both models' logits and heads decide over their size."""
    config = session.config
    each = 6 * config.vocab_size + 4 * config.num_layers * config.num_heads * config.hidden_size
    free = session.free(session.model.params, session.model.params)

    def most(length: int) -> int:
        need = 4.0 * length * each
        if free < need:
            raise too_small(f"one prompt of {length} positions", need, free)
        return min(int(free // need), MOST_PROMPTS)

    return session.batches(most, dealt=True)


def calls(
    session: Session, scheme: Scheme, work: list[Batch], noise_draws: int, lottery_draws: int
) -> Iterator[Call[Comparison]]:
    """Everything that is asked of one scheme: against f32, prompt by prompt, noise, the lottery.

    Args:
        session: of the study.
        scheme: F32 or a low precision.
        work: the batches.
        noise_draws: draws of weight noise, where the scheme moves a weight.
        lottery_draws: repetitions on moved weights, where the scheme's method solves.
    """
    high, low = session.model.params, session.late_low(scheme)
    pairs: list[tuple[str, Any, Any, dict[str, Any]]] = [
        ("compare", high, low, {"scheme": scheme.run}),
        (
            "batching",
            low,
            low,
            {"scheme": scheme.run, "reference_scheme": scheme.run, "alone": True},
        ),
    ]
    if moves_matrices(high, scheme):
        pairs += [
            (f"noise {draw}", high, late_noise(session, scheme, draw), {"scheme": F32})
            for draw in range(noise_draws)
        ]
    if scheme.solves:
        pairs += [
            (f"lottery {draw}", high, late_lottery(session, scheme, draw), {"scheme": scheme.run})
            for draw in range(lottery_draws)
        ]
    for phase, reference, params, how in pairs:
        for number, batch in enumerate(work):
            target = batch.fill([np.int32(prompt.target) for prompt in session.prompts])
            yield Call(
                key=(phase, scheme.name, number),
                program=compare,
                arguments=(reference, params, batch.tokens, batch.lengths, target),
                static={"config": session.config, "mesh": session.mesh, **how},
                batch=batch,
                rows=2,
                layer_rows=2 * session.config.num_layers * batch.shape[0],
            )


def late_lottery(session: Session, scheme: Scheme, draw: int) -> Late:
    """A scheme's parameters chosen anew from weights moved by a millionth, as a call's argument.

    Args:
        session: whose seed draws.
        scheme: whose method solves.
        draw: number of the draw, from 0.
    """
    key = jax.random.fold_in(jax.random.key(session.options.seed), draw)
    # A name of its own, since calibrations that were cut off are kept by name.
    own = replace(scheme, name=f"{scheme.name}.lottery-{draw}")

    def make() -> Params:
        with session.log.phase(f"parameters {scheme.name}, lottery"):
            low = session.prepare(moved(session.model.params, key), own)
        return shard_packed(low, session.mesh)

    return Late(make=lambda: session.last("lottery", own, make))


def _moved(params: Params, key: jax.Array) -> Params:
    paths, tree = jax.tree_util.tree_flatten_with_path(params)
    keys = jax.random.split(key, len(paths))

    def leaf(path: Any, w: Array, key: jax.Array) -> Array:
        matrix = matrix_name(path) is not None
        return w * (1 + MOVED * jax.random.normal(key, w.shape)) if matrix else w

    leaves = [leaf(path, w, k) for (path, w), k in zip(paths, keys, strict=True)]
    return jax.tree_util.tree_unflatten(tree, leaves)


moved = jit(_moved)
