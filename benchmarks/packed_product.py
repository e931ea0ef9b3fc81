"""What does a packed matrix cost in the product, against one in f32?

    python -m benchmarks packed_product [--rows N] [--inputs N] [--outputs N]

Times ``dot`` of f32 inputs with a matrix in each scheme, and unpacking alone. Seconds are the best
of repeated calls; processor time is that of all threads, and says more than seconds do on a machine
that does other work as well.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.record import answer, grammar
from jaxalign.numerics import jit, scheme_named
from jaxalign.numerics.dot import dense, dot
from jaxalign.numerics.quantize import quantize
from jaxalign.study.tables import text_table

NAME = "packed_product"
SCHEMES = ("f32", "int4-g128", "int4-sym-g128", "nf4", "fp4", "int8", "llm-int8", "fp8-e4m3")
RUNS = 20


def cost(program: Callable[..., Any], *arrays: Any) -> dict[str, float]:
    """Milliseconds of a compiled call, the least of some, and processor time of its compilation."""
    start = time.process_time()
    jax.block_until_ready(program(*arrays))
    compiled = time.process_time() - start
    seconds, processor = [], []
    for _ in range(RUNS):
        wall, busy = time.perf_counter(), time.process_time()
        jax.block_until_ready(program(*arrays))
        seconds.append(time.perf_counter() - wall)
        processor.append(time.process_time() - busy)
    found = {"ms": 1e3 * min(seconds), "processor_ms": 1e3 * min(processor), "compile_s": compiled}
    return {name: float(f"{value:.3g}") for name, value in found.items()}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One row a scheme."""
    rng = np.random.default_rng(0)
    x, w = (
        jnp.asarray(rng.standard_normal(shape), jnp.float32)
        for shape in ((options.rows, options.inputs), (options.inputs, options.outputs))
    )
    rows = []
    for name in SCHEMES:
        scheme, packed = scheme_named(name), w
        if scheme.weights is not None:
            packed = jit(functools.partial(quantize, form=scheme.weights))(w)
            packed = replace(packed, inputs=scheme.inputs)
        unpacking = cost(jit(dense), packed)["processor_ms"] if scheme.weights else 0.0
        rows.append(
            {"scheme": name, "bytes": packed.nbytes, **cost(jit(dot), x, packed)}
            | {"unpack_processor_ms": unpacking}
        )
    return {"shape": [options.rows, options.inputs, options.outputs], "rows": rows}


def table(record: dict[str, Any]) -> str:
    """The record for people."""
    heads = ("scheme", "MB", "ms", "processor ms", "of them unpacking", "compile, processor s")
    rows = [
        (
            row["scheme"],
            f"{row['bytes'] / 1e6:.2f}",
            f"{row['ms']:.2f}",
            f"{row['processor_ms']:.2f}",
            f"{row['unpack_processor_ms']:.2f}",
            f"{row['compile_s']:.2f}",
        )
        for row in record["rows"]
    ]
    return text_table(heads, rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    parser = grammar(NAME, __doc__)
    for name, size in (("rows", 512), ("inputs", 512), ("outputs", 2048)):
        parser.add_argument(f"--{name}", type=int, default=size, metavar="N")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rows, options.inputs, options.outputs = 4, 128, 8
    return answer(options, NAME, measure, table)


if __name__ == "__main__":
    raise SystemExit(main())
