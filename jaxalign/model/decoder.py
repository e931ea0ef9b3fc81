"""A whole transformer, to be read in one sitting: embed, blocks, final norm, unembed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from jaxalign.edits.points import POINTS
from jaxalign.edits.site import NOTHING, Edit, Edits
from jaxalign.errors import require_type
from jaxalign.model.attention import attention, project_heads
from jaxalign.model.checks import check_dtype, check_edit, check_prompts, points_of
from jaxalign.model.config import ModelConfig
from jaxalign.model.layers import EVERYTHING, Pass, at_position, mlp, normalize, soft_cap
from jaxalign.model.params import Block, Params
from jaxalign.numerics.activation_rounding import round_activation
from jaxalign.numerics.dot import dense, dot
from jaxalign.numerics.qtensor import QTensor
from jaxalign.numerics.scheme import F32, Scheme, as_scheme
from jaxalign.runtime.products import precision_for
from jaxalign.shapes import Array, ArrayLeaf, Bool, Float, Int, Lengths, Tokens

# Activations that a run can return: what stands at each point after its edits. Those of blocks come
# stacked, [L, …]; ``resid`` is then the stream after each block, ``embed`` that before the first.
CAPTURES = ("embed", *POINTS)


@struct.dataclass
class Output:
    """What a run returns.

    Attributes:
        logits: f32 ``[B, S, V]``, or ``[B, V]`` when only the last position was asked for.
        activations: by name of ``CAPTURES``, after edits: ``embed`` ``[B, S, D]``, ``resid`` after
            each block ``[L, B, S, D]``, and the others as ``edits.points`` has them.
    """

    logits: ArrayLeaf
    activations: dict[str, ArrayLeaf]


@dataclass(frozen=True)
class Reading:
    """Edits that keep what stands at some points, after the edits there.

    Attributes:
        edit: what is applied.
        names: of the points.
        seen: by name, filled while the layer is computed.
    """

    edit: Edits
    names: Sequence[str]
    seen: dict[str, Array] = field(default_factory=dict)

    def apply_at(
        self,
        point: str,
        x: Array,
        inputs: Array | None = None,
        weights: Any = None,
        others: Mapping[str, Array] | None = None,
    ) -> Array:
        """The value at a point after the edits there (``Edits.apply_at``).

        Args:
            point, x, inputs, weights, others: as in ``Edits.apply_at``.
        """
        x = self.edit.apply_at(point, x, inputs, weights, others)
        if point in self.names:
            self.seen[point] = x
        return x


def real_positions(lengths: Lengths, size: int) -> Bool[Array, "B S"]:
    """True where a position holds a token of the prompt, not padding."""
    return jnp.arange(size)[None] < lengths[:, None]


def embed(
    params: Params, tokens: Tokens, run: Pass, positions: Int[Array, "#B S"] | None = None
) -> Float[Array, "B S D"]:
    """The residual stream before the first block.

    Args:
        params: in the scheme's dtype.
        tokens: int ``[B, S]``.
        run: the pass.
        positions: where the tokens stand; from 0 on by default.
    """
    x = params.embed[tokens]
    if params.positions is not None:
        x = (
            x
            + params.positions[
                jnp.arange(tokens.shape[1])[None] if positions is None else positions
            ]
        )
    if run.config.scaled_embedding:
        x = x * jnp.asarray(math.sqrt(run.config.hidden_size), x.dtype)
    return _rounded(x, "embed", run)


def layer_windows(config: ModelConfig) -> Int[Array, " L"] | None:
    """Each layer's window, as data for the loop over layers; None where no layer has one."""
    if not any(config.windows):
        return None
    sizes = [EVERYTHING if window is None else window for window in config.windows]
    return jnp.asarray(np.array(sizes, np.int32))


def add_to_stream(
    x: Float[Array, "*rows B S D"],
    attn_out: Float[Array, "*rows B S D"],
    weights: Block,
    run: Pass,
    edit: Edits,
    mlp_out: Float[Array, "*rows B S D"] | None = None,
) -> tuple[Float[Array, "*rows B S D"], Float[Array, "*rows B S D"]]:
    """The end of a block: the stream after attention, MLP and edits, and the MLP's output.

    Parallel residual: ``x + Attn(LN1(x)) + MLP(LN2(x))``; sequential: the MLP reads
    ``x + Attn(LN1(x))``. The parallel sum is taken in the order ``(mlp + attn) + x``, which is
    transformers' and matters in 16-bit floats.

    Args:
        x: the stream before the block.
        attn_out: the attention output after its edits.
        weights: of the block.
        run: the pass.
        edit: of this block.
        mlp_out: the MLP's output before its edits where it is known, which only a parallel block
            can use, and only where no edit reads what the MLP has read.
    """
    config = run.config
    middle = attended = normalize(attn_out, weights.attention_post_norm, config)
    hidden, others = None, None
    if not config.parallel_residual:
        middle = edit.apply_at("resid_mid", attended + x)
    if mlp_out is None or not config.parallel_residual:
        normed = normalize(x if config.parallel_residual else middle, weights.mlp_norm, config)
        normed = edit.apply_at("mlp_in", normed)
        hidden, mlp_out = mlp(normed, weights.mlp, config, run.real, edit)
        mlp_out, others = _rounded(mlp_out, "mlp_out", run), {"mlp_in": normed}
    edited = edit.apply_at("mlp_out", mlp_out, hidden, weights.mlp.down, others)
    added = normalize(edited, weights.mlp_post_norm, config)
    y = (added + attended) + x if config.parallel_residual else added + middle
    return edit.apply_at("resid", _rounded(y, "resid", run)), mlp_out


