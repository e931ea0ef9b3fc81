"""What can be read off a run without an edit: what the stream says, and where heads look."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jaxalign.errors import InputError
from jaxalign.model.config import ModelConfig
from jaxalign.model.decoder import forward, unembed
from jaxalign.model.layers import at_position, normalize
from jaxalign.model.params import Params
from jaxalign.numerics.scheme import F32, Scheme
from jaxalign.shapes import Array, Float, Lengths, Tokens


def logit_lens(
    params: Params,
    tokens: Tokens,
    lengths: Lengths,
    config: ModelConfig,
    *,
    scheme: Scheme | str = F32,
) -> Float[Array, "steps B V"]:
    """The logits that the last position's stream stands for before the first block and after each
    (nostalgebraist 2020): ``unembed(final_norm(resid))``.

    Args:
        params: in the scheme's dtype.
        tokens: ``[B, S]``, padded on the right.
        lengths: ``[B]`` real tokens.
        config: the architecture (static).
        scheme: the precision, or its name (static).

    Returns:
        f32, ``steps = L + 1``; the last step is what the model says.

    Example:
        >>> logits = jaxalign.logit_lens(model.params, *model.encode(["The capital of France is"]),
        ...                              model.config)  # [7, 1, V]
    """
    out = forward(
        params, tokens, config, lengths=lengths, scheme=scheme, capture=("embed", "resid"),
        last_only=True,
    )  # fmt: skip
    stream = jnp.stack([out.activations["embed"], *out.activations["resid"]])
    last = at_position(stream, jnp.asarray(lengths) - 1)[..., 0, :]
    return unembed(params, normalize(last, params.final_norm, config), config)


def head_scores(
    params: Params,
    config: ModelConfig,
    *,
    length: int = 24,
    count: int = 8,
    seed: int = 0,
    scheme: Scheme | str = F32,
) -> dict[str, Float[Array, "L H"]]:
    """How far each head attends as three known kinds of head do, on random tokens said twice
    (Olsson et al. 2022, arXiv 2209.11895, section "Defining induction heads").

    * ``previous token``: to the position before;
    * ``duplicate token``: to the same token's earlier place;
    * ``induction``: to the place behind the same token's earlier one.

    Args:
        params: in the scheme's dtype.
        config: the architecture (static).
        length: tokens that are said twice (static).
        count: texts (static).
        seed: of the tokens.
        scheme: the precision, or its name (static).

    Returns:
        The attention probability, averaged over the texts and the second half's positions.

    Raises:
        InputError: a length that twice is more than the model's context, or less than 2.

    Example:
        >>> scores = jaxalign.head_scores(model.params, model.config)
        >>> scores["induction"].shape
        (6, 8)
    """
    most = min(config.max_positions // 2, config.vocab_size)
    if not 2 <= length <= most:
        raise InputError(
            f"length is {length}: so many different tokens are said twice", f"give 2 to {most}"
        )
    rng = np.random.default_rng(seed)
    once = [rng.choice(config.vocab_size, length, replace=False) for _ in range(count)]
    tokens = jnp.asarray(np.concatenate([once, once], axis=1), jnp.int32)
    out = forward(params, tokens, config, scheme=scheme, capture=("pattern",), last_only=True)
    pattern = out.activations["pattern"]  # [L, B, H, Q, S]
    query = np.arange(length, 2 * length)

    def seen(source: np.ndarray) -> Array:
        return pattern[..., query, source].mean(axis=(1, -1))

    return {
        "previous token": seen(query - 1),
        "duplicate token": seen(query - length),
        "induction": seen(query - length + 1),
    }
