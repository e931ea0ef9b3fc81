"""The pieces of a block, each a function of arrays with any number of leading row axes."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from jaxalign.edits.site import NOTHING, Edits
from jaxalign.model.config import CENTRED, ModelConfig, NormKind
from jaxalign.model.params import MLP, Norm
from jaxalign.model.prefix import Prefix
from jaxalign.numerics.dot import dot
from jaxalign.numerics.qtensor import QTensor
from jaxalign.numerics.scheme import F32, Scheme
from jaxalign.shapes import Array, ArrayLeaf, Bool, Float, Int, lead

# The window of a layer that sees all positions, in models where others have one.
EVERYTHING = np.iinfo(np.int32).max


@struct.dataclass
class Pass:
    """What all parts of one pass through the model, or through one layer of it, share.

    Attributes:
        config: the architecture (static).
        scheme: the precision (static).
        real: bool ``[B, S]``, True at positions that hold a token of the prompt; None where
            nothing is rounded over a whole example.
        window: int, how many positions a query of this layer sees, its own the last; EVERYTHING, or
            None where no layer has a window, for all before it.
        prefix: what stands before runs that hold the last positions of their prompts only; None
            where runs hold all.
    """

    config: ModelConfig = struct.field(pytree_node=False)
    scheme: Scheme = struct.field(pytree_node=False, default=F32)
    real: ArrayLeaf | None = None
    window: ArrayLeaf | None = None
    prefix: Prefix | None = None


def layer_norm(x: Float[Array, "*rows D"], norm: Norm, eps: float) -> Float[Array, "*rows D"]:
    """Layer norm computed in f32 and rounded once to ``x.dtype``, as PyTorch does.

    Args:
        x: what is normalised, over its last axis.
        norm: scale and bias, ``[D]`` each, or neither.
        eps: added to the variance.
    """
    wide = x.astype(jnp.float32)
    centred = wide - wide.mean(axis=-1, keepdims=True)
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    unit = centred * lax.rsqrt(variance + eps)
    if norm.scale is None:
        return unit.astype(x.dtype)
    assert norm.bias is not None
    scale, bias = (lead(p.astype(jnp.float32), x) for p in (norm.scale, norm.bias))
    scaled = unit * scale + bias
    return scaled.astype(x.dtype)


def rms_norm(
    x: Float[Array, "*rows D"], norm: Norm, eps: float, kind: NormKind = "rms"
) -> Float[Array, "*rows D"]:
    """``x / sqrt(mean x² + eps)`` in f32, times ``w`` or ("rms+1") ``1 + w``.

    As in each reference implementation: Llama rounds ``x / rms`` to ``x.dtype`` and then multiplies
    by ``w`` ("rms"); OLMo 2 multiplies by ``w`` in f32 and then rounds ("rms+0"), Gemma by
    ``1 + w`` ("rms+1").

    Args:
        x: what is normalised, over its last axis.
        norm: its ``scale`` ``w``, ``[D]``.
        eps: added to the mean square.
        kind: which of the three.
    """
    assert norm.scale is not None
    wide = x.astype(jnp.float32)
    unit = wide * lax.rsqrt(jnp.square(wide).mean(axis=-1, keepdims=True) + eps)
    scale = lead(norm.scale, x)
    if kind == "rms+1":
        return (unit * (1 + scale.astype(jnp.float32))).astype(x.dtype)
    if kind == "rms+0":
        return (unit * scale.astype(jnp.float32)).astype(x.dtype)
    return scale.astype(x.dtype) * unit.astype(x.dtype)


def normalize(
    x: Float[Array, "*rows D"], norm: Norm | None, config: ModelConfig
) -> Float[Array, "*rows D"]:
    """``x`` after a norm of the model's kind; ``x`` itself where the model has no norm there.

    Args:
        x: what is normalised, over its last axis.
        norm: scale and bias where the kind has them; None where there is no norm.
        config: the kind and its epsilon.
    """
    if norm is None:
        return x
    if config.norm in CENTRED:
        return layer_norm(x, norm, config.norm_eps)
    return rms_norm(x, norm, config.norm_eps, config.norm)


def at_position(
    x: Float[Array, "*rows B S D"], position: Int[Array, " B"]
) -> Float[Array, "*rows B 1 D"]:
    """``x`` at one position of each prompt."""
    return jnp.take_along_axis(x, lead(position[:, None, None], x), axis=-2)


def project(
    x: Float[Array, "*rows A"],
    w: Float[Array, "A *out"] | QTensor,
    bias: Float[Array, "*out"] | None,
    real: Bool[Array, "B S"] | None,
) -> Array:
    """``x w + b`` in ``x``'s dtype, ``[*rows, *out]``."""
    y = dot(x, w, real)
    if bias is not None:
        y = y + lead(bias.astype(jnp.float32), y)
    return y.astype(x.dtype)


def soft_cap(x: Float[Array, "..."], cap: float | None) -> Float[Array, "..."]:
    """``c · tanh(x / c)``; ``x`` where there is no cap."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def activate(x: Float[Array, "*rows F"], name: str) -> Float[Array, "*rows F"]:
    """The MLP's nonlinearity, by its Hugging Face name, in f32 (rounded by the caller)."""
    match name:
        case "gelu" | "gelu_python":
            # As PyTorch writes it; jax.nn.gelu asks for erfc, which costs three times as much.
            return x * 0.5 * (1 + lax.erf(x * math.sqrt(0.5)))
        case "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast":
            return jax.nn.gelu(x, approximate=True)
        case "quick_gelu":
            return x * jax.nn.sigmoid(1.702 * x)
        case "relu":
            return jax.nn.relu(x)
        case "silu":
            return jax.nn.silu(x)
    raise ValueError(f"activation is {name!r}, which ModelConfig would have refused")


def mlp(
    x: Float[Array, "*rows D"],
    weights: MLP,
    config: ModelConfig,
    real: Bool[Array, "B S"] | None = None,
    edit: Edits = NOTHING,
) -> tuple[Float[Array, "*rows F"], Float[Array, "*rows D"]]:
    """The MLP of normed inputs, its neurons after their edits and what it writes:
    ``activation(x W_up + b) W_down + b``, rounded after each step.

    Gated: ``(activation(x W_gate + b) * (x W_up + b)) W_down + b``.

    Args:
        x: the inputs.
        weights: of the layer's MLP.
        config: the architecture.
        real: True at positions of ``x`` that hold a token of the prompt.
        edit: of this layer; nothing by default.
    """
    up = project(x, weights.up, weights.up_bias, real)
    up = edit.apply_at("mlp_up", up, x, weights.up)
    if weights.gate is None:
        hidden = _active(up, config)
    else:
        gate = project(x, weights.gate, weights.gate_bias, real)
        hidden = _active(edit.apply_at("mlp_gate", gate, x, weights.gate), config) * up
    hidden = edit.apply_at("mlp_hidden", hidden)
    return hidden, project(hidden, weights.down, weights.down_bias, real)


def _active(x: Array, config: ModelConfig) -> Array:
    return activate(x.astype(jnp.float32), config.activation).astype(x.dtype)
