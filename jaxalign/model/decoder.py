"""A whole transformer, to be read in one sitting: embed, blocks, final norm, unembed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from jaxalign.edit import Edit, check_shapes, edit_heads, edit_residual
from jaxalign.model.config import ModelConfig
from jaxalign.model.layers import at_position, attention, mlp, normalize, soft_cap
from jaxalign.model.params import Block, Norm, Params
from jaxalign.numerics.activation_rounding import round_activation
from jaxalign.numerics.dot import dense, dot
from jaxalign.numerics.qtensor import QTensor
from jaxalign.numerics.scheme import F32, Scheme
from jaxalign.shapes import Array, Bool, Float, Int, Leaf, Lengths, Tokens, lead

# Activations that a run can return. Those of blocks come stacked, [L, …].
CAPTURES = ("embed", "z", "attn_out", "mlp_out", "resid", "final_norm")


@struct.dataclass
class Output:
    """What a run returns.

    Attributes:
        logits: f32 ``[B, S, V]``, or ``[B, V]`` when only the last position was asked for.
        activations: by name of ``CAPTURES``: ``embed`` and ``final_norm`` ``[B, S, D]``,
            ``z`` ``[L, B, S, H, h]``, ``attn_out`` (before edits) and ``mlp_out`` (both before
            post norms), and ``resid`` (after block and edits) ``[L, B, S, D]``.
    """

    logits: Leaf
    activations: dict[str, Leaf]


def real_positions(lengths: Lengths, size: int) -> Bool[Array, "B S"]:
    """True where a position holds a token of the prompt, not padding."""
    return jnp.arange(size)[None] < lengths[:, None]


def check_dtype(params: Params, scheme: Scheme) -> None:
    """Raise unless the parameters are in the scheme's dtype."""
    if params.dtype != jnp.dtype(scheme.compute_dtype):
        raise ValueError(
            f"params are {params.dtype}, but scheme {scheme.name!r} computes in "
            f"{scheme.compute_dtype}: pass model.cast(params, scheme)"
        )


def embed(
    params: Params,
    tokens: Tokens,
    config: ModelConfig,
    scheme: Scheme,
    real: Bool[Array, "B S"],
) -> Float[Array, "B S D"]:
    """The residual stream before the first block."""
    x = params.embed[tokens]
    if config.scaled_embedding:
        x = x * jnp.asarray(math.sqrt(config.hidden_size), x.dtype)
    return round_activation(x, "embed", scheme, real)


def layer_windows(config: ModelConfig) -> Int[Array, " L"] | None:
    """Each layer's window, as data for the loop over layers; None where no layer has one."""
    if not any(config.windows):
        return None
    everything = np.iinfo(np.int32).max
    sizes = [everything if window is None else window for window in config.windows]
    return jnp.asarray(np.array(sizes, np.int32))


def read_heads(
    x: Float[Array, "*rows B S D"],
    weights: Block,
    config: ModelConfig,
    scheme: Scheme,
    real: Bool[Array, "B S"],
    window: Int[Array, ""] | None = None,
) -> tuple[Float[Array, "*rows B S H h"], Float[Array, "*rows B S D"]]:
    """First half of a block: each head's ``z`` and the attention output before edits."""
    normed = normalize(x, weights.attention_norm, config)
    z, attn_out = attention(normed, weights.attention, config, real, window)
    return z, round_activation(attn_out, "attn_out", scheme, real)


def edit_attention(
    attn_out: Float[Array, "*rows B S D"],
    z: Float[Array, "*rows B S H h"],
    weights: Block,
    edit: Edit,
) -> Float[Array, "*rows B S D"]:
    """The attention output after the edits at that site."""
    if edit.head is not None:
        attn_out = edit_heads(attn_out, z, weights.attention.out, edit.head)
    if edit.attn_add is not None:
        attn_out = attn_out + lead(edit.attn_add.astype(attn_out.dtype), attn_out)
    return attn_out


def feed_forward(
    x: Float[Array, "*rows B S D"],
    weights: Block,
    config: ModelConfig,
    scheme: Scheme,
    real: Bool[Array, "B S"],
) -> Float[Array, "*rows B S D"]:
    """The MLP with the norm before it, as the scheme leaves it."""
    normed = normalize(x, weights.mlp_norm, config)
    return round_activation(mlp(normed, weights.mlp, config, real), "mlp_out", scheme, real)


def post_norm(
    x: Float[Array, "*rows D"], norm: Norm | None, config: ModelConfig
) -> Float[Array, "*rows D"]:
    """What is added to the stream: ``x`` after the norm that some families have there."""
    return x if norm is None else normalize(x, norm, config)


def add_to_stream(
    x: Float[Array, "*rows B S D"],
    attn_out: Float[Array, "*rows B S D"],
    mlp_out: Float[Array, "*rows B S D"] | None,
    weights: Block,
    config: ModelConfig,
    scheme: Scheme,
    real: Bool[Array, "B S"],
) -> tuple[Float[Array, "*rows B S D"], Float[Array, "*rows B S D"]]:
    """Second half of a block: the stream ``x`` after attention and MLP, and the MLP's output.

    Parallel residual: ``x + Attn(LN1(x)) + MLP(LN2(x))``; sequential: the MLP reads
    ``x + Attn(LN1(x))``. The parallel sum is taken in the order ``(mlp + attn) + x``, which is
    transformers' and matters in 16-bit floats.

    Args:
        mlp_out: the MLP's output where it is known, which only a parallel block can use.
    """
    attended = post_norm(attn_out, weights.attention_post_norm, config)
    if config.parallel_residual:
        mlp_out = feed_forward(x, weights, config, scheme, real) if mlp_out is None else mlp_out
        y = (post_norm(mlp_out, weights.mlp_post_norm, config) + attended) + x
    else:
        middle = attended + x
        mlp_out = feed_forward(middle, weights, config, scheme, real)
        y = post_norm(mlp_out, weights.mlp_post_norm, config) + middle
    return round_activation(y, "resid", scheme, real), mlp_out


