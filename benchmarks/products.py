"""What do the ways to compute f32 products cost, in seconds and in error of importance?

Every head of a model zero-ablated, once for each way that ``--products`` offers, against importance
in f64 by NumPy (``benchmarks/float64.py``). On a GPU its tensor cores compute the products, and
presets of JAX's that are not offered are measured as single products. On a CPU, which has no such
products, they are emulated: f32 numbers are split into TF32 or bf16 parts, and the products of the
parts are computed in f32. That gives their error, not their speed.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxalign
from benchmarks import float64, workload
from benchmarks.record import answer, device, grammar
from benchmarks.timing import repeated
from jaxalign.numerics import jit
from jaxalign.runtime.products import PRESETS, PRODUCTS, use_products
from jaxalign.shapes import Array
from jaxalign.study.tables import text_table

product_room = importlib.import_module("jaxalign.numerics.dot")  # the room exports its function

NAME = "products"
# Rows, inputs and outputs of the product that is timed, on a GPU and on a CPU.
SHAPE, SMALL = (65536, 512, 2048), (1024, 64, 256)
SINGLE = ("TF32_TF32_F32", "TF32_TF32_F32_X3", *(f"BF16_BF16_F32_X{n}" for n in (3, 6, 9)))
# Bits after the point of the parts, and which parts are multiplied.
EMULATED: dict[str, tuple[int, tuple[tuple[int, int], ...]]] = {
    "tf32x3": (10, ((1, 0), (0, 1), (0, 0))),
    "bf16x6": (7, ((2, 0), (1, 1), (0, 2), (1, 0), (0, 1), (0, 0))),
    "bf16x3": (7, ((1, 0), (0, 1), (0, 0))),
    "tf32": (10, ((0, 0),)),
}


def parts(a: Array, bits: int, count: int) -> list[Array]:
    """An f32 array as a sum of parts with so many bits after the point, the largest first."""
    found = []
    for _ in range(count):
        part = lax.reduce_precision(a, 8, bits)
        found.append(part)
        a = a - part
    return found


@contextlib.contextmanager
def emulated(name: str) -> Iterator[None]:
    """Let the model's f32 products be sums of products of parts, for what is traced meanwhile."""
    bits, pairs = EMULATED[name]
    count = 1 + max(max(pair) for pair in pairs)
    einsum, plain = jnp.einsum, product_room._product

    def summed(one: Any, x: Array, w: Array) -> Array:
        if x.dtype != jnp.float32 or w.dtype != jnp.float32:
            return one(x, w)
        left, right = parts(x, bits, count), parts(w, bits, count)
        return functools.reduce(jnp.add, [one(left[i], right[j]) for i, j in pairs])

    def by_einsum(spec: str, x: Array, w: Array, **how: Any) -> Array:
        return summed(lambda a, b: einsum(spec, a, b, **how), x, w)

    def by_dot(x: Array, w: Array, sums: Any = jnp.float32) -> Array:
        return summed(lambda a, b: plain(a, b, sums), x, w)

    with (
        mock.patch.object(jnp, "einsum", by_einsum),
        mock.patch.object(product_room, "_product", by_dot),
    ):
        yield


