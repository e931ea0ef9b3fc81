"""Where the wave's time goes: each term run alone on the wave's own blocks, and what is left over.

A term alone reads and writes memory that fused code keeps in cache, so the terms may add up to more
than the whole; the remainder (forks, edits, residual sums, moving blocks) is then negative and says
so. A block that is not full costs what a full one does: that is in the products.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import repeated
from benchmarks.workload import Prompts, batches, least_flops
from jaxalign.engine.blocks import block_size
from jaxalign.engine.readout import RUNS_READ, TOKENS_READ
from jaxalign.measures.metrics import Answer
from jaxalign.model import layers
from jaxalign.model.attention import attend, keys_values
from jaxalign.model.attention import attention as causal_attention
from jaxalign.model.decoder import NOTHING, attention_output
from jaxalign.model.params import Block
from jaxalign.numerics import jit
from jaxalign.numerics.dot import dot
from jaxalign.shapes import Array
from jaxalign.studies.heads.calls import Runner

# What the table calls each term, and the terms of ``WaveFlops`` whose operations it holds.
TERMS = {
    "product: queries, keys, values": ("qkv",),
    "product: W_O": ("out",),
    "product: MLP": ("mlp",),
    "product: unembedding": ("unembed",),
    "attention: scores, values, rotation": ("attention",),
    "softmax": (),
    "gelu, biases": (),
    "norms": (),
    "metric": (),
    "remainder: forks, edits, sums": ("newborn",),
}
QKV, OUT, MLP, UNEMBED, ATTENTION, SOFTMAX, GELU, NORMS, METRIC, REMAINDER = TERMS
PRODUCTS = (QKV, OUT, MLP, UNEMBED)


def account(runner: Runner, prompts: Prompts, whole: float, peak: float) -> list[dict[str, Any]]:
    """Seconds of each term of one wave over all prompts.

    Args:
        runner, prompts: what was measured.
        whole: its best time.
        peak: FLOP a second.

    Returns:
        A record for each of ``TERMS``: ``term``, ``gflop``, ``seconds``, and ``at_peak``, what the
        large products would take at the peak (0 for the rest). The seconds add up to ``whole``.
    """
    calls = Counter(
        (batch.shape, rows)
        for batch in batches(runner, prompts)
        for rows in runner.row_ranges(batch.shape[1], 0, 1)
    )
    seconds = dict.fromkeys(TERMS, 0.0)
    for (shape, rows), times in calls.items():
        for term, value in _one_call(runner, shape, rows).items():
            seconds[term] += times * value
    seconds[REMAINDER] = whole - sum(seconds.values())
    flops = least_flops(runner.config, prompts).by_term()
    counted = {term: sum(flops[name] for name in names) for term, names in TERMS.items()}
    return [
        {
            "term": term,
            "gflop": round(counted[term] / 1e9, 3),
            "seconds": seconds[term],
            "at_peak": counted[term] / peak if term in PRODUCTS else 0.0,
        }
        for term in TERMS
    ]


def _one_call(runner: Runner, shape: tuple[int, int], heads: tuple[int, int]) -> dict[str, float]:
    """Seconds of each term of one call: a batch of prompts, a range of heads."""
    config, (batch, length) = runner.config, shape
    layer_of = np.arange(*heads) // config.num_heads
    size = block_size(batch, length, config)
    entering = [1 + int((layer_of < layer).sum()) for layer in range(config.num_layers)]
    blocks = [-(-batch * rows // size) for rows in entering]
    whole, last = (_layer(runner, size, length, is_last) for is_last in (False, True))
    found = {term: sum(blocks[:-1]) * whole[term] + blocks[-1] * last[term] for term in whole}
    for term, seconds in _last_positions(runner, batch * (1 + len(layer_of)), length).items():
        found[term] += seconds
    return found | _answers(runner, batch * (1 + len(layer_of)))


def _layer(runner: Runner, runs: int, length: int, last: bool) -> dict[str, float]:
    """Seconds of each term of a layer for a block of runs; of the last one, keys and values."""
    config, run = runner.config, layers.Pass(runner.config)
    D, F, heads = config.hidden_size, config.intermediate_size, (config.num_heads, config.head_size)
    weights = jax.tree.map(lambda leaf: leaf[0], runner.model.params.blocks)
    x, kv = _draw(runs, length, D), _draw(runs, length, *heads)
    norm = _alone(lambda a: layers.layer_norm(a, weights.mlp_norm, config.norm_eps), x)
    if last:
        products = _alone(dot, x, weights.attention.key_value)
        projected = _alone(lambda a: keys_values(a, weights.attention, run), x)
        query, position = _draw(runs, 1, *heads), jnp.full((runs, 1), length - 1)
        softmax = _alone(jax.nn.softmax, _draw(runs, config.num_heads, 1, length))
        read = _alone(lambda q, k, v, at: attend(q, k, v, at, run), query, kv, kv, position)
        rest = {QKV: products, OUT: 0.0, MLP: 0.0, GELU: 0.0, NORMS: norm, SOFTMAX: softmax}
        return rest | {ATTENTION: projected - products + read - softmax}

    def attended(a: Array, weights: Block, run: layers.Pass) -> Array:
        z, _ = causal_attention(a, weights.attention, run, NOTHING)
        return attention_output(z, weights, run)

    matrices = weights.attention.query, weights.attention.key_value, weights.attention.out
    queries, read, out = (_alone(dot, x, w) for w in matrices)
    mlp = _alone(dot, x, weights.mlp.up) + _alone(dot, _draw(runs, length, F), weights.mlp.down)
    softmax = _alone(jax.nn.softmax, _draw(runs, config.num_heads, length, length))
    attention = _alone(lambda a: attended(a, weights, run), x)
    whole_mlp = _alone(lambda a: layers.mlp(a, weights.mlp, config)[1], x)
    return {
        QKV: queries + read,
        OUT: out,
        MLP: mlp,
        GELU: whole_mlp - mlp,
        NORMS: 2 * norm,
        SOFTMAX: softmax,
        ATTENTION: attention - queries - read - out - softmax,
    }


def _last_positions(runner: Runner, runs: int, length: int) -> dict[str, float]:
    """Seconds of what all runs do in the last layer at their last position."""
    config = runner.config
    D, F = config.hidden_size, config.intermediate_size
    weights = jax.tree.map(lambda leaf: leaf[-1], runner.model.params.blocks)
    x = _draw(runs, 1, D)
    norm = _alone(lambda a: layers.layer_norm(a, weights.mlp_norm, config.norm_eps), x)
    up, down = _alone(dot, x, weights.mlp.up), _alone(dot, _draw(runs, 1, F), weights.mlp.down)
    whole_mlp = _alone(lambda a: layers.mlp(a, weights.mlp, config)[1], x)
    return {
        QKV: _alone(dot, x, weights.attention.query),
        OUT: _alone(dot, x, weights.attention.out),
        MLP: up + down,
        GELU: whole_mlp - up - down,
        NORMS: 3 * norm,  # before queries and MLP, and the final one
    }


def _answers(runner: Runner, runs: int) -> dict[str, float]:
    """Seconds of the unembedding and of what is read off the logits, block by block."""
    params, vocab = runner.model.params, runner.config.vocab_size
    matrix = params.embed if params.unembed is None else params.unembed
    part = -(-vocab // -(-vocab // TOKENS_READ))
    blocks = -(-runs // RUNS_READ)
    size = -(-runs // blocks)
    hidden, logits = _draw(size, runner.config.hidden_size), _draw(part, size)
    answer = Answer(jnp.zeros(size, jnp.int32), jnp.zeros(size, jnp.int32))
    times = blocks * -(-vocab // part)
    return {
        UNEMBED: times * _alone(lambda w, h: dot(w, h.T), matrix[:part], hidden),
        METRIC: times
        * _alone(
            lambda a: answer.fold(answer.start(), a, jnp.arange(part)),
            logits,
        ),
    }


def _draw(*shape: int) -> Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32))


def _alone(function: Callable[..., Any], *arrays: Any) -> float:
    program = jit(function)
    return repeated(lambda: program(*arrays), 10)[1].best
