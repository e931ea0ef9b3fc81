"""GPTQ: inputs are rounded one after another, and what one got wrong the next ones make good.

Frantar et al. 2022, arXiv 2210.17323, algorithm 1. Two things follow its published code, not the
paper: act-order (inputs by falling second moment), and inputs that are always 0 are left out.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from jaxalign.numerics.qtensor import QTensor, pack_nibbles
from jaxalign.numerics.quantize import divide, quantize
from jaxalign.numerics.scheme import WeightFormat
from jaxalign.shapes import Array, Float, Leaf

BLOCK = 128  # inputs between two updates of the whole matrix
DAMPING = 0.01


@struct.dataclass
class _Walk:
    """The matrix on its way: ``w`` and ``codes`` ``[A, O]``, ``scale`` and ``zero`` ``[G, O]``."""

    w: Leaf
    codes: Leaf
    scale: Leaf
    zero: Leaf


def gptq(
    w: Float[Array, "..."],
    second: Float[Array, "A A"],
    form: WeightFormat,
    *,
    damping: float | Float[Array, ""] = DAMPING,
    act_order: bool = False,
    static_groups: bool = False,
) -> QTensor:
    """Round ``w`` to codes that keep ``wᵀx``, not ``w``.

    With ``H = 2 E[x xᵀ] + λI`` and ``U`` the upper Cholesky factor of ``H⁻¹``: for each input ``i``
    in turn, ``e = (w_i − Q(w_i)) / U_ii``, then ``w_j ← w_j − U_ij e`` for all later ``j``. A
    group's scale is chosen when its first input is reached, from weights as they then are.

    Args:
        w: f32 ``[A, *out]``.
        second: ``E[x xᵀ]`` of the layer's input; any multiple of it gives the same codes.
        form: int4 or int8 codes.
        damping: ``λ`` as a share of the mean diagonal of ``H``.
        act_order: take inputs by falling diagonal of ``H``; groups are then of inputs that follow
            each other in that order (``QTensor.group_of``).
        static_groups: choose all scales beforehand, for groups of neighbouring inputs.

    Returns:
        The packed matrix. All scales are NaN where ``H`` has no Cholesky factor.

    Raises:
        InputError: the format's groups do not divide ``A``.
        ValueError: another format.
    """
    if form.codes not in ("int4", "int8") or form.double:
        raise ValueError(f"GPTQ rounds to int4 or int8 codes, not to {form}")
    inputs, outputs = len(w), w.ndim - 1
    groups = form.groups(inputs)
    matrix = w.astype(jnp.float32).reshape(inputs, -1)
    diagonal = jnp.diagonal(second)
    alive = diagonal > 0
    hessian = 2 * second + jnp.diag(jnp.where(alive, 0.0, 1.0))
    matrix = jnp.where(alive[:, None], matrix, 0)
    natural = jnp.arange(inputs)
    order = jnp.argsort(-jnp.diagonal(hessian)) if act_order else natural
    place = jnp.argsort(order)
    group_of = (order if static_groups else natural) // (inputs // groups)  # of the i-th in turn
    factor = inverse_factor(hessian[order][:, order], damping)
    scale, zero = _grid(matrix, form)
    start = _Walk(matrix[order], jnp.zeros(matrix.shape, jnp.uint8), scale, zero)
    done = _walk(start, factor, group_of, form, static_groups)
    usable = jnp.isfinite(factor).all()
    codes = done.codes[place].reshape(w.shape)
    shape = (groups, *w.shape[1:])
    return QTensor(
        codes=pack_nibbles(codes, 0)
        if form.bits == 4
        else lax.bitcast_convert_type(codes, jnp.int8),
        scale=jnp.where(usable, done.scale, jnp.nan).reshape(shape),
        zero=done.zero.reshape(shape) if form.zero else None,
        group_of=group_of[place] if act_order and not static_groups else None,
        format=form,
        outputs=outputs,
    )


def inverse_factor(
    hessian: Float[Array, "A A"], damping: float | Float[Array, ""]
) -> Float[Array, "A A"]:
    """Upper ``U`` with ``Uᵀ U = (H + λI)⁻¹``, ``λ = damping · mean(diag H)``.

    From one factorization, of ``H`` with its axes reversed: ``H + λI = R Rᵀ`` with upper ``R``,
    and ``U = R⁻¹``. Factoring the inverse instead squares the condition number.
    """
    damped = hessian + damping * jnp.diagonal(hessian).mean() * jnp.eye(len(hessian))
    upper = jnp.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]
    return jax.scipy.linalg.solve_triangular(upper, jnp.eye(len(hessian)), lower=False)


def _walk(start: _Walk, factor: Array, group_of: Array, form: WeightFormat, fixed: bool) -> _Walk:
    """Round all inputs, a group at a time, and within it a block at a time."""
    inputs, groups = len(start.w), len(start.scale)
    size = inputs // groups
    # Blocks inside groups, so that a group's scale sees all that came before it.
    block = max(n for n in range(1, min(size, BLOCK) + 1) if size % n == 0)

    def group(number: Any, walk: _Walk) -> _Walk:
        first = number * size
        if not fixed:
            own = lax.dynamic_slice_in_dim(walk.w, first, size)
            scale, zero = _grid(own, replace(form, group=None))
            put = lax.dynamic_update_slice_in_dim
            walk = replace(
                walk,
                scale=put(walk.scale, scale, number, 0),
                zero=put(walk.zero, zero, number, 0),
            )

        def visit(b: Any, walk: _Walk) -> _Walk:
            return _block(walk, factor, group_of, form, first + b * block, block)

        return lax.fori_loop(0, size // block, visit, walk)

    return lax.fori_loop(0, groups, group, start)


def _block(
    walk: _Walk, factor: Array, group_of: Array, form: WeightFormat, first: Any, size: int
) -> _Walk:
    """Round inputs ``first … first + size``, one by one, and then move all later ones."""
    rows = lax.dynamic_slice_in_dim(factor, first, size)
    inner = lax.dynamic_slice_in_dim(rows, first, size, axis=1)
    own = lax.dynamic_slice_in_dim(walk.w, first, size)

    def one(i: Any, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        own, codes, errors = carry
        group = group_of[first + i]
        code, value = _nearest(own[i], walk.scale[group], walk.zero[group], form)
        error = divide(own[i] - value, inner[i, i])
        own = own - inner[i][:, None] * error[None]  # U is upper: earlier inputs stay
        return own, codes.at[i].set(code), errors.at[i].set(error)

    empty = (own, jnp.zeros(own.shape, jnp.uint8), jnp.zeros_like(own))
    _, codes, errors = lax.fori_loop(0, size, one, empty)
    moved = jnp.matmul(rows.T, errors, precision=lax.Precision.HIGHEST)
    codes = lax.dynamic_update_slice_in_dim(walk.codes, codes, first, 0)
    return replace(walk, w=walk.w - moved, codes=codes)


def _grid(w: Array, form: WeightFormat) -> tuple[Array, Array]:
    """Scales and zero points of groups, those of rounding to the nearest code, ``[G, O]``."""
    packed = quantize(w, form)
    scale = packed.scale.astype(jnp.float32)
    zero = jnp.zeros_like(scale) if packed.zero is None else packed.zero.astype(jnp.float32)
    return scale, zero


def _nearest(w: Array, scale: Array, zero: Array, form: WeightFormat) -> tuple[Array, Array]:
    """Codes of one input's weights, int8's as their bits, and the values that they stand for."""
    steps = jnp.round(divide(w, scale))
    if form.zero:
        code = jnp.clip(steps + zero, form.lowest, form.levels + form.lowest)
        kept = code.astype(jnp.uint8 if form.bits < 8 else jnp.int8)
        return lax.bitcast_convert_type(kept, jnp.uint8), (code - zero) * scale
    if form.codes == "int4":
        code = jnp.clip(steps, -8, 7)
        return (code + 8).astype(jnp.uint8), code * scale
    code = jnp.clip(steps, -math.ceil(form.levels), 127)
    return lax.bitcast_convert_type(code.astype(jnp.int8), jnp.uint8), code * scale
