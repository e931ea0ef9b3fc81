"""Rounding the inputs of a linear layer, token by token."""

from __future__ import annotations

import jax.numpy as jnp

from jaxalign.numerics.quantize import LEAST_RANGE, divide
from jaxalign.shapes import Array, Float, Int8


def int8_tokens(
    x: Float[Array, "*rows A"],
) -> tuple[Int8[Array, "*rows A"], Float[Array, "*rows"]]:
    """Signed int8 codes and one scale a token, ``max(max|x|, 1e-5) / 127``."""
    x = x.astype(jnp.float32)
    largest = jnp.maximum(jnp.abs(x).max(axis=-1), LEAST_RANGE)
    scale = divide(largest, jnp.full_like(largest, 127))
    codes = jnp.clip(jnp.round(divide(x, scale[..., None])), -127, 127)
    return codes.astype(jnp.int8), scale
