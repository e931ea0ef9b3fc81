"""Scales that a tool moved between parameters before it rounded them, found and held to cancel.

AWQ (arXiv 2306.00978) and SmoothQuant (arXiv 2211.10438) divide what enters a layer by ``s`` an
input and multiply the layer's weights by it, which changes nothing that is computed:

* a norm's scale and bias, and the matrices that read it;
* the values' weights and biases, and the attention's output matrix;
* the MLP's ``up``, where it is gated (its product with the gate has no nonlinearity behind it), and
  ``down``.

A norm is not rounded, so ``s`` of the first kind is the original's norm over the file's. The other
two are found from the first matrix, which was divided by ``s``, and have to fit the second.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

# Matrices by the norm that they read.
READERS = {
    "blocks.attention_norm": ("blocks.attention.query", "blocks.attention.key_value"),
    "blocks.mlp_norm": ("blocks.mlp.up", "blocks.mlp.gate"),
}
# A factor of a pair that is not further from 1 than this is noise of the rounding.
NOISE = 0.1


def moved_norms(
    found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray], offset: float
) -> dict[str, np.ndarray]:
    """What the inputs of the matrices behind each norm were multiplied by, f32 ``[L, D]``.

    Args:
        found: the file's vectors by dotted name, ``[L, D]``.
        wanted: the original's.
        offset: what a norm adds to its scale, 0 or 1.
    """
    by: dict[str, np.ndarray] = {}
    for norm, matrices in READERS.items():
        if f"{norm}.scale" not in wanted:
            continue  # the family has no such norm, or one without parameters
        pairs = [(wanted[f"{norm}.scale"] + offset, found[f"{norm}.scale"] + offset)]
        if f"{norm}.bias" in wanted:
            pairs.append((wanted[f"{norm}.bias"], found[f"{norm}.bias"]))
        factor = np.ones_like(pairs[0][0])
        for original, stored in reversed(pairs):  # the scale decides, the bias where it is zero
            usable = (original != 0) & (stored != 0)
            factor = np.where(usable, original / np.where(usable, stored, 1), factor)
        by |= dict.fromkeys((norm, *matrices), factor)
    return by


def moved_between(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """By what a matrix's outputs were divided and the next one's inputs multiplied, f32 ``[N]``.

    Args:
        found: the file's matrix, ``[A, N]``.
        wanted: the original's, with what was moved into its inputs.

    Returns:
        the least-squares answer of each output, or ones where none is further from 1 than rounding
        may take it.
    """
    square = (wanted * wanted).sum(0)
    gain = (found * wanted).sum(0) / np.where(square > 0, square, 1)
    factor = 1 / np.where(gain > 0, gain, 1)
    return np.where(np.abs(np.log(factor)).max() > NOISE, factor, np.ones_like(factor))
