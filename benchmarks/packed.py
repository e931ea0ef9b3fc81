"""What does a packed model take in memory, and what does unpacking cost in its products?

A model of Pythia-410M's shape (random weights) in several schemes: bytes of its parameters in
memory, counted from their shapes alone and from the arrays that are there, how much the process
shrinks when the f32 parameters go, and the seconds of a forward pass of one prompt. Beside it, by
the same count of shapes, Pythia-12b, which does not fit here.
"""

from __future__ import annotations

import argparse
import functools
import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks.record import answer, grammar
from benchmarks.timing import repeated
from benchmarks.workload import TINY
from jaxalign import forward, init_params
from jaxalign.checkpoints.families import config_from_hf
from jaxalign.model import ModelConfig
from jaxalign.model.params import cast, param_shapes
from jaxalign.model.size import deployed_bytes, memory_bytes
from jaxalign.numerics import jit
from jaxalign.numerics.scheme import Scheme, scheme_named
from jaxalign.study.tables import text_table
from tests.pythia_shape import pythia_config, tiny_config

NAME = "packed"
SCHEMES = ("f32", "f16", "int8", "int4-g128", "nf4", "nf4@f16")
QUICK_SCHEMES = ("f32", "int4-g32")
TOKENS = 512


def on_paper(config: ModelConfig, scheme: Scheme) -> int:
    """Bytes in memory, from shapes alone: nothing is allocated."""
    shapes = jax.eval_shape(functools.partial(cast, scheme=scheme), param_shapes(config))
    return memory_bytes(shapes)


def resident() -> int:
    """Bytes that the process holds now; 0 where the system does not say."""
    statistics = Path("/proc/self/statm")
    return int(statistics.read_text().split()[1]) * 4096 if statistics.exists() else 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Every scheme on the model that fits, and the large one on paper."""
    size = TINY if options.quick else "410m"
    config = config_from_hf(tiny_config() if options.quick else pythia_config(size))
    large = config_from_hf(pythia_config("12b"))
    length = 16 if options.quick else TOKENS
    tokens = jax.random.randint(jax.random.key(1), (1, length), 0, config.vocab_size)
    rows = []
    for name in QUICK_SCHEMES if options.quick else SCHEMES:
        scheme = scheme_named(name)
        high = init_params(jax.random.key(0), config)
        low = jax.block_until_ready(cast(high, scheme))
        with_both = resident()
        del high
        gc.collect()
        freed = with_both - resident()
        run = jit(
            lambda p, scheme=scheme: (
                forward(p, tokens, config, scheme=scheme, last_only=True).logits
            )
        )
        _, timing = repeated(lambda low=low, run=run: run(low), 3)  # type: ignore[misc]
        rows.append(
            {
                "scheme": name,
                "on_paper_mb": on_paper(config, scheme) / 1e6,
                "in_memory_mb": memory_bytes(low) / 1e6,
                "freed_mb": freed / 1e6,
                "deployed_mb": deployed_bytes(config, scheme) / 1e6,
                "seconds": timing.best,
                "large_on_paper_gb": on_paper(large, scheme) / 1e9,
                "large_deployed_gb": deployed_bytes(large, scheme) / 1e9,
            }
        )
        del low, run
        jax.clear_caches()
    return {"model": size, "tokens": length, "large": "12b", "rows": rows}


def table(record: dict[str, Any]) -> str:
    """Schemes one a line."""
    heads = ["scheme", "on paper, MB", "in memory, MB", "deployed, MB", "s a pass"]
    heads += [f"{record['large']}: in memory, GB", "deployed, GB"]
    return text_table(
        heads,
        [
            [
                row["scheme"],
                f"{row['on_paper_mb']:.1f}",
                f"{row['in_memory_mb']:.1f}",
                f"{row['deployed_mb']:.1f}",
                f"{row['seconds']:.3f}",
                f"{row['large_on_paper_gb']:.2f}",
                f"{row['large_deployed_gb']:.2f}",
            ]
            for row in record["rows"]
        ],
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the last line printed is its record as JSON."""
    return answer(grammar(NAME, __doc__).parse_args(arguments), NAME, measure, table)


if __name__ == "__main__":
    raise SystemExit(main())
