"""How long do dictionaries take to read activations and to be trained, beside PyTorch and SAELens?

Random dictionaries and activations, f32. Features of all tokens (encode) are what SAELens returns,
dense. Sums (sums) are the study's: activations of two precisions are encoded and decoded, and each
feature's moments added up; PyTorch does so in blocks of the size, of two, that is faster. Training
is of TopK dictionaries, ours in one stack and PyTorch's one after another: the same first weights,
batches, Adam, rates and unit norms. All of them run in turn on all cores. A score is the matrix
products that the work is defined by over seconds times the machine's peak; beside it stand those
that ours computes, fewer where the few features of a token are decoded by their rows alone. The
first call, which compiles, stands apart.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import dictionaries_baselines as theirs
from benchmarks.record import answer, grammar
from benchmarks.timing import PRODUCTS, Timing, alternated, matrix_peak
from jaxalign.dictionaries import Dictionary, encode
from jaxalign.dictionaries.dictionary import FEW
from jaxalign.dictionaries.training import TrainingOptions, advance, batches_of, begin
from jaxalign.dictionaries.training import _schedule as schedule_of
from jaxalign.numerics import jit
from jaxalign.studies.features.accumulate import block_rows, feature_sums
from jaxalign.study.tables import text_table

NAME = "dictionaries"
KINDS = ("relu", "topk", "jumprelu")
BLOCKS = (128, 1024)  # tokens that PyTorch adds up at once
# Width, features, k, steps of each stack that is trained; of the table's first line, the bundled
# model's own size.
TRAINED = ((128, 1024, 16, 20), (512, 4096, 32, 4))
STACK, BATCH = 6, 1024
TOKENS, GB = 100_000, 2.0  # what has to fit into how much
SEGMENTS, WINDOW = 64, 100
LIBRARIES = {"pytorch": "PyTorch", "sae-lens": "SAELens"}


def few(k: int | None, features: int) -> bool:
    """Whether the few features of a token are decoded by their rows alone."""
    return k is not None and features >= FEW * k


def random_dictionary(kind: str, width: int, features: int, k: int) -> Dictionary:
    """A dictionary of which ``k`` in a hundred features or so are active."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> Any:
        return rng.standard_normal(shape, np.float32)

    decoder = draw(features, width) / np.sqrt(np.float32(width))
    return Dictionary(
        encoder=np.ascontiguousarray(decoder.T),
        decoder=decoder,
        encoder_bias=0.1 * draw(features),
        decoder_bias=0.1 * draw(width),
        threshold=np.abs(draw(features)) if kind == "jumprelu" else None,
        kind=kind,  # type: ignore[arg-type]
        k=k if kind == "topk" else None,
    )


def row(name: str, seconds: Timing, ours: Timing, off: float, **more: Any) -> dict[str, Any]:
    """A baseline beside ours."""
    ratio = round(seconds.median / ours.median, 2)
    found = {"name": name, "ratio": ratio, "largest_difference": off, **more}
    return {**found, "seconds": seconds.record()}


