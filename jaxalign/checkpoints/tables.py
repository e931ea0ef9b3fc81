"""Conversion tables: rules, each of a published tensor and the parameters that it fills."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from jaxalign.model.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where (a part of) a published tensor goes.

    Attributes:
        leaf: dotted name of a parameter, of all layers where its rule's tensor names ``{layer}``.
        part: which place of the leaf's last axis but one it fills; None for all of the leaf.
    """

    leaf: str
    part: int | None = None

    def of(self, leaf: np.ndarray) -> np.ndarray:
        """The view of a leaf (of one layer) that the target names."""
        return leaf if self.part is None else leaf[..., self.part, :]


@dataclass(frozen=True, kw_only=True)
class TensorRule:
    """A published tensor, the targets it fills, and the way there and back.

    Attributes:
        published: its name, ``{layer}`` standing for the layer's number.
        targets: what it fills, in the order of ``load``'s results.
        load: from the tensor, ``[out]`` or ``[out, in]``, to what stands in each target. ``load``
            only moves rows and transposes the matrix, so that packed codes and scales,
            ``[out, anything]``, go the same way (but for tables with ``inputs_first``).
        save: from what stands in the targets to the tensor.
    """

    published: str
    targets: tuple[Target, ...]
    load: Callable[[np.ndarray, ModelConfig], Sequence[np.ndarray]]
    save: Callable[[Sequence[np.ndarray], ModelConfig], np.ndarray]

    @property
    def layered(self) -> bool:
        """Whether there is one such tensor a layer."""
        return "{layer}" in self.published

    def names(self, config: ModelConfig) -> list[str]:
        """The published tensors: one, or one a layer."""
        if not self.layered:
            return [self.published]
        return [self.published.format(layer=layer) for layer in range(config.num_layers)]

    def shape(self, leaves: Mapping[str, tuple[int, ...]], config: ModelConfig) -> tuple[int, ...]:
        """The published tensor's shape: that of what ``save`` makes of arrays of our shapes.

        Args:
            leaves: the shape of every parameter by its dotted name, all layers together.
            config: the architecture.
        """
        first = 1 if self.layered else 0
        empty = [
            target.of(np.broadcast_to(np.int8(0), leaves[target.leaf][first:]))
            for target in self.targets
        ]
        return self.save(empty, config).shape


@dataclass(frozen=True, kw_only=True)
class Table:
    """How a family publishes its tensors.

    Attributes:
        rules: of every tensor that one of the family's models may have.
        embed, unembed: what it calls the embedding and the unembedding.
        buffers: names of tensors that are not read: older versions of transformers saved buffers
            with the weights, which the model computes again; and parts of a larger model.
        renamed: how names of tensors may begin in memory or in other files, and how these tensors
            are published all the same.
        inputs_first: whether linear layers are published ``[in, out]``, as GPT-2's are.
    """

    rules: tuple[TensorRule, ...]
    embed: str
    unembed: str
    buffers: re.Pattern[str]
    renamed: Mapping[str, str] = field(default_factory=dict)
    inputs_first: bool = False

    def usual(self, name: str) -> str:
        """The name under which a stored tensor is published."""
        for stored, published in self.renamed.items():
            if name.startswith(stored):
                return published + name.removeprefix(stored)
        return name

    def others(self, name: str) -> list[str]:
        """The other names under which a published tensor may be stored."""
        return [
            stored + name.removeprefix(published)
            for stored, published in self.renamed.items()
            if name.startswith(published)
        ]

    def rules_for(self, leaves: Mapping[str, object]) -> list[TensorRule]:
        """The rules of a model that has these parameters, by their dotted names.

        A rule whose targets a model lacks (biases, an unembedding that is tied) is left out.
        """
        return [
            rule for rule in self.rules if all(target.leaf in leaves for target in rule.targets)
        ]


def same(published: str, leaf: str, part: int | None = None) -> TensorRule:
    """A tensor that is one target as it is: a vector, or a matrix with one row a token.

    Args:
        published: the tensor's name.
        leaf: dotted name of the parameter.
        part: which part of the parameter it is; None for all of it.
    """
    return TensorRule(
        published=published,
        targets=(Target(leaf=leaf, part=part),),
        load=lambda x, config: [x],
        save=lambda found, config: found[0],
    )


def transposed(published: str, leaf: str, part: int | None = None) -> TensorRule:
    """A linear layer's ``[out, in]`` weight, which is a target ``[in, out]``.

    Args:
        published: the tensor's name.
        leaf: dotted name of the parameter.
        part: which part of the parameter it is; None for all of it.
    """
    return replace(
        same(published, leaf, part),
        load=lambda x, config: [x.T],
        save=lambda found, config: found[0].T,
    )


def concatenated(
    published: str,
    targets: Sequence[Target],
    outputs: Callable[[ModelConfig], Sequence[int]],
) -> TensorRule:
    """Linear layers in one ``[out, in]`` weight (or ``[out]`` bias), one below the other.

    Phi-3 publishes query, key and value so (``qkv_proj``), and gate and up (``gate_up_proj``).

    Args:
        published: the tensor's name.
        targets: what each layer fills, ``[in, out]``, from the first row on.
        outputs: how many rows of the tensor each target takes, in a model of this architecture.
    """

    def load(x: np.ndarray, config: ModelConfig) -> list[np.ndarray]:
        ends = list(itertools.accumulate(outputs(config)))
        return [x[start:end].T for start, end in zip([0, *ends], ends, strict=False)]

    return TensorRule(
        published=published,
        targets=tuple(targets),
        load=load,
        save=lambda found, config: np.concatenate([part.T for part in found]),
    )


def side_by_side(
    published: str,
    targets: Sequence[Target],
    outputs: Callable[[ModelConfig], Sequence[int]],
) -> TensorRule:
    """Linear layers in one ``[in, out]`` weight (or ``[out]`` bias), as GPT-2 has them.

    Args:
        published: the tensor's name.
        targets: what each layer fills, ``[in, out]``, from the first column on.
        outputs: how many columns of the tensor each target takes.
    """

    def load(x: np.ndarray, config: ModelConfig) -> list[np.ndarray]:
        ends = list(itertools.accumulate(outputs(config)))
        return [x[..., start:end] for start, end in zip([0, *ends], ends, strict=False)]

    return TensorRule(
        published=published,
        targets=tuple(targets),
        load=load,
        save=lambda found, config: np.concatenate(found, axis=-1),
    )
