"""The linear layers of blocks under their published names, and which leaves each of them fills."""

from __future__ import annotations

from dataclasses import dataclass

from jaxalign.checkpoints.parameters import leaf_shapes, rules_of, unembeddings
from jaxalign.model.config import ModelConfig
from jaxalign.model.params import MATRICES


@dataclass(frozen=True)
class LinearLayer:
    """A published linear layer of one block.

    Attributes:
        layer: its block.
        module: its name without ``.weight``.
        matrices: which of ``params.MATRICES`` it fills, all of or a part.
    """

    layer: int
    module: str
    matrices: tuple[str, ...]


def linear_layers(config: ModelConfig) -> list[LinearLayer]:
    """The linear layers of all blocks, block by block, in the order of ``params.MATRICES``.

    Example:
        >>> linear_layers(jaxalign.load("demo").config)[0].matrices
        ('query', 'key_value')
    """
    found = []
    for rule in rules_of(config, leaf_shapes(config)):
        leaves = dict.fromkeys(target.leaf.rsplit(".", 1)[-1] for target in rule.targets)
        matrices = tuple(name for name in leaves if name in MATRICES)
        if matrices:
            for layer, name in enumerate(rule.names(config)):
                found.append(LinearLayer(layer, name.removesuffix(".weight"), matrices))
    order = list(MATRICES)
    return sorted(found, key=lambda each: (each.layer, order.index(each.matrices[0])))


def output_modules(config: ModelConfig) -> tuple[str, ...]:
    """What the unembedding is called: as published and, where it differs, in memory."""
    return tuple(name.removesuffix(".weight") for name in unembeddings(config))
