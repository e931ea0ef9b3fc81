"""Does cost grow as the operations do, and does memory stay within its budget?

Every head's importance by zero ablation, f32, at growing numbers of prompts, lengths of prompts and
shapes of Pythia (random weights), each point in a process of its own: its best time, its peak
memory, and the fewest operations that an exact wave needs there. A line through the logarithms says
with which power of the operations the time grows. At last the same work is cut into ever smaller
chunks and compared, bit by bit, with one call of everything.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy import stats

from benchmarks import scaling_plot, workload
from benchmarks.record import RESULTS, ROOT, answer, grammar
from benchmarks.timing import PRODUCTS, matrix_peak
from benchmarks.workload import TINY
from jaxalign.checkpoints.families import config_from_hf
from jaxalign.errors import InputError
from jaxalign.flops import wave_flops
from jaxalign.model import ModelConfig
from jaxalign.model.params import param_shapes
from jaxalign.study.tables import text_table
from tests.pythia_shape import pythia_config, tiny_config

NAME = "scaling"
EXPECTED_UTILISATION = 0.4  # for saying beforehand how long a point takes
ROOM_GB = 0.5  # beside two copies of the weights, where these alone outgrow --memory-gb


class Point(NamedTuple):
    """A size of the work."""

    size: str
    prompts: int
    tokens: int


AXES = {
    "prompts": tuple(Point("70m", n, 16) for n in (16, 64, 256, 1024, 4096)),
    "tokens": tuple(Point("70m", 16, n) for n in (8, 16, 32, 64, 128, 256, 512)),
    "shape": tuple(Point(s, 16, 16) for s in ("14m", "31m", "70m", "160m", "410m", "1b")),
}
QUICK_AXES = {
    "prompts": tuple(Point(TINY, n, 8) for n in (2, 4)),
    "tokens": (Point(TINY, 2, 8),),
    "shape": (Point(TINY, 2, 8),),
}


def config_of(size: str) -> ModelConfig:
    """A size's architecture."""
    return config_from_hf(tiny_config() if size == TINY else pythia_config(size))


def flops_of(point: Point) -> int:
    """The fewest operations at a point."""
    config = config_of(point.size)
    births = [layer for layer in range(config.num_layers) for _ in range(config.num_heads)]
    return wave_flops(config, [point.tokens] * point.prompts, births).total


def budget_of(point: Point, memory_gb: float) -> float:
    """``memory_gb``, or more for a model whose weights leave no room in it."""
    leaves = jax.tree.leaves(param_shapes(config_of(point.size)))
    return max(memory_gb, 2 * 4e-9 * sum(leaf.size for leaf in leaves) + ROOM_GB)


def child(module: str, folder: Path, point: Point, device: str, *more: str) -> Any:
    """The JSON that a module of the suite prints last, run in a process of its own."""
    command = [sys.executable, "-m", f"benchmarks.{module}", str(folder), "--device", device]
    command += ["--prompts", str(point.prompts), "--tokens", str(point.tokens), *more]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"{module} at {point} left with {done.returncode}: {last}", "see above")
    return json.loads(done.stdout.splitlines()[-1])


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Every point once, the fits, and the comparison of chunks."""
    axes = QUICK_AXES if options.quick else AXES
    peak = matrix_peak(PRODUCTS[:1] if options.quick else PRODUCTS)
    points = list(dict.fromkeys(point for axis in axes.values() for point in axis))
    records: dict[Point, dict[str, Any]] = {}
    chunks: list[dict[str, Any]] = []
    for size in dict.fromkeys(point.size for point in points):
        with workload.checkpoint(size) as folder:
            for point in points:
                if point.size == size:
                    records[point] = run_point(point, folder, peak, options)
                    print(_progress(point, records[point]), flush=True)
            if size in (TINY, "70m"):
                chunks = child("chunk_bits", folder, Point(size, 16, 16), options.device)
    found = {name: [records[point] for point in axis] for name, axis in axes.items()}
    record = {
        "model": "random weights of Pythia's shapes",
        "memory_gb": options.memory_gb,
        "peak_gflops": round(peak / 1e9, 1),
        "axes": found,
        "fits": {name: fit(axis) for name, axis in {**found, "all": records.values()}.items()},
        "chunks": chunks,
    }
    return record


def run_point(
    point: Point, folder: Path, peak: float, options: argparse.Namespace
) -> dict[str, Any]:
    """A point's record; without ``seconds`` where it would take too long."""
    flops = flops_of(point)
    expected = flops / (EXPECTED_UTILISATION * peak)
    budget = budget_of(point, options.memory_gb)
    record = {**point._asdict(), "memory_gb": round(budget, 3), "gflop": flops / 1e9}
    if expected > 60 * options.most_minutes:
        return {**record, "skipped": f"would take about {expected:.0f} s"}
    found = child("scaling_point", folder, point, options.device, "--memory-gb", str(budget))
    utilisation = round(flops / (found["seconds"] * peak), 4)
    inside = found["peak_gb"] <= budget
    return {**record, **found, "utilisation": utilisation, "inside": inside}


