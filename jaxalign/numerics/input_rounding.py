"""Rounding the inputs of a linear layer, token by token.

Every function returns codes and what they are multiplied with: a token's input is about
``codes · scale``. Quotients are true divisions (``quantize.divide``).
"""

from __future__ import annotations

import math

import jax.numpy as jnp

from jaxalign.numerics.quantize import FLOAT8, LEAST_RANGE, divide, to_float8
from jaxalign.shapes import Array, Bool, Float, Int8, lead

# An input this large makes its column an outlier (LLM.int8, arXiv 2208.07339, section 3.2).
OUTLIER = 6.0


def int8_tokens(
    x: Float[Array, "*rows A"], levels: int | float = 127
) -> tuple[Int8[Array, "*rows A"], Float[Array, "*rows"]]:
    """Signed int8 codes and one scale a token, ``max(max|x|, 1e-5) / levels``."""
    x = x.astype(jnp.float32)
    largest = jnp.maximum(jnp.abs(x).max(axis=-1), LEAST_RANGE)
    scale = divide(largest, jnp.full_like(largest, levels))
    return _int8(x, scale[..., None], levels), scale


def int8_static(
    x: Float[Array, "*rows A"], scale: Float[Array, ""], levels: int | float = 127
) -> Int8[Array, "*rows A"]:
    """Signed int8 codes by a scale from calibration; what lies beyond it is clipped.

    Args:
        x: the inputs.
        scale: of one step between codes.
        levels: steps on either side of 0.
    """
    return _int8(x.astype(jnp.float32), lead(scale.astype(jnp.float32), x), levels)


def _int8(x: Array, scale: Array, levels: int | float) -> Array:
    # With 127.5 levels the lowest code, −128, is used, too.
    return jnp.clip(jnp.round(divide(x, scale)), -math.ceil(levels), 127).astype(jnp.int8)


def float8_tokens(
    x: Float[Array, "*rows A"], codes: str
) -> tuple[Float[Array, "*rows A"], Float[Array, "*rows"]]:
    """Float8 codes and one scale a token, ``max(max|x|, 1e-5) / largest code``.

    Args:
        codes: "e4m3fn" or "e5m2".
    """
    most = float(jnp.finfo(FLOAT8[codes]).max)
    x = x.astype(jnp.float32)
    largest = jnp.maximum(jnp.abs(x).max(axis=-1), LEAST_RANGE)
    scale = divide(largest, jnp.full_like(largest, most))
    return to_float8(divide(x, scale[..., None]), codes), scale


def llm_int8(
    x: Float[Array, "*rows A"], real: Bool[Array, "B S"] | None = None
) -> tuple[Int8[Array, "*rows A"], Float[Array, "*rows"], Float[Array, "*rows A"]]:
    """LLM.int8's split of the inputs: int8 codes, row maxima, and the outlier columns in f16.

    Inputs are rounded to f16. A column in which an example has ``|x| ≥ 6`` is an outlier column:
    its codes are 0, and it is returned apart. The rest is ``q = round(x · (127 · (1 / row)))``,
    ties to even, where ``row`` is the largest ``|x|`` below 6 of the token, in whatever column.

    An example is the last axis of positions: all tokens of one prompt, alone. bitsandbytes takes
    the tokens of a whole batch as one, so that a prompt's result there depends on its neighbours.

    Args:
        x: ``[…, S, A]``.
        real: True at positions of ``x`` ``[…, B, S, A]`` that hold a token of the prompt; others
            make no column an outlier.

    Returns:
        Codes; ``row``, f32; and ``x`` in f16 in outlier columns, 0 elsewhere.

    Source: Dettmers et al. 2022 (arXiv 2208.07339), section 3, as bitsandbytes computes it.
    """
    half = x.astype(jnp.float16)
    large = jnp.abs(half) >= jnp.float16(OUTLIER)
    counted = large if real is None else large & lead(real[..., None], x)
    column = counted.any(axis=-2, keepdims=True) if x.ndim > 1 else counted
    row = jnp.where(counted, 0, jnp.abs(half)).max(axis=-1).astype(jnp.float32)
    inverse = divide(jnp.ones_like(row), jnp.where(row > 0, row, 1))
    scaled = half.astype(jnp.float32) * (127 * inverse)[..., None]
    codes = jnp.where(column, 0, jnp.round(scaled))
    return codes.astype(jnp.int8), row, jnp.where(column, half, 0)
