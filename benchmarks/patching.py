"""How long does patching every place take, beside what a user would run instead?

Random pairs of prompts of one length, metric logit(target) − logit(other), f32, random weights of
one of Pythia's shapes. Values of the clean run are put into the corrupted one: the stream by step ×
position (resid), heads by position (heads); every head is zeroed at the last position of longer
prompts (last); and every place at four points is estimated in one backward pass (screen), beside
exact sweeps of the same. The baselines read the same checkpoint and run in this process on the same
device. They are given the clean run's values, which ours computes within its time, and the largest
number of rows a pass that tries found fastest. Where rows are many they run an evenly spread part
of them (rows_run of rows), and their seconds are scaled to all.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxalign
from benchmarks import patching_baselines as theirs
from benchmarks import pytorch_baseline as pytorch
from benchmarks import transformer_lens_baseline as lens
from benchmarks import workload
from benchmarks.flops import patching_flops
from benchmarks.heads import products_for
from benchmarks.patching_calls import (
    SCREENED,
    Case,
    Pairs,
    last_case,
    patch,
    patching_case,
    random_pairs,
    screen,
)
from benchmarks.record import answer, grammar
from benchmarks.timing import Timing, matrix_peak, once, repeated
from benchmarks.workload import SIZES, TINY
from jaxalign.checkpoints import Model
from jaxalign.model import ModelConfig
from jaxalign.study.tables import text_table

NAME = "patching"
CASES = {
    "resid": "the stream, steps × positions",
    "heads": "heads × positions",
    "last": "every head zeroed at the last position",
    "screen": "estimates of every place at four points",
}
BASELINES = {
    "lens": "TransformerLens, a row a pass",
    "pytorch-full": "PyTorch, rows in batches",
    "pytorch-last": "PyTorch, rows in batches, last logits",
    "pytorch-cache": "PyTorch, rows in batches, cache, last logits",
    "exact": "ours, exact",
}
# Rows of a pass among which a baseline takes the fastest; logits everywhere take memory.
ROWS = {
    "lens": (1,),
    "pytorch-full": (1, 4),
    "pytorch-last": (1, 4, 16),
    "pytorch-cache": (4, 16, 48),
}
SHORT = 10.0  # seconds: a baseline that takes less is repeated


def baselines(
    case: Case, net: Any, bridge: Any
) -> Iterator[tuple[str, Callable[[np.ndarray, int], np.ndarray]]]:
    """Each of a case's baselines: from places and rows a pass to ``[places, P]``."""
    _, corrupted, answers = case.pairs
    values = theirs.values_at(net, case.pairs.clean, case.point)
    if case.name == "last":
        values = theirs.zeros(values)
        cached = functools.partial(theirs.after_prefix, net, corrupted, answers, values)
        yield "pytorch-cache", cached
    else:
        by_lens = functools.partial(theirs.by_lens, bridge, corrupted, answers, case.point, values)
        yield "lens", lambda places, size: by_lens(places)
    given = net, corrupted, answers, case.point, values
    yield "pytorch-last", functools.partial(theirs.by_rows, *given, unembed="last")
    if case.name != "last":
        yield "pytorch-full", functools.partial(theirs.by_rows, *given, unembed="all")


def spread(rows: int, share: int) -> np.ndarray:
    """One of every ``share`` rows, each a place later in its group than the one before."""
    index = np.arange(0, rows, share)
    return np.minimum(index + np.arange(len(index)) % share, rows - 1)


