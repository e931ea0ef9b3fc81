"""How products of two f32 arrays are computed: as true f32, or by a GPU's tensor cores.

A GPU's tensor cores multiply short numbers, of 10 bits (TF32) or 7 (bf16) after the point. An f32
number is a sum of two or three of those, so three or six such products make a product that is
almost f32's. Measured on an H200 (65 536 × 512 × 2048), largest relative error:

============  ========  =========  ==================================================
products      TFLOP/s   error      what XLA is asked for
============  ========  =========  ==================================================
``highest``   43.0      7.5e-7     ``Precision.HIGHEST``: f32 arithmetic
``tf32x3``    64.7      1.6e-6     ``TF32_TF32_F32_X3``: three products of TF32 parts
``bf16x6``    43.7      1.7e-7     ``BF16_BF16_F32_X6``: six products of bf16 parts
============  ========  =========  ==================================================

``BF16_BF16_F32_X9`` is not offered: XLA computed it with TF32's error (2.8e-4) there.

The choice lies in JAX's own setting ``jax_default_matmul_precision``, since JAX traces and compiles
anew where that changes. Any other value of that setting changes nothing here: products stay
``highest``, even where it allows TF32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax

from jaxalign.errors import InputError

Products = Literal["highest", "tf32x3", "bf16x6"]
PRODUCTS: tuple[Products, ...] = get_args(Products)
PRESETS = {
    "tf32x3": lax.DotAlgorithmPreset.TF32_TF32_F32_X3,
    "bf16x6": lax.DotAlgorithmPreset.BF16_BF16_F32_X6,
}
_NAMES: dict[str, Products] = {PRESETS[name].name: name for name in PRODUCTS if name in PRESETS}


def chosen_products() -> Products:
    """Return how f32 products are computed by what is traced now."""
    config: Any = jax.config  # whose attributes its type does not name
    return _NAMES.get(str(config.jax_default_matmul_precision), "highest")


@contextlib.contextmanager
def use_products(products: Products) -> Iterator[None]:
    """Let f32 matrix products be computed by ``products`` for as long as the context lasts.

    It holds in this thread, for whatever is traced in it, and for no product of other dtypes.

    Args:
        products: "highest", "tf32x3" or "bf16x6".

    Raises:
        InputError: unknown name.

    Example:
        >>> with use_products("tf32x3"):
        ...     [m] = jax.jit(lambda params: sweep(params, …))(params)
    """
    if products not in PRODUCTS:
        raise InputError(f"products {products!r} are unknown", f"use {' or '.join(PRODUCTS)}")
    if products == chosen_products():  # another value of JAX's setting would only compile anew
        yield
        return
    preset = PRESETS.get(products)
    with jax.default_matmul_precision("highest" if preset is None else preset.name):
        yield


def refuse_missing(products: Products, platform: str) -> None:
    """Refuse products that a platform does not have.

    On a CPU, JAX takes bf16x6 and computes a plain f32 product, which is not what was asked for.

    Args:
        products: the choice.
        platform: JAX's name of it: "cpu", "gpu".

    Raises:
        InputError: only a GPU has them.
    """
    if products != "highest" and platform != "gpu":
        raise InputError(
            f"f32 products by {products} are made by a GPU's tensor cores, and this runs on "
            f"{platform}",
            "use --products highest, or --device gpu",
        )


def precision_for(*operands: Any) -> Any:
    """Return the ``precision`` that a matrix product asks XLA for.

    Args:
        operands: arrays; the choice is about products of f32 arrays alone.
    """
    preset = PRESETS.get(chosen_products())
    if preset is None or any(a.dtype != jnp.float32 for a in operands):
        return lax.Precision.HIGHEST
    return preset


def f32_product(x: jax.Array, w: jax.Array) -> jax.Array:
    """``x @ w`` of two f32 matrices, computed as every product of the model is.

    Args:
        x: ``[N, A]``.
        w: ``[A, M]``.
    """
    return jnp.matmul(x, w, precision=precision_for(x, w), preferred_element_type=jnp.float32)
