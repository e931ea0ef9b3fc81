"""One point of ``benchmarks.scaling`` in a process of its own, so that its peak memory is its own.

    python -m benchmarks.scaling_point FOLDER --prompts N --tokens N --memory-gb GB

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jaxalign
from benchmarks import workload
from benchmarks.timing import once, peak_bytes
from jaxalign.runtime.environment import select_device
from jaxalign.studies.heads.calls import Runner

ENOUGH_SECONDS = 10.0  # of repeated runs, unless MOST_RUNS of them take less
MOST_RUNS = 5


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds and memory of every head's importance at one size."""
    select_device(options.device)
    before = peak_bytes()
    model = jaxalign.load(str(options.folder))
    runner = Runner(model, jaxalign.HeadsOptions(memory_gb=options.memory_gb))
    prompts = workload.random_prompts(runner.config, options.prompts, options.tokens)
    work = workload.batches(runner, prompts)
    workload.importance(runner, prompts, work[:1])  # compiles: all batches have the same shape
    seconds = [once(lambda: workload.importance(runner, prompts, work))[1]]
    while sum(seconds) < ENOUGH_SECONDS and len(seconds) < MOST_RUNS:
        seconds.append(once(lambda: workload.importance(runner, prompts, work))[1])
    return {
        "seconds": round(min(seconds), 6),
        "runs": len(seconds),
        "gflop": workload.least_flops(runner.config, prompts).total / 1e9,
        "prompts_a_call": work[0].shape[0],
        "calls": len(work) * len(runner.row_ranges(work[0].shape[1], 0, 1)),
        "peak_gb": round(peak_bytes() / 1e9, 4),
        "before_gb": round(before / 1e9, 4),
        "weights_gb": round(workload.parameter_bytes(model) / 1e9, 4),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; the exit code is 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling_point")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prompts", type=int, required=True)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--memory-gb", type=float, required=True)
    parser.add_argument("--device", default="auto")
    print(json.dumps(measure(parser.parse_args(arguments))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
