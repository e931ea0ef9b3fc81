"""How many tokens could win after an ablation, by the bound that would spare the unembedding?

    python -m benchmarks unembedding_bound [--model demo|FOLDER] [--limit N]

A run's logits differ from its prompt's clean ones by ``W_U Δh``, so no logit moves further than
``‖W_U[v]‖ · ‖Δh‖`` (Cauchy and Schwarz). Tokens whose clean logit plus that bound stays below the
best other token's clean logit minus its own bound cannot win, and need not be computed. The table
says what share of the vocabulary is left, over all heads zero-ablated on all prompts, and beside it
the share for a bound that knew the angle, ``|W_U[v] · Δh|``: what could be won at best. Deltas are
also taken along the top directions of ``W_U``, where most of a logit's movement is common to all
tokens: ``W_U`` is centred over tokens first, which changes no difference of logits.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxalign
from benchmarks.record import answer, grammar
from jaxalign.edits import Edit, HeadEdit, head_ablation_masks
from jaxalign.engine.inputs import Inputs
from jaxalign.engine.wave import wave
from jaxalign.prompts import batches, tokenize
from jaxalign.study.tables import text_table

NAME = "unembedding_bound"
SHARES = (0.01, 0.05, 0.25)


def left(clean: np.ndarray, moved: np.ndarray, bound: np.ndarray, target: int) -> np.ndarray:
    """The share of tokens that may win, for each row.

    Args:
        clean: ``[V]`` logits of the clean run.
        moved: ``[M, V]`` how far each logit really moves.
        bound: ``[M, V]`` how far it may move.
        target: the token that is not among the others.
    """
    others = np.delete(np.arange(len(clean)), target)
    best = others[clean[others].argmax()]
    # The best other token's own logit is computed exactly: it is one row of W_U.
    floor = (clean[best] + moved[:, best])[:, None]
    return (clean[others] + bound[:, others] >= floor).mean(axis=1)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Both shares for every head and prompt."""
    model = jaxalign.load(options.model)
    config, params = model.config, model.params
    prompts, _, _ = tokenize(jaxalign.read_prompts(), model.tokenizer, config)
    prompts = prompts[: options.limit]
    masks = head_ablation_masks(config.num_layers, config.num_heads)
    zero = Edit(HeadEdit(masks, np.zeros((config.num_layers, 1, 1, 1, 1), np.float32)))
    matrix = np.asarray(params.embed if params.unembed is None else params.unembed)
    centred = matrix - matrix.mean(axis=0)
    norms = np.linalg.norm(centred, axis=1)

    @jaxalign.jit
    def last(tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        edits = jax.tree.map(jnp.asarray, [zero])
        read = (lengths - 1)[:, None]
        return wave(Inputs(params, tokens, lengths, edits, read, config, jaxalign.F32), True)[
            :, :, 0
        ]

    found: dict[str, list[np.ndarray]] = {"bound": [], "angle known": []}
    for batch in batches([p.tokens for p in prompts], 64, config.max_positions):
        h = np.asarray(last(batch.tokens, batch.lengths))  # [1 + M, B, D]
        for column, i in enumerate(batch.index):
            clean, delta = centred @ h[0, column], h[1:, column] - h[0, column]
            moved = delta @ centred.T
            bound = np.linalg.norm(delta, axis=1)[:, None] * norms
            target = prompts[i].target
            found["bound"].append(left(clean, moved, bound, target))
            found["angle known"].append(left(clean, moved, np.abs(moved), target))
    rows = []
    for name, shares in found.items():
        flat = np.concatenate(shares)
        rows.append(
            {
                "candidates by": name,
                "median_share": float(np.median(flat)),
                **{f"runs_below_{share}": float((flat < share).mean()) for share in SHARES},
            }
        )
    return {
        "model": options.model,
        "vocabulary": config.vocab_size,
        "runs": int(flat.size),
        "rows": rows,
    }


def table(record: dict[str, Any]) -> str:
    """The record for people."""
    heads = "candidates by", "median share of the vocabulary", *(f"runs < {s}" for s in SHARES)
    rows = [
        (
            row["candidates by"],
            f"{row['median_share']:.3f}",
            *(f"{row[f'runs_below_{share}']:.2f}" for share in SHARES),
        )
        for row in record["rows"]
    ]
    return text_table(heads, rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    parser = grammar(NAME, __doc__)
    parser.add_argument("--model", default="demo", metavar="demo|FOLDER")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N prompts only")
    options = parser.parse_args(arguments)
    if options.quick:
        options.limit = 2
    return answer(options, NAME, measure, table)


if __name__ == "__main__":
    raise SystemExit(main())
