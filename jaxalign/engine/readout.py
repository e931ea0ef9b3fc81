"""What is read off the last logits of every run, without holding all of them at once."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.edits.batch import by_row, take_rows
from jaxalign.edits.site import NOTHING, Edit
from jaxalign.errors import InputError, counted, require_type
from jaxalign.measures.metrics import Answer, AnswerLogits, AnswerMetrics, AnswersDifference
from jaxalign.model.config import ModelConfig
from jaxalign.model.decoder import logits_at, unembed
from jaxalign.model.layers import soft_cap
from jaxalign.model.params import Params
from jaxalign.numerics.dot import dot
from jaxalign.runtime.products import precision_for
from jaxalign.shapes import Array, Float, Int, lead

Readout = Callable[[Float[Array, "B V"]], Any]

# Logits of all rows at once would outgrow every activation (V is 100 times D); this many bytes
# of them are alive at a time.
LOGIT_BYTES = 1 << 28
# Runs and tokens of a block of logits: W_U's part and the product stay in cache.
RUNS_READ = 512
TOKENS_READ = 2096


@dataclass(frozen=True)
class FromClean:
    """A readout that compares each row with the clean one of the same call.

    Attributes:
        measure: from the clean row's f32 logits and the edited row's, ``[B, V]`` each (or as the
            sweep reads them), to a pytree of ``[B, …]``.

    Example:
        >>> [kl] = sweep(params, tokens, lengths, config, [edit], FromClean(kl_divergence))
    """

    measure: Callable[[Float[Array, "B *P V"], Float[Array, "B *P V"]], Any]


def check_readout(
    name: str,
    readout: Any,
    batch: int,
    config: ModelConfig,
    at: Int[Array, "B P"] | None = None,
) -> None:
    """Refuse what has not a value for each prompt, before anything is computed.

    Args:
        name: of the argument.
        readout: what is given as one.
        batch: ``B``, how many prompts there are.
        config: the architecture.
        at: positions that are read; None for the last one.

    Raises:
        InputError: no readout, an answer of other prompts, or a value of another shape.
    """
    one, given = readout, 1
    if isinstance(readout, FromClean):
        one, given = readout.measure, 2
    if not callable(one):
        require_type(name, readout, (), "a function of logits [B, V]")
    if isinstance(one, Answer) and jnp.shape(one.target) != (batch,):
        raise InputError(
            f"the answer has targets of shape {jnp.shape(one.target)} for {counted(batch, 'text')}",
            "give a token for each text",
        )
    shape = (batch, *(() if at is None else at.shape[1:]), config.vocab_size)
    logits = jax.ShapeDtypeStruct(shape, jnp.float32)
    for leaf in jax.tree.leaves(jax.eval_shape(one, *[logits] * given)):
        if leaf.shape[:1] != (batch,):
            raise InputError(
                f"{name} gives shape {leaf.shape} for logits of {counted(batch, 'text')}",
                f"return a value for each text: [{batch}, …]",
            )


def read_out(
    params: Params,
    final: Float[Array, "R *steps B *P D"],
    config: ModelConfig,
    readout: Readout | FromClean,
    *,
    steps: bool = False,
    edit: Edit = NOTHING,
    read: Int[Array, "B P"] | None = None,
) -> Any:
    """Unembed and read out; rows and vocabulary in blocks that stay in cache where it can be.

    Args:
        params: the embedding, or the unembedding where there is one.
        final: the final norm's output at the last position of every row and prompt, or at ``P``.
        config: the architecture.
        readout: from f32 logits ``[B, V]`` to a pytree of ``[B, …]``; an ``Answer`` is folded over
            blocks of the vocabulary, an ``AnswersDifference`` asks for its tokens alone.
        steps: whether an axis of the model's steps stands behind that of rows.
        edit: sites at the logits, ``R`` rows; then no row's logits are read in parts.
        read: where ``final`` stands, for an edit.

    Returns:
        The readout's pytree of ``[R, *steps, B, …]``.
    """
    if isinstance(readout, Answer) and not edit.sites:
        flat = final.reshape(-1, *final.shape[-2:])
        values = _fold(params, flat, config, readout)
        return jax.tree.map(lambda v: v.reshape(final.shape[:-1]), values)
    if isinstance(readout, AnswersDifference) and not edit.sites:
        return _of_tokens(params, final, config, readout)
    vocab = params.embed.shape[0]
    rows, shape = len(final), final.shape[1:]
    blocks = max(1, -(-rows * math.prod(shape[:-1]) * vocab * 4 // LOGIT_BYTES))
    size = -(-rows // blocks)
    padded = jnp.pad(final, ((0, blocks * size - rows), *[(0, 0)] * len(shape)))
    each: Any = readout
    if isinstance(readout, FromClean):
        measure = jax.vmap(readout.measure) if steps else readout.measure
        each = functools.partial(measure, unembed(params, final[0], config))
    elif steps:
        each = jax.vmap(readout)

    def read_block(given: tuple[Float[Array, "R *steps B *P D"], Int[Array, " R"]]) -> Any:
        block, numbers = given
        if not edit.sites:
            return jax.vmap(each)(unembed(params, block, config))
        rows = take_rows(edit, numbers)

        def one(normed: Float[Array, "B *P D"], row: Edit) -> Any:
            assert read is not None
            places = normed.reshape(*read.shape, -1)
            logits = logits_at(read, params, places, config, row)
            return each(logits.reshape(*normed.shape[:-1], -1))

        return jax.vmap(one, in_axes=(0, by_row(rows, 0, None)))(block, rows)

    numbers = jnp.arange(blocks * size).reshape(blocks, size)
    values = jax.lax.map(read_block, (padded.reshape(blocks, size, *shape), numbers))
    return jax.tree.map(lambda v: v.reshape(blocks * size, *v.shape[2:])[:rows], values)


def _of_tokens(
    params: Params, final: Float[Array, "*rows B D"], config: ModelConfig, read: AnswersDifference
) -> Float[Array, "*rows B"]:
    """The logits of a few tokens of each prompt alone, weighted and summed."""
    matrix = params.embed if params.unembed is None else params.unembed
    logits = jnp.einsum(
        "...bd,bnd->...bn",
        final,
        matrix[read.tokens],
        precision=precision_for(final),
        preferred_element_type=jnp.float32,
    )
    capped = soft_cap(logits, config.logit_cap)
    return (capped * lead(jnp.asarray(read.weights), capped)).sum(axis=-1)


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
