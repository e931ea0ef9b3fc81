"""Does the correlation of importance with drift say anything about learned heads?

Relative drift, ``‖c_low − c‖ / ‖c‖``, divides by the size of what a head adds, and heads that
matter may just be large. So beside the study's correlation stand: importance against that size,
importance against absolute drift ``‖c_low − c‖``, relative drift with the size held fixed (partial
rank correlation), intervals over heads as well as over prompts, other prompts, and the null: every
matrix with its own numbers in random order. Other prompts, and the null, have the token that the
model itself puts first as target.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxalign
from benchmarks.record import ROOT, answer, grammar
from jaxalign.checkpoints import Model
from jaxalign.measures import stats
from jaxalign.measures.estimates import Estimate, estimate
from jaxalign.model.matrices import TOKEN_MATRICES, matrix_name
from jaxalign.prompts import PromptSet, PromptText
from jaxalign.runtime.files import read_json
from jaxalign.shapes import Array, Float, Lengths, Tokens
from jaxalign.studies.heads.result import HeadsResult
from jaxalign.study.option import schemes_listed
from jaxalign.study.tables import estimate_text, text_table

NAME = "drift_and_size"
SCHEMES = "f16,int8-sim,int8,nf4"
UNSEEN = ROOT / "benchmarks" / "unseen_prompts.json"
QUICK_PROMPTS = 8
ALONE, HEADS = "relative drift", "the same, interval over heads"
GIVEN, ABSOLUTE = "relative drift, given the size", "absolute drift"
MARGIN = "change of the mean margin (logits)"


@functools.partial(jaxalign.jit, static_argnames=("config",))
def last_position(
    params: jaxalign.Params, tokens: Tokens, lengths: Lengths, *, config: jaxalign.ModelConfig
) -> tuple[Float[Array, "L H B"], Float[Array, "B V"]]:
    """``‖c‖`` of every head at each prompt's last position, f32, and the logits there."""
    out = jaxalign.forward(params, tokens, config, lengths=lengths, capture=("z",), last_only=True)
    z = out.activations["z"][:, jnp.arange(len(tokens)), lengths - 1]  # [L, B, H, h]
    added = jax.vmap(jaxalign.head_contributions)(z, params.blocks.attention.out)
    return jnp.linalg.norm(added, axis=-1), out.logits


def shuffled(model: Model, seed: int) -> Model:
    """The model with the numbers of every matrix, layer by layer, in random order."""
    rng = np.random.default_rng(seed)

    def leaf(path: Any, a: Array) -> Array:
        if path[-1].name in TOKEN_MATRICES:
            return jnp.asarray(rng.permutation(np.asarray(a).ravel()).reshape(a.shape))
        if matrix_name(path) is None:
            return a
        return jnp.asarray(rng.permuted(np.asarray(a).reshape(len(a), -1), axis=1).reshape(a.shape))

    params = jax.tree_util.tree_map_with_path(leaf, model.params)
    return replace(model, params=params, weights_sha256=f"shuffled, seed {seed}")


def own_answers(model: Model, prompts: PromptSet) -> PromptSet:
    """The prompts with the token that the model puts first as target."""

    def asked(item: PromptText) -> PromptText:
        _, logits = last_position(
            model.params, *model.encode([item.prompt], special=True), config=model.config
        )
        return PromptText(item.prompt, model.tokenizer.decode([int(logits.argmax())]))

    tasks = {
        name: tuple(item for item in map(asked, items) if item.target.strip("\ufffd"))
        for name, items in prompts.tasks.items()
    }
    return PromptSet(tasks, prompts.reference)


def sizes(model: Model, result: HeadsResult) -> Float[np.ndarray, "P heads"]:
    """``‖c‖`` at the last position of each of the study's prompts."""
    rows = [
        last_position(model.params, *model.encode([p.prompt], special=True), config=model.config)[0]
        for p in result.prompts
    ]
    return np.stack([np.asarray(row, np.float64).ravel() for row in rows])


def partial(x: np.ndarray, y: np.ndarray, given: np.ndarray) -> float:
    """Rank correlation of ``x`` and ``y`` over heads with the rank of a third held fixed."""
    x, y, given = (stats.ranks(each) for each in (x, y, given))

    def left(a: np.ndarray) -> np.ndarray:
        return a - np.polyval(np.polyfit(given, a, 1), given)

    return float(stats.pearson(left(x), left(y)))


