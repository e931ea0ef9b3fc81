"""Scales that a tool moved between parameters before it rounded them, found and held to cancel.

AWQ (arXiv 2306.00978) and SmoothQuant (arXiv 2211.10438) divide what enters a layer by ``s`` an
input and multiply the layer's weights by it, which changes nothing that is computed:

* a norm's scale and bias, and the matrices that read it;
* the values' weights and biases, and the attention's output matrix;
* the MLP's ``up``, where it is gated (its product with the gate has no nonlinearity behind it), and
  ``down``.

A norm is not rounded, so ``s`` of the first kind is the original's norm over the file's. The other
two are found from both matrices together: the one was multiplied by ``s``, the other divided.
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
    by = {}
    for norm, matrices in READERS.items():
        pairs = [(wanted[f"{norm}.scale"] + offset, found[f"{norm}.scale"] + offset)]
        if f"{norm}.bias" in wanted:
            pairs.append((wanted[f"{norm}.bias"], found[f"{norm}.bias"]))
        factor = np.ones_like(pairs[0][0])
        for original, stored in reversed(pairs):  # the scale decides, the bias where it is zero
            usable = (original != 0) & (stored != 0)
            factor = np.where(usable, original / np.where(usable, stored, 1), factor)
        by |= dict.fromkeys((norm, *matrices), factor)
    return by


def moved_pair(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """By what the second matrix's inputs were multiplied and the first's outputs divided, ``[N]``.

    Args:
        before: by what each output of the first matrix seems to be multiplied (``gains``), ``[N]``.
        after: the same of each input of the second matrix, ``[N]``.
    """
    usable = (before > 0) & (after > 0)
    factor = np.sqrt(np.where(usable, after, 1) / np.where(usable, before, 1))
    return np.where(np.abs(np.log(factor)).max() > NOISE, factor, np.ones_like(factor))


def gains(found: np.ndarray, wanted: np.ndarray, axis: int) -> np.ndarray:
    """By what each output (``axis`` 0) or input (1) of ``wanted`` is multiplied to be ``found``.

    The least-squares answer; 1 where ``wanted`` is zero.

    Args:
        found: the file's matrix, ``[A, N]``.
        wanted: the original's.
        axis: the axis that is summed over.
    """
    square = (wanted * wanted).sum(axis)
    return np.where(square > 0, (found * wanted).sum(axis) / np.where(square > 0, square, 1), 1)
