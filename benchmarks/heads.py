"""How long does the importance of every head take, beside what a user would run instead?

All heads zero-ablated one by one, metric logit(target) − best other, f32, random prompts of one
length, random weights of one of Pythia's shapes or a checkpoint's folder. The baselines read the
same checkpoint, run to the end in this process on the same device, and are compared with the wave;
the machine's f32 matrix peak is measured in the same run.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import jaxalign
from benchmarks import pytorch_baseline as pytorch
from benchmarks import transformer_lens_baseline as lens
from benchmarks import vmap_baseline as vmap
from benchmarks import workload
from benchmarks.account import account
from benchmarks.record import answer, device, grammar
from benchmarks.timing import PRODUCTS, matrix_peak, once, repeated
from benchmarks.workload import SIZES, TINY, Prompts
from jaxalign.checkpoints import locate
from jaxalign.studies.heads.calls import Runner
from jaxalign.study.tables import text_table

NAME = "heads"
BATCH_SIZES = (16, 32, 64)  # a batched baseline takes the fastest of these
VMAP_SIZES = (2, 8, 16)
EDITS = (1, 4, 16, 64, 256)  # edits of all prompts in one pass
TRIAL_HEADS = 4  # edited where batch sizes are tried out
BASELINES = {
    "pytorch-one": "PyTorch + hooks, one prompt at a time",
    "pytorch-batched": "PyTorch + hooks, batched",
    "pytorch-last": "PyTorch + hooks, batched, logits at the last position only",
    "pytorch-edits": "PyTorch + hooks, edits × prompts in one batch, logits at the last position",
    "lens-one": "TransformerLens, one prompt at a time",
    "lens-batched": "TransformerLens, batched",
    "vmap": "JAX, vmap over masks",
    "vmap-pair": "JAX, vmap over masks, answer pair only",
}


class Baseline(NamedTuple):
    """A way to compute importance, the batch sizes to choose from, and what it should find.

    ``run(tokens, target, batch_size, first=None)`` gives ``[P, M]``, of the first heads or of all.
    A batch is of prompts or, ``by_edits``, of edits of all prompts.
    """

    run: Callable[..., np.ndarray]
    sizes: Sequence[int]
    expected: np.ndarray
    by_edits: bool = False


def fastest(baseline: Baseline, prompts: Prompts) -> int:
    """The batch size with the fewest seconds a run, each tried on one batch."""
    tried: dict[int, float] = {}
    most = baseline.expected.shape[1] if baseline.by_edits else len(prompts.tokens)
    sizes = sorted({min(size, most) for size in baseline.sizes})
    if len(sizes) == 1:
        return sizes[0]  # nothing to choose
    for size in sizes:
        part = slice(None if baseline.by_edits else size)
        first = size if baseline.by_edits else TRIAL_HEADS
        given = prompts.tokens[part], prompts.target[part]
        trial = functools.partial(baseline.run, *given, size, first=first)
        tried[size] = repeated(trial, 2)[1].best / size  # the call before them warms up
    return min(tried, key=lambda size: tried[size])


def row(name: str, baseline: Baseline, prompts: Prompts) -> dict[str, Any]:
    """Run a baseline to the end at its fastest batch size."""
    size = fastest(baseline, prompts)
    found, seconds = once(lambda: baseline.run(prompts.tokens, prompts.target, size))
    return {
        "name": name,
        "batch": size * len(prompts.tokens) if baseline.by_edits else size,
        "seconds": round(seconds, 4),
        "largest_difference": float(np.abs(found - baseline.expected).max()),
    }


def baselines(
    names: Sequence[str], folder: Path, runner: Runner, prompts: Prompts, ours: np.ndarray
) -> Iterator[tuple[str, Baseline]]:
    """The chosen baselines, each loaded when its turn comes."""
    # On a GPU a size is two programs of seconds each, and all sizes are equally fast.
    sizes = VMAP_SIZES[-1:] if device().platform == "gpu" else VMAP_SIZES
    if "vmap" in names:
        yield "vmap", Baseline(functools.partial(vmap.importance, runner), sizes, ours)
    if "vmap-pair" in names:
        by_pair = functools.partial(vmap.pair_importance, runner)
        wave = by_pair(prompts.tokens, prompts.target, sizes[-1], by=vmap.answer_pair_by_wave)
        yield "vmap-pair", Baseline(by_pair, sizes, wave)
    for library, module in (("pytorch", pytorch), ("lens", lens)):
        asked = [name for name in names if name.startswith(library)]
        model = module.load(folder) if asked else None
        for name in asked:
            if name == "pytorch-edits":
                by_edits = functools.partial(pytorch.importance_by_edits, model)
                yield name, Baseline(by_edits, EDITS, ours, by_edits=True)
                continue
            last = {"unembed": "last"} if name == "pytorch-last" else {}
            run = functools.partial(module.importance, model, **last)
            yield name, Baseline(run, (1,) if name.endswith("one") else BATCH_SIZES, ours)


def products_for(quick: bool) -> tuple[tuple[int, int, int], ...]:
    """The products whose rate is the peak; on a GPU the two that can fill it, a program each."""
    if quick:
        return PRODUCTS[:1]
    return (PRODUCTS[5], PRODUCTS[-1]) if device().platform == "gpu" else PRODUCTS


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The wave, its peak and account, and every baseline, on one checkpoint."""
    with contextlib.ExitStack() as stack:
        folder = (
            stack.enter_context(workload.checkpoint(options.model))
            if options.model in SIZES
            else locate(options.model).folder
        )
        settings = jaxalign.HeadsOptions(memory_gb=options.memory_gb)
        runner = Runner(jaxalign.load(str(folder)), settings)
        prompts = workload.random_prompts(runner.config, options.prompts, options.tokens)
        products = products_for(options.quick)
        peak = matrix_peak(products)
        ours, timing = repeated(lambda: workload.importance(runner, prompts), options.runs)
        peak = max(peak, matrix_peak(products))
        theirs = pytorch.matrix_peak(products) if options.baselines else None
        terms = account(runner, prompts, timing.best, peak) if options.account else []
        rows = [
            row(name, baseline, prompts)
            for name, baseline in baselines(options.baselines, folder, runner, prompts, ours)
        ]
    flops = workload.least_flops(runner.config, prompts)
    order = list(BASELINES)
    return {
        "model": options.model,
        "layers": runner.config.num_layers,
        "heads": runner.num_heads,
        "prompts": options.prompts,
        "tokens": options.tokens,
        "memory_gb": options.memory_gb,
        "wave": {
            **timing.record(),
            "prompts_a_call": workload.batches(runner, prompts)[0].shape[0],
            "largest_importance": float(np.abs(ours).max()),
        },
        "rows": sorted(rows, key=lambda r: order.index(r["name"])),
        "peak_gflops": round(peak / 1e9, 1),
        "pytorch_peak_gflops": None if theirs is None else round(theirs / 1e9, 1),
        "least_gflop": {name: round(n / 1e9, 3) for name, n in flops.by_term().items()},
        "utilisation": round(flops.total / (timing.best * peak), 4),
        "utilisation_median": round(flops.total / (timing.median * peak), 4),
        "account": terms,
    }


