"""Compilation that keeps every rounding the program states, and the canary that checks it.

XLA may keep a 16-bit intermediate in f32 (``xla_allow_excess_precision``, on by default), and the
CPU's library fusion does the same to the product in ``softmax((q @ k).astype(f32))``. Either one
removes part of the drift that a precision study measures, so both are switched off here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxalign.errors import InputError

ROUNDING_OPTIONS: dict[str, bool | str] = {
    "xla_allow_excess_precision": False,
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT",
}


class PrecisionError(InputError):
    """This installation does not compute what the program says."""


@functools.cache
def compiler_options() -> dict[str, bool | str]:
    """The options of ``ROUNDING_OPTIONS`` that this jaxlib knows (a dict to be read only).

    A jaxlib that no longer has an option refuses to compile with it; whether its default then
    keeps the roundings is for ``check_canary`` to say.
    """
    known: dict[str, bool | str] = {}
    for name, value in ROUNDING_OPTIONS.items():
        try:
            jax.jit(lambda x: x + 1, compiler_options={name: value}).lower(0.0).compile()
        except jax.errors.JaxRuntimeError:
            continue
        known[name] = value
    return known


class Program:
    """A function compiled with ``compiler_options``, on its first call or ahead of it.

    Attributes:
        fun: the function as written.
    """

    def __init__(self, fun: Callable[..., Any], **kwargs: Any) -> None:
        functools.update_wrapper(self, fun)
        self.fun = fun
        self._kwargs = kwargs
        self._ahead: dict[Any, Future[Any]] = {}

    @functools.cached_property
    def _jitted(self) -> Any:
        # Only now: asking which options the compiler knows starts JAX's backend.
        return jax.jit(self.fun, compiler_options=dict(compiler_options()), **self._kwargs)

    def __call__(self, *args: Any, **kwds: Any) -> Any:
        """Call the function."""
        ready = self._ahead.get(self._signature(args, kwds)) if self._ahead else None
        if ready is None:
            return self._jitted(*args, **kwds)
        static = self._kwargs.get("static_argnames", ())
        if ready.cancelled():  # with the study that asked for it
            return self._jitted(*args, **kwds)
        return ready.result()(*args, **{k: v for k, v in kwds.items() if k not in static})

    def ahead(self, pool: Executor, *args: Any, **kwds: Any) -> None:
        """Compile in ``pool`` for a later call with arguments like these.

        Args:
            pool: whose threads compile; the call waits for the one that it needs.
            args, kwds: arrays or ``jax.ShapeDtypeStruct``s; static arguments by keyword.
        """
        signature = self._signature(args, kwds)
        before = self._ahead.get(signature)
        if before is None or before.cancelled():
            self._ahead[signature] = pool.submit(
                lambda: self._jitted.lower(*args, **kwds).compile()
            )

    def shape_of(self, *args: Any, **kwds: Any) -> Any:
        """Shapes and dtypes of the result; the trace is kept for the call.

        Args:
            args, kwds: as for ``ahead``.
        """
        return self._jitted.eval_shape(*args, **kwds)

    def _signature(self, args: Any, kwds: Any) -> Any:
        static = self._kwargs.get("static_argnames", ())
        leaves, tree = jax.tree.flatten((args, {k: v for k, v in kwds.items() if k not in static}))
        fixed = tuple(sorted((k, v) for k, v in kwds.items() if k in static))
        kinds = (
            (leaf.shape, np.dtype(leaf.dtype), getattr(leaf, "sharding", None)) for leaf in leaves
        )
        return tree, tuple(kinds), fixed


def jit(fun: Callable[..., Any], **kwargs: Any) -> Program:
    """``jax.jit`` that keeps the program's roundings; for the outermost function of a study.

    Takes ``jax.jit``'s keyword arguments. JAX accepts compiler options on the outermost ``jit``
    only, so jaxalign's own functions of arrays are left unjitted: wrap what you build from them.
    """
    return Program(fun, **kwargs)


# Two f32 softmaxes of the same input differ by an ulp or two between fusions; a skipped rounding
# of a 16-bit product moves a probability by 1e-3 and more.
SKIPPED_ROUNDING = 1e-5


def _rounded_softmax(x: jax.Array, w: jax.Array) -> jax.Array:
    return jax.nn.softmax((x @ w).astype(jnp.float32), axis=-1)


# Sums and products apart: a CPU with f16 arithmetic of its own (AVX512-FP16) rounds ``x * w + y``
# once, and XLA has no switch for that. The model multiplies in 16 bits nowhere but in matrix
# products, which are summed in f32 (tests/test_numerics.py reads that off its jaxpr).
def _rounded_sums(x: jax.Array, w: jax.Array) -> jax.Array:
    return (((x + w) + x) - w).astype(jnp.float32)


def _rounded_products(x: jax.Array, w: jax.Array) -> jax.Array:
    return ((x * w) * x).astype(jnp.float32)


@functools.cache
def require_exact_compilation() -> None:
    """``check_canary`` once a process; a study calls it before it computes anything."""
    check_canary()


def check_canary(compile_with: Callable[..., Any] | None = None) -> None:
    """Check that compiled code keeps 16-bit roundings and that f32 products are true f32.

    Args:
        compile_with: the jit under test; jaxalign's own by default.

    Raises:
        PrecisionError: a rounding was skipped or an f32 product was not f32, naming which.
    """
    compile_with = compile_with or jit
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 64, 64), dtype=np.float32)
    for dtype in (jnp.bfloat16, jnp.float16):
        a, b = jnp.asarray(x, dtype), jnp.asarray(w, dtype)
        for program in (_rounded_softmax, _rounded_sums, _rounded_products):
            error = float(jnp.abs(program(a, b) - compile_with(program)(a, b)).max())
            if error > SKIPPED_ROUNDING:
                raise PrecisionError(
                    f"compiled {jnp.dtype(dtype).name} code skips roundings on this installation "
                    f"({program.__name__.strip('_')} is off by {error:.1e})",
                    "unset XLA_FLAGS that change fusion or excess precision, or use a jaxlib "
                    "whose options are known to jaxalign.runtime.compile",
                )
    product = compile_with(functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST))(x, w)
    exact = x.astype(np.float64) @ w.astype(np.float64)
    error = float(np.abs(np.asarray(product) - exact).max() / np.abs(exact).max())
    if error > 1e-6:
        raise PrecisionError(
            f"f32 matrix products are not f32 on this device (relative error {error:.1e})",
            "unset NVIDIA_TF32_OVERRIDE and jax_default_matmul_precision",
        )
