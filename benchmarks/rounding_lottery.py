"""Does restoring one head in simulated int8 do more than draw its roundings anew?

    python -m benchmarks rounding_lottery [--model demo] [--precision int8-sim]

The matched null: move each head's contribution by a random vector of the same length, at every
position, as restoring it would. The same random vector is also added in the f32 model, where
nothing downstream is rounded: what m changes more in the low precision than there is owed to
roundings that are drawn anew, not to the head.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxalign
from benchmarks.record import answer, grammar
from jaxalign.edits import Edit, HeadEdit, head_ablation_masks
from jaxalign.model import ModelConfig, Params, cast, forward
from jaxalign.numerics import F32, Scheme, scheme_named
from jaxalign.prompts import read_prompts, tokenize
from jaxalign.shapes import Array, Float
from jaxalign.studies.heads.calls import Runner, question
from jaxalign.studies.heads.programs import Question, contributions

NAME = "rounding_lottery"
QUICK_PROMPTS = 8


@functools.partial(jaxalign.jit, static_argnames=("config", "scheme"))
def gains(
    params: Params,
    low_params: Params,
    asked: Question,
    key: jax.Array,
    *,
    config: ModelConfig,
    scheme: Scheme,
) -> tuple[Float[Array, " B"], Float[Array, "3 M B"]]:
    """How far ``m`` lies from f32's, and its change with each head restored, with each moved as far
    at random, and with each moved so in the f32 model."""
    masks = head_ablation_masks(config.num_layers, config.num_heads)

    def clean(params: Params, scheme: Scheme) -> tuple[Array, Array]:
        out = forward(
            params,
            asked.tokens,
            config,
            lengths=asked.lengths,
            scheme=scheme,
            capture=("z",),
            last_only=True,
        )
        c = contributions(params, out.activations["z"], "true")
        return asked.answer(out.logits).logit_diff, c

    (m, high), (low_m, low) = clean(params, F32), clean(low_params, scheme)
    noise = jax.random.normal(key, high.shape)
    distance = jnp.linalg.norm(high - low, axis=-1, keepdims=True)
    step = noise * distance / jnp.linalg.norm(noise, axis=-1, keepdims=True)

    def change(params: Params, scheme: Scheme, values: Sequence[Array]) -> list[Array]:
        edits = [Edit(HeadEdit(masks, value)) for value in values]
        outs = jaxalign.sweep(
            params, asked.tokens, asked.lengths, config, edits, asked.answer, scheme=scheme
        )
        return [out.logit_diff[1:] - out.logit_diff[:1] for out in outs]

    rounded = change(low_params, scheme, (high, low + step))
    return jnp.abs(m - low_m), jnp.stack([*rounded, *change(params, F32, (high + step,))])


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Spread of true and null gains over prompts and heads."""
    scheme = scheme_named(options.precision)
    model = jaxalign.load(options.model)
    runner = Runner(model, jaxalign.HeadsOptions())
    prompts, _, _ = tokenize(read_prompts(), model.tokenizer, model.config)
    prompts = prompts[: QUICK_PROMPTS if options.quick else None]
    low_params = cast(model.params, scheme)
    gap, found = np.zeros(len(prompts)), np.zeros((3, len(prompts), runner.num_heads))
    for n, batch in enumerate(
        runner.batches([p.tokens for p in prompts], 1 + 2 * runner.num_heads, 3)
    ):
        index = list(batch.index)
        asked = question(prompts, batch)
        far, out = gains(
            model.params,
            low_params,
            asked,
            jax.random.key(n),
            config=model.config,
            scheme=scheme,
        )
        gap[index] = np.asarray(far)[: len(index)]
        found[:, index] = np.asarray(out)[..., : len(index)].swapaxes(1, 2)
    true, null, exact = np.abs(found)
    return {
        "model": options.model,
        "precision": scheme.name,
        "prompts": len(prompts),
        "median_gap": float(np.median(gap)),
        "median_true_change": float(np.median(true)),
        "median_null_change": float(np.median(null)),
        "median_null_change_f32": float(np.median(exact)),
        "share_of_heads_and_prompts_where_true_exceeds_null": float((true > null).mean()),
    }


def table(record: dict[str, Any]) -> str:
    """The record for people."""
    return "\n".join(
        (
            f"{record['precision']}: |m_f32 − m_q| is {record['median_gap']:.2e} in the median;",
            f"restoring one head changes m by {record['median_true_change']:.2e},",
            f"a random change of the same size by {record['median_null_change']:.2e},",
            f"and the same in the f32 model by {record['median_null_change_f32']:.2e} (medians)",
        )
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    parser = grammar(NAME, __doc__)
    parser.add_argument("--model", default="demo", metavar="demo|ID|FOLDER")
    parser.add_argument("--precision", default="int8-sim")
    return answer(parser.parse_args(arguments), NAME, measure, table)


if __name__ == "__main__":
    raise SystemExit(main())