def difference(found: Any, expected: Any) -> float:
    """The largest difference as a share of the largest value."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30))


def measure_encode(kind: str, x: np.ndarray, options: argparse.Namespace) -> dict[str, Any]:
    """Features of all tokens, dense, in ours, PyTorch and, where it is given, SAELens."""
    d = random_dictionary(kind, options.width, options.features, options.k)
    own, program, given = jax.device_put(d), jit(encode), jnp.asarray(x)
    t, tensor = theirs.tensors(d), torch.from_numpy(x)
    calls: dict[str, Callable[[], Any]] = {
        "ours": lambda: program(own, given),
        "pytorch": lambda: theirs.encode(t, tensor, kind, d.k),
    }
    expected, version = np.asarray(program(own, given[:64])), None
    with ExitStack() as stack:
        if options.sae_lens:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            started = theirs.sae_lens(options.sae_lens, d, x, folder)
            version, calls["sae-lens"] = stack.enter_context(started)
        times = alternated(calls, options.runs)
        off = {"pytorch": difference(calls["pytorch"]()[:64], expected)}
        if options.sae_lens:
            off["sae-lens"] = difference(np.load(folder / "features.npy"), expected)
    return {
        **asked("encode", kind, x, options),
        "products": 1,
        "computed": 1,
        "of": len(x) * options.width * options.features,
        "ours": times["ours"].record(),
        "sae_lens": version,
        "rows": [row(name, times[name], times["ours"], off[name]) for name in off],
    }


def measure_sums(kind: str, x: np.ndarray, options: argparse.Namespace) -> dict[str, Any]:
    """The study's sums of two precisions, all tokens in one segment."""
    d = random_dictionary(kind, options.width, options.features, options.k)
    y = x + np.float32(0.05) * np.random.default_rng(2).standard_normal(x.shape, np.float32)
    program = jit(functools.partial(feature_sums, segments=1))
    one = (a[None] for a in (x, y, np.ones(len(x), bool)))  # a window
    given = jax.device_put((d, *one, np.zeros(1, np.int32)))
    t, tensors = theirs.tensors(d), (torch.from_numpy(x), torch.from_numpy(y))
    calls: dict[str, Callable[[], Any]] = {"ours": lambda: program(*given)}
    for rows in sorted({min(rows, len(x)) for rows in BLOCKS}):
        calls[str(rows)] = functools.partial(theirs.feature_sums, t, *tensors, kind, d.k, rows)
    times = alternated(calls, options.runs)
    best = min(times.keys() - {"ours"}, key=lambda rows: times[rows].median)
    ours, other = calls["ours"](), calls[best]()
    # Of a feature that one of two equal precisions counts and the other does not, one token.
    counts = ("fired", "low_fired", "both")
    off = max(difference(v, ours[name][0]) for name, v in other.items() if name not in counts)
    moved = max(float(np.abs(np.asarray(other[n]) - np.asarray(ours[n][0])).max()) for n in counts)
    more = {"tokens_at_once": int(best), "largest_difference_of_counts": moved}
    return {
        **asked("sums", kind, x, options),
        "products": 4,
        "computed": 2 if few(d.k, d.features) else 4,
        "of": len(x) * options.width * options.features,
        "tokens_at_once": min(block_rows(options.features), len(x)),
        "ours": times["ours"].record(),
        "rows": [row("pytorch", times[best], times["ours"], off, **more)],
    }


def asked(name: str, kind: str, x: np.ndarray, options: argparse.Namespace) -> dict[str, Any]:
    """What a case is about."""
    sizes = {"tokens": len(x), "width": options.width, "features": options.features}
    return {"name": name, "kind": kind, **sizes, "k": options.k if kind == "topk" else None}


def measure_training(
    size: tuple[int, int, int, int], options: argparse.Namespace
) -> dict[str, Any]:
    """Some steps of a stack, beside as many of each of its dictionaries in PyTorch."""
    width, features, k, steps = size
    stack, batch = options.stack, options.batch
    how = TrainingOptions(features=features, k=k, seeds=tuple(range(stack)), steps=100, batch=batch)
    data = np.random.default_rng(1).standard_normal((8 * batch, width), np.float32)
    batches = batches_of(how, 0, steps, len(data))
    rates = [float(schedule_of(how)(np.float32(step))) for step in range(steps)]
    means, own = jnp.zeros((stack, width)), np.arange(stack, dtype=np.int32)
    tensor = torch.from_numpy(data)
    begun = jax.device_get(begin(how, means))
    alone = [jax.tree.map(lambda a, i=i: a[i], begun.dictionary) for i in range(stack)]

    def ours() -> Any:
        # The program takes its training over, so each call is given a copy.
        return advance(jax.device_put(begun), data[batches], own, options=how)[1].error

    def one_by_one() -> np.ndarray:
        each = [theirs.train(d, tensor, batches[:, i], rates, k) for i, d in enumerate(alone)]
        return np.array(each).T

    times = alternated({"ours": ours, "pytorch": one_by_one}, max(1, options.runs - 2))
    off = difference(one_by_one(), ours())
    return {
        "name": "training", "kind": "topk", "tokens": batch, "width": width, "features": features,
        "k": k, "stack": stack, "steps": steps,
        # Two forwards, three backwards: nothing wants a slope by the activations.
        "products": 5, "computed": 3 if few(k, features) else 5,
        "of": steps * stack * batch * width * features,
        "ours": times["ours"].record(),
        "rows": [row("pytorch", times["pytorch"], times["ours"], off)],
    }  # fmt: skip