def fit(records: Any) -> dict[str, Any]:
    """The exponent of time against operations, and its 95 % interval where points allow one."""
    measured = [r for r in records if "seconds" in r]
    if len(measured) < 2:
        return {"points": len(measured), "exponent": None, "low": None, "high": None}
    x, y = (np.log([r[name] for r in measured]) for name in ("gflop", "seconds"))
    line = stats.linregress(x, y)
    reach = None
    if len(measured) > 2:
        reach = float(stats.t.ppf(0.975, len(measured) - 2) * line.stderr)
    return {
        "points": len(measured),
        "exponent": round(line.slope, 4),
        "low": None if reach is None else round(line.slope - reach, 4),
        "high": None if reach is None else round(line.slope + reach, 4),
    }


def _progress(point: Point, record: dict[str, Any]) -> str:
    said = record.get("skipped") or f"{record['seconds']:.3f} s, {record['peak_gb']:.2f} GB"
    return f"{point.size}, {point.prompts} prompts of {point.tokens} tokens: {said}"


def table(record: dict[str, Any]) -> str:
    """The record for people."""
    heads = "", "model", "prompts", "tokens", "GFLOP", "seconds", "of the peak", "prompts × calls"
    rows = [_row(name, r) for name, axis in record["axes"].items() for r in axis]
    fits = [
        (name, str(f["points"]), _number(f["exponent"]), _number(f["low"]), _number(f["high"]))
        for name, f in record["fits"].items()
    ]
    chunks = [
        (
            f"{c['memory_gb']:.4g} GB",
            str(c["prompts_a_call"]),
            str(c["rows_a_call"]),
            "equal" if c["equal"] else f"{c['largest_difference']:.1e}",
        )
        for c in record["chunks"]
    ]
    return "\n\n".join(
        (
            f"\nmeasured f32 matrix peak {record['peak_gflops']:.0f} GFLOP/s",
            text_table((*heads, "peak GB", "budget GB"), rows),
            text_table(("time ∝ operations^", "points", "exponent", "95 % from", "to"), fits),
            text_table(("in chunks against one call", "prompts", "rows", "bits"), chunks),
        )
    )


def _row(axis: str, r: dict[str, Any]) -> tuple[str, ...]:
    point = axis, r["size"], str(r["prompts"]), str(r["tokens"]), f"{r['gflop']:.4g}"
    if "skipped" in r:
        return *point, r["skipped"], "", "", "", f"{r['memory_gb']:.2f}"
    call = f"{r['prompts_a_call']} × {r['calls']}"
    memory = f"{r['peak_gb']:.2f}" + ("" if r["inside"] else " OVER"), f"{r['memory_gb']:.2f}"
    return *point, f"{r['seconds']:.4g}", f"{r['utilisation']:.2f}", call, *memory


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = grammar(NAME, __doc__)
    add = parser.add_argument
    add("--memory-gb", type=float, default=4.0, metavar="GB", help="budget of every point")
    add("--most-minutes", type=float, default=10.0, metavar="N", help="skip a point beyond that")
    add("--figures", type=Path, default=scaling_plot.FOLDER, metavar="DIR", help="with --save")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    options = parse(arguments)
    code = answer(options, NAME, measure, table)
    if options.save and not code:  # from the file, so that a plot that fails loses no measurement
        record = json.loads((RESULTS / f"{NAME}.json").read_text())
        scaling_plot.draw(record, options.figures)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
