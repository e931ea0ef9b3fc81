"""Colours and markers: a precision looks the same in every figure of a result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Look:
    """Colour and marker of a category; the marker says the same where colour is lost."""

    colour: str
    marker: str


# Okabe & Ito's palette; f32 in black, as the reference of every comparison.
LOOKS = {
    "f32": Look("#000000", "o"),
    "f16": Look("#0072B2", "s"),
    "int8-sim": Look("#D55E00", "^"),
}
MORE_COLOURS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#0072B2", "#D55E00")
MORE_MARKERS = "DvPX<>ph*"
MEASURED, NOISE = Look("#0072B2", "o"), Look("#D55E00", "o")


def look(precision: str, precisions: Sequence[str]) -> Look:
    """The look of a precision.

    Args:
        precision: "f32" or one of ``precisions``.
        precisions: all low precisions of the result, in its order.
    """
    if precision in LOOKS:
        return LOOKS[precision]
    others = [name for name in precisions if name not in LOOKS]
    # The two cycles have no common divisor, so that no look repeats before the 63rd precision.
    place = others.index(precision)
    return Look(MORE_COLOURS[place % len(MORE_COLOURS)], MORE_MARKERS[place % len(MORE_MARKERS)])
