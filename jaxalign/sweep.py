"""Many edited runs at once, and what is read off their logits."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.edit import Edit, check_shapes
from jaxalign.errors import InputError
from jaxalign.measures.metrics import Answer, AnswerLogits, AnswerMetrics
from jaxalign.model.config import ModelConfig
from jaxalign.model.decoder import check_dtype, forward, unembed
from jaxalign.model.layers import at_position, soft_cap
from jaxalign.model.params import Params
from jaxalign.numerics.dot import dot
from jaxalign.numerics.scheme import F32, Scheme
from jaxalign.shapes import Array, Float, Lengths, Tokens
from jaxalign.wave import wave

PLANS = ("wave", "vmap")

Readout = Callable[[Float[Array, "B V"]], Any]

# Logits of all rows at once would outgrow every activation (V is 100 times D); this many bytes
# of them are alive at a time.
LOGIT_BYTES = 1 << 28
# Runs and tokens of a block of logits: W_U's part and the product stay in cache.
RUNS_READ = 512
TOKENS_READ = 2096


def sweep(
    params: Params,
    tokens: Tokens,
    lengths: Lengths,
    config: ModelConfig,
    edits: Sequence[Edit],
    readout: Readout,
    *,
    plan: str = "wave",
    scheme: Scheme = F32,
    later: bool | None = None,
) -> list[Any]:
    """Run the model under every edit and read out each prompt's last logits.

    Works inside ``jit``, ``vmap`` and ``grad``. Row 0 of every result is the clean run of the same
    call: in 16-bit floats only rows of one call may be compared.

    Args:
        params: in the scheme's dtype.
        tokens: ``[B, S]``, padded on the right.
        lengths: ``[B]`` real tokens.
        config: the architecture (static).
        edits: batches of edits (``edit.Edit``); each shares its values among its rows.
        readout: from f32 logits ``[B, V]`` at the last real position to a pytree of ``[B, …]``.
        plan: "wave" (``jaxalign.wave``), or "vmap": ``jax.vmap`` of ``forward`` over the rows'
            masks, which defines what the wave computes (static).
        scheme: the precision (static).
        later: False promises that no row edits a step after the first one it touches, which saves
            the wave work; read off the masks by default (static).

    Returns:
        For each batch of edits the readout with a leading axis ``[1 + M_g, …]``.

    Raises:
        InputError: unknown plan.
        ValueError: parameters of another dtype than the scheme's, or an edit with ``attn_add``.

    Example:
        >>> masks = head_ablation_masks(config.num_layers, config.num_heads)
        >>> zero = Edit(head=HeadEdit(masks, jnp.zeros((config.num_layers, 1, 1, 1, 1))))
        >>> answer = lambda logits: logit_difference(logits, targets)
        >>> [m] = sweep(params, tokens, lengths, config, [zero], answer)
        >>> importance = m[:1] - m[1:]  # [L·H, B]
    """
    if plan not in PLANS:
        raise InputError(f"plan {plan!r} is unknown", f"use {' or '.join(PLANS)}")
    check_dtype(params, scheme)
    if any(edit.attn_add is not None for edit in edits):
        raise ValueError("attn_add has no mask, so rows cannot choose it: give it to forward")
    for edit in edits:
        check_shapes(
            edit, config.num_layers, tokens.shape, config.num_heads, config.hidden_size, rows=True
        )
    later = touch_later(edits, len(tokens)) if later is None else later
    # Masks that are constants would have the compiler sort and sum them, which takes it seconds.
    edits = [edit.map_masks(jax.lax.optimization_barrier) for edit in edits]
    edits = jax.tree.map(jnp.asarray, edits)
    run = _plain if plan == "vmap" else _wave
    final = run(params, tokens, lengths, edits, config, scheme, later)
    values = _read(params, final, config, readout)
    starts = np.cumsum([1] + [edit.rows for edit in edits])
    rows = [np.r_[0, a:b] for a, b in itertools.pairwise(starts)]
    return [jax.tree.map(lambda v, i=i: v[i], values) for i in rows]


def touch_later(edits: Sequence[Edit], batch: int) -> bool:
    """Whether a row edits a step after its first; taken for granted where masks are traced."""
    if any(isinstance(leaf, jax.core.Tracer) for edit in edits for leaf in edit.masks()):
        return True
    with jax.ensure_compile_time_eval():
        return any(bool((edit.touched(batch).sum(axis=-1) > 1).any()) for edit in edits)


def _plain(
    params: Params,
    tokens: Tokens,
    lengths: Lengths,
    edits: Sequence[Edit],
    config: ModelConfig,
    scheme: Scheme,
    later: bool,
) -> Float[Array, "rows B D"]:
    """``vmap`` over the rows of each batch of edits, with a row before them that edits nothing."""

    def run(row: Edit) -> Array:
        out = forward(
            params,
            tokens,
            config,
            lengths=lengths,
            scheme=scheme,
            edit=row,
            capture=("final_norm",),
        )
        return at_position(out.activations["final_norm"], lengths - 1)[:, 0]

    finals: list[Array] = []
    for edit in edits:
        rows = edit.with_clean()
        final = jax.vmap(run, in_axes=(rows.row_axes(),))(rows)
        finals.append(final[1:] if finals else final)
    return jnp.concatenate(finals)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _wave(
    params: Params,
    tokens: Tokens,
    lengths: Lengths,
    edits: Sequence[Edit],
    config: ModelConfig,
    scheme: Scheme,
    later: bool,
) -> Float[Array, "rows B D"]:
    return wave(params, tokens, lengths, edits, config, scheme, later)


def _wave_forward(*args: Any) -> tuple[Array, Any]:
    return wave(*args), args[:4]


def _wave_backward(
    config: ModelConfig, scheme: Scheme, later: bool, saved: Any, cotangent: Array
) -> Any:
    """The plain path's: the wave's loops end where the data say, which has no reverse."""
    _, pull = jax.vjp(functools.partial(_plain, config=config, scheme=scheme, later=later), *saved)
    return pull(cotangent)


_wave.defvjp(_wave_forward, _wave_backward)


def _read(
    params: Params, final: Float[Array, "R B D"], config: ModelConfig, readout: Readout
) -> Any:
    """Unembed and read out; rows and vocabulary in blocks that stay in cache where it can be."""
    if isinstance(readout, Answer):
        return _fold(params, final, config, readout)
    vocab = params.embed.shape[0]
    rows, batch, width = final.shape
    blocks = max(1, -(-rows * batch * vocab * 4 // LOGIT_BYTES))
    size = -(-rows // blocks)
    padded = jnp.pad(final, ((0, blocks * size - rows), (0, 0), (0, 0)))

    def read(block: Float[Array, "N B D"]) -> Any:
        return jax.vmap(readout)(unembed(params, block, config))

    values = jax.lax.map(read, padded.reshape(blocks, size, batch, width))
    return jax.tree.map(lambda v: v.reshape(blocks * size, *v.shape[2:])[:rows], values)


def _fold(
    params: Params, final: Float[Array, "R B D"], config: ModelConfig, answer: Answer
) -> AnswerMetrics:
    """``answer`` folded over blocks of the vocabulary, which lie in rows: ``W_U h``, not ``h W_U``.

    A column's maximum then runs along whole vectors, and each part of ``W_U`` is read once.
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
