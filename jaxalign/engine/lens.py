"""What a run without an edit shows: what its stream says, who wrote it, and where heads look."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxalign.errors import InputError
from jaxalign.model.config import CENTRED, ModelConfig
from jaxalign.model.decoder import forward, head_contributions, unembed
from jaxalign.model.layers import at_position, normalize
from jaxalign.model.params import Norm, Params, norm_offset
from jaxalign.numerics.scheme import F32, Scheme
from jaxalign.shapes import Array, ArrayLeaf, Float, Int, Lengths, Tokens, lead


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
        f32, ``steps = L + 1``; the last step is what the model says, but for the rounding of
        activations behind the final norm that some schemes have.

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


@struct.dataclass
class DirectEffects:
    """What each part of a model writes to a difference of two logits, through a norm held fixed.

    In f32 the parts add up to the difference, before a soft cap of the logits where the model has
    one; a precision that rounds activations leaves its roundings out.

    Attributes:
        embed: ``[B]``.
        heads: ``[L, H, B]``.
        attention_bias: ``[L, B]``, of ``W_O``; 0 where there is none.
        mlp: ``[L, B]``.
        norm_bias: ``[B]``, of the final norm.
    """

    embed: ArrayLeaf
    heads: ArrayLeaf
    attention_bias: ArrayLeaf
    mlp: ArrayLeaf
    norm_bias: ArrayLeaf

    @property
    def total(self) -> Float[Array, " B"]:
        """The sum of all parts."""
        layers = self.attention_bias.sum(axis=0) + self.mlp.sum(axis=0)
        return self.embed + self.heads.sum(axis=(0, 1)) + layers + self.norm_bias


def direct_logit_attribution(
    params: Params,
    tokens: Tokens,
    lengths: Lengths,
    config: ModelConfig,
    target: Int[Array, " B"],
    other: Int[Array, " B"],
    *,
    scheme: Scheme | str = F32,
) -> DirectEffects:
    """What embedding, heads and MLPs each write to ``logit(target) − logit(other)`` at the last
    position (Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits").

    Norms between a part and the logits are held at what they are in this run, so that every part
    acts linearly. What a part does through later layers is not in it: that is ablation.

    Args:
        params: in the scheme's dtype.
        tokens: ``[B, S]``, padded on the right.
        lengths: ``[B]`` real tokens.
        config: the architecture (static).
        target, other: the two tokens of each prompt.
        scheme: the precision, or its name (static).

    Example:
        >>> parts = jaxalign.direct_logit_attribution(
        ...     model.params, *model.encode(["The capital is"]), model.config, paris, tokyo)
        >>> parts.heads.shape
        (6, 8, 1)
    """
    names = ("embed", "z", "attn_out", "mlp_out", "resid")
    out = forward(
        params, tokens, config, lengths=lengths, scheme=scheme, capture=names, last_only=True
    )
    last = jnp.asarray(lengths) - 1

    def ending(name: str) -> Array:
        """An activation of the last position, ``[…, B, width]``, in f32."""
        x = out.activations[name]
        x = x.reshape(*x.shape[:-2], -1) if name == "z" else x
        return at_position(x, last)[..., 0, :].astype(jnp.float32)

    matrix = params.embed if params.unembed is None else params.unembed
    direction = matrix[target].astype(jnp.float32) - matrix[other].astype(jnp.float32)  # [B, D]
    blocks = params.blocks
    z = ending("z")
    z = z.reshape(*z.shape[:-1], config.num_heads, config.head_size)
    heads = jax.vmap(head_contributions)(z, blocks.attention.out)  # [L, H, B, D]
    bias = blocks.attention.out_bias
    written = jnp.zeros_like(heads[:, 0, 0]) if bias is None else bias.astype(jnp.float32)
    attention = _held(blocks.attention_post_norm, ending("attn_out"), config)
    mlp = _held(blocks.mlp_post_norm, ending("mlp_out"), config)
    final = _held(params.final_norm, ending("resid")[-1], config)
    norm_bias = params.final_norm.bias

    def effect(part: Array) -> Array:
        return (final(part) * lead(direction, part)).sum(axis=-1)

    of_heads = jnp.moveaxis(attention(jnp.moveaxis(heads, 1, 0)), 0, 1)
    everywhere = jnp.broadcast_to(written[:, None], heads[:, 0].shape)
    return DirectEffects(
        embed=effect(ending("embed")),
        heads=effect(of_heads),
        attention_bias=effect(attention(everywhere)),
        mlp=effect(mlp(ending("mlp_out"))),
        norm_bias=jnp.zeros(len(last))
        if norm_bias is None
        else (direction * norm_bias.astype(jnp.float32)[None]).sum(axis=-1),
    )


def _held(norm: Norm | None, x: Array, config: ModelConfig) -> Callable[[Array], Array]:
    """The norm as it acts on parts of ``x``, ``[…, B, D]``: its scale is that of the whole, and its
    bias is left out. The identity where there is no norm."""
    if norm is None:
        return lambda part: part
    centred = config.norm in CENTRED

    def centre(a: Array) -> Array:
        return a - a.mean(axis=-1, keepdims=True) if centred else a

    size = jnp.sqrt(jnp.square(centre(x)).mean(axis=-1, keepdims=True) + config.norm_eps)
    if norm.scale is None:
        by = 1 / size
    else:
        scale = norm.scale.astype(jnp.float32) + norm_offset(config)
        by = scale[..., None, :] / size if scale.ndim > 1 else lead(scale, x) / size
    return lambda part: centre(part) * lead(by, part)


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