def measure_memory(options: argparse.Namespace) -> dict[str, Any]:
    """What the compiler says that the sums of many tokens take, everything counted."""
    d = random_dictionary("topk", options.width, options.features, options.k)
    windows = options.most_tokens // WINDOW
    x = jax.ShapeDtypeStruct((windows, WINDOW, options.width), np.float32)
    where = jax.ShapeDtypeStruct(x.shape[:2], bool)
    which = jax.ShapeDtypeStruct(x.shape[:1], np.int32)
    program = jax.jit(functools.partial(feature_sums, segments=SEGMENTS))
    used = program.lower(d, x, x, where, which).compile().memory_analysis()
    parts = {
        name: getattr(used, f"{name}_size_in_bytes") for name in ("temp", "argument", "output")
    }
    total = round(sum(parts.values()) / 1e9, 3)
    return {"tokens": options.most_tokens, "segments": SEGMENTS, **parts, "total_gb": total}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Every case, and the peak before and after them."""
    x = np.random.default_rng(1).standard_normal((options.tokens, options.width), np.float32)
    shape = (options.tokens, options.width, options.features)
    products = (shape,) if options.quick else (*PRODUCTS, shape)
    peak = matrix_peak(products)
    cases = []
    for kind in options.kinds:
        cases += [measure_encode(kind, x, options), measure_sums(kind, x, options)]
        jax.clear_caches()
    cases += [measure_training(size, options) for size in options.trained]
    peak = max(peak, matrix_peak(products))
    for case in cases:
        each = 2 * case.pop("of") / (case["ours"]["median"] * peak)
        case["score"] = round(case["products"] * each, 3)
        case["computed_score"] = round(case["computed"] * each, 3)
    return {
        "peak_gflops": round(peak / 1e9, 1),
        "threads": torch.get_num_threads(),
        "cases": cases,
        "memory": measure_memory(options),
    }


def title(case: dict[str, Any]) -> str:
    """What a case is, in words."""
    kind = f"{case['kind']}, k {case['k']}" if case["k"] else case["kind"]
    size = f"{case['width']} × {case['features']}, {case['tokens']} tokens"
    if case["name"] == "training":
        return f"training {case['stack']} × {case['steps']} steps: {kind}, {size} a step"
    return f"{case['name']}: {kind}, {size}"


def table(record: dict[str, Any]) -> str:
    """The record for people."""
    lines = []
    for case in record["cases"]:
        ours = case["ours"]
        lines.append(
            (
                title(case),
                "ours",
                f"{ours['median']:.3f}",
                f"{ours['best']:.3f}",
                f"{ours['first']:.2f}",
                "",
                f"{case['score']:.2f}",
                f"{case['computed_score']:.2f}",
                "",
            )
        )
        for one in case["rows"]:
            s = one["seconds"]
            lines.append(
                (
                    "",
                    LIBRARIES[one["name"]],
                    f"{s['median']:.3f}",
                    f"{s['best']:.3f}",
                    f"{s['first']:.2f}",
                    f"{one['ratio']:.2f}",
                    "",
                    "",
                    f"{one['largest_difference']:.0e}",
                )
            )
    head = (
        "",
        "",
        "seconds",
        "best",
        "first",
        "ours is faster by",
        "score",
        "computed",
        "differs by",
    )
    memory = record["memory"]
    return "\n\n".join(
        (
            f"f32, {record['processor']}, {record['cores']} cores, {record['device']}; f32 matrix "
            f"peak {record['peak_gflops']:.0f} GFLOP/s; medians",
            text_table(head, lines),
            f"sums of {memory['tokens']} tokens: {memory['total_gb']:.2f} GB with activations, "
            f"dictionary and results ({GB:g} wanted)",
        )
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = grammar(NAME, __doc__)
    add = parser.add_argument
    add("--width", type=int, default=512, metavar="D")
    add("--features", type=int, default=32768, metavar="F")
    add("--tokens", type=int, default=1024, metavar="N", help="read in one call")
    add("--k", type=int, default=32, metavar="K", help="features a token, of topk")
    add("--runs", type=int, default=5, metavar="N", help="after the first; of training 2 less")
    add("--sae-lens", metavar="DIR", help="where pip install --target has put SAELens")
    options = parser.parse_args(arguments)
    options.kinds, options.trained = KINDS, TRAINED
    options.stack, options.batch, options.most_tokens = STACK, BATCH, TOKENS
    if options.quick:
        options.width, options.features, options.tokens, options.k = 32, 256, 96, 4
        options.kinds, options.runs = ("topk",), 1
        options.trained, options.stack, options.batch = ((16, 64, 4, 3),), 2, 32
        options.most_tokens = 2000
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    return answer(parse(arguments), NAME, measure, table)


if __name__ == "__main__":
    raise SystemExit(main())