def block(
    x: Float[Array, "B S D"],
    weights: Block,
    edit: Edit,
    config: ModelConfig,
    scheme: Scheme,
    real: Bool[Array, "B S"],
    window: Int[Array, ""] | None = None,
) -> tuple[Float[Array, "B S D"], dict[str, Array]]:
    """One decoder block and its activations.

    Edits of heads act on what ``W_O`` writes: where a post norm follows, before it.
    """
    z, attn_out = read_heads(x, weights, config, scheme, real, window)
    edited = edit_attention(attn_out, z, weights, edit)
    y, mlp_out = add_to_stream(x, edited, None, weights, config, scheme, real)
    if edit.residual is not None:
        y = edit_residual(y, edit.residual)
    return y, {"z": z, "attn_out": attn_out, "mlp_out": mlp_out, "resid": y}


def unembed(
    params: Params, normed: Float[Array, "*rows D"], config: ModelConfig
) -> Float[Array, "*rows V"]:
    """Logits in f32, whatever the run's precision."""
    matrix = params.embed if params.unembed is None else params.unembed
    return soft_cap(dot(normed, matrix.T), config.logit_cap)


def forward(
    params: Params,
    tokens: Tokens,
    config: ModelConfig,
    *,
    lengths: Lengths | None = None,
    scheme: Scheme = F32,
    edit: Edit | None = None,
    capture: Sequence[str] = (),
    last_only: bool = False,
) -> Output:
    """Run the model: a pure function of arrays, for ``jit``, ``vmap`` and ``grad``.

    Args:
        params: from ``convert`` or ``init_params``, in the scheme's dtype.
        tokens: int ``[B, S]``, padded on the right; what stands in the padding does not matter.
        config: the architecture (static under ``jit``).
        lengths: int ``[B]``, real tokens of each prompt; ``S`` by default.
        scheme: the precision (static under ``jit``).
        edit: what to change; nothing by default.
        capture: names of ``CAPTURES`` to return.
        last_only: logits of each prompt's last real position only.

    Raises:
        ValueError: unknown capture name, parameters of another dtype than the scheme's, or an edit
            of another shape than the run's.

    Example:
        >>> model = jaxalign.load("demo")
        >>> forward(model.params, jnp.array([[5, 6, 7]]), model.config).logits.shape
        (1, 3, 4096)
    """
    unknown = [name for name in capture if name not in CAPTURES]
    if unknown:
        raise ValueError(f"capture asks for {unknown}, expected names of {CAPTURES}")
    check_dtype(params, scheme)
    edit = edit or Edit()
    check_shapes(edit, config.num_layers, tokens.shape, config.num_heads, config.hidden_size)
    size = tokens.shape[1]
    lengths = jnp.full(tokens.shape[0], size) if lengths is None else lengths
    real = real_positions(lengths, size)
    start = x = embed(params, tokens, config, scheme, real)
    if edit.residual is not None:
        first = replace(edit.residual, mask=edit.residual.mask[0], value=edit.residual.value[0])
        start = x = edit_residual(x, first)
        after = replace(edit.residual, mask=edit.residual.mask[1:], value=edit.residual.value[1:])
        edit = replace(edit, residual=after)

    def step(x: Array, layer: tuple[Block, Edit, Array | None]) -> tuple[Array, dict[str, Array]]:
        weights, edit, window = layer
        y, activations = block(x, weights, edit, config, scheme, real, window)
        return y, {name: activations[name] for name in capture if name in activations}

    x, activations = lax.scan(step, x, (params.blocks, edit, layer_windows(config)))
    normed = normalize(x, params.final_norm, config)
    normed = round_activation(normed, "final_norm", scheme, real)
    activations |= {k: v for k, v in (("embed", start), ("final_norm", normed)) if k in capture}
    if last_only:
        normed = at_position(normed, lengths - 1)[..., 0, :]
    return Output(logits=unembed(params, normed, config), activations=activations)


def head_contributions(
    state: Float[Array, "*rows H h"], w_out: Float[Array, "A D"] | QTensor | None
) -> Float[Array, "H *rows C"]:
    """What each head adds to the residual stream: ``c[i] = z[i] @ W_O[i]``, in f32.

    Args:
        state: ``z`` of one layer; for edge-align's blocks, the projected output cut into blocks.
        w_out: ``W_O`` of that layer, ``[H·h, D]``; None for edge-align's blocks, which are
            their own contributions.

    Returns:
        Heads first: one matrix product a head, with nothing to rearrange.
    """
    if w_out is None:
        return jnp.moveaxis(state, -2, 0).astype(jnp.float32)
    H, h = state.shape[-2:]
    return jnp.einsum(
        "...ie,ied->i...d",
        state,
        dense(w_out, state.dtype).reshape(H, h, -1),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )


def num_layers(params: Params) -> int:
    """``L``, read off the stacked leaves."""
    return jax.tree.leaves(params.blocks)[0].shape[0]
