"""The programs of a study, compiled while its first ones run."""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.experiments.heads import runs
from jaxalign.experiments.heads.donors import DRAWS
from jaxalign.experiments.heads.rankings import RANDOM_ORDERS
from jaxalign.experiments.heads.runner import KINDS, Runner
from jaxalign.model.params import Params, cast
from jaxalign.numerics.scheme import Scheme
from jaxalign.prompts import Batch
from jaxalign.results import RANKINGS


def compile_ahead(runner: Runner, work: list[Batch], pool: Executor) -> None:
    """Compile the programs of the study's batches while its first ones run."""
    options, config, params = runner.options, runner.config, runner.model.params
    L, H, D = config.num_layers, config.num_heads, config.hidden_size
    true = options.head_mode == "true"
    heads = (H, config.head_size if true else config.edge_size)

    def array(*shape: int, dtype: Any = np.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    def low_params(scheme: Scheme) -> Params:
        if scheme.weights is not None:
            return jax.eval_shape(lambda p: cast(p, scheme), params)

        def low(leaf: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(
                leaf.shape, jnp.dtype(scheme.compute_dtype), sharding=leaf.sharding
            )

        return jax.tree.map(low, params)

    # What calibration adds to packed matrices, and where a mesh puts them, is not known before.
    known = [s for s in options.schemes if not s.weights or not (s.method or runner.mesh)]

    common: dict[str, Any] = {"config": config, "head_mode": options.head_mode}
    for B, S in sorted({batch.shape for batch in work}):
        asked = runs.Question(
            array(B, S, dtype=np.int32), *[array(B, dtype=np.int32) for _ in range(3)]
        )
        state = array(L, B, S, *heads)
        for rows in runner.row_ranges(S, KINDS, KINDS):
            runs.importance_run.ahead(
                pool,
                params,
                asked,
                array(L, H, D if true else config.edge_size),
                array(DRAWS, L, B, S, *heads),
                rows=rows,
                engine=options.engine,
                mesh=runner.mesh,
                **common,
            )
        for scheme in known:
            low = low_params(scheme)
            gradient = array(L, B, S, D) if true else state
            runs.low_run.ahead(
                pool, params, low, asked, state, gradient, scheme=scheme.run, **common
            )
        for scheme in known:
            low = low_params(scheme)
            orders = len(RANKINGS) + RANDOM_ORDERS if scheme.name in options.repaired else 0
            count = runner.num_heads + orders * runner.repaired_heads
            _, most = runner.chunks(S, 1 + count, 1)
            masks = array(min(count, most - 1), L, B, 1, H, dtype=bool)
            runs.repair_run.ahead(
                pool,
                params,
                low,
                asked,
                state,
                masks,
                scheme=scheme.run,
                engine=options.engine,
                mesh=runner.mesh,
                **common,
            )
