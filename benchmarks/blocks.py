"""Which size of a block is fastest on this device, and what makes the others slow?

The wave that zero-ablates every head, with blocks of several numbers of positions. Beside its
seconds stands what could explain them: the positions that it computes, filler of half-empty blocks
included; attention and the MLP alone, in nanoseconds a position; and the copies and the temporary
memory of the compiled program. Blocks of logits are tried at the size of block that is fastest.
"""

from __future__ import annotations

import argparse
import functools
import re
from collections.abc import Sequence
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

import jaxalign
from benchmarks import workload
from benchmarks.record import answer, grammar
from benchmarks.timing import repeated
from jaxalign.engine import blocks, readout
from jaxalign.model import layers
from jaxalign.model.attention import attend
from jaxalign.numerics import jit
from jaxalign.study.tables import text_table

NAME = "blocks"
POSITIONS = (512, 1024, 2048, 3072, 4096, 8192, 16384, 65536)
LOGITS = ((512, 2096), (1024, 8192), (4096, 8192))  # runs and tokens of a block of logits
COPY = re.compile(r"= \(?(?:f32|pred|s32)\[([0-9,]+)\]\S* copy(?:-start)?\(")


def program(model: Any, prompts: workload.Prompts, positions: int) -> tuple[Any, Any]:
    """The compiled wave with blocks of so many positions, and what runs it."""
    anew = functools.partial(workload.zero_ablation.fun)  # JAX keeps traces by function
    run = jit(anew, static_argnames=("config", "rows"))
    given = model.params, prompts.tokens, np.array(prompts.lengths), prompts.target
    with mock.patch.object(blocks, "block_positions", return_value=positions):
        compiled = run._jitted.lower(*given, config=model.config, rows=(0, None)).compile()
    return compiled, lambda: compiled(*given)


def copies(compiled: Any) -> tuple[int, int]:
    """Copies in a compiled program, and the bytes of all of them, each counted once."""
    shapes = COPY.findall(compiled.as_text())
    return len(shapes), sum(
        4 * int(np.prod([int(n) for n in shape.split(",")])) for shape in shapes
    )


def alone(model: Any, positions: int, length: int, runs: int) -> dict[str, float]:
    """Nanoseconds a position of attention's small products and of the MLP, in one block."""
    config, run = model.config, layers.Pass(model.config)
    count = max(1, positions // length)
    rng = np.random.default_rng(0)
    heads = jnp.asarray(
        rng.standard_normal((count, length, config.num_heads, config.head_size), np.float32)
    )
    x = jnp.asarray(rng.standard_normal((count, length, config.hidden_size), np.float32))
    weights = jax.tree.map(lambda leaf: leaf[0], model.params.blocks)
    reads = jit(lambda a: attend(a, a, a, jnp.arange(length)[None], run))
    mlp = jit(lambda a: layers.mlp(a, weights.mlp, config)[1])
    each = 1e9 / (count * length)
    return {
        "attention_ns": round(each * repeated(lambda: reads(heads), runs)[1].best, 3),
        "mlp_ns": round(each * repeated(lambda: mlp(x), runs)[1].best, 3),
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The wave with every size of block, and its parts."""
    with workload.checkpoint(options.model) as folder:
        model = jaxalign.load(str(folder))
    config = model.config
    prompts = workload.random_prompts(config, options.prompts, options.tokens)
    alive = [options.prompts * (1 + config.num_heads * n) for n in range(config.num_layers)]
    rows = []
    for positions in options.positions:
        compiled, run = program(model, prompts, positions)
        _, timing = repeated(run, options.runs)
        with mock.patch.object(blocks, "block_positions", return_value=positions):
            size = blocks.block_size(options.prompts, options.tokens, config)
        size = min(size, options.prompts * (1 + config.num_layers * config.num_heads))
        count, amount = copies(compiled)
        memory = compiled.memory_analysis()
        rows.append(
            {
                "positions": positions,
                "seconds": timing.record(),
                "computed_positions": blocks.walked_positions(alive, options.tokens, size),
                "needed_positions": options.tokens * sum(alive),
                **alone(model, positions, options.tokens, options.runs),
                "copies": count,
                "copied_mb": round(amount / 1e6, 1),
                "temporary_mb": round(getattr(memory, "temp_size_in_bytes", 0) / 1e6, 1),
            }
        )
    fastest = min(rows, key=lambda row: row["seconds"]["best"])["positions"]
    return {
        "model": options.model,
        "prompts": options.prompts,
        "tokens": options.tokens,
        "rows": rows,
        "fastest": fastest,
        "logits": [of_logits(model, prompts, fastest, block, options) for block in options.logits],
    }


def of_logits(
    model: Any,
    prompts: workload.Prompts,
    positions: int,
    block: tuple[int, int],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """The wave with blocks of logits of so many runs and tokens."""
    runs, tokens = block
    with (
        mock.patch.object(readout, "RUNS_READ", runs),
        mock.patch.object(readout, "TOKENS_READ", tokens),
    ):
        _, run = program(model, prompts, positions)
    _, timing = repeated(run, options.runs)
    return {"runs": runs, "tokens": tokens, "seconds": timing.record()}


def table(record: dict[str, Any]) -> str:
    """The record for people."""
    rows = [
        (
            f"{row['positions']}",
            f"{row['seconds']['best']:.4f}",
            f"{row['computed_positions'] / row['needed_positions']:.2f}",
            f"{row['attention_ns']:.1f}",
            f"{row['mlp_ns']:.1f}",
            f"{row['copies']} ({row['copied_mb']:.0f} MB)",
            f"{row['temporary_mb']:.0f}",
        )
        for row in record["rows"]
    ]
    head = ("positions", "seconds", "computed / needed", "attention, ns", "MLP, ns", "copies", "MB")
    logits = [
        (f"{one['runs']} × {one['tokens']}", f"{one['seconds']['best']:.4f}")
        for one in record["logits"]
    ]
    return "\n\n".join(
        (
            f"{record['model']}, {record['prompts']} prompts of {record['tokens']} tokens, "
            f"{record['device']}",
            text_table(head, rows),
            text_table(("block of logits, runs × tokens", "seconds"), logits),
        )
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    parser = grammar(NAME, __doc__)
    add = parser.add_argument
    add("--model", default="70m", metavar="SIZE", help=f"one of {', '.join(workload.SIZES)}")
    add("--prompts", type=int, default=64, metavar="N")
    add("--tokens", type=int, default=16, metavar="N", help="of each prompt")
    add("--runs", type=int, default=5, metavar="N", help="after the first")
    options = parser.parse_args(arguments)
    options.positions, options.logits = POSITIONS, LOGITS
    if options.quick:
        options.model, options.prompts, options.tokens, options.runs = workload.TINY, 4, 8, 1
        options.positions, options.logits = (8, 64), LOGITS[:1]
    return answer(options, NAME, measure, table)


if __name__ == "__main__":
    raise SystemExit(main())
