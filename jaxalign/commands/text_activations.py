"""The activations of windows of text, read in calls of one shape."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxalign.engine.activations import Place, activations_below, width_at
from jaxalign.errors import InputError
from jaxalign.model.config import ModelConfig
from jaxalign.model.params import Params
from jaxalign.numerics.scheme import F32, Scheme
from jaxalign.prompts import Windows
from jaxalign.runtime.compile import jit
from jaxalign.shapes import Array, Lengths, Tokens
from jaxalign.studies.features.quality import first_left_out, padded

AT_ONCE = 1 << 13  # positions of a call
EMBEDDING = "embed"  # the site in front of the first block
SITES = ("resid", "mlp_out", "attn_out", "z", "mlp_hidden")


@functools.partial(jit, static_argnames=("config", "places", "scheme"))
def _read(
    params: Params,
    tokens: Tokens,
    lengths: Lengths,
    *,
    config: ModelConfig,
    places: tuple[Place, ...],
    scheme: Scheme,
) -> tuple[Array, ...]:
    return activations_below(params, tokens, lengths, config, places, scheme)


@dataclass(frozen=True, kw_only=True, eq=False)
class TextActivations:
    """Rows of activations, one for each position that counts, in the order of the texts.

    Attributes:
        params: of the model, in the precision.
        config: the architecture.
        scheme: the precision.
        windows: of the texts.
        counted: bool ``[N, W]``, positions that are read.
        places: point and step of each.
        batch: windows of a call.
    """

    params: Any
    config: ModelConfig
    scheme: Scheme = F32
    windows: Windows
    counted: np.ndarray
    places: tuple[Place, ...]
    batch: int

    @functools.cached_property
    def ends(self) -> np.ndarray:
        """The row behind the last one of each call."""
        starts = range(0, len(self.counted), self.batch)
        return np.cumsum([self.counted[i : i + self.batch].sum() for i in starts])

    @property
    def tokens(self) -> int:
        """How many rows there are."""
        return int(self.counted.sum())

    @property
    def documents(self) -> np.ndarray:
        """The document of each row."""
        each = np.broadcast_to(self.windows.document[:, None], self.counted.shape)
        return each[self.counted]

    @property
    def positions(self) -> np.ndarray:
        """The place of each row's token in its document."""
        place = np.arange(self.windows.window) - (self.windows.bos is not None)
        return (self.windows.first[:, None] + place)[self.counted].astype(np.int32)

    def call(self, number: int) -> list[np.ndarray]:
        """The rows of one call, of each place, in the precision's dtype.

        Args:
            number: of the call, from 0.
        """
        part = slice(number * self.batch, (number + 1) * self.batch)
        tokens = padded(self.windows.tokens[part], self.batch)
        lengths = padded(self.windows.lengths[part], self.batch, 1)
        values = _read(
            self.params, tokens, lengths,
            config=self.config, places=self.places, scheme=self.scheme.run,
        )  # fmt: skip
        real = padded(self.counted[part], self.batch)
        return [np.asarray(value)[real] for value in jax.device_get(values)]


def places_of(site: str, layers: Sequence[int]) -> tuple[Place, ...]:
    """Point and step of a site at some layers.

    Args:
        site: of ``SITES``, or the embedding.
        layers: from 0; of the stream, behind these blocks.
    """
    if site == EMBEDDING:
        return (("resid", 0),)
    return tuple((site, n + (site == "resid")) for n in layers)


def positions_read(windows: Windows, positions: str) -> np.ndarray:
    """Which positions are read, bool ``[N, W]``.

    Args:
        windows: of the texts.
        positions: "all" but the first of each window, or the "last" of each alone.

    Raises:
        InputError: there is none.
    """
    counted = first_left_out(windows)
    if positions == "last":
        counted = counted & (np.arange(windows.window) == windows.lengths[:, None] - 1)
    if not counted.any():
        raise InputError("no position of the texts is left to be read", "give longer texts")
    return counted


def windows_at_once(
    config: ModelConfig, site: str, window: int, free: float, memory_gb: float
) -> int:
    """How many windows make a call.

    Args:
        config: the architecture.
        site: that is read; every layer's values of it are held.
        window: tokens of a window.
        free: bytes that a call may take.
        memory_gb: the whole budget, for the error.

    Raises:
        InputError: not even one fits.
    """
    point = "resid" if site == EMBEDDING else site
    width = config.num_layers * 2 * width_at(point, config)
    inside = 8 * config.hidden_size + 4 * config.intermediate_size + config.num_heads * window
    need = 4.0 * window * (width + inside)
    if free < need:
        raise InputError(
            f"one window of {window} tokens takes {need / 1e9:.2g} GB, and beside the weights "
            f"{max(free, 0) / 1e9:.2g} GB are left of --memory-gb {memory_gb:g}",
            "raise it, or give a smaller --window",
        )
    return max(1, min(int(free // need), AT_ONCE // window))
