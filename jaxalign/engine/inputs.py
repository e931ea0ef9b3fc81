"""What one call of an engine is given."""

from __future__ import annotations

from collections.abc import Sequence

from flax import struct

from jaxalign.edits.site import Edit
from jaxalign.model.config import ModelConfig
from jaxalign.model.decoder import real_positions
from jaxalign.model.layers import Pass
from jaxalign.model.params import Params
from jaxalign.numerics.scheme import Scheme
from jaxalign.shapes import ArrayLeaf


@struct.dataclass
class Inputs:
    """A model, prompts, and batches of edits.

    Attributes:
        params: in the scheme's dtype.
        tokens: int ``[B, S]``, padded on the right.
        lengths: int ``[B]``, real tokens.
        edits: batches of edits.
        read: int ``[B, P]``, the positions that are read out.
        config: the architecture (static).
        scheme: the precision (static).
        every_layer: whether the stream is read out before and after every block (static).
    """

    params: Params
    tokens: ArrayLeaf
    lengths: ArrayLeaf
    edits: Sequence[Edit]
    read: ArrayLeaf
    config: ModelConfig = struct.field(pytree_node=False)
    scheme: Scheme = struct.field(pytree_node=False)
    every_layer: bool = struct.field(pytree_node=False, default=False)

    @property
    def run(self) -> Pass:
        """The pass through the model that every engine makes."""
        real = real_positions(self.lengths, self.tokens.shape[1])
        return Pass(self.config, self.scheme, real)
