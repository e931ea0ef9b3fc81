"""Do calibrated 4-bit weights lie nearer to f32 than weights rounded to the nearest code?

    python -m benchmarks calibration [--model demo] [--schemes int4-g64,…]
        [--documents N] [--reference]

Calibration texts are the shipped ones, the prompts' reference texts, or N documents of the bundled
model's training stream (drawn with a seed that its training did not use). KL(f32 ‖ scheme) is the
mean over all positions of the shipped prompts, which are in none of them.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxalign
from benchmarks.record import answer, grammar
from jaxalign.calibration import calibrate, shipped_texts
from jaxalign.demo.corpus import documents
from jaxalign.model import ModelConfig, Params, forward
from jaxalign.numerics import F32, Scheme, scheme_named
from jaxalign.prompts import read_prompts
from jaxalign.shapes import Array, Float, Lengths, Tokens
from jaxalign.study.tables import text_table

NAME = "calibration"
METHODS = ("int4", "awq", "gptq", "gptq-actorder")
SCHEMES = tuple(f"{method}-{group}" for group in ("g64", "g32") for method in METHODS)
QUICK = ("int4-g64", "gptq-g64")
SEED = 1  # training drew its documents with another


@functools.partial(jaxalign.jit, static_argnames=("config", "scheme"))
def log_probabilities(
    params: Params, tokens: Tokens, lengths: Lengths, *, config: ModelConfig, scheme: Scheme
) -> Float[Array, "B S V"]:
    """Of every next token."""
    logits = forward(params, tokens, config, lengths=lengths, scheme=scheme).logits
    return jax.nn.log_softmax(logits)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """KL and top-1 agreement of each scheme, and the seconds its calibration took."""
    model, prompts = jaxalign.load(options.model), read_prompts()
    given = prompts.reference if options.reference else shipped_texts()
    texts = model.encode(list(given), special=True)
    if options.documents:
        texts = model.encode(
            list(itertools.islice(documents(SEED, "calibration"), options.documents))
        )
    asked = model.encode([one.prompt for task in prompts.tasks.values() for one in task])
    real = np.arange(asked[0].shape[1])[None] < np.asarray(asked[1])[:, None]
    run = functools.partial(log_probabilities, config=model.config)
    exact = np.asarray(run(model.params, *asked, scheme=F32))[real].astype(np.float64)
    rows = []
    for name in QUICK if options.quick else options.schemes.split(","):
        scheme, start = scheme_named(name), time.perf_counter()
        params = calibrate(model.params, model.config, scheme, *texts, progress=True)
        seconds = time.perf_counter() - start
        low = np.asarray(run(params, *asked, scheme=scheme))[real].astype(np.float64)
        rows.append(
            {
                "scheme": name,
                "kl": float((np.exp(exact) * (exact - low)).sum(axis=-1).mean()),
                "top_1": float((low.argmax(axis=-1) == exact.argmax(axis=-1)).mean()),
                "seconds": seconds,
            }
        )
    return {
        "model": options.model,
        "texts": len(texts[1]),
        "text_tokens": int(jnp.sum(texts[1])),
        "positions": len(exact),
        "schemes": rows,
    }


def table(record: dict[str, Any]) -> str:
    """The record for people."""
    rows = [
        (row["scheme"], f"{row['kl']:.2e}", f"{row['top_1']:.4f}", f"{row['seconds']:.1f}")
        for row in record["schemes"]
    ]
    title = f"{record['texts']} texts, {record['text_tokens']} tokens:\n"
    return title + text_table(("", "KL from f32", "same top-1", "seconds"), rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    parser = grammar(NAME, __doc__)
    parser.add_argument("--model", default="demo", metavar="demo|ID|FOLDER")
    parser.add_argument("--schemes", default=",".join(SCHEMES))
    parser.add_argument("--documents", type=int, default=0, help="0: the shipped texts")
    parser.add_argument("--reference", action="store_true", help="the prompts' reference texts")
    return answer(parser.parse_args(arguments), NAME, measure, table)


if __name__ == "__main__":
    raise SystemExit(main())
