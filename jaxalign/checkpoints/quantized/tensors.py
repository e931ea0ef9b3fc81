"""The tensors of a quantized checkpoint, each checked for type, shape and range as it is taken."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxalign.checkpoints.files import DTYPES, Checkpoint
from jaxalign.errors import InputError

AS_WRITTEN = "use the file as the quantizing tool wrote it, or quantize the model again"


class Tensors:
    """A checkpoint that remembers which of its tensors were used, so that none is left over."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.used: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self.checkpoint.files

    def starting(self, prefix: str) -> list[str]:
        """The names that start with ``prefix``, sorted."""
        return sorted(name for name in self.checkpoint.files if name.startswith(prefix))

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape.

        Raises:
            InputError: the tensor is missing.
        """
        if name not in self:
            raise InputError(
                f"{self.checkpoint.folder}: tensor {name!r} is missing",
                AS_WRITTEN,
            )
        return self.checkpoint.shapes[name]

    def take(
        self, name: str, types: Sequence[str], *shapes: tuple[int, ...], why: str = ""
    ) -> np.ndarray:
        """One tensor, of one of some types and shapes.

        Args:
            name: the tensor's.
            types: the types that it may have, by their safetensors names.
            shapes: the shapes that it may have; none given for any shape.
            why: what the expected shape follows from, for the error.

        Raises:
            InputError: it is missing, of another type or shape, or has NaN or infinite values.
        """
        found = self.shape(name)
        if shapes and found not in shapes:
            expected = " or ".join(str(list(shape)) for shape in dict.fromkeys(shapes))
            raise self.wrong(name, f"has shape {list(found)}, expected {expected}{why}")
        tensor = self.checkpoint.stored(name, types)
        self.used.add(name)
        if tensor.dtype.kind not in "iub" and not np.isfinite(tensor.astype(np.float32)).all():
            raise self.wrong(name, "has values that are NaN or infinite")
        return tensor

    def floats(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """A tensor that was left in floating point."""
        return self.take(name, DTYPES, shape)

    def wrong(self, name: str, what: str) -> InputError:
        """The error of a tensor that cannot be used."""
        return InputError(f"{self.checkpoint.folder}: tensor {name!r} {what}", AS_WRITTEN)
