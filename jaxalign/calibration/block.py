"""One layer: watched on texts, then scaled and packed by the moments of what it read."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

from jaxalign.calibration.groups import Group, get, groups_of, linear_inputs, put
from jaxalign.model.config import ModelConfig
from jaxalign.model.matrices import MATRICES
from jaxalign.model.params import Block, divided_norm
from jaxalign.numerics.methods.awq import clip, search_clip, search_scale
from jaxalign.numerics.methods.gptq import DAMPING, gptq
from jaxalign.numerics.methods.hqq import hqq
from jaxalign.numerics.methods.smoothquant import smoothing_scale, static_input_scale
from jaxalign.numerics.moments import Moments, moments
from jaxalign.numerics.qtensor import QTensor
from jaxalign.numerics.quantize import quantize
from jaxalign.numerics.scheme import Scheme
from jaxalign.runtime.compile import jit
from jaxalign.shapes import Array, Bool, Float, Int


@functools.partial(jit, static_argnames=("config", "second"))
def observe(
    weights: Block,
    x: Float[Array, "B S D"],
    real: Bool[Array, "B S"],
    window: Int[Array, ""] | None = None,
    *,
    config: ModelConfig,
    second: bool,
) -> tuple[Moments, ...]:
    """The moments of each group's input.

    Args:
        weights: of one layer, f32.
        x: the residual stream before the layer.
        real: True at positions that hold a token of the text.
        window: of the layer's attention, positions; None for all.
        config: the architecture (static).
        second: whether second moments ``E[x xᵀ]`` are taken, too (static).
    """
    return tuple(
        moments(inputs[group.linears[0]], real, second)
        for inputs in [linear_inputs(weights, x, real, config, window)]
        for group in groups_of(weights)
    )


@functools.partial(jit, static_argnames=("scheme", "config"))
def choose(
    weights: Block,
    seen: tuple[Moments, ...] | None,
    damping: Float[Array, ""],
    *,
    scheme: Scheme,
    config: ModelConfig,
) -> Block:
    """A layer with its matrices packed, from the moments of what they read.

    Args:
        weights: of one layer, f32.
        seen: the moments of each group's input, from ``observe``; None where the scheme looks at
            the weights alone.
        damping: GPTQ's, a share of the mean of the diagonal.
        scheme: the precision (static); of schemes that differ in name or compute dtype alone give
            ``core_of``, which is the same for all of them, so that they share a program.
        config: the architecture (static).
    """
    groups = groups_of(weights)
    for group, found in zip(groups, seen or [None] * len(groups), strict=True):
        weights = quantize_group(weights, group, found, scheme, config, damping)
    return weights


def core_of(scheme: Scheme) -> Scheme:
    """What of a scheme decides how its matrices are packed."""
    return replace(scheme, name="", compute_dtype="float32")


def quantize_group(
    weights: Block,
    group: Group,
    found: Moments | None,
    scheme: Scheme,
    config: ModelConfig,
    damping: float | Float[Array, ""] = DAMPING,
) -> Block:
    """Scale a group's input and matrices, and pack these.

    Args:
        weights: of one layer, f32.
        group: which linear layers.
        found: moments of what they read; None for "hqq", which looks at the weights alone.
        scheme: the precision.
        config: the architecture, which says how its norms scale.
        damping: GPTQ's.
    """
    weights, scale = scale_group(weights, group, found, scheme, config)
    if found is not None and scale is not None:
        found = found.divided(scale)
    static = scheme.inputs == "int8-static"
    for name in group.linears:
        packed = replace(
            pack_matrix(get(weights, name), name, found, scheme, damping),
            inputs=scheme.inputs,
            input_divisor=None if group.norm else scale,
            input_scale=static_input_scale(found.largest) if static and found is not None else None,
        )
        weights = put(weights, name, packed)
    return weights


def scale_group(
    weights: Block, group: Group, found: Moments | None, scheme: Scheme, config: ModelConfig
) -> tuple[Block, Float[Array, " A"] | None]:
    """Multiply a group's matrices by the scale of its input, and divide the norm by it.

    Args:
        weights: of one layer, f32.
        group: which linear layers.
        found: moments of what they read.
        scheme: the precision; its method says how the scale is chosen.
        config: the architecture, which says how its norms scale.

    Returns:
        The layer, and the scale; None where the method leaves this input alone.
    """
    matrices = [_flat(get(weights, name)) for name in group.linears]
    if found is None or scheme.weights is None:
        return weights, None
    if scheme.method == "awq" and (group.norm or group.divisible):
        scale = search_scale(matrices, found.mean_absolute, found.mean_second, scheme.weights)
    elif scheme.method == "smoothquant" and group.norm:
        scale = smoothing_scale(matrices, found.largest, scheme.alpha)
    else:
        return weights, None
    for name, matrix in zip(group.linears, matrices, strict=True):
        shape = get(weights, name).shape
        weights = put(weights, name, (matrix * scale[:, None]).reshape(shape))
    if group.norm:
        norm: Any = divided_norm(getattr(weights, group.norm), scale, config)
        weights = replace(weights, **{group.norm: norm})
    return weights, scale


def pack_matrix(
    w: Float[Array, "A *out"],
    name: str,
    found: Moments | None,
    scheme: Scheme,
    damping: float | Float[Array, ""],
) -> QTensor:
    """One scaled matrix in the scheme's format, its codes chosen by the scheme's method.

    Args:
        w: the matrix, f32.
        name: of the matrix in its block, such as ``"attention.query"``.
        found: moments of what the matrix reads; "awq" and "gptq" need them.
        scheme: the precision.
        damping: GPTQ's, a share of the mean of the diagonal.
    """
    form = scheme.weights
    assert form is not None
    if scheme.method == "hqq":
        return hqq(w, form, w.ndim - 1)
    if scheme.method == "gptq":
        assert found is not None
        order = scheme.act_order
        return gptq(w, found.mean_second, form, damping=damping, act_order=order)
    if scheme.method == "awq" and not MATRICES[name.split(".")[1]].scored:
        assert found is not None
        limit = search_clip(_flat(w), found.mean_second, form)
        w = clip(_flat(w), limit).reshape(w.shape)
    return quantize(w, form, w.ndim - 1)


def _flat(w: Array) -> Array:
    return w.reshape(len(w), -1)
