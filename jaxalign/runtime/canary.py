"""The canary: whether compiled code keeps 16-bit roundings, and f32 products are what they say."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxalign.errors import InputError
from jaxalign.runtime.compile import default_platform, jit
from jaxalign.runtime.products import (
    Products,
    chosen_products,
    f32_product,
    refuse_missing,
    use_products,
)

# Two f32 softmaxes of the same input differ by an ulp or two between fusions; a skipped rounding
# of a 16-bit product moves a probability by 1e-3 and more.
SKIPPED_ROUNDING = 1e-5
# The largest error of an f32 product of 64 terms, relative to the largest result. TF32 alone errs
# by 2.8e-4, bf16 by 2e-3.
PRODUCT_ERROR: dict[Products, float] = {"highest": 1e-6, "tf32x3": 5e-6, "bf16x6": 1e-6}
SIZE = 64


class PrecisionError(InputError):
    """This installation does not compute what the program says."""


def _rounded_softmax(x: jax.Array, w: jax.Array) -> jax.Array:
    scores = jnp.matmul(x, w, precision=lax.Precision.HIGHEST)  # as in the model
    return jax.nn.softmax(scores.astype(jnp.float32), axis=-1)


# Sums and products apart: a CPU with f16 arithmetic of its own (AVX512-FP16) rounds ``x * w + y``
# once, and XLA has no switch for that. The model multiplies in 16 bits nowhere but in matrix
# products, which are summed in f32 (tests/test_numerics.py reads that off its jaxpr).
def _rounded_sums(x: jax.Array, w: jax.Array) -> jax.Array:
    return (((x + w) + x) - w).astype(jnp.float32)


def _rounded_products(x: jax.Array, w: jax.Array) -> jax.Array:
    return ((x * w) * x).astype(jnp.float32)


ROUNDED = (_rounded_softmax, _rounded_sums, _rounded_products)


def _rounded_step_by_step(x: np.ndarray, w: np.ndarray) -> list[np.ndarray]:
    """What ``ROUNDED`` say, by NumPy, which rounds after every operation.

    The matrix product is summed in f32, as XLA's are; ``exact_inputs`` make those sums exact.
    """
    scores = (x.astype(np.float32) @ w.astype(np.float32)).astype(x.dtype).astype(np.float64)
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return [
        powers / powers.sum(axis=-1, keepdims=True),
        (((x + w) + x) - w).astype(np.float32),
        ((x * w) * x).astype(np.float32),
    ]


def exact_inputs(rng: np.random.Generator) -> np.ndarray:
    """Two matrices of multiples of 1/64 below 2, whose products sum exactly in f32, in any order.

    So NumPy and every device round the same sum, which needs more bits than a 16-bit float has.
    """
    return (rng.integers(-127, 128, (2, SIZE, SIZE)) / 64).astype(np.float32)


@functools.cache
def _checked(platform: str, products: Products) -> None:
    refuse_missing(products, platform)
    with use_products(products):
        check_canary()


def require_exact_compilation(products: Products = "highest") -> None:
    """``check_canary`` once a process and platform, before a study computes anything.

    Args:
        products: how f32 products are to be computed.

    Raises:
        InputError: this platform has no such products.
        PrecisionError: it does not compute what programs say.
    """
    _checked(default_platform(), products)


def check_canary(compile_with: Callable[..., Any] | None = None) -> None:
    """Check that compiled code keeps 16-bit roundings and that f32 products are what they say.

    Args:
        compile_with: the jit under test; jaxalign's own by default.

    Raises:
        PrecisionError: a rounding was skipped, or an f32 product is coarser than ``use_products``
            says, naming which.
    """
    compile_with = compile_with or jit
    rng = np.random.default_rng(0)
    x, w = exact_inputs(rng)
    pairs = [(x.astype(dtype), w.astype(dtype)) for dtype in (jnp.bfloat16, jnp.float16)]

    # One program, since each costs a compilation before anything may be loaded from a folder.
    def rounded(*arrays: jax.Array) -> list[list[jax.Array]]:
        return [
            [program(*pair) for program in ROUNDED]
            for pair in zip(arrays[::2], arrays[1::2], strict=True)
        ]

    given = [array for pair in pairs for array in pair]
    for pair, found in zip(pairs, compile_with(rounded)(*given), strict=True):
        for program, ours, said in zip(ROUNDED, found, _rounded_step_by_step(*pair), strict=True):
            error = float(np.abs(np.asarray(ours) - said).max())
            if error > SKIPPED_ROUNDING:
                raise PrecisionError(
                    f"compiled {pair[0].dtype.name} code skips roundings on this installation "
                    f"({program.__name__.strip('_')} is off by {error:.1e})",
                    "unset XLA_FLAGS that change fusion or excess precision, or use a jaxlib "
                    "whose options are known to jaxalign.runtime.compile",
                )
    _check_product(compile_with, *rng.standard_normal((2, SIZE, SIZE), dtype=np.float32))


def _check_product(compile_with: Callable[..., Any], x: np.ndarray, w: np.ndarray) -> None:
    products = chosen_products()
    try:
        product = np.asarray(compile_with(f32_product)(x, w))
    except (ValueError, jax.errors.JaxRuntimeError) as refused:
        if products == "highest":
            raise
        first = str(refused).splitlines()[0]
        raise PrecisionError(
            f"this device computes no f32 products by {products} ({first})",
            "use --products highest",
        ) from refused
    exact = x.astype(np.float64) @ w.astype(np.float64)
    error = float(np.abs(product - exact).max() / np.abs(exact).max())
    if error > PRODUCT_ERROR[products]:
        remedy = "unset NVIDIA_TF32_OVERRIDE and jax_default_matmul_precision"
        raise PrecisionError(
            f"f32 matrix products are not f32 on this device (relative error {error:.1e}; "
            f"{products} promises {PRODUCT_ERROR[products]:.0e})",
            remedy if products == "highest" else f"{remedy}, or use --products highest",
        )
