"""Which linear layers of a block read the same input, and what may scale it."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

from jaxalign.model.config import ModelConfig
from jaxalign.model.decoder import block
from jaxalign.model.layers import Pass
from jaxalign.model.params import Block
from jaxalign.numerics.observed import Observed
from jaxalign.numerics.scheme import F32
from jaxalign.shapes import Array, Bool, Float, Int


@dataclass(frozen=True)
class Group:
    """Linear layers of a block that read the same input.

    Attributes:
        linears: dotted names of their matrices; those that a family lacks are passed over.
        norm: the norm whose output they, and nothing else, read: it can take a division of their
            input; None where there is none.
        divisible: whether AWQ scales their input although no norm can take it.
    """

    linears: tuple[str, ...]
    norm: str | None = None
    divisible: bool = False


GROUPS = (
    Group(("attention.query", "attention.key_value"), "attention_norm"),
    Group(("attention.out",)),
    Group(("mlp.gate", "mlp.up"), "mlp_norm"),
    Group(("mlp.down",), divisible=True),
)


def groups_of(weights: Block) -> tuple[Group, ...]:
    """The groups of linear layers that a block has."""
    have = (
        replace(group, linears=tuple(n for n in group.linears if get(weights, n) is not None))
        for group in GROUPS
    )
    return tuple(group for group in have if group.linears)


def get(weights: Block, name: str) -> Any:
    """A leaf of a block by its dotted name; None where the family has none."""
    part, leaf = name.split(".")
    return getattr(getattr(weights, part), leaf, None)


def put(weights: Block, name: str, value: Any) -> Block:
    """The block with another leaf of that name."""
    part, leaf = name.split(".")
    return replace(weights, **{part: replace(getattr(weights, part), **{leaf: value})})


def linear_inputs(
    weights: Block,
    x: Float[Array, "B S D"],
    real: Bool[Array, "B S"],
    config: ModelConfig,
    window: Int[Array, ""] | None = None,
) -> dict[str, Float[Array, "B S _"]]:
    """What each linear layer of a block reads, by the dotted name of its matrix.

    Args:
        weights: of one layer, its matrices not packed.
        x: the residual stream before it.
        real: which positions are tokens.
        config: the architecture.
        window: how far its attention reaches back, in families with windows.
    """
    seen: dict[str, Array] = {}
    for group in groups_of(weights):
        for name in group.linears:
            see = functools.partial(seen.__setitem__, name)
            weights = put(weights, name, Observed(get(weights, name), None, see=see))
    block(x, weights, Pass(config, F32, real, window))
    return seen
