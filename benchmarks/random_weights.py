"""What of the heads study's answers do random weights give, too, and what do other prompts?

Beside the model stand its null, every matrix with its own numbers in random order, and other
prompts. Those, and the null, have the token that the model itself puts first as target. What the
null gives as well says nothing about what the model has learned.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxalign
from benchmarks.record import ROOT, answer, grammar
from jaxalign.checkpoints import Model
from jaxalign.measures.estimates import Estimate
from jaxalign.model.matrices import TOKEN_MATRICES, matrix_name
from jaxalign.prompts import PromptSet, PromptText
from jaxalign.runtime.files import read_json
from jaxalign.shapes import Array
from jaxalign.studies.heads.findings import Likeness
from jaxalign.study.option import schemes_listed
from jaxalign.study.tables import estimate_text, text_table

NAME = "random_weights"
SCHEMES = "f16,int8-sim,int8,nf4"
UNSEEN = ROOT / "benchmarks" / "unseen_prompts.json"
QUICK_PROMPTS = 8
AGREEMENT = ("pearson", "spearman", "prompt_spearman", "relative_error")
CORRELATIONS = {
    "all_spearman": ", all heads",
    "spearman": ", inside layers",
    "given_size": ", inside layers, size fixed",
}
MARGIN = "change of the mean margin (logits)"


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

    run = jaxalign.jit(jaxalign.forward, static_argnames=("config", "last_only"))

    def asked(item: PromptText) -> PromptText:
        tokens, lengths = model.encode([item.prompt], special=True)
        out = run(model.params, tokens, model.config, lengths=lengths, last_only=True)
        return PromptText(item.prompt, model.tokenizer.decode([int(out.logits.argmax())]))

    tasks = {
        name: tuple(item for item in map(asked, items) if item.target.strip("\ufffd"))
        for name, items in prompts.tasks.items()
    }
    return PromptSet(tasks, prompts.reference)


def answers(model: Model, prompts: PromptSet, schemes: str) -> dict[str, Any]:
    """What the study says of one model, by scheme: agreement of importance, drift, the margin."""
    options = jaxalign.HeadsOptions(
        schemes=schemes_listed(schemes), repaired=(), ablations=("zero",), use_all_prompts=True
    )
    statistics = (result := jaxalign.heads_study(model, prompts, options)).statistics
    found: dict[str, Any] = {"prompts": len(result.prompts)}
    for name in result.precisions:
        [agreement] = [a for a in statistics.agreement if (a.task, a.precision) == ("all", name)]
        [change] = [
            m.change for m in statistics.task_means if (m.task, m.precision) == ("all", name)
        ]
        found[name] = {
            **{field: _plain(getattr(agreement, field)) for field in AGREEMENT},
            **{
                f"{measure} drift{words}": _plain(getattr(one, field).estimate)
                for one in statistics.correlations
                if (one.task, one.precision) == ("all", name)
                for measure in [one.drift]
                if measure in ("relative", "absolute")
                for field, words in CORRELATIONS.items()
            },
            MARGIN: _plain(change),
        }
    return found


def _plain(one: Likeness | Estimate | None) -> dict[str, Any]:
    return {} if one is None else asdict(one)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The model beside random weights of its shape."""
    model, prompts = jaxalign.load(options.model), jaxalign.read_prompts()
    if options.quick:
        tasks = {name: items[:QUICK_PROMPTS] for name, items in prompts.tasks.items()}
        prompts = PromptSet(tasks, prompts.reference)
    unseen = tuple(PromptText(text, "") for text in read_json(UNSEEN)["unseen"])
    others = PromptSet({"unseen": unseen}, prompts.reference)
    models = {
        "the model": answers(model, prompts, options.schemes),
        "other prompts": answers(model, own_answers(model, others), options.schemes),
    }
    for seed in range(1 if options.quick else options.seeds):
        null = shuffled(model, seed)
        models[f"shuffled weights, seed {seed}"] = answers(
            null, own_answers(null, prompts), options.schemes
        )
    return {"arguments": options.model, "models": models}


def table(record: dict[str, Any]) -> str:
    """The record for people."""
    every = record["models"]
    first, *_ = every.values()
    names = [name for name in first if name != "prompts"]
    rows = [
        [kind, name, *(_shown(kind, one[name][kind]) for one in every.values())]
        for kind in first[names[0]]
        for name in names
    ]
    counts = ", ".join(f"{name}: {one['prompts']} prompts" for name, one in every.items())
    return f"{counts}\n\n{text_table(['', 'scheme', *every], rows)}"


def _shown(kind: str, one: dict[str, Any]) -> str:
    if kind in AGREEMENT:
        noise = f" (noise {np.mean(one['noise']):.3f})" if one["noise"] else ""
        return f"{one['value']:.3f}{noise}"
    return estimate_text(Estimate(**one), ("{:+.4f}" if kind == MARGIN else "{:+.2f}").format)


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