def over_heads(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> Estimate:
    """The 95 % interval of a rank correlation when heads are drawn anew."""
    drawn = rng.integers(0, len(x), (stats.BOOTSTRAP_SAMPLES, len(x)))
    low, high = stats.interval(stats.pearson(stats.ranks(x[drawn]), stats.ranks(y[drawn])))
    value = float(stats.pearson(stats.ranks(x), stats.ranks(y)))
    return Estimate(value=value, low=low, high=high)


def correlations(model: Model, prompts: PromptSet, schemes: str) -> dict[str, Any]:
    """Every correlation of one model, over heads, of means over prompts."""
    options = jaxalign.HeadsOptions(schemes=schemes_listed(schemes), repaired=())
    result = jaxalign.heads_study(model, prompts, options)
    importance = np.stack([p.zero_importance.ravel() for p in result.prompts])
    size = sizes(model, result)
    found: dict[str, Any] = {
        "prompts": len(result.prompts),
        "size": asdict(_spearman(importance, size, "size")),
    }
    clean = np.array([p.logit_diff for p in result.prompts])
    for name in result.precisions:
        lows = [p.precisions[name] for p in result.prompts]
        relative = np.stack([low.drift.ravel() for low in lows])
        change = np.array([low.logit_diff for low in lows]) - clean
        means = importance.mean(0), relative.mean(0)
        found[name] = {
            ALONE: asdict(_spearman(importance, relative, name, ALONE)),
            HEADS: asdict(over_heads(*means, stats.generator(0, NAME, name))),
            GIVEN: asdict(Estimate(value=partial(*means, size.mean(0)))),
            ABSOLUTE: asdict(_spearman(importance, relative * size, name, ABSOLUTE)),
            MARGIN: asdict(estimate(change, stats.generator(0, NAME, name, MARGIN), test=True)),
        }
    return found


def _spearman(x: np.ndarray, y: np.ndarray, *names: str) -> Estimate:
    """Value, interval over prompts and p-value from permuted heads."""
    rng = stats.generator(0, NAME, *names)
    value, low, high, p = stats.correlation_of_means(x, y, rng, rank=True)
    return Estimate(value=value, low=low, high=high, p=p)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The model beside random weights of its shape."""
    model, prompts = jaxalign.load(options.model), jaxalign.read_prompts()
    if options.quick:
        tasks = {name: items[:QUICK_PROMPTS] for name, items in prompts.tasks.items()}
        prompts = PromptSet(tasks, prompts.reference)
    unseen = tuple(PromptText(text, "") for text in read_json(UNSEEN)["unseen"])
    others = PromptSet({"unseen": unseen}, prompts.reference)
    models = {
        "the model": correlations(model, prompts, options.schemes),
        "other prompts": correlations(model, own_answers(model, others), options.schemes),
    }
    for seed in range(1 if options.quick else options.seeds):
        null = shuffled(model, seed)
        models[f"shuffled weights, seed {seed}"] = correlations(
            null, own_answers(null, prompts), options.schemes
        )
    return {"arguments": options.model, "models": models}


def table(record: dict[str, Any]) -> str:
    """The record for people."""
    every = record["models"]
    write = "{:+.2f}".format
    first, *_ = every.values()
    rows = [["size ‖c‖", "f32", *(_shown(one["size"], write) for one in every.values())]]
    for kind in (ALONE, HEADS, GIVEN, ABSOLUTE, MARGIN):
        form = "{:+.4f}".format if kind == MARGIN else write
        rows += [
            [kind, name, *(_shown(one[name][kind], form) for one in every.values())]
            for name in first
            if name not in ("prompts", "size")
        ]
    counts = ", ".join(f"{name}: {one['prompts']} prompts" for name, one in every.items())
    return f"{counts}\n\n{text_table(['Spearman of importance with', 'scheme', *every], rows)}"


def _shown(one: dict[str, Any], write: Callable[[float], str]) -> str:
    return estimate_text(Estimate(**one), write)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = grammar(NAME, __doc__)
    parser.add_argument("--model", default="demo", metavar="ID|PATH")
    parser.add_argument("--schemes", default=SCHEMES, metavar="LIST")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="of shuffled weights")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    return answer(parse(arguments), NAME, measure, table)


if __name__ == "__main__":
    raise SystemExit(main())