def table(record: dict[str, Any]) -> str:
    """The record for people."""
    wave = record["wave"]
    lines = [
        f"{record['model']}: {record['heads']} heads, {record['prompts']} prompts of "
        f"{record['tokens']} tokens, f32, {record['processor']}, {record['cores']} cores, "
        f"{record['device']}",
        "",
        text_table(
            ("", "seconds", "batch", "wave is faster by", "largest difference"),
            [
                (
                    BASELINES[r["name"]],
                    f"{r['seconds']:.2f}",
                    str(r["batch"]),
                    f"{r['seconds'] / wave['median']:.1f}",
                    f"{r['largest_difference']:.1e}",
                )
                for r in record["rows"]
            ]
            + [
                (f"the wave, median of {wave['runs']}", f"{wave['median']:.3f}", *_same(wave)),
                ("the wave, best", f"{wave['best']:.3f}", *_same(wave)),
                ("the wave, first run with compilation", f"{wave['first']:.2f}", *_same(wave)),
            ],
        ),
        "",
        _utilisation(record),
    ]
    if record["account"]:
        head = "each term alone, and what is left", "GFLOP", "seconds", "at the peak"
        terms = [_term(entry, wave["best"]) for entry in record["account"]]
        lines += ["", text_table((*head, "lost, % of all"), terms)]
    return "\n".join(lines)


def _same(wave: dict[str, Any]) -> tuple[str, str, str]:
    return str(wave["prompts_a_call"]), "", ""


def _utilisation(record: dict[str, Any]) -> str:
    total = sum(record["least_gflop"].values())
    theirs = record["pytorch_peak_gflops"]
    beside = "" if theirs is None else f" ({theirs:.0f} through PyTorch)"
    return (
        f"fewest operations of an exact wave {total:.1f} GFLOP; measured f32 matrix peak "
        f"{record['peak_gflops']:.0f} GFLOP/s{beside}; utilisation {record['utilisation']:.3f} "
        f"(best), {record['utilisation_median']:.3f} (median)"
    )


def _term(entry: dict[str, Any], whole: float) -> tuple[str, ...]:
    lost = 100 * (entry["seconds"] - entry["at_peak"]) / whole
    numbers = f"{entry['seconds']:.3f}", f"{entry['at_peak']:.3f}", f"{lost:.1f}"
    return entry["term"], f"{entry['gflop']:.1f}", *numbers


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = grammar(NAME, __doc__)
    add = parser.add_argument
    add("--model", default="70m", metavar="SIZE|FOLDER|demo", help=f"one of {', '.join(SIZES)}, …")
    add("--prompts", type=int, default=64, metavar="N")
    add("--tokens", type=int, default=16, metavar="N", help="of each prompt")
    add("--memory-gb", type=float, default=4.0, metavar="GB")
    add("--runs", type=int, default=7, metavar="N", help="of the wave, after the first")
    add("--no-account", dest="account", action="store_false", help="leave out each term alone")
    add("--baselines", type=several, default=list(BASELINES), metavar=",".join(BASELINES))
    options = parser.parse_args(arguments)
    if options.quick:
        options.model, options.prompts, options.tokens, options.runs = TINY, 4, 8, 2
    return options


def several(text: str) -> list[str]:
    """Names of baselines from a list with commas; "none" for none."""
    names = [] if text == "none" else text.split(",")
    if unknown := set(names) - set(BASELINES):
        raise argparse.ArgumentTypeError(f"no such baseline: {', '.join(sorted(unknown))}")
    return names


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    return answer(parse(arguments), NAME, measure, table)


if __name__ == "__main__":
    raise SystemExit(main())
