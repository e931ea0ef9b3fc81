"""The one matrix product: operands in their own dtype, sums in f32, packed matrices or not."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax

from jaxalign.numerics.input_rounding import float8_tokens, int8_static, int8_tokens, llm_int8
from jaxalign.numerics.probe import Observed
from jaxalign.numerics.qtensor import QTensor, unpack
from jaxalign.numerics.quantize import divide
from jaxalign.runtime.products import precision_for
from jaxalign.shapes import Array, Bool, Float, lead

# What bitsandbytes multiplies LLM.int8's integer products with, about 1 / 127²: its CUDA kernel
# and its code for CPUs, which differ by 18 parts in a million.
LLM_INT8_CUDA = 6.200012e-05
LLM_INT8_CPU = 6.200124e-05


def dot(
    x: Float[Array, "*rows A"],
    w: Float[Array, "A *out"] | QTensor,
    real: Bool[Array, "B S"] | None = None,
) -> Float[Array, "*rows *out"]:
    """``x[..., a] · w[a, ...]``, accumulated and returned in f32.

    The caller rounds the result where its precision says so. An f32 product is true f32 on GPUs,
    too, where JAX's default may be TF32, unless ``runtime.products`` chooses otherwise. A packed
    ``w`` is unpacked to ``x``'s dtype, after ``x`` is rounded where ``w.inputs`` asks for it.

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
        precision=precision_for(x, w),
        preferred_element_type=sums,
    )


def _packed(x: Array, w: QTensor, real: Array | None) -> Array:
    if w.input_divisor is not None:
        divisor = lead(w.input_divisor.astype(jnp.float32), x)
        x = divide(x.astype(jnp.float32), divisor).astype(x.dtype)
    levels = w.format.levels
    match w.inputs:
        case None:
            return _product(x, dense(w, x.dtype))
        case "int8-token":
            codes, row = int8_tokens(x, levels)
            return _scaled(_product(codes, w.codes, jnp.int32), row, w)
        case "int8-static":
            assert w.input_scale is not None, "int8-static needs an input_scale"
            row = w.input_scale.astype(jnp.float32)
            codes = int8_static(x, row, levels)
            return _scaled(_product(codes, w.codes, jnp.int32), row, w)
        case "e4m3fn-token" | "e5m2-token":
            codes, row = float8_tokens(x, w.inputs.removesuffix("-token"))
            wide = (part.astype(jnp.float32) for part in (codes, w.codes))
            return _scaled(_product(*wide), row, w)
        case "llm-int8":
            return llm_int8_dot(x, w, real)
    raise ValueError(f"inputs are rounded by {w.inputs!r}, which dot does not know")


def _scaled(exact: Array, row: Array, w: QTensor) -> Array:
    """A product of codes times the scales of its tokens and of its output channels."""
    column = w.scale[0].astype(jnp.float32)
    if w.format.absmax:
        column = column * (1 / w.format.levels)
    return exact.astype(jnp.float32) * _rows(row, exact) * lead(column, exact)


def _rows(row: Array, like: Array) -> Array:
    """What tokens have, beside their outputs."""
    return jnp.expand_dims(row, tuple(range(row.ndim, like.ndim)))


def llm_int8_dot(
    x: Float[Array, "*rows A"],
    w: QTensor,
    real: Bool[Array, "B S"] | None = None,
    constant: float = LLM_INT8_CUDA,
) -> Float[Array, "*rows *out"]:
    """LLM.int8's product: ``i32 · (row · column) · constant`` and the outlier columns in f16.

    ``i32`` is the product of int8 codes without outlier columns, ``row`` a token's largest input,
    ``column`` an output channel's largest weight. Outlier columns meet weights unpacked to f16;
    their sums are f32, and so is the sum of both parts, which bitsandbytes rounds to f16 twice.

    Args:
        x, real: see ``inputs.llm_int8``.
        w: int8 ``[A, *out]``, one group.
        constant: bitsandbytes' ``LLM_INT8_CUDA`` or ``LLM_INT8_CPU``.

    Source: Dettmers et al. 2022 (arXiv 2208.07339), equation 8.
    """
    codes, row, outliers = llm_int8(x, real)
    exact = _product(codes, w.codes, jnp.int32)
    largest = w.scale[0].astype(jnp.float32) * (1 if w.format.absmax else w.format.levels)
    scales = _rows(row, exact) * lead(largest, exact)
    regular = exact.astype(jnp.float32) * scales * constant
    return regular + _product(outliers, dense(w, jnp.float16))
