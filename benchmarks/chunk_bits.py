"""Whether importance in chunks has the bits of importance in one call; part of ``scaling``.

    python -m benchmarks.chunk_bits FOLDER --prompts N --tokens N

Every budget makes the engine cut the same work into calls of fewer prompts, and the smallest into
calls of fewer rows. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import jaxalign
from benchmarks import workload
from jaxalign.checkpoints import Model
from jaxalign.engine.budget import bytes_per_call, bytes_per_row
from jaxalign.prompts import batches
from jaxalign.runtime.environment import select_device
from jaxalign.studies.heads.calls import Runner


def budgets(model: Model, tokens: int) -> Iterator[float]:
    """Gigabytes that hold 8, 4, 2 and 1 prompts of all rows, and one prompt of a third of them."""
    always = 2 * workload.parameter_bytes(model) + bytes_per_call(model.config, tokens)
    row = bytes_per_row(model.config, tokens)
    rows = 1 + model.config.num_layers * model.config.num_heads
    for held in (8 * rows, 4 * rows, 2 * rows, rows, 1 + rows // 3):
        yield (always + (held + 0.5) * row) / 1e9


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """For each budget the engine's chunks and their difference from one call of everything."""
    select_device(options.device)
    model = jaxalign.load(str(options.folder))
    prompts = workload.random_prompts(model.config, options.prompts, options.tokens)
    whole = Runner(model, jaxalign.HeadsOptions(memory_gb=1e3))
    everything = list(batches(prompts.tokens.tolist(), options.prompts, model.config.max_positions))
    expected = workload.importance(whole, prompts, everything)
    records = []
    for memory_gb in budgets(model, everything[0].shape[1]):
        runner = Runner(model, jaxalign.HeadsOptions(memory_gb=memory_gb))
        work = workload.batches(runner, prompts)
        found = workload.importance(runner, prompts, work)
        [start, stop] = runner.row_ranges(work[0].shape[1], 0, 1)[0]
        records.append(
            {
                "memory_gb": round(memory_gb, 4),
                "prompts_a_call": work[0].shape[0],
                "rows_a_call": 1 + stop - start,
                "equal": bool(np.array_equal(found, expected)),
                "largest_difference": float(np.abs(found - expected).max()),
            }
        )
    return records


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; the exit code is 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chunk_bits")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prompts", type=int, required=True)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--device", default="auto")
    print(json.dumps(measure(parser.parse_args(arguments))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
