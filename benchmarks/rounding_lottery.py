"""Does restoring one head in simulated int8 do more than draw its roundings anew?

    python -m benchmarks.rounding_lottery [--model demo] [--precision int8-sim]

The matched null: move each head's contribution by a random vector of the same length, at every
position, as restoring it would. The same random vector is also added in the f32 model, where
nothing downstream is rounded: what m changes more in the low precision than there is owed to
roundings that are drawn anew, not to the head.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxalign
from benchmarks.record import machine
from jaxalign.edit import Edit, HeadEdit, head_ablation_masks
from jaxalign.experiments.heads.runner import Runner, pad, question
from jaxalign.experiments.heads.runs import Question, State, contributions
from jaxalign.model import ModelConfig, Params, cast
from jaxalign.numerics import F32, Scheme, scheme_named
from jaxalign.prompts import read_prompts, tokenize
from jaxalign.shapes import Array, Float


@functools.partial(jaxalign.jit, static_argnames=("config", "scheme"))
def gains(
    params: Params,
    low_params: Params,
    asked: Question,
    state: State,
    low_state: State,
    key: jax.Array,
    *,
    config: ModelConfig,
    scheme: Scheme,
) -> Float[Array, "3 M B"]:
    """Change in ``m``: each head restored; moved as far at random; so moved in the f32 model."""
    masks = head_ablation_masks(config.num_layers, config.num_heads)
    high, low = contributions(params, state, "true"), contributions(low_params, low_state, "true")
    noise = jax.random.normal(key, high.shape)
    distance = jnp.linalg.norm(high - low, axis=-1, keepdims=True)
    step = noise * distance / jnp.linalg.norm(noise, axis=-1, keepdims=True)

    def change(params: Params, scheme: Scheme, values: Sequence[Array]) -> list[Array]:
        edits = [Edit(head=HeadEdit(masks, value)) for value in values]
        outs = jaxalign.sweep(
            params,
            asked.tokens,
            asked.lengths,
            config,
            edits,
            asked.readout(),
            plan=jaxalign.schedule(edits),
            scheme=scheme,
        )
        return [out.logit_diff[1:] - out.logit_diff[:1] for out in outs]

    rounded = change(low_params, scheme, (high, low + step))
    return jnp.stack([*rounded, *change(params, F32, (high + step,))])


def measure(model_name: str, scheme: Scheme) -> dict[str, Any]:
    """Spread of true and null gains over prompts and heads."""
    ran_on = machine()
    model = jaxalign.load(model_name)
    runner = Runner(model, jaxalign.Options())
    prompts, _, _ = tokenize(read_prompts(), model.tokenizer, model.config)
    work = runner.batches([p.tokens for p in prompts], 1 + 2 * runner.num_heads, 3)
    low_params = cast(model.params, scheme)
    high = runner.clean(prompts, work, model.params, F32)
    low = runner.clean(prompts, work, low_params, scheme)
    found = np.zeros((3, len(prompts), runner.num_heads))
    for n, batch in enumerate(work):
        out = gains(
            model.params,
            low_params,
            question(prompts, batch),
            pad([high.states[i] for i in batch.index], batch),
            pad([low.states[i] for i in batch.index], batch),
            jax.random.key(n),
            config=model.config,
            scheme=scheme,
        )
        for kind, values in enumerate(jax.device_get(out)):
            found[kind, list(batch.index)] = values[:, : len(batch.index)].T
    true, null, exact = np.abs(found)
    gap = np.abs(high.metrics.logit_diff - low.metrics.logit_diff)
    return {
        "benchmark": "rounding_lottery",
        "model": model_name,
        "precision": scheme.name,
        "prompts": len(prompts),
        "median_gap": float(np.median(gap)),
        "median_true_change": float(np.median(true)),
        "median_null_change": float(np.median(null)),
        "median_null_change_f32": float(np.median(exact)),
        "share_of_heads_and_prompts_where_true_exceeds_null": float((true > null).mean()),
        **ran_on,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; returns the exit code, 2 for input that cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rounding_lottery", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--model", default="demo", metavar="demo|ID|FOLDER")
    parser.add_argument("--precision", default="int8-sim")
    options = parser.parse_args(arguments)
    try:
        record = measure(options.model, scheme_named(options.precision))
    except jaxalign.InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{record['precision']}: |m_f32 − m_q| is {record['median_gap']:.2e} in the median;")
    print(f"restoring one head changes m by {record['median_true_change']:.2e},")
    print(f"a random change of the same size by {record['median_null_change']:.2e},")
    print(f"and the same in the f32 model by {record['median_null_change_f32']:.2e} (medians)")
    print(json.dumps(record))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