def _rounded(x: Array, site: str, run: Pass) -> Array:
    """``x`` as the scheme leaves it at ``site``."""
    return x if run.real is None else round_activation(x, site, run.scheme, run.real)


def block(
    x: Float[Array, "*rows B S D"], weights: Block, run: Pass, edit: Edits = NOTHING
) -> tuple[Float[Array, "*rows B S D"], dict[str, Array]]:
    """One decoder block, and its parts: ``z``, ``attn_out`` and ``mlp_out`` (both before their
    edits), rotated ``keys`` and ``values``.

    Edits of heads act on what ``W_O`` writes: where a post norm follows, before it.

    Args:
        x: the residual stream.
        weights: of the block.
        run: the pass.
        edit: of this block; nothing by default.
    """
    normed = normalize(x, weights.attention_norm, run.config)
    z, (keys, values) = attention(normed, weights.attention, run, edit)
    attn_out = attention_output(z, weights, run)
    edited = edit.apply_at("attn_out", attn_out, z, weights.attention.out)
    y, mlp_out = add_to_stream(x, edited, weights, run, edit)
    parts = {"z": z, "attn_out": attn_out, "mlp_out": mlp_out, "keys": keys, "values": values}
    return y, parts


def attention_output(
    z: Float[Array, "*rows B Q H h"], weights: Block, run: Pass
) -> Float[Array, "*rows B Q D"]:
    """What the heads write together, before its edits, as the scheme leaves it.

    Args:
        z: what each head reads.
        weights: of the block.
        run: the pass.
    """
    return _rounded(project_heads(z, weights.attention, run.real), "attn_out", run)


def unembed(
    params: Params, normed: Float[Array, "*rows D"], config: ModelConfig
) -> Float[Array, "*rows V"]:
    """Logits in f32, whatever the run's precision.

    Args:
        params: the embedding, or the unembedding where there is one.
        normed: the final norm's output.
        config: the architecture.
    """
    matrix = params.embed if params.unembed is None else params.unembed
    return soft_cap(dot(normed, matrix.T), config.logit_cap)


def logits_at(
    positions: Int[Array, "B P"],
    params: Params,
    normed: Float[Array, "B P D"],
    config: ModelConfig,
    edit: Edit,
) -> Float[Array, "B P V"]:
    """Logits of some positions of each prompt, after their edits.

    Args:
        positions: those that ``normed`` stands at.
        params: the embedding, or the unembedding where there is one.
        normed: the final norm's output there.
        config: the architecture.
        edit: of one run.
    """
    logits, late = unembed(params, normed, config), edit.at_logits()
    return late.at_positions(positions).apply_at("logits", logits) if late.sites else logits


def forward(
    params: Params,
    tokens: Tokens,
    config: ModelConfig,
    *,
    lengths: Lengths | None = None,
    scheme: Scheme | str = F32,
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
        scheme: the precision, or its name (static under ``jit``).
        edit: what to change; nothing by default.
        capture: names of ``CAPTURES`` to return.
        last_only: logits of each prompt's last real position only.

    Raises:
        InputError: an unknown scheme, or an argument of another type.
        ValueError: unknown capture name, parameters of another dtype than the scheme's, tokens or
            lengths of another shape or out of range, an edit of another shape than the run's, or at
            a point that the model does not have.

    Example:
        >>> model = jaxalign.load("demo")
        >>> forward(model.params, jnp.array([[5, 6, 7]]), model.config).logits.shape
        (1, 3, 4096)
    """
    scheme = as_scheme(scheme)
    require_type("params", params, Params, "the parameters of a model, model.params")
    require_type("config", config, ModelConfig, "the architecture, model.config")
    require_type("edit", edit, (Edit, type(None)), "an Edit")
    if isinstance(capture, str):
        capture = (capture,)
    known = ("embed", *points_of(config))
    unknown = [name for name in capture if name not in known]
    if unknown:
        raise ValueError(f"capture asks for {unknown}, expected names of {known}")
    scheme = check_dtype(params, scheme)
    tokens, lengths = check_prompts(tokens, lengths, config)
    edit = edit or NOTHING
    check_edit(edit, config, tokens.shape)  # before JAX makes other numbers of what it holds
    edit = jax.tree.map(jnp.asarray, edit)
    run = Pass(config, scheme, real_positions(lengths, tokens.shape[1]))
    x = embed(params, tokens, run)
    start = x = edit.at_embedding().apply_at("resid", x)

    def step(x: Array, layer: tuple[Block, Any, Array | None]) -> tuple[Array, dict[str, Array]]:
        weights, arrays, window = layer
        reading = Reading(edit.layer(arrays), capture)
        y, _ = block(x, weights, replace(run, window=window), reading)
        return y, reading.seen

    layers = (params.blocks, edit.layered(), layer_windows(config))
    x, activations = lax.scan(step, x, layers)
    normed = _rounded(normalize(x, params.final_norm, config), "final_norm", run)
    normed = edit.at_end().apply_at("final_norm", normed)
    seen = {"embed": start, "final_norm": normed}
    last = lengths - 1
    if last_only and "logits" not in capture:
        final = at_position(normed, last)
        logits = logits_at(last[:, None], params, final, config, edit)[:, 0]
    else:
        whole = edit.at_logits().apply_at("logits", unembed(params, normed, config))
        seen["logits"] = whole
        logits = at_position(whole, last)[..., 0, :] if last_only else whole
    activations |= {name: value for name, value in seen.items() if name in capture}
    return Output(logits=logits, activations=activations)


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
        precision=precision_for(state),
        preferred_element_type=jnp.float32,
    )


def num_layers(params: Params) -> int:
    """``L``, read off the stacked leaves."""
    return jax.tree.leaves(params.blocks)[0].shape[0]
