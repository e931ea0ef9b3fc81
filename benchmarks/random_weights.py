"""What of the heads study's answers do noise and random weights give, too, and other prompts?

Beside the model stand f32 with weight noise of the precision's size in the place of the precision;
the null, every matrix with its own numbers in random order; and other prompts. Those, and the null,
have the token that the model itself puts first as target. What noise gives as well says nothing
about the precision, and what the null gives as well nothing about what the model has learned.
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
from jaxalign.measures.estimates import ALL_TASKS, Estimate
from jaxalign.model.matrices import TOKEN_MATRICES, matrix_name
from jaxalign.model.params import compiled_cast
from jaxalign.numerics.scheme import scheme_named
from jaxalign.prompts import PromptSet, PromptText
from jaxalign.runtime.files import read_json
from jaxalign.shapes import Array
from jaxalign.studies.heads.findings import find
from jaxalign.study.session import Prepare
from jaxalign.study.tables import estimate_text, text_table
from jaxalign.study.weight_noise import noisy_params

NAME = "random_weights"
PRECISION = "nf4"
UNSEEN = ROOT / "benchmarks" / "unseen_prompts.json"
QUICK_PROMPTS = 8
AGREEMENT = ("pearson", "spearman", "prompt_spearman", "relative_error", "top10")
CORRELATIONS = {
    "all_spearman": "Spearman, all heads",
    "pearson": "Pearson, inside layers",
    "spearman": "Spearman, inside layers",
    "given_size": "Spearman, inside layers, size fixed",
}
MARGIN, KEPT = "change of the mean margin (logits)", "answers kept"
CLOSED = "gap closed, heads by gradient"


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
        best = int(model.run(item.prompt).logits.argmax())
        return PromptText(item.prompt, model.tokenizer.decode([best]))

    tasks = {
        name: tuple(item for item in map(asked, items) if item.target.strip("\ufffd"))
        for name, items in prompts.tasks.items()
    }
    return PromptSet(tasks, prompts.reference)


def answers(model: Model, prompts: PromptSet, prepare: Prepare = compiled_cast) -> dict[str, Any]:
    """What the study says of one model: agreement of importance, drift, the margin, repair.

    Args:
        model: which.
        prompts: all are kept.
        prepare: makes what runs in the place of the precision.
    """
    options = jaxalign.HeadsOptions(
        schemes=(scheme_named(PRECISION),),
        repaired=(PRECISION,),
        ablations=("zero",),
        use_all_prompts=True,
    )
    result = jaxalign.heads_study(model, prompts, options, prepare=prepare)
    statistics = result.statistics
    agreement = find(statistics.agreement, task=ALL_TASKS)
    mean = find(statistics.task_means, task=ALL_TASKS, precision=PRECISION)
    assert agreement is not None
    assert mean is not None
    found: dict[str, Any] = {"prompts": len(result.prompts), KEPT: mean.kept}
    found |= {name: asdict(getattr(agreement, name)) for name in AGREEMENT}
    for drift in ("relative", "absolute"):
        row = find(statistics.correlations, task=ALL_TASKS, importance="zero", drift=drift)
        assert row is not None
        for field, words in CORRELATIONS.items():
            found[f"{drift} drift: {words}"] = asdict(getattr(row, field).estimate)
    tests = [t for t in statistics.repair if (t.task, t.ranking) == (ALL_TASKS, "first_order")]
    found[CLOSED] = {
        "share": (tests[0].closed or 0) / (tests[0].gap or 1),
        "beaten": sum(test.verdict == "beats it" for test in tests),
        "controls": len(tests),
    }
    return found | {MARGIN: asdict(mean.change or Estimate())}


def noise(model: Model, draw: int) -> Prepare:
    """f32 with noise as large as a scheme's error, in the place of the scheme's parameters.

    Other draws than the study's own, which stand beside them.

    Args:
        model: whose architecture it is.
        draw: number of the draw.
    """
    key = jax.random.fold_in(jax.random.key(1), draw)
    return lambda params, scheme: noisy_params(
        params, compiled_cast(params, scheme), key, config=model.config
    )


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The model beside noise, random weights of its shape, and other prompts."""
    model, prompts = jaxalign.load(options.model), jaxalign.read_prompts()
    if options.quick:
        tasks = {name: items[:QUICK_PROMPTS] for name, items in prompts.tasks.items()}
        prompts = PromptSet(tasks, prompts.reference)
    unseen = tuple(PromptText(text, "") for text in read_json(UNSEEN)["unseen"])
    others = PromptSet({"unseen": unseen}, prompts.reference)
    seeds = range(1 if options.quick else options.seeds)
    models = {PRECISION: answers(model, prompts)}
    models |= {f"noise {n} in its place": answers(model, prompts, noise(model, n)) for n in seeds}
    models["other prompts"] = answers(model, own_answers(model, others))
    for seed in seeds:
        null = shuffled(model, seed)
        models[f"shuffled {seed}"] = answers(null, own_answers(null, prompts))
    return {"arguments": options.model, "precision": PRECISION, "models": models}


def table(record: dict[str, Any]) -> str:
    """The record for people."""
    every = record["models"]
    first, *_ = every.values()
    rows = [[kind, *(_shown(kind, one[kind]) for one in every.values())] for kind in first]
    return text_table(["", *every], rows)


def _shown(kind: str, one: Any) -> str:
    if not isinstance(one, dict):
        return str(one)
    if kind == CLOSED:
        return f"{100 * one['share']:.0f} %, beats {one['beaten']} of {one['controls']}"
    if kind in AGREEMENT:
        beside = f" ({np.mean(one['noise']):.3f})" if one["noise"] else ""
        return f"{one['value']:.3f}{beside}"
    write = "{:+.4f}" if kind == MARGIN else "{:+.2f}"
    estimated = Estimate(**one)
    return estimate_text(replace(estimated, low=None, high=None), write.format)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = grammar(NAME, __doc__)
    parser.add_argument("--model", default="demo", metavar="ID|PATH")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="of noise and shuffles")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    return answer(parse(arguments), NAME, measure, table)


if __name__ == "__main__":
    raise SystemExit(main())
