"""How long does the importance of every head take, beside the usual way in PyTorch?

    python -m benchmarks.heads [--model demo|FOLDER] [--prompts FILE] [--limit N]
        [--kinds zero,mean] [--batch one,batched] [--unembed all|last] [--head-mode true]

Both sides read the same checkpoint and prompts, compute the same importance in f32, and run one
after the other in this process. Ours is timed twice: the first run compiles, the second does not.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

import jaxalign
from benchmarks import pytorch_baseline as baseline
from benchmarks.record import machine
from jaxalign.edit import HEAD_MODES, Edit, HeadEdit, head_ablation_masks
from jaxalign.experiments.heads.runner import Runner
from jaxalign.metrics import logit_difference
from jaxalign.model import ModelConfig, Params
from jaxalign.numerics import F32
from jaxalign.prompts import SHIPPED, Batch, Prompt, read_prompts, tokenize
from jaxalign.shapes import Array, Float, Int, Lengths, Tokens


@functools.partial(jaxalign.jit, static_argnames=("config", "head_mode"))
def wave_importance(
    params: Params,
    tokens: Tokens,
    lengths: Lengths,
    target: Int[Array, " B"],
    value: Float[Array, "L #B #S #H #C"],
    *,
    config: ModelConfig,
    head_mode: str,
) -> Float[Array, "M B"]:
    """Importance of every head of a batch of prompts, one kind of replacement."""
    masks = head_ablation_masks(config.num_layers, config.num_heads)
    edit = Edit(head=HeadEdit(masks, value, head_mode))
    [m] = jaxalign.sweep(
        params,
        tokens,
        lengths,
        config,
        [edit],
        lambda logits: logit_difference(logits, target),
        plan=jaxalign.schedule([edit]),
    )
    return m[:1] - m[1:]


def ours(
    runner: Runner, prompts: Sequence[Prompt], work: Sequence[Batch], value: Any
) -> np.ndarray:
    """``[P, L, H]`` by the wave."""
    config = runner.config
    out = np.zeros((len(prompts), config.num_layers, config.num_heads), np.float32)
    for batch in work:
        target = batch.fill([np.int32(prompt.target) for prompt in prompts])
        effect = wave_importance(
            runner.model.params,
            batch.tokens,
            batch.lengths,
            target,
            value,
            config=config,
            head_mode=runner.options.head_mode,
        )
        kept = np.asarray(effect).T[: len(batch.index)]
        out[list(batch.index)] = kept.reshape(-1, *out.shape[1:])
    return out


def timed(call: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    """A call's result and how many seconds it took."""
    start = time.perf_counter()
    return call(), time.perf_counter() - start


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Both sides for every kind and batching."""
    ran_on = machine()
    model = jaxalign.load(options.model)
    runner = Runner(model, jaxalign.Options(head_mode=options.head_mode))
    texts = read_prompts(options.prompts)
    prompts, reference, _ = tokenize(texts, model.tokenizer, model.config)
    prompts = prompts[: options.limit]
    asked = [Prompt(prompts[0].text, "reference", ids, 0) for ids in reference]
    states = runner.clean(asked, runner.batches(reference, 1, 1), model.params, F32).states
    means = jnp.asarray(runner.reference_means(states))[:, None, None]
    work = runner.batches([p.tokens for p in prompts], 1 + runner.num_heads, 1)

    net, _ = baseline.load(model.source.folder)
    theirs = [baseline.Prompt(list(p.tokens), p.target) for p in prompts]
    their_means = baseline.reference_means(net, [list(ids) for ids in reference], options.head_mode)
    rows = []
    for kind in options.kinds:
        value = means if kind == "mean" else jnp.zeros((model.config.num_layers, 1, 1, 1, 1))
        _, cold = timed(lambda value=value: ours(runner, prompts, work, value))  # type: ignore[misc]
        found, warm = timed(lambda value=value: ours(runner, prompts, work, value))  # type: ignore[misc]
        for batch in options.batch:
            expected, seconds = timed(
                lambda kind=kind, batch=batch: baseline.importance(  # type: ignore[misc]
                    net,
                    theirs,
                    kind,
                    their_means,
                    options.head_mode,
                    batch,
                    unembed=options.unembed,
                )
            )
            rows.append(
                {
                    "kind": kind,
                    "baseline": batch,
                    "baseline_seconds": round(seconds, 3),
                    "first_run_seconds": round(cold, 3),
                    "seconds": round(warm, 3),
                    "ratio": round(seconds / warm, 2),
                    "largest_difference": float(np.abs(found - expected).max()),
                    "largest_importance": float(np.abs(expected).max()),
                }
            )
    lengths = [len(p.tokens) for p in prompts]
    return {
        "benchmark": "heads",
        "model": options.model,
        "head_mode": options.head_mode,
        "unembed": options.unembed,
        "prompts": len(prompts),
        "tokens": [min(lengths), max(lengths)],
        "heads": runner.num_heads,
        **ran_on,
        "rows": rows,
    }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.heads",
        description=(__doc__ or "").split("\n")[0],
    )

    def several(text: str) -> list[str]:
        return text.split(",")

    parser.add_argument("--model", default="demo", metavar="demo|FOLDER")
    parser.add_argument("--prompts", type=Path, default=SHIPPED, metavar="FILE")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N prompts only")
    parser.add_argument("--kinds", type=several, default=["zero", "mean"])
    parser.add_argument("--batch", type=several, default=["one", "batched"])
    parser.add_argument("--unembed", choices=("all", "last"), default="all")
    parser.add_argument("--head-mode", choices=HEAD_MODES, default="true")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code, 2 for input that cannot be used."""
    try:
        record = measure(parse(arguments))
    except (jaxalign.InputError, baseline.InputError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        f"{record['prompts']} prompts of {record['tokens'][0]} to {record['tokens'][1]} tokens, "
        f"{record['heads']} heads, {record['processor']}, {record['cores']} cores"
    )
    print("replace by  baseline   PyTorch s  first s   s      ratio  largest difference")
    for row in record["rows"]:
        print(
            f"{row['kind']:<12}{row['baseline']:<10}{row['baseline_seconds']:>10.2f}"
            f"{row['first_run_seconds']:>9.2f}{row['seconds']:>7.2f}{row['ratio']:>7.1f}"
            f"  {row['largest_difference']:.1e} (of {row['largest_importance']:.2g})"
        )
    print(json.dumps(record))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
