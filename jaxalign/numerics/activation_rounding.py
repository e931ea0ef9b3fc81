"""Activation rounding: simulated int8, one scale an example."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from jaxalign.numerics.scheme import Scheme
from jaxalign.shapes import Array, Bool, Float, lead

INT8_LEVELS = 127


def fake_quantize_int8(
    x: Float[Array, "*rows B S D"], real: Bool[Array, "B S"]
) -> Float[Array, "*rows B S D"]:
    """Round each example to signed int8 and back: ``clip(round(x / s), ±127) · s``.

    ``s = max(max|x| / 127, smallest normal f32)`` over one example's real positions, so neither
    padding nor batch neighbours move it; ties round away from zero. An example whose maximum is
    0 or not finite is returned as it came.

    Args:
        x: f32 activations.
        real: True at positions that hold a token of the prompt.
    """
    largest = jnp.where(lead(real[..., None], x), jnp.abs(x), 0).max(axis=(-2, -1), keepdims=True)
    # The barriers keep both quotients true divisions: XLA rewrites x / c as x · (1 / c), and the
    # code of an element near a tie then flips (0.004 % of codes in a trial).
    levels = lax.optimization_barrier(jnp.full_like(largest, INT8_LEVELS))
    scale = jnp.maximum(largest / levels, jnp.finfo(x.dtype).tiny)
    inverse = jnp.ones_like(scale) / lax.optimization_barrier(scale)
    codes = lax.round(x * inverse, lax.RoundingMethod.AWAY_FROM_ZERO)
    rounded = jnp.clip(codes, -INT8_LEVELS, INT8_LEVELS) * scale
    usable = (largest > 0) & jnp.isfinite(largest)
    return jnp.where(usable, rounded, x)


def round_activation(
    x: Float[Array, "*rows B S D"], site: str, scheme: Scheme, real: Bool[Array, "B S"]
) -> Float[Array, "*rows B S D"]:
    """``x`` as the scheme leaves it at ``site``.

    Args:
        x: activations.
        site: one of ``scheme.SITES``.
        scheme: the precision.
        real: True at positions that hold a token of the prompt.
    """
    return fake_quantize_int8(x, real) if site in scheme.int8_sites else x
