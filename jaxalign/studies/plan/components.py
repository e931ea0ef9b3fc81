"""What may be quantized alone: the parts of a model, and the rows of a batch that change them.

A part is read off the parameter tree (``params.MATRICES``), so that a family with another matrix
in its blocks has that part, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from flax import struct

from jaxalign.model.config import ModelConfig
from jaxalign.model.params import MATRICES, Params
from jaxalign.numerics.scheme import Scheme
from jaxalign.shapes import Leaf
from jaxalign.studies.plan.result import Kind
from jaxalign.study.tables import head_label

# The sites of a block, in the order it reaches them; embedding and final norm stand outside.
BLOCK_SITES = ("attn_out", "mlp_out", "resid")


@dataclass(frozen=True)
class Component:
    """A part of the model that a scheme changes.

    Attributes:
        kind: what it is.
        layer: None for the sites outside of blocks and for the whole.
        name: of the matrix or site, or the head's number; empty for a layer and the whole.
    """

    kind: Kind
    layer: int | None = None
    name: str = ""

    def __str__(self) -> str:
        if self.kind == "whole":
            return "everything"
        if self.layer is None:
            return self.name
        if self.kind == "head":
            return head_label(self.layer, self.name)
        return f"L{self.layer} {self.name}".strip()


@dataclass(frozen=True)
class Parts:
    """What a model has to be quantized.

    Attributes:
        names: its matrices, in the order of ``params.MATRICES``.
        layers, heads: ``L`` and ``H``.
        sites: where the scheme rounds activations.
        packs: whether the scheme changes the matrices.
    """

    names: tuple[str, ...]
    layers: int
    heads: int
    sites: tuple[str, ...] = ()
    packs: bool = True

    @property
    def variants(self) -> tuple[tuple[str, ...], ...]:
        """Sets of sites that a block may round at: none, each alone, all of them."""
        inside = tuple(site for site in BLOCK_SITES if site in self.sites)
        return ((), *((site,) for site in inside), inside) if inside else ((),)

    def components(self) -> list[Component]:
        """Every part: matrices and sites by layer, heads, layers, and last the whole."""
        layers = range(self.layers)
        outside = [Component("site", None, s) for s in self.sites if s not in BLOCK_SITES]
        inside = [s for s in BLOCK_SITES if s in self.sites]
        names = self.names if self.packs else ()
        heads = range(self.heads) if self.packs else ()
        return [
            *(Component("matrix", layer, name) for layer in layers for name in names),
            *(Component("site", layer, site) for layer in layers for site in inside),
            *outside,
            *(Component("head", layer, str(head)) for layer in layers for head in heads),
            *(Component("layer", layer) for layer in layers if names or inside),
            Component("whole"),
        ]


def parts_of(params: Params, config: ModelConfig, scheme: Scheme) -> Parts:
    """The parts that ``scheme`` changes in a model with these parameters.

    Args:
        params: f32.
        config: the architecture.
        scheme: the precision.
    """
    paths, _ = jax.tree_util.tree_flatten_with_path(params.blocks)
    present = {path[-1].name for path, _ in paths}
    return Parts(
        names=tuple(name for name in MATRICES if name in present),
        layers=config.num_layers,
        heads=config.num_heads,
        sites=scheme.int8_sites,
        packs=scheme.weights is not None,
    )


@struct.dataclass
class Rows:
    """Runs of one batch and what each of them changes.

    Attributes:
        matrices: bool ``[R, L, N]``: which matrices, in the order of ``Parts.names``.
        heads: bool ``[R, L, H]``: whose share of query, key_value and out.
        variant: int ``[R, L]``: at which sites a block rounds, of ``Parts.variants``.
        embed, final: bool ``[R]``: whether the sites outside of blocks round.
    """

    matrices: Leaf
    heads: Leaf
    variant: Leaf
    embed: Leaf
    final: Leaf

    def __len__(self) -> int:
        return len(self.embed)

    def first(self) -> np.ndarray:
        """The step that each row first changes: 0 the embedding, ``l + 1`` block ``l``, then the
        final norm, ``L + 1``, and nothing, ``L + 2``.
        """
        blocks = self.matrices.any(axis=2) | self.heads.any(axis=2) | (self.variant > 0)
        nothing = np.ones((len(self), 1), bool)
        steps = np.concatenate([self.embed[:, None], blocks, self.final[:, None], nothing], axis=1)
        return steps.argmax(axis=1)

    def take(self, index: np.ndarray) -> Rows:
        """These rows, in this order."""
        return jax.tree.map(lambda a: a[index], self)


def no_changes(count: int, parts: Parts) -> Rows:
    """Rows that change nothing."""
    return Rows(
        matrices=np.zeros((count, parts.layers, len(parts.names)), bool),
        heads=np.zeros((count, parts.layers, parts.heads), bool),
        variant=np.zeros((count, parts.layers), np.int32),
        embed=np.zeros(count, bool),
        final=np.zeros(count, bool),
    )


def rows_of(components: Sequence[Component], parts: Parts) -> Rows:
    """A row for each component, which quantizes it and nothing else."""
    rows = no_changes(len(components), parts)
    every = len(parts.variants) - 1
    for r, part in enumerate(components):
        layers = slice(None) if part.layer is None else part.layer
        match part.kind:
            case "matrix":
                rows.matrices[r, layers, parts.names.index(part.name)] = True
            case "head":
                rows.heads[r, layers, int(part.name)] = True
            case "site" if part.name in BLOCK_SITES:
                rows.variant[r, layers] = parts.variants.index((part.name,))
            case "site":
                (rows.embed if part.name == "embed" else rows.final)[r] = True
            case "layer" | "whole":
                rows.matrices[r, layers] = parts.packs
                rows.variant[r, layers] = every
                rows.embed[r] = part.kind == "whole" and "embed" in parts.sites
                rows.final[r] = part.kind == "whole" and "final_norm" in parts.sites
    return rows


def rows_with(matrices: np.ndarray, parts: Parts) -> Rows:
    """Rows that quantize these matrices, bool ``[R, L, N]``, and no activations."""
    rows = no_changes(len(matrices), parts)
    return Rows(matrices, rows.heads, rows.variant, rows.embed, rows.final)
