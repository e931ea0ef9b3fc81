"""Which linear layers of a block read the same input, and what may scale it."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import jax

from jaxalign.model.config import ModelConfig
from jaxalign.model.decoder import block
from jaxalign.model.layers import Pass
from jaxalign.model.matrices import MATRICES, axes_of, reading_the_same
from jaxalign.model.params import Block, scaling_norm
from jaxalign.numerics.probe import Observed
from jaxalign.numerics.qtensor import QTensor
from jaxalign.numerics.scheme import F32
from jaxalign.shapes import Array, Bool, Float, Int


@dataclass(frozen=True)
class Group:
    """Linear layers of a block that read the same input.

    Attributes:
        linears: dotted names of their matrices; those that a family lacks are passed over.
        norm: the norm whose output they, and nothing else, read: it can take a division of their
            input; None where there is none, or one without a scale.
        divisible: whether AWQ scales their input although no norm can take it.
    """

    linears: tuple[str, ...]
    norm: str | None = None
    divisible: bool = False


def all_groups() -> tuple[Group, ...]:
    """The groups of ``model.matrices.MATRICES``: matrices that read one norm, or one alone."""
    return tuple(
        Group(
            tuple(f"{MATRICES[name].part}.{name}" for name in names),
            MATRICES[names[0]].reads,
            divisible=all(MATRICES[name].divisible for name in names),
        )
        for names in reading_the_same()
    )


def groups_of(weights: Block) -> tuple[Group, ...]:
    """The groups of linear layers that a block has.

    Raises:
        KeyError: the block has a parameter that ``model.matrices`` does not know.
    """
    for path, _ in jax.tree_util.tree_leaves_with_path(weights, is_leaf=_whole):
        axes_of(path)
    found = []
    for group in all_groups():
        linears = tuple(n for n in group.linears if get(weights, n) is not None)
        if linears:
            norm = scaling_norm(weights, linears[0].split(".")[1])
            found.append(replace(group, linears=linears, norm=norm))
    return tuple(found)


def _whole(leaf: Any) -> bool:
    """Whether a node of a block stands for a matrix, though it holds arrays of its own."""
    return isinstance(leaf, QTensor | Observed)


def get(weights: Block, name: str) -> Any:
    """A leaf of a block by its dotted name; None where the family has none."""
    part, leaf = name.split(".")
    return getattr(getattr(weights, part), leaf, None)


def put(weights: Block, name: str, value: Any) -> Block:
    """The block ``weights`` with ``value`` as its leaf of the dotted ``name``."""
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
            weights = put(weights, name, Observed(get(weights, name), see=see))
    block(x, weights, Pass(config, F32, real, window))
    return seen
