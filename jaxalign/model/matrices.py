"""The one table of the model's matrices: their axes, what they read, and what follows from it.

Shapes, random values, sharding, calibration, weight noise and the mixing of precisions all read
this table. A parameter that the table does not have is a ``KeyError`` in each of them, so a family
with another matrix needs a field in ``params.py`` and a row here, and nothing is left out silently.

The axes of a stored array are named by letters:

========  =====================================================  ===========
axis      what it counts                                         sharded
========  =====================================================  ===========
``L``     layers, which are stacked                              no
``D``     width of the residual stream                           no
``F``     hidden units of the MLP                                yes
``V``     tokens of the vocabulary                               yes
``at``    positions of the context, where they are learned       no
``H·h``   query heads times the width of a head                  yes
``K·h``   key and value heads times the width of a head          yes
``h``     width of a head                                        no
``2``     keys, then values                                      no
========  =====================================================  ===========
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxalign.model.config import ModelConfig

OF_HEADS = ("H·h", "K·h")
SHARDED = (*OF_HEADS, "F", "V")


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """One matrix of a block, without the axis of the layers.

    Attributes:
        part: "attention" or "mlp", the part of the block that holds it.
        inputs: the axis that it sums over.
        outputs: the axes of what it computes.
        reads: the norm whose output it reads; None where it reads no norm's.
        bias: the setting of ``ModelConfig`` that says whether it has a bias, named ``NAME_bias``.
        present: the setting that says whether a model has it; None where every model has.
        residual: whether what it computes is added to the residual stream.
        scored: whether its outputs are multiplied by each other in attention scores. The error of
            a query weighs as much as the key is long, so AWQ's code never clips such a matrix.
        divisible: whether AWQ divides its input although no norm before it can take the division.
    """

    part: str
    inputs: str
    outputs: tuple[str, ...]
    reads: str | None = None
    bias: str = "mlp_bias"
    present: str | None = None
    residual: bool = False
    scored: bool = False
    divisible: bool = False

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes of one layer's matrix: inputs, then outputs."""
        return (self.inputs, *self.outputs)

    @property
    def heads(self) -> int | None:
        """The axis of one layer's matrix that runs over heads; None where none does."""
        return next((i for i, axis in enumerate(self.axes) if axis in OF_HEADS), None)


# In the order in which random numbers are drawn for them.
MATRICES: dict[str, Matrix] = {
    "query": Matrix(
        part="attention",
        inputs="D",
        outputs=("H·h",),
        reads="attention_norm",
        bias="attention_bias",
        scored=True,
    ),
    "key_value": Matrix(
        part="attention",
        inputs="D",
        outputs=("2", "K·h"),
        reads="attention_norm",
        bias="attention_bias",
        scored=True,
    ),
    "out": Matrix(part="attention", inputs="H·h", outputs=("D",), bias="out_bias", residual=True),
    "gate": Matrix(part="mlp", inputs="D", outputs=("F",), reads="mlp_norm", present="gated"),
    "up": Matrix(part="mlp", inputs="D", outputs=("F",), reads="mlp_norm"),
    "down": Matrix(part="mlp", inputs="F", outputs=("D",), residual=True, divisible=True),
}

# The other parameters by name: norms with the axes of their scale and bias, and the token matrices.
NORMS: dict[str, tuple[str, ...]] = {
    "attention_norm": ("L", "D"),
    "attention_post_norm": ("L", "D"),
    "mlp_norm": ("L", "D"),
    "mlp_post_norm": ("L", "D"),
    "query_norm": ("L", "h"),
    "key_norm": ("L", "h"),
    "query_norm_over_heads": ("L", "H·h"),
    "key_norm_over_heads": ("L", "K·h"),
    "final_norm": ("D",),
}
TOKEN_MATRICES: dict[str, tuple[str, ...]] = {
    "embed": ("V", "D"),
    "unembed": ("V", "D"),
    "positions": ("at", "D"),
}


def shape_of(axes: Sequence[str], config: ModelConfig) -> tuple[int, ...]:
    """The sizes of axes in a model.

    Raises:
        KeyError: an axis that the table above does not have.
    """
    sizes = {
        "L": config.num_layers,
        "D": config.hidden_size,
        "F": config.intermediate_size,
        "V": config.vocab_size,
        "at": config.max_positions,
        "H·h": config.attention_width,
        "K·h": config.num_kv_heads * config.head_size,
        "h": config.head_size,
        "2": 2,
    }
    return tuple(sizes[axis] for axis in axes)


def axes_of(path: Sequence[Any]) -> tuple[str, ...]:
    """The axes of a parameter, from its path in ``Params`` or in a block.

    Args:
        path: of the leaf, as ``jax.tree_util.tree_map_with_path`` gives it; a block taken out of
            ``Params`` counts as one whose layers are stacked.

    Raises:
        KeyError: the tables do not have the parameter.
    """
    name = path[-1].name
    if len(path) > 1 and name in ("scale", "bias"):
        return NORMS[path[-2].name]
    if name in TOKEN_MATRICES:
        return TOKEN_MATRICES[name]
    if name.endswith("_bias"):
        return ("L", *MATRICES[name.removesuffix("_bias")].outputs)
    return ("L", *MATRICES[name].axes)


def matrix_name(path: Sequence[Any]) -> str | None:
    """The name of a matrix of a block from its path; None for every other parameter.

    Raises:
        KeyError: the tables do not have the parameter.
    """
    axes_of(path)
    name = path[-1].name
    return name if name in MATRICES else None


def sharded_axis(axes: Sequence[str]) -> int | None:
    """The axis that devices share, counted from the end; None for an array that all hold whole."""
    return next((i - len(axes) for i, axis in enumerate(axes) if axis in SHARDED), None)


def reading_the_same() -> list[tuple[str, ...]]:
    """Names of the matrices, those that read the same norm's output together, in their order."""
    groups: dict[str, list[str]] = {}
    for name, matrix in MATRICES.items():
        groups.setdefault(matrix.reads or name, []).append(name)
    return [tuple(names) for names in groups.values()]


def layer_leaves(config: ModelConfig, part: str) -> Mapping[str, tuple[str, ...] | None]:
    """The axes of the matrices and biases of a part of a block; None for those a model lacks.

    Args:
        config: says which of them the model has.
        part: "attention" or "mlp".
    """
    leaves: dict[str, tuple[str, ...] | None] = {}
    for name, matrix in MATRICES.items():
        if matrix.part == part:
            has = matrix.present is None or getattr(config, matrix.present)
            leaves[name] = ("L", *matrix.axes) if has else None
            biased = has and getattr(config, matrix.bias)
            leaves[f"{name}_bias"] = ("L", *matrix.outputs) if biased else None
    return leaves
