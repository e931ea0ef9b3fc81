"""Attention knock-out, swept: which positions the last one has to see, and in which layers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxalign.edits.anywhere import Replace
from jaxalign.edits.site import Edit
from jaxalign.engine.patching import Metric
from jaxalign.engine.sweep import sweep
from jaxalign.errors import InputError
from jaxalign.model.config import ModelConfig
from jaxalign.model.params import Params
from jaxalign.numerics.scheme import F32, Scheme
from jaxalign.shapes import Array, ArrayLeaf, Bool, Int, Lengths, Tokens


@struct.dataclass
class KnockedOut:
    """What a metric is where the last position does not see some others.

    Attributes:
        clean: ``[B]``, of the run without edits.
        cut: ``[windows, S, B]``; not a number for sources behind the last position.
    """

    clean: ArrayLeaf
    cut: ArrayLeaf


def attention_knockout(
    params: Params,
    tokens: Tokens,
    lengths: Lengths,
    config: ModelConfig,
    metric: Metric,
    *,
    window: int = 1,
    scheme: Scheme | str = F32,
) -> KnockedOut:
    """Cut the attention of the last position to one source in a window of layers (Geva et al. 2023,
    arXiv 2304.14767, section 6): a row a window and source, in every head.

    Args:
        params: in the scheme's dtype.
        tokens: ``[B, S]``, padded on the right.
        lengths: ``[B]`` real tokens, 2 or more each: a position needs a source.
        config: the architecture (static).
        metric: from f32 logits ``[B, V]`` at the last real position to ``[B]``.
        window: layers in a row in which it is cut, so that there are ``L − window + 1`` windows
            (static).
        scheme: the precision, or its name (static).

    Raises:
        InputError: a window that does not fit the model, or a prompt of one token.

    Example:
        >>> found = attention_knockout(model.params, tokens, lengths, model.config, m, window=3)
        >>> (found.cut - found.clean).shape  # [windows, S, B]
        (4, 15, 1)
    """
    check_window(window, config)
    if not isinstance(lengths, jax.core.Tracer) and int(np.min(np.asarray(lengths))) < 2:
        raise InputError(
            "a prompt has one token, and its position would have every source knocked out",
            "give prompts of two tokens or more",
        )
    windows, size = config.num_layers - window + 1, jnp.shape(tokens)[1]
    rows = np.argwhere(np.ones((windows, size), bool))
    groups = jnp.broadcast_to(jnp.arange(size)[None, None], (len(tokens), 1, size))
    edit = cut_from_last(jnp.asarray(rows), groups, jnp.asarray(lengths), window, config)
    [m] = sweep(params, tokens, lengths, config, [edit], metric, scheme=scheme, single_step=False)
    there = jnp.arange(size)[None, :, None] < jnp.asarray(lengths)[None, None]
    return KnockedOut(m[0], jnp.where(there, m[1:].reshape(windows, size, -1), jnp.nan))


def check_window(window: int, config: ModelConfig) -> None:
    """Refuse a window of layers that does not fit the model.

    Args:
        window: how many layers.
        config: the architecture.

    Raises:
        InputError: none, or more than the model has.
    """
    if not 1 <= window <= config.num_layers:
        raise InputError(
            f"the window is {window} layers, and the model has {config.num_layers}",
            f"give 1 to {config.num_layers}",
        )


def cut_from_last(
    rows: Int[Array, "M 2"],
    groups: Int[Array, "B kinds S"],
    lengths: Lengths,
    window: int,
    config: ModelConfig,
) -> Edit:
    """Attention of each prompt's last position to a group of positions cut, one edit a row.

    Args:
        rows: first layer of the window, and number of the group.
        groups: which group each position is of, in each of several ways to group. One that holds
            every source of a prompt leaves its attention undefined: its metric is not a number.
        lengths: real tokens of each prompt.
        window: layers in a row.
        config: the architecture.
    """
    layers = jnp.arange(config.num_layers)[None] - rows[:, :1]
    inside: Bool[Array, "M L"] = (layers >= 0) & (layers < window)
    source = (groups[None] == rows[:, 1, None, None, None]).any(axis=2)  # [M, B, S]
    last = jnp.arange(groups.shape[-1])[None] == (lengths - 1)[:, None]  # [B, Q]
    edges = last[None, :, :, None] & source[:, :, None]  # [M, B, Q, S]
    edges = inside[:, :, None, None, None, None] & edges[:, None, :, None]
    hidden = np.full((config.num_layers, 1, 1, 1, 1), -np.inf, np.float32)
    return Edit(Replace("scores", edges, hidden))
