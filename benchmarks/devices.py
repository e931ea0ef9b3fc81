"""How much of each added device does a shared sweep use?

Every head's importance by zero ablation, f32, in one call whose edited runs are shared over 1, 2,
4 and 8 devices of one process, and over two processes; each point in processes of its own, each
result compared with one device's.

Counted, not measured: the operations of the busiest device, which every device's own clean run and
rows that cannot be dealt evenly make more than its share. The work efficiency is one device's
operations over the devices times the busiest one's; no machine can use more of them than that.

Measured: on real devices the speed-up over one. Without any, the devices are virtual ones of the
CPU, which all share its cores, as one device alone does already; then only the cost of sharing can
be seen: the cores' time for an operation against that on one device.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import workload
from benchmarks.devices_point import zero_edit
from benchmarks.flops import wave_flops
from benchmarks.record import ROOT, answer, device, grammar
from benchmarks.scaling import config_of
from benchmarks.workload import SIZES, TINY
from jaxalign.devices.deal import deal
from jaxalign.edits.batch import rows, touched
from jaxalign.errors import InputError
from jaxalign.model import ModelConfig
from jaxalign.processes.relay import free_port
from jaxalign.study.tables import text_table

NAME = "devices"
COUNTS = (1, 2, 4, 8)
MOST_SECONDS = 3600  # of one point


class Point(NamedTuple):
    """How many processes with how many devices each."""

    processes: int
    devices: int

    @property
    def total(self) -> int:
        """Devices of all processes."""
        return self.processes * self.devices


def device_flops(config: ModelConfig, prompts: int, tokens: int, devices: int) -> list[int]:
    """The fewest operations that each device needs for its own rows and its own clean run."""
    edit = zero_edit(config)
    births = np.append(np.asarray(touched(edit, 1))[:, 0, 1:].argmax(axis=-1), -1)
    hands = np.asarray(deal(edit, prompts, devices))  # a number past the last row is no row
    own = (births[np.minimum(hand, rows(edit))] for hand in hands)
    lengths = [tokens] * prompts
    return [wave_flops(config, lengths, [int(b) for b in hand if b >= 0]).total for hand in own]


def counted(config: ModelConfig, prompts: int, tokens: int, devices: int) -> dict[str, float]:
    """What can be said of a number of devices without running anything.

    ``work_efficiency``: one device's operations over ``devices`` times the busiest one's;
    ``work``: the operations of all over one device's.
    """
    [alone] = device_flops(config, prompts, tokens, 1)
    each = device_flops(config, prompts, tokens, devices)
    return {
        "busiest_gflop": round(max(each) / 1e9, 6),
        "work_efficiency": round(alone / (devices * max(each)), 4),
        "work": round(sum(each) / alone, 4),
    }


def run_point(point: Point, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run a point's processes; the first one's times, all processes' CPU seconds."""
    keep = folder / f"{point.processes}-{point.devices}.npy"
    command = [sys.executable, "-m", "benchmarks.devices_point", str(folder), "--keep", str(keep)]
    for name in ("prompts", "tokens", "runs", "device"):
        command += [f"--{name}", str(getattr(options, name))]
    command += ["--devices", str(point.devices)]
    address = f"127.0.0.1:{free_port('127.0.0.1')}"
    started = []
    for index in range(point.processes):
        own = ["--coordinator", address, "--processes", str(point.processes)]
        own += ["--process-id", str(index)]
        started.append(
            subprocess.Popen(
                [*command, *(own if point.processes > 1 else [])],
                cwd=ROOT,
                env=os.environ | _devices_of(index, point),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    found = [_record(point, process) for process in started]
    total = round(sum(one["cpu_seconds"] for one in found), 4)
    return {**point._asdict(), **found[0], "devices": point.total, "cpu_seconds": total}


def _devices_of(index: int, point: Point) -> dict[str, str]:
    """The environment that gives a process its own devices: virtual ones, or some of the GPUs."""
    own = range(index * point.devices, (index + 1) * point.devices)
    virtual = f"--xla_force_host_platform_device_count={point.devices}"
    return {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {virtual}".strip(),  # the last one counts
        "CUDA_VISIBLE_DEVICES": ",".join(map(str, own)),
    }


def _record(point: Point, process: subprocess.Popen[str]) -> dict[str, Any]:
    try:
        out, err = process.communicate(timeout=MOST_SECONDS)
    finally:
        process.kill()
    if process.returncode:
        last = (err.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"{point} left with {process.returncode}: {last}", "see above")
    record: dict[str, Any] = json.loads(out.splitlines()[-1])
    return record


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Every point once, beside what is counted."""
    real = device().platform != "cpu"
    most = jax.local_device_count() if real else max(options.counts)
    points = [Point(1, count) for count in options.counts if count <= most]
    points += [Point(2, 1)] if most > 1 else []
    config = config_of(options.model)
    rows: list[dict[str, Any]] = []
    with workload.checkpoint(options.model) as folder:
        for point in points:
            row = run_point(point, folder, options)
            row |= counted(config, options.prompts, options.tokens, point.total)
            results = [
                np.load(folder / f"{p.processes}-{p.devices}.npy") for p in (points[0], point)
            ]
            row["largest_difference"] = float(np.abs(results[1] - results[0]).max())
            rows.append(row | compared(row, (rows or [row])[0], real))
            print(f"{point.processes} × {point.devices}: {row['seconds']} s", flush=True)
    return {
        "model": options.model,
        "heads": config.num_layers * config.num_heads,
        "prompts": options.prompts,
        "tokens": options.tokens,
        "runs": options.runs,
        "virtual": not real,
        "rows": rows,
    }


def compared(row: dict[str, Any], alone: dict[str, Any], real: bool) -> dict[str, Any]:
    """A point beside one device: its efficiency, or on shared cores the cost of an operation."""
    ratio = row["median"] / alone["median"]
    cores = row["cpu_seconds"] / alone["cpu_seconds"]
    return {
        "efficiency": round(1 / (row["devices"] * ratio), 4) if real else None,
        "cost_of_an_operation": None if real else round(cores / row["work"], 4),
    }


def table(record: dict[str, Any]) -> str:
    """The record for people."""
    heads = ("devices", "processes", "seconds", "CPU seconds", "work efficiency", "all work")
    measured = "cost of an operation" if record["virtual"] else "efficiency"
    rows = [
        (
            str(r["devices"]),
            str(r["processes"]),
            f"{r['median']:.4g}",
            f"{r['cpu_seconds']:.4g}",
            f"{r['work_efficiency']:.3f}",
            f"{r['work']:.3f}",
            f"{r['cost_of_an_operation'] if record['virtual'] else r['efficiency']:.3f}",
            f"{r['largest_difference']:.1e}",
        )
        for r in record["rows"]
    ]
    said = "virtual devices that share the cores" if record["virtual"] else "real devices"
    title = (
        f"{record['model']}: {record['heads']} heads, {record['prompts']} prompts of "
        f"{record['tokens']} tokens, f32, {said}; {record['processor']}, {record['cores']} cores"
    )
    return f"\n{title}\n\n{text_table((*heads, measured, 'largest difference'), rows)}"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = grammar(NAME, __doc__)
    add = parser.add_argument
    add("--model", default="70m", choices=SIZES, metavar="SIZE", help=f"one of {', '.join(SIZES)}")
    add("--prompts", type=int, default=16, metavar="N")
    add("--tokens", type=int, default=16, metavar="N", help="of each prompt")
    add("--runs", type=int, default=5, metavar="N", help="after the first")
    options = parser.parse_args(arguments)
    options.counts = COUNTS
    if options.quick:
        options.model, options.prompts, options.tokens, options.runs = TINY, 4, 8, 2
        options.counts = COUNTS[:2]
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    # The points are processes of their own: this one must leave them a GPU's memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    return answer(parse(arguments), NAME, measure, table)


if __name__ == "__main__":
    raise SystemExit(main())
