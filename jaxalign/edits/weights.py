"""Edits of single weights: a coordinate of a matrix multiplied, without a copy of the matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, get_args

import jax.numpy as jnp
from flax import struct

from jaxalign.edits.declare import acts, per_row
from jaxalign.edits.site import Kind, Site, outside
from jaxalign.errors import InputError
from jaxalign.numerics.dot import dense
from jaxalign.numerics.qtensor import QTensor
from jaxalign.shapes import Array, Leaf, lead

# Names of ``model.matrices``, but that keys and values, which lie in one array, stand apart.
MatrixName = Literal["query", "key", "value", "out", "gate", "up", "down"]
MATRIX_NAMES: tuple[MatrixName, ...] = get_args(MatrixName)
# Where what a matrix writes stands; the axes of that, and of what the matrix reads.
_POINT = {"query": "q", "key": "k", "value": "v", "out": "attn_out"} | {
    "gate": "mlp_gate",
    "up": "mlp_up",
    "down": "mlp_out",
}
_AXES = {"query": ("Hh", "D"), "key": ("Kh", "D"), "value": ("Kh", "D"), "out": ("D", "Hh")} | {
    "gate": ("F", "D"),
    "up": ("F", "D"),
    "down": ("D", "F"),
}
_PART = {"key": 0, "value": 1}  # of the array that holds both


@struct.dataclass
class WeightEdit(Site):
    """Multiply single weights by ``1 + by`` in every position: −1 removes, 1 doubles (super
    weights, Yu et al. 2024, arXiv 2411.07191; outlier weights that quantization moves).

    Rank one: ``y[…, row] += by · W[row, column] · x[…, column]``, where the matrix reads ``x`` and
    writes ``y``; in f32, rounded once. A row of a batch costs a few numbers, never a matrix.

    A packed weight counts as the number it stands for. ``x`` is as it stands before a scheme
    rounds it, and ``y`` behind such a rounding. One edit has no coordinates of ``out`` together
    with a ``HeadEdit``, which takes away what a head writes through ``W_O`` as it is stored.

    Not among the matrices are those of tokens: where the embedding is tied, a coordinate of one is
    one of the other, too (edit ``resid`` or ``logits``).

    Attributes:
        matrix: which: a name of ``MATRIX_NAMES``.
        by: ``[L, B|1, E]``: by how much each of ``E`` coordinates is scaled in which layers; 0 for
            not at all. A batch of M edits has ``M`` in front, here and below.
        row: int ``[E]``, of the matrix ``[outputs, inputs]``, as PyTorch's ``Linear.weight`` has
            it: which output. Outputs of heads lie head by head.
        column: int ``[E]``: which input.

    Raises:
        InputError: no such matrix.

    Example:
        >>> by = np.zeros((1, 6, 1, 1), np.float32)
        >>> by[0, 2] = -1  # in layer 2 W_down[3, 70] is zero
        >>> edit = Edit(WeightEdit("down", by, row=np.array([[3]]), column=np.array([[70]])))
    """

    kind: ClassVar[Kind] = "weight"

    matrix: str = struct.field(pytree_node=False)
    by: Leaf = acts("L B|1 E")
    row: Leaf = per_row("E", index=True)
    column: Leaf = per_row("E", index=True)

    def __post_init__(self) -> None:
        """Refuse a matrix that no model has."""
        if self.matrix not in MATRIX_NAMES:
            raise InputError(
                f"WeightEdit.matrix is {self.matrix!r}, and there is no such matrix of a block",
                f"use {', '.join(MATRIX_NAMES)}",
            )

    @property
    def point(self) -> str:  # type: ignore[override]
        """Where what the matrix writes stands."""
        return _POINT[self.matrix]

    def letters(self) -> dict[str, int]:
        """``E``: how many coordinates one row has."""
        return {"E": jnp.shape(self.row)[-1]}

    def problem(self, sizes: dict[str, int], windows: Sequence[int | None] = ()) -> str | None:
        """Coordinates that the matrix does not have (``Site.problem``).

        Args:
            sizes: of the run, by axis letter.
            windows: not read.
        """
        wide = sizes | {"Hh": sizes["H"] * sizes["h"], "Kh": sizes["K"] * sizes["h"]}
        outputs, inputs = (wide[axis] for axis in _AXES[self.matrix])
        found = outside(self.row, outputs), outside(self.column, inputs)
        for name, strange, most in zip(("row", "column"), found, (outputs, inputs), strict=True):
            if strange is not None:
                return (
                    f"WeightEdit.{name} is {strange}, but {self.matrix} has {name}s 0 … {most - 1}"
                )
        return None

    def apply(self, x: Array, inputs: Array | None = None, weights: Any = None) -> Array:
        """What the matrix writes after the edit (``Site.apply``).

        Args:
            x: what it writes.
            inputs: what it reads.
            weights: the matrix, ``[inputs, outputs]``; of keys and values both.
        """
        assert inputs is not None
        assert weights is not None
        matrix = dense(weights, jnp.float32)
        if isinstance(weights, QTensor) and weights.input_divisor is not None:
            by_input = weights.input_divisor.astype(jnp.float32)
            matrix = matrix / by_input.reshape(-1, *[1] * (matrix.ndim - 1))
        if self.matrix in _PART:
            matrix = matrix[:, _PART[self.matrix]]
        before = x.ndim - (2 if self.point in ("q", "k", "v") else 1)  # axes before the outputs
        y = x.reshape(*x.shape[:before], -1)
        read = inputs.reshape(*x.shape[:before], -1)[..., self.column].astype(jnp.float32)
        by = lead(jnp.asarray(self.by, jnp.float32)[:, None], read)
        term = by * lead(matrix[self.column, self.row], read) * read
        moved = y.astype(jnp.float32).at[..., self.row].add(jnp.where(by != 0, term, 0))
        chosen = jnp.zeros((*by.shape[:-1], y.shape[-1]), bool).at[..., self.row].max(by != 0)
        return jnp.where(chosen, moved.astype(x.dtype), y).reshape(x.shape)
