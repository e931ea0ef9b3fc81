"""What is read off the last logits of every run, without holding all of them at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.edits.batch import by_row, take_rows
from jaxalign.edits.site import NOTHING, Edit
from jaxalign.measures.metrics import Answer, AnswerLogits, AnswerMetrics
from jaxalign.model.config import ModelConfig
from jaxalign.model.decoder import logits_at, unembed
from jaxalign.model.layers import soft_cap
from jaxalign.model.params import Params
from jaxalign.numerics.dot import dot
from jaxalign.shapes import Array, Float, Int

Readout = Callable[[Float[Array, "B V"]], Any]

# Logits of all rows at once would outgrow every activation (V is 100 times D); this many bytes
# of them are alive at a time.
LOGIT_BYTES = 1 << 28
# Runs and tokens of a block of logits: W_U's part and the product stay in cache.
RUNS_READ = 512
TOKENS_READ = 2096


def read_out(
    params: Params,
    final: Float[Array, "R B D"],
    config: ModelConfig,
    readout: Readout,
    edit: Edit = NOTHING,
    last: Int[Array, " B"] | None = None,
) -> Any:
    """Unembed and read out; rows and vocabulary in blocks that stay in cache where it can be.

    Args:
        params: the embedding, or the unembedding where there is one.
        final: the final norm's output at the last position of every row and prompt.
        config: the architecture.
        readout: from f32 logits ``[B, V]`` to a pytree of ``[B, …]``; an ``Answer`` is folded over
            blocks of the vocabulary.
        edit: sites at the logits, ``R`` rows; then no row's logits are read in parts.
        last: int ``[B]``, where ``final`` stands, for an edit.

    Returns:
        The readout's pytree of ``[R, B, …]``.
    """
    if isinstance(readout, Answer) and not edit.sites:
        return _fold(params, final, config, readout)
    vocab = params.embed.shape[0]
    rows, batch, width = final.shape
    blocks = max(1, -(-rows * batch * vocab * 4 // LOGIT_BYTES))
    size = -(-rows // blocks)
    padded = jnp.pad(final, ((0, blocks * size - rows), (0, 0), (0, 0)))

    def read(given: tuple[Float[Array, "R B D"], Int[Array, " R"]]) -> Any:
        block, numbers = given
        if not edit.sites:
            return jax.vmap(readout)(unembed(params, block, config))
        rows = take_rows(edit, numbers)

        def one(normed: Float[Array, "B D"], row: Edit) -> Any:
            assert last is not None
            return readout(logits_at(last, params, normed, config, row))

        return jax.vmap(one, in_axes=(0, by_row(rows, 0, None)))(block, rows)

    numbers = jnp.arange(blocks * size).reshape(blocks, size)
    values = jax.lax.map(read, (padded.reshape(blocks, size, batch, width), numbers))
    return jax.tree.map(lambda v: v.reshape(blocks * size, *v.shape[2:])[:rows], values)


def _fold(
    params: Params, final: Float[Array, "R B D"], config: ModelConfig, answer: Answer
) -> AnswerMetrics:
    """``answer`` folded over blocks of the vocabulary, which lie in rows: ``W_U h``, not ``h W_U``.

    The maximum over tokens then runs along whole vectors, and each part of ``W_U`` is read once.
    """
    rows, batch, width = final.shape
    matrix = params.embed if params.unembed is None else params.unembed
    vocab, count = len(matrix), rows * batch
    blocks = -(-count // RUNS_READ)
    size = -(-count // blocks)

    def split(a: Array) -> Array:
        return jnp.pad(a, ((0, blocks * size - count), *[(0, 0)] * (a.ndim - 1))).reshape(
            blocks, size, *a.shape[1:]
        )

    final = split(final.reshape(count, width))
    asked = jax.tree.map(lambda a: split(jnp.tile(a, rows)), answer)
    part = -(-vocab // -(-vocab // TOKENS_READ))
    # The last part begins early enough to be whole: reading a token twice does no harm.
    starts = jnp.minimum(jnp.arange(-(-vocab // part)) * part, vocab - part)

    def read(seen: AnswerLogits, start: Array) -> tuple[AnswerLogits, None]:
        weights = jax.lax.dynamic_slice_in_dim(matrix, start, part)
        tokens = start + jnp.arange(part)

        def fold(block: tuple[Array, Answer, AnswerLogits]) -> AnswerLogits:
            h, answer, before = block
            logits = soft_cap(dot(weights, h.T), config.logit_cap)
            return answer.fold(before, logits, tokens)

        return jax.lax.map(fold, (final, asked, seen)), None

    seen, _ = jax.lax.scan(read, asked.start(), starts)
    values = asked.finish(seen)
    return jax.tree.map(lambda v: v.reshape(-1)[:count].reshape(rows, batch), values)
