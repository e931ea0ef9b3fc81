"""Does another device, or a study shared among workers, give the numbers of one run on the CPU?

The three studies of the bundled model (or of ``--model``) as commands in processes of their own: on
``--device``, on the CPU, and on the device in two shards that an unsharded run assembles. f32
importance must agree to rounding, and the assembled study must have the bits of the whole one. In
lower precisions a device has its own roundings: what differs there is said, not judged.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import numpy as np

import jaxalign
from benchmarks.command import tiny
from benchmarks.record import ROOT, answer, grammar
from jaxalign.errors import InputError
from jaxalign.studies.heads.result import HeadsResult
from jaxalign.study import codec
from jaxalign.study.tables import text_table

NAME = "agreement"
SCHEMES = "bf16,f16,int8,llm-int8,nf4"
TOLERANCE = 1e-4  # logits, of f32 importance


def run(output: Path, device: str, arguments: Sequence[str]) -> float:
    """Seconds of one command, which must succeed."""
    where = "--output", str(output), "--device", device
    programs = "--compilation-cache", str(output.parent / f"programs-{device}")
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), *arguments, *where, *programs],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"{' '.join(arguments)} left with {done.returncode}: {last}", "see above")
    return time.perf_counter() - start


def importance(result: HeadsResult) -> np.ndarray:
    """Zero, mean and distractor-free importances of all prompts, f32."""
    return np.array([[p.zero_importance, p.mean_importance] for p in result.prompts])


def raw(result: HeadsResult) -> Any:
    """A study's numbers without how and when they were made."""
    content = codec.encode(result)
    return {name: content[name] for name in ("prompts", "repairs", "statistics")}


def compare(a: HeadsResult, b: HeadsResult) -> dict[str, float]:
    """Largest differences of two runs: of f32 importance, and of drift in each precision."""
    found = {"importance f32": float(np.abs(importance(a) - importance(b)).max())}
    for name in a.precisions:
        drifts = [np.array([p.precisions[name].drift for p in r.prompts]) for r in (a, b)]
        found[f"drift {name}"] = float(np.nanmax(np.abs(drifts[0] - drifts[1])))
    return found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Every run, its time, and what differs."""
    device = jax.devices()[0].platform if options.device == "auto" else options.device
    seconds: dict[str, float] = {}
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = tiny(folder) if options.quick else ["--model", options.model, "--no-figures"]
        heads = ["heads", *model]

        def timed(name: str, output: str, where: str, *arguments: str) -> Path:
            seconds[name] = round(run(folder / output, where, arguments), 2)
            return folder / output

        whole = timed(f"heads, {device}, cold", "whole.json", device, *heads)
        timed(f"heads, {device}, repeated", "again.json", device, *heads)
        for n in (2, 1):
            timed(f"shard {n}/2", "shared.json", device, *heads, "--shard", f"{n}/2")
        shared = timed("assembled from shards", "shared.json", device, *heads)
        cpu = timed("heads, cpu", "cpu.json", "cpu", *heads)
        results = {path.stem: jaxalign.read(path) for path in (whole, shared, cpu)}
        kl: dict[str, dict[str, float]] = {}
        if not options.quick:
            table = ["schemes", *model, "--schemes", SCHEMES]
            for where in dict.fromkeys((device, "cpu")):
                path = timed(f"schemes, {where}", f"schemes-{where}.json", where, *table)
                kl[where] = {row.scheme: row.kl.value for row in jaxalign.read(path).rows}
    differences = compare(results["whole"], results["cpu"])
    return {
        "against": device,
        "seconds": seconds,
        "differences": differences,
        "agrees": differences["importance f32"] <= TOLERANCE,
        "shards_equal_one_run": raw(results["shared"]) == raw(results["whole"]),
        "kl": kl,
    }


def table(record: dict[str, Any]) -> str:
    """The record for people."""
    lines = [
        f"{record['against']} ({record['device']}) against cpu, {record['processor']}",
        text_table(("run", "seconds"), [(k, f"{v:.1f}") for k, v in record["seconds"].items()]),
        text_table(
            ("largest difference", ""), [(k, f"{v:.1e}") for k, v in record["differences"].items()]
        ),
        f"f32 importance agrees to {TOLERANCE} logits: {record['agrees']}; "
        f"two shards have the bits of one run: {record['shards_equal_one_run']}",
    ]
    if record["kl"]:
        names = list(next(iter(record["kl"].values())))
        rows = [(n, *(f"{by[n]:.3e}" for by in record["kl"].values())) for n in names]
        lines.append(text_table(("KL (nats)", *record["kl"]), rows))
    return "\n\n".join(lines)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = grammar(NAME, __doc__)
    parser.add_argument("--model", default="demo", metavar="ID|PATH")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    return answer(parse(arguments), NAME, measure, table)


if __name__ == "__main__":
    raise SystemExit(main())
