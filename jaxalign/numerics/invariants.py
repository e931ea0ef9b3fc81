"""What holds of every packed matrix, checked before it is used."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxalign.errors import InputError
from jaxalign.numerics.qtensor import QTensor, code_values, spread
from jaxalign.numerics.scheme import CODES, INPUTS

DTYPES = {"int8": "int8", "e4m3fn": "float8_e4m3fn", "e5m2": "float8_e5m2"}
# Fields whose every number must be finite.
NUMBERS = ("scale", "zero", "offset", "block_scale", "block_offset", "input_divisor", "input_scale")
FLOATS = ("float32", "float16", "bfloat16")
REMEDY = "the file is damaged, or was read by another layout than it was written in"


def check(q: QTensor, name: str) -> QTensor:
    """``q``, if what ``numerics.qtensor`` says of its fields is true of it.

    Checked are dtypes, shapes and their relations, that scales and zero points are finite, that a
    scale of 0 belongs to a group whose codes are all 0, that scales are powers of two where the
    format says so, and that inputs are rounded in a way that the weights allow. Reads values, so it
    is for arrays, not inside ``jit``.

    Args:
        name: what the matrix is called, for messages.

    Raises:
        InputError: something is not so; says what, what was expected and what was found.

    Example:
        >>> check(quantize(w, scheme_named("int4-g32").weights), "layers.0.mlp.up").shape
        (64, 128)
    """
    _check_codes(q, name)
    _check_groups(q, name)
    _check_values(q, name)
    _check_inputs(q, name)
    return q


def _expect(name: str, field: str, found: Any, wanted: Any) -> None:
    if found != wanted:
        raise InputError(f"{name}: {field} is {found}, expected {wanted}", REMEDY)


def _check_codes(q: QTensor, name: str) -> None:
    form = q.format
    if form.codes not in CODES:
        raise InputError(f"{name}: codes are {form.codes!r}", f"use one of {', '.join(CODES)}")
    _expect(name, "the codes' dtype", str(q.codes.dtype), DTYPES.get(form.codes, "uint8"))
    if q.codes.ndim < 1 + q.outputs:
        wanted = f"[…, A, *out] with {q.outputs} axes of outputs"
        raise InputError(f"{name}: codes have shape {q.codes.shape}, expected {wanted}", REMEDY)
    if q.size == 0:
        raise InputError(f"{name}: codes have shape {q.codes.shape}, which holds none", REMEDY)


def _check_groups(q: QTensor, name: str) -> None:
    axis = len(q.shape) + q.axis
    front, inputs, out = q.shape[:axis], q.shape[axis], q.shape[axis + 1 :]
    try:
        groups = q.format.groups(inputs)
    except InputError as error:
        raise InputError(f"{name}: {error.problem}", error.remedy) from None
    known = FLOATS if q.block_scale is None else ("int8",)
    if str(q.scale.dtype) not in known:
        raise InputError(
            f"{name}: scale's dtype is {q.scale.dtype}, expected one of {known}", REMEDY
        )
    _check_blocks(q, name, groups)
    _expect(name, "the scale's shape", tuple(q.scale.shape), (*front, groups, *out))
    _expect(name, "the presence of zero points", q.zero is not None, q.format.zero)
    if q.zero is not None:
        _expect(name, "the zero points' shape", tuple(q.zero.shape), tuple(q.scale.shape))
    for field in ("group_of", "input_divisor"):
        part = getattr(q, field)
        if part is not None:
            _expect(name, f"{field}'s shape", tuple(part.shape), (*front, inputs))
    if q.input_scale is not None:
        _expect(name, "input_scale's shape", tuple(q.input_scale.shape), front)
    if q.group_of is not None:
        _expect(name, "group_of's dtype", str(q.group_of.dtype), "int32")
        low, high = int(q.group_of.min()), int(q.group_of.max())
        if low < 0 or high >= groups:
            raise InputError(
                f"{name}: group_of names groups {low} to {high}, but there are {groups}", REMEDY
            )


def _check_blocks(q: QTensor, name: str, groups: int) -> None:
    """Offsets and what multiplies scales and offsets have their groups' shapes, or blocks'."""
    if q.offset is not None:
        _expect(name, "the offset's shape", tuple(q.offset.shape), tuple(q.scale.shape))
    for field in ("block_scale", "block_offset"):
        part = getattr(q, field)
        if part is None:
            continue
        blocks = part.shape[q.axis]
        shape = list(q.scale.shape)
        shape[q.axis] = blocks
        _expect(name, f"{field}'s shape", list(part.shape), shape)
        _expect(name, f"what is left of {groups} groups in {blocks} blocks", groups % blocks, 0)


def _check_values(q: QTensor, name: str) -> None:
    for field in NUMBERS:
        part = getattr(q, field)
        if part is None:
            continue
        wide = np.asarray(part).astype(np.float32)
        bad = ~np.isfinite(wide)
        if field.startswith("input"):
            bad |= wide <= 0
        if bad.any():
            place = [int(i) for i in np.argwhere(bad)[0]] if bad.ndim else ""
            raise InputError(
                f"{name}: {field}{place} is {wide[bad][0]}, expected a finite number"
                + (" above 0" if field.startswith("input") else "")
                + f" ({bad.sum()} of {bad.size} are not)",
                REMEDY,
            )
    if q.format.codes in ("e4m3fn", "e5m2"):
        codes = np.asarray(q.codes.astype(jnp.float32))
        if not np.isfinite(codes).all():
            raise InputError(f"{name}: {(~np.isfinite(codes)).sum()} codes are not finite", REMEDY)
    if q.format.scales == "e8m0":
        scale = np.asarray(q.scale).astype(np.float32)
        other = scale[(np.frexp(scale)[0] != 0.5)]
        if other.size:
            raise InputError(f"{name}: a scale is {other[0]}, expected a power of two", REMEDY)
    _check_zero_scales(q, name)


def _check_zero_scales(q: QTensor, name: str) -> None:
    """A scale of 0 makes zeros of its group, and a quantizer writes it for zeros alone."""
    # Scales that are rounded, too, may come out as 0, and GGUF's packers leave the codes then.
    if q.format.double or q.format.wide or bool(jnp.all(q.scale != 0)):
        return
    values = code_values(q)
    if q.zero is not None:
        values = values - spread(q, q.zero.astype(jnp.float32))
    lost = np.argwhere(np.asarray((spread(q, q.scale) == 0) & (values != 0)))
    if len(lost):
        place = [int(i) for i in lost[0]]
        raise InputError(
            f"{name}: the scale of weight{place} is 0 and its code is not ({len(lost)} such)",
            REMEDY,
        )


def _check_inputs(q: QTensor, name: str) -> None:
    if q.inputs is None:
        return
    if q.inputs not in INPUTS:
        raise InputError(
            f"{name}: inputs are rounded by {q.inputs!r}", f"use one of {', '.join(INPUTS)}"
        )
    codes = q.inputs.removesuffix("-token") if q.inputs.startswith("e") else "int8"
    _expect(name, f"the kind of codes that {q.inputs} inputs meet", q.format.codes, codes)
    if q.scale.shape[q.axis] != 1 or q.zero is not None or q.group_of is not None:
        raise InputError(
            f"{name}: inputs are rounded ({q.inputs}), but weights have "
            f"{q.scale.shape[q.axis]} groups{' and zero points' if q.zero is not None else ''}",
            "a product of codes needs one scale an output channel and no zero points",
        )
    if (q.input_scale is not None) != (q.inputs == "int8-static"):
        raise InputError(
            f"{name}: inputs are rounded by {q.inputs!r} and input_scale is "
            f"{'missing' if q.input_scale is None else 'given'}",
            "give an input_scale for int8-static inputs, and for no others",
        )
