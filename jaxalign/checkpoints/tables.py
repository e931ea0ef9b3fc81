"""Conversion tables: rows, each a published tensor and the leaves that it fills."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from jaxalign.model.config import ModelConfig


@dataclass(frozen=True)
class Slot:
    """Where (a part of) a published tensor goes.

    Attributes:
        leaf: dotted name of a parameter, of all layers where its table row names ``{layer}``.
        part: which place of the leaf's last axis but one it fills; None for all of the leaf.
    """

    leaf: str
    part: int | None = None

    def of(self, leaf: np.ndarray) -> np.ndarray:
        """The view of a leaf (of one layer) that the slot names."""
        return leaf if self.part is None else leaf[..., self.part, :]


@dataclass(frozen=True)
class Row:
    """A published tensor, the slots it fills, and the way there and back.

    Attributes:
        published: its name, ``{layer}`` standing for the layer's number.
        slots: what it fills, in the order of ``load``'s results.
        load: from the tensor, ``[out]`` or ``[out, in]``, to what stands in each slot. It only
            moves rows and turns the matrix, so that packed codes and scales, ``[out, anything]``,
            go the same way.
        save: from what stands in the slots to the tensor.
    """

    published: str
    slots: tuple[Slot, ...]
    load: Callable[[np.ndarray, ModelConfig], Sequence[np.ndarray]]
    save: Callable[[Sequence[np.ndarray], ModelConfig], np.ndarray]

    def names(self, config: ModelConfig) -> list[str]:
        """The published tensors: one, or one a layer."""
        if "{layer}" not in self.published:
            return [self.published]
        return [self.published.format(layer=layer) for layer in range(config.num_layers)]


@dataclass(frozen=True)
class Table:
    """How a family publishes its tensors.

    Attributes:
        rows: of every tensor that one of the family's models may have.
        embed, unembed: what it calls the embedding and the unembedding.
        buffers: names of tensors that are no parameters: older versions of transformers saved
            them with the weights, and the model computes them again.
        renamed: what a tensor is called in memory, and how it is published all the same.
    """

    rows: tuple[Row, ...]
    embed: str
    unembed: str
    buffers: re.Pattern[str]
    renamed: Mapping[str, str] = field(default_factory=dict)


def same(published: str, leaf: str, part: int | None = None) -> Row:
    """A tensor that is one slot as it is: a vector, or a matrix with one row a token."""
    slots = (Slot(leaf, part),)
    return Row(published, slots, lambda x, config: [x], lambda slots, config: slots[0])


def turned(published: str, leaf: str, part: int | None = None) -> Row:
    """A linear layer's ``[out, in]`` weight, which is a slot ``[in, out]``."""
    slots = (Slot(leaf, part),)
    return Row(published, slots, lambda x, config: [x.T], lambda slots, config: slots[0].T)
