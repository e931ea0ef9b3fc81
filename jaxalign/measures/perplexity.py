"""Perplexity of texts in windows: per-document sums that passes add up, and what they amount to.

The protocol is that of ``jaxalign.prompts.cut_windows``: where windows overlap, each token of a
document is predicted once and, behind the document's first window, from at least
``window - stride`` tokens before it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxalign.errors import InputError
from jaxalign.shapes import Array, Bool, Float, Int, Leaf, lead


@struct.dataclass
class DocumentLoss:
    """Sums over the predicted tokens of each document; those of several batches are added.

    Attributes:
        loss: f32 ``[*rows, documents]``, of the next-token losses, nats.
        tokens: int32 ``[documents]``, how many tokens that is.
    """

    loss: Leaf
    tokens: Leaf


def next_token_loss(
    logits: Float[Array, "*rows B S V"], tokens: Int[Array, "B S"]
) -> Float[Array, "*rows B S-1"]:
    """The loss of every token but the first, nats: that of position s is predicted at ``s - 1``.

    Args:
        logits: of any float type; the loss is computed in f32.
        tokens: of the same windows; behind a window's end any token, whose loss means nothing.
    """
    said = logits[..., :-1, :].astype(jnp.float32)
    index = jnp.broadcast_to(lead(tokens[:, 1:, None], said), (*said.shape[:-1], 1))
    chosen = jnp.take_along_axis(said, index, axis=-1)[..., 0]
    return jax.nn.logsumexp(said, axis=-1) - chosen


def document_loss(
    logits: Float[Array, "*rows B S V"],
    tokens: Int[Array, "B S"],
    counted: Bool[Array, "B S"],
    document: Int[Array, " B"],
    documents: int,
) -> DocumentLoss:
    """Sums of the next-token loss over the documents that the windows of one batch are of.

    A token is predicted where it counts and a token stands before it in its window. So the first
    token of a document is not, nor is that of any window where none overlap, unless a
    beginning-of-sequence token stands in front.

    Args:
        logits: of the windows, of any float type.
        tokens: of the windows.
        counted: which tokens count; a row of filler has none.
        document: which document each window is of, below ``documents``.
        documents: how many there are in all batches together.
    """
    each = next_token_loss(logits, tokens)
    loss = jnp.where(lead(counted[:, 1:], each), each, 0).sum(axis=-1)
    number = counted[:, 1:].sum(axis=-1, dtype=jnp.int32)
    sums = jnp.zeros((*loss.shape[:-1], documents), jnp.float32).at[..., document].add(loss)
    return DocumentLoss(sums, jnp.zeros(documents, jnp.int32).at[document].add(number))


def perplexity(
    loss: Float[np.ndarray, "*rows documents"], tokens: Int[np.ndarray, "*#rows documents"]
) -> Float[np.ndarray, "*rows"]:
    """``exp(Σ loss / Σ tokens)`` over documents, in f64: every token weighs the same.

    Args:
        loss: sums of each document, nats, added up over all batches.
        tokens: predicted tokens of each document; resamples of documents have their own.

    Raises:
        InputError: no token was predicted.

    Example:
        >>> round(float(perplexity(np.array([3 * np.log(2.0)]), np.array([3]))), 6)
        2.0
    """
    number = np.asarray(tokens).sum(axis=-1, dtype=np.int64)
    if not (number > 0).all():
        raise InputError("no token is predicted, expected one at least", "give longer texts")
    return np.asarray(np.exp(np.asarray(loss, np.float64).sum(axis=-1) / number))
