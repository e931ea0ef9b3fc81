"""The one matrix product: operands in their own dtype, sums in f32, packed matrices or not."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax

from jaxalign.numerics.inputs import int8_tokens
from jaxalign.numerics.observed import Observed
from jaxalign.numerics.qtensor import QTensor, unpack
from jaxalign.shapes import Array, Bool, Float, lead


def dot(
    x: Float[Array, "*rows A"],
    w: Float[Array, "A *out"] | QTensor,
    real: Bool[Array, "B S"] | None = None,
) -> Float[Array, "*rows *out"]:
    """``x[..., a] · w[a, ...]``, accumulated and returned in f32.

    The caller rounds the result where its precision says so. ``HIGHEST`` keeps an f32 product
    true f32 on GPUs, where the default may be TF32. A packed ``w`` is unpacked to ``x``'s dtype,
    after ``x`` is rounded where ``w.inputs`` asks for it.

    Args:
        real: True at positions of ``x`` ``[*rows, B, S, A]`` that hold a token of the prompt, for
            roundings that look at a whole example.
    """
    if isinstance(w, Observed):
        w.see(x)
        w = w.codes
    if isinstance(w, QTensor):
        return _packed(x, w, real)
    return _product(x, w)


def dense(w: Float[Array, "..."] | QTensor, dtype: Any = None) -> Float[Array, "..."]:
    """A matrix as an array, unpacked where it is packed, in ``dtype`` where one is given."""
    w = unpack(w) if isinstance(w, QTensor) else w
    return w if dtype is None else w.astype(dtype)


def _product(x: Array, w: Array, sums: Any = jnp.float32) -> Array:
    return lax.dot_general(
        x,
        w,
        (((x.ndim - 1,), (0,)), ((), ())),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=sums,
    )


def _packed(x: Array, w: QTensor, real: Array | None) -> Array:
    if w.input_divisor is not None:
        x = (x.astype(jnp.float32) / lead(w.input_divisor, x)).astype(x.dtype)
    match w.inputs:
        case None:
            return _product(x, dense(w, x.dtype))
        case "int8-token":
            codes, scale = int8_tokens(x)
            exact = _product(codes, w.codes, jnp.int32).astype(jnp.float32)
            rows = jnp.expand_dims(scale, tuple(range(scale.ndim, exact.ndim)))
            return exact * rows * lead(w.scale[0].astype(jnp.float32), exact)
    raise ValueError(f"inputs are rounded by {w.inputs!r}, which dot does not know")
