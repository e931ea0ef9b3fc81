"""Attention edges that are cut: which positions are left without any source."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxalign.shapes import Bool


def blinded(
    cut: Bool[np.ndarray, "*rows L #B #H #Q #S"], size: int, windows: Sequence[int | None] = ()
) -> tuple[int, int, int | None] | None:
    """The first layer and position that see no source any more, and the layer's window.

    Args:
        cut: which edges, from the position ``Q`` that attends to the source ``S``, are cut.
        size: how many positions there are.
        windows: of each layer, how many positions up to its own a query sees, None for all; empty
            where no layer has one.

    Returns:
        ``(layer, position, window)``; None where every position has a source left.
    """
    ago = np.arange(size)[:, None] - np.arange(size)
    for layer in range(cut.shape[-5]):
        window = windows[layer] if windows else None
        hidden = (ago < 0) | (ago >= (window or size))
        blind = (cut[..., layer, :, :, :, :] | hidden).all(axis=-1)
        if blind.any():
            return layer, int(np.argwhere(blind)[0][-1]), window
    return None