def row(
    name: str,
    run: Callable[[np.ndarray, int], np.ndarray],
    case: Case,
    expected: np.ndarray,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """A baseline over all rows, or over a part and scaled, at its fastest rows a pass."""
    count = len(case.places)
    chosen = spread(count, options.share if case.name == "heads" else 1)
    places, tried = case.places[chosen], {}
    sizes = sorted({min(size, len(places)) for size in ROWS[name]})
    for size in sizes if len(sizes) > 1 else ():
        trial = functools.partial(run, places[:size], size)
        tried[size] = repeated(trial, 1)[1].best / size  # the call before it warms up
    size = min(tried, key=lambda size: tried[size]) if tried else sizes[0]
    whole = functools.partial(run, places, size)
    found, seconds = once(whole)
    runs = 1
    if seconds < SHORT:
        found, timing = repeated(whole, options.runs)
        seconds, runs = timing.median, timing.runs
    return {
        "name": name,
        "rows_a_pass": size,
        "rows_run": len(places),
        "runs": runs,
        "seconds": round(seconds * count / len(places), 4),
        "largest_difference": float(np.abs(found - expected[chosen]).max()),
    }


def measure_case(
    case: Case, config: ModelConfig, nets: tuple[Any, Any], options: argparse.Namespace
) -> dict[str, Any]:
    """Ours, the fewest operations that it takes, and every baseline."""
    found, timing = repeated(case.call, options.runs)
    expected = np.asarray(found)
    rows = [row(name, run, case, expected, options) for name, run in baselines(case, *nets)]
    length, births = case.pairs.clean.shape[1], list(case.births)
    firsts = (case.places[:, 1] % length).tolist()
    if case.name != "last":  # the clean prompts' own runs, whose values are put
        births, firsts = [0, *births], [0, *firsts]
    prompts = len(case.pairs.clean)
    flops = patching_flops(config, length, prompts, births, firsts, tokens_read=2)
    return {
        **_asked(case.name, case.pairs, len(case.places)),
        "ours": timing.record(),
        "largest_metric": float(np.abs(expected).max()),
        "rows": _compared(rows, timing),
        "least_gflop": {name: round(n / 1e9, 6) for name, n in flops.by_term().items()},
    }


def measure_screen(model: Model, pairs: Pairs, options: argparse.Namespace) -> dict[str, Any]:
    """The screen beside exact sweeps of the same places, one a point."""
    given = model.params, pairs.clean, pairs.corrupted, pairs.lengths, pairs.answers
    once_through = functools.partial(screen, *given, config=model.config)
    (corrupted, estimates), timing = repeated(once_through, options.runs)
    seconds, off, largest = {}, 0.0, 0.0
    for point, apart in SCREENED.items():
        exact = functools.partial(patch, *given, config=model.config, point=point, apart=apart)
        found, exact_timing = repeated(exact, 1)
        effect = np.asarray(found - corrupted)
        seconds[point] = round(exact_timing.median, 4)
        off = max(off, float(np.abs(np.asarray(estimates[point]) - effect).max()))
        largest = max(largest, float(np.abs(effect).max()))
    rows = sum(len(estimate) for estimate in estimates.values())
    exact_row = {
        "name": "exact",
        "rows_a_pass": None,
        "rows_run": rows,
        "runs": 1,
        "seconds": round(sum(seconds.values()), 4),
        "by_point": seconds,
        "largest_difference": off,  # what a first-order estimate misses, not an error of the sweep
    }
    return {
        **_asked("screen", pairs, rows),
        "ours": timing.record(),
        "largest_metric": largest,
        "rows": _compared([exact_row], timing),
        "least_gflop": None,
    }


def _asked(name: str, pairs: Pairs, rows: int) -> dict[str, Any]:
    return {
        "name": name,
        "edits": rows,
        "prompts": len(pairs.clean),
        "tokens": pairs.clean.shape[1],
    }


def _compared(rows: list[dict[str, Any]], ours: Timing) -> list[dict[str, Any]]:
    order = list(BASELINES)
    ratio = {id(row): round(row["seconds"] / ours.median, 2) for row in rows}
    return [
        {**row, "ratio": ratio[id(row)]}
        for row in sorted(rows, key=lambda r: order.index(r["name"]))
    ]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Every chosen case, on one checkpoint."""
    with workload.checkpoint(options.model) as folder:
        model = jaxalign.load(str(folder))
        nets = pytorch.load(Path(folder)), lens.load(Path(folder))
    short = random_pairs(model.config, options.prompts, options.tokens)
    long = random_pairs(model.config, options.long_prompts, options.long_tokens)
    products = products_for(options.quick)
    peak = matrix_peak(products)
    found = []
    for name in options.cases:
        if name == "screen":
            found.append(measure_screen(model, short, options))
            continue
        case = last_case(model, long) if name == "last" else patching_case(name, model, short)
        found.append(measure_case(case, model.config, nets, options))
        jax.clear_caches()  # a program holds its constants
    peak = max(peak, matrix_peak(products))
    for one in found:
        least = one["least_gflop"] and sum(one["least_gflop"].values()) * 1e9
        one["score"] = round(least / (one["ours"]["median"] * peak), 4) if least else None
    return {
        "model": options.model,
        "layers": model.config.num_layers,
        "heads": model.config.num_layers * model.config.num_heads,
        "share": options.share,
        "peak_gflops": round(peak / 1e9, 1),
        "cases": found,
    }


def described(row: Mapping[str, Any], case: Mapping[str, Any]) -> str:
    """A baseline's name, how many rows a pass it runs, and that it ran a part."""
    each = row["rows_a_pass"]
    size = f" ({each * case['prompts']} a batch)" if each and each > 1 else ""
    part = f", scaled from {row['rows_run']} rows" if row["rows_run"] < case["edits"] else ""
    return f"{BASELINES[row['name']]}{size}{part}"


def title(case: Mapping[str, Any]) -> str:
    """What a case asks, and of how much."""
    counts = f"{case['edits']} rows, {case['prompts']} prompts of {case['tokens']} tokens"
    return f"{CASES[case['name']]}: {counts}"


def table(record: dict[str, Any]) -> str:
    """The record for people."""
    parts = [
        f"{record['model']}, f32, {record['processor']}, {record['cores']} cores, "
        f"{record['device']}; f32 matrix peak {record['peak_gflops']:.0f} GFLOP/s"
    ]
    for case in record["cases"]:
        ours = case["ours"]
        lines = [
            (
                described(row, case),
                f"{row['seconds']:.3f}",
                f"{row['ratio']:.1f}",
                f"{row['largest_difference']:.1e}",
            )
            for row in case["rows"]
        ]
        lines += [
            (f"ours, median of {ours['runs']}", f"{ours['median']:.3f}", "", ""),
            ("ours, first run with compilation", f"{ours['first']:.2f}", "", ""),
        ]
        head = title(case), "seconds", "ours is faster by", "largest difference"
        parts.append(text_table(head, lines))
        if case["least_gflop"]:
            total = sum(case["least_gflop"].values())
            parts.append(f"fewest operations {total:.1f} GFLOP, score {case['score']:.3f}")
    return "\n\n".join(parts)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = grammar(NAME, __doc__)
    add = parser.add_argument
    add("--model", default="70m", metavar="SIZE", choices=SIZES, help=", ".join(SIZES))
    add("--prompts", type=int, default=64, metavar="N", help="pairs")
    add("--tokens", type=int, default=16, metavar="N", help="of each prompt")
    add("--long-prompts", type=int, default=16, metavar="N", help="of last-position edits")
    add("--long-tokens", type=int, default=128, metavar="N", help="of each of them")
    add("--runs", type=int, default=3, metavar="N", help="after the first")
    add("--share", type=int, default=8, metavar="N", help="baselines run 1/N of heads × positions")
    add("--cases", type=several, default=list(CASES), metavar=",".join(CASES))
    options = parser.parse_args(arguments)
    if options.quick:
        options.model, options.prompts, options.tokens, options.runs = TINY, 3, 6, 1
        options.long_prompts, options.long_tokens = 2, 8
    return options


def several(text: str) -> list[str]:
    """Names of cases from a list with commas."""
    names = text.split(",")
    if unknown := set(names) - set(CASES):
        raise argparse.ArgumentTypeError(f"no such case: {', '.join(sorted(unknown))}")
    return names


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    return answer(parse(arguments), NAME, measure, table)


if __name__ == "__main__":
    raise SystemExit(main())