def ways(on_gpu: bool, quick: bool) -> dict[str, Any]:
    """By name, the context in which each way to compute products is traced."""
    if on_gpu:
        return {name: functools.partial(use_products, name) for name in PRODUCTS}
    return {"highest": contextlib.nullcontext} | {
        name: functools.partial(emulated, name) for name in (("tf32x3",) if quick else EMULATED)
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Importance in every way, and its error."""
    with contextlib.ExitStack() as stack:
        name = options.model
        folder = stack.enter_context(workload.checkpoint(name)) if name in workload.SIZES else name
        model = jaxalign.load(str(folder))
    tokens, lengths, target = questions(model, options.prompts)
    exact = float64.importance(model.params, model.config, tokens, lengths, target)
    on_gpu = device().platform == "gpu"
    rows = []
    for way, within in ways(on_gpu, options.quick).items():
        anew = functools.partial(workload.zero_ablation.fun)  # JAX keeps traces by function
        run = jit(anew, static_argnames=("config", "rows"))
        with within():
            found, timing = repeated(
                lambda run=run: run(  # type: ignore[misc]
                    model.params, tokens, lengths, target, config=model.config, rows=(0, None)
                ),
                options.runs,
            )
        off = np.abs(np.asarray(found).T - exact)
        rows.append(
            {
                "products": way,
                "emulated": not on_gpu and way != "highest",
                "seconds": timing.record(),
                "largest_error": float(off.max()),
                "mean_error": float(off.mean()),
            }
        )
    return {
        "model": options.model,
        "prompts": len(tokens),
        "heads": exact.shape[1],
        "largest_importance": float(np.abs(exact).max()),
        "rows": rows,
        "presets": presets(SHAPE if on_gpu else SMALL, options.runs),
    }


def questions(model: Any, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens padded on the right, lengths and targets: shipped prompts, or random ones."""
    if model.source.model != "demo":
        random = workload.random_prompts(model.config, min(most, 8), 8)
        return random.tokens, np.array(random.lengths), random.target
    prompts, _, _ = jaxalign.prompts.tokenize(
        jaxalign.read_prompts(), model.tokenizer, model.config
    )
    chosen = prompts[:: -(-len(prompts) // most)]
    lengths = np.array([len(prompt.tokens) for prompt in chosen])
    tokens = np.zeros((len(chosen), lengths.max()), np.int32)
    for row, prompt in zip(tokens, chosen, strict=True):
        row[: len(prompt.tokens)] = prompt.tokens
    return tokens, lengths, np.array([prompt.target for prompt in chosen], np.int32)


def presets(shape: tuple[int, int, int], runs: int) -> list[dict[str, Any]]:
    """Rate and error of one f32 product by every preset of JAX's that this device computes."""
    rows, inputs, outputs = shape
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((rows, inputs), np.float32), rng.standard_normal((inputs, outputs))
    x, w = jax.device_put(x), jax.device_put(w.astype(np.float32))
    exact = np.asarray(x[:256], np.float64) @ np.asarray(w, np.float64)
    offered = {preset: name for name, preset in PRESETS.items()}
    asked: list[Any] = [lax.Precision.HIGHEST, *(lax.DotAlgorithmPreset[name] for name in SINGLE)]
    found: list[dict[str, Any]] = []
    for precision in asked:
        product = jit(functools.partial(jnp.matmul, precision=precision))
        entry = {"preset": precision.name, "offered_as": offered.get(precision)}
        try:
            out, timing = repeated(lambda product=product: product(x, w), runs)  # type: ignore[misc]
        except (ValueError, jax.errors.JaxRuntimeError) as error:
            found.append(entry | {"refused": str(error).splitlines()[0][:200]})
            continue
        off = float(np.abs(np.asarray(out[:256]) - exact).max() / np.abs(exact).max())
        rate = 2 * rows * inputs * outputs / timing.best / 1e9
        found.append(entry | {"error": off, "gflops": round(rate, 1)})
    return found


def table(record: dict[str, Any]) -> str:
    """The record for people."""
    lines = [
        (
            row["products"] + (" (emulated)" if row["emulated"] else ""),
            f"{row['seconds']['best']:.4f}",
            f"{row['largest_error']:.1e}",
            f"{row['mean_error']:.1e}",
        )
        for row in record["rows"]
    ]
    single = [
        (p["preset"], p["offered_as"] or "", f"{p['error']:.1e}", f"{p['gflops']:.0f}")
        if "error" in p
        else (p["preset"], p["offered_as"] or "", "refused", "")
        for p in record["presets"]
    ]
    return "\n\n".join(
        (
            f"{record['model']}: {record['heads']} heads, {record['prompts']} prompts, importance "
            f"up to {record['largest_importance']:.2f} logits, {record['device']}",
            text_table(("products", "seconds", "largest error, logits", "mean"), lines),
            text_table(("one product by", "offered as", "largest error", "GFLOP/s"), single),
        )
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    parser = grammar(NAME, __doc__)
    parser.add_argument("--model", default="demo", metavar="demo|SIZE")
    parser.add_argument("--prompts", type=int, default=52, metavar="N", help="at most")
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="after the first")
    options = parser.parse_args(arguments)
    if options.quick:
        options.model, options.runs = workload.TINY, 1
    return answer(options, NAME, measure, table)


if __name__ == "__main__":
    raise SystemExit(main())
