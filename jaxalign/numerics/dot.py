"""The one matrix product: operands in their own dtype, sums in f32."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from jaxalign.shapes import Array, Float


def dot(x: Float[Array, "*rows A"], w: Float[Array, "A *out"]) -> Float[Array, "*rows *out"]:
    """``x[..., a] · w[a, ...]``, accumulated and returned in f32.

    The caller rounds the result where its precision says so. ``HIGHEST`` keeps an f32 product
    true f32 on GPUs, where the default may be TF32.
    """
    return lax.dot_general(
        x,
        w,
        (((x.ndim - 1,), (0,)), ((), ())),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
