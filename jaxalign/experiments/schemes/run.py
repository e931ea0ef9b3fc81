"""The compiled call of the comparison: two models on the same prompts, arrays in, arrays out."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import struct

from jaxalign.metrics import head_drift, kl_divergence, logit_difference
from jaxalign.model.config import ModelConfig
from jaxalign.model.decoder import forward, head_contributions, real_positions
from jaxalign.model.params import Params
from jaxalign.numerics.compile import jit
from jaxalign.numerics.scheme import F32, Scheme
from jaxalign.shapes import Array, Float, Int, Leaf, Lengths, Tokens


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
    jit, static_argnames=("config", "scheme", "reference_scheme", "alone"), keep_unused=True
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
) -> Comparison:
    """Run the reference and the model on a batch of prompts and compare them.

    Args:
        alone: the model runs prompt by prompt instead of all at once. Beside itself in a batch,
            that is the plan noise of its precision: what batching alone moves.
    """
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
