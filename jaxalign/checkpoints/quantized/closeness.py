"""Is a matrix one that rounding left of another? Errors of rounding have no pattern.

Rounding to the nearest leaves an error of half a step at most, as often up as down and whatever
the sign of the weight. So an error of more than half a step that is the same number of steps
everywhere comes from zero points, and one that is the same share of every weight of an output or
of an input comes from scales: neither comes from rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxalign.errors import InputError
from jaxalign.numerics.codebooks import CODEBOOKS
from jaxalign.numerics.double_quantization import dynamic_map
from jaxalign.numerics.qtensor import QTensor, group_scales
from jaxalign.shapes import Float

# The largest relative error by the bits of a code: four bits leave about 0.1, two bits (GGUF) 0.4,
# eight bits 0.01 to 0.14 where a matrix has outliers; codes in a wrong order leave 1.4.
LARGEST = {4: 0.5, 8: 0.25}
# An error below this is small whatever its pattern: bf16 leaves 2^-9.
VISIBLE = 0.004
# Half a step, and the share of the squared error that a pattern has to explain.
HALF, EXPLAINED = 0.5, 0.75
WRONG_LAYOUT = (
    "its codes stand in another order than this format's, or it was made from another model"
)
WRONG_ZERO = "its zero points are stored in another way; for GPTQ, correct checkpoint_format"
WRONG_SCALE = "its scales or its codes are damaged; quantize the model again"


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """How a matrix ``[A, N]`` was rounded.

    Attributes:
        step: the distance of neighbouring codes at each weight, f32 ``[A, N]``; None where it is
            not known.
        groups: the group of each input, int ``[A]``: those of a group share a scale.
        bits: of a code, 4 or 8.
    """

    step: np.ndarray | None
    groups: np.ndarray
    bits: int


def relative_error(
    found: Float[Any, "A N"], wanted: Float[Any, "A N"], rounding: Rounding, where: str
) -> float:
    """``‖found − wanted‖ / ‖wanted‖`` of a matrix, if rounding can have left it.

    Args:
        found: the quantized matrix, f32 ``[A, N]``: inputs, outputs.
        wanted: the original's, f32 ``[A, N]``.
        rounding: how it was rounded.
        where: what the matrix is called, for messages.

    Raises:
        InputError: the error is too large for so many bits, or has a pattern that rounding does
            not leave.
    """
    error = found - wanted
    with np.errstate(over="ignore"):
        norm, size = float(np.linalg.norm(wanted)), float(np.linalg.norm(error))
    relative, most = size / (norm or 1.0), LARGEST[rounding.bits]
    if not relative <= most:
        raise InputError(
            f"{where} is off by {relative:.2f} of its norm from the original's, expected less than "
            f"{most}",
            WRONG_LAYOUT,
        )
    if relative > VISIBLE:
        step = rounding.step
        if step is None:  # errors that are evenly distributed over a step have this one
            step = np.full_like(error, (12 / error.size) ** 0.5 * size)
        _check_shift(error, step, rounding.step is not None, where)
        _check_gains(error, wanted, rounding.groups, where)
        for axis, called in ((0, "output"), (1, "input")):
            _check_channels(error, wanted, step, axis, f"{where}: {called}")
    return relative


def rounding_of(w: QTensor) -> Rounding:
    """How one packed matrix ``[A, *out]`` was rounded.

    Double quantization rounds the scales, too, to steps that are as large for the smallest output
    as for the largest: codes are 1 at most, so such a step counts as one of the weights.
    """
    inputs, groups = w.shape[0], w.scale.shape[0]
    size = w.format.group if w.format.block else inputs // groups
    together = np.arange(inputs) // (size or inputs)
    of_input = together if w.group_of is None else np.asarray(w.group_of)
    scales = np.asarray(group_scales(w)).astype(np.float32)
    scale = np.abs(scales)[of_input]
    if w.format.codes in CODEBOOKS:
        step = scale * np.diff(np.sort(CODEBOOKS[w.format.codes])).max()
    elif w.format.codes.startswith("int"):
        step = scale / w.format.levels if w.format.absmax else scale
    else:
        kind = jnp.finfo(w.codes.dtype)
        codes = np.abs(np.asarray(w.codes).astype(np.float32))
        step = scale * np.maximum(codes * float(kind.eps), float(kind.smallest_subnormal))
    if w.format.double:
        step = step + np.diff(dynamic_map()).max() * np.abs(scales - scales.mean()).max()
    # Codes of fewer bits stand in bytes beside those of more, and have offsets there.
    bits = 8 if w.format.bits == 8 and not w.format.offset_bits else 4
    if w.input_divisor is not None:
        step = step / np.asarray(w.input_divisor).reshape(-1, *[1] * w.outputs)
    return Rounding(step=step.reshape(inputs, -1), groups=of_input, bits=bits)


def _check_shift(error: np.ndarray, step: np.ndarray, known: bool, where: str) -> None:
    """Zero points that are off by one move every weight by one step."""
    along, square = float((error * step).sum()), float((step * step).sum())
    explained = along * along / (square * float((error * error).sum()))
    if explained > EXPLAINED and (abs(along) > HALF * square or not known):
        raise InputError(
            f"{where} differs from the original's, and {explained:.0%} of that is one shift of all "
            "weights, which rounding does not leave",
            WRONG_ZERO,
        )


def _check_gains(error: np.ndarray, wanted: np.ndarray, groups: np.ndarray, where: str) -> None:
    """Scales that are wrong multiply each group of an output by a number of its own."""
    order = np.argsort(groups, kind="stable")
    starts = np.unique(groups[order], return_index=True)[1]
    along, square = (np.add.reduceat((x * wanted)[order], starts, axis=0) for x in (error, wanted))
    explained = float((along * along / np.where(square > 0, square, 1)).sum())
    explained /= float((error * error).sum())
    if explained > EXPLAINED:
        raise InputError(
            f"{where} differs from the original's, and {explained:.0%} of that is a factor a group "
            "of weights, which rounding does not leave",
            WRONG_SCALE,
        )


def _check_channels(
    error: np.ndarray, wanted: np.ndarray, step: np.ndarray, axis: int, called: str
) -> None:
    """No single output or input is multiplied by a number, or is another one altogether.

    An input that is zero everywhere is left out: GPTQ zeroes those that its texts never used.
    """
    square, along = ((wanted * x).sum(axis) for x in (wanted, error))
    of_error, of_step = ((x * x).sum(axis) for x in (error, step))
    gain = along / np.where(square > 0, square, 1)
    by_gain = gain * gain * square
    scaled = (by_gain > EXPLAINED * of_error) & (by_gain > HALF**2 * of_step)
    another = (of_error > EXPLAINED * square) & (of_error > 4 * of_step)
    wrong = (scaled | another) & ((error != -wanted).any(axis) | (axis == 0))
    if wrong.any():
        first = int(np.argmax(wrong))
        share = (of_error[first] / (square[first] or 1)) ** 0.5
        raise InputError(
            f"{called} {first} is off by {share:.2f} of its norm from the original's in a way that "
            f"rounding does not leave ({int(wrong.sum())} of {wrong.size} are)",
            WRONG_SCALE,
        )
