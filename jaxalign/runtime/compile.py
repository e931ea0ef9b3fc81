"""Compilation that keeps every rounding the program states, and is quick where it can be.

XLA may keep a 16-bit intermediate in f32 (``xla_allow_excess_precision``, on by default), and the
CPU's library fusion does the same to the product in ``softmax((q @ k).astype(f32))``. Either one
removes part of the drift that a precision study measures, so both are switched off here.
``runtime.canary`` checks that it worked.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from jaxalign.runtime.products import chosen_products, use_products

Options = dict[str, bool | str]

ROUNDING_OPTIONS: Options = {
    "xla_allow_excess_precision": False,
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT",
}
# By JAX's name of a platform. On a GPU, XLA would try out hundreds of Triton kernels for every
# matrix product of a program. Measured on an H200, Pythia-70M's shape: the wave's first call 29.6 s
# with them, 2.9 s without, at the same speed (0.037 and 0.0315 s); `--device gpu --model demo` had
# not finished after 105 s, and took 22.5 s without. Choosing among cuBLAS's kernels stays on:
# programs are five times slower without.
SPEED_OPTIONS: Mapping[str, Options] = MappingProxyType(
    {"gpu": {"xla_gpu_enable_triton_gemm": False}}
)


def default_platform() -> str:
    """Return JAX's name ("cpu", "gpu") of where programs run that are told nothing else."""
    config: Any = jax.config  # whose attributes its type does not name
    chosen = config.jax_default_device
    if isinstance(chosen, jax.Device):
        return chosen.platform
    return jax.local_devices(backend=chosen)[0].platform


def wanted_options(platform: str) -> Options:
    """Return the compiler's options for a platform, whether or not this jaxlib knows them.

    Those for rounding are the same everywhere: results must not hang on a platform being told
    right. Those for speed are the platform's own.

    Args:
        platform: JAX's name of it.
    """
    return {**ROUNDING_OPTIONS, **SPEED_OPTIONS.get(platform, {})}


def compiler_options(platform: str | None = None) -> Options:
    """Return the options of ``wanted_options`` that this jaxlib knows (to be read only).

    A jaxlib that no longer has an option refuses to compile with it; whether its default then
    keeps the roundings is for the canary to say.

    Args:
        platform: where programs run; by default where they run that are told nothing else.
    """
    return _known_options(platform or default_platform())


@functools.cache
def _known_options(platform: str) -> Options:
    wanted = wanted_options(platform)
    if _compiles(wanted, platform):  # as nearly always; one by one costs a program each
        return wanted
    return {name: value for name, value in wanted.items() if _compiles({name: value}, platform)}


def _compiles(options: Options, platform: str) -> bool:
    try:
        with jax.default_device(jax.local_devices(backend=platform)[0]):
            jax.jit(lambda x: x + 1, compiler_options=options).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


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
        self._by_platform: dict[str, Any] = {}

    @property
    def _jitted(self) -> Any:
        # Only now: asking where programs run starts JAX's backend.
        platform = default_platform()
        found = self._by_platform.get(platform)
        if found is None:
            options = dict(compiler_options(platform))
            found = jax.jit(self.fun, compiler_options=options, **self._kwargs)
            self._by_platform[platform] = found
        return found

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
            jitted, products = self._jitted, chosen_products()

            def compiled() -> Any:
                with use_products(products):  # what the thread that asks has chosen
                    return jitted.lower(*args, **kwds).compile()

            self._ahead[signature] = pool.submit(compiled)

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
        return tree, tuple(kinds), fixed, chosen_products()


def jit(fun: Callable[..., Any], **kwargs: Any) -> Program:
    """``jax.jit`` that keeps the program's roundings; for the outermost function of a study.

    Takes ``jax.jit``'s keyword arguments. JAX accepts compiler options on the outermost ``jit``
    only, so jaxalign's own functions of arrays are left unjitted: wrap what you build from them.
    """
    return Program(fun, **kwargs)
