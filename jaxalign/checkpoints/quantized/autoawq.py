"""AutoAWQ's "gemm" layout, which gptqmodel writes, too (AWQ: Lin et al., arXiv 2306.00978).

=========  ======================  ==================================================
``qweight``  i32 ``[in, out/8]``     field ``i`` of word ``c``: the code of output
                                     ``8c + ORDER[i]``
``qzeros``   i32 ``[in/g, out/8]``   the zero points, in the same order
``scales``   f16 ``[in/g, out]``
=========  ======================  ==================================================

``W[o, a] = (q − z) · s``, rounded to f16. Where AWQ scaled the input of a layer that follows the
MLP's nonlinearity, the activation's ``scales`` ``[F]`` are in the file and divide that input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxalign.checkpoints.quantized.linear import PackedLinear, checked, fields, groups_in, integers
from jaxalign.checkpoints.quantized.settings import bits_of, by_group, flag, group_of_settings, text
from jaxalign.checkpoints.quantized.tensors import Tensors
from jaxalign.errors import InputError

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)

# The layer whose input is divided, and the tensor that divides it; names within a block.
SCALED = (("mlp.dense_4h_to_h", "mlp.act.scales"),)


@dataclass(frozen=True)
class AutoAWQ:
    """Settings of an AutoAWQ checkpoint; ``settings.Format`` has the rest."""

    group: int | None
    title: str = "AWQ"
    inputs: str | None = None
    rescales: bool = True

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> AutoAWQ:
        """From a ``quantization_config``.

        Raises:
            InputError: another layout than "gemm", or settings that are not handled.
        """
        version = text(settings, "version", text(settings, "checkpoint_format", "gemm"))
        if version.lower() != "gemm":
            raise InputError(
                f"the AWQ checkpoint has the layout {version!r}, expected 'gemm'",
                "save it again with version='gemm'",
            )
        flag(settings, "zero_point")
        bits, group = bits_of(settings, 4), group_of_settings(settings)
        return cls(group, f"AWQ (gemm), {bits} bits, {by_group(group)}")

    def read(self, tensors: Tensors, base: str, shape: tuple[int, int]) -> PackedLinear | None:
        """One layer, or None where it is not quantized.

        Args:
            tensors: the checkpoint's.
            base: the layer's published name, without ``.weight``.
            shape: outputs and inputs.
        """
        if not any(f"{base}.{part}" in tensors for part in ("qweight", "qzeros", "scales")):
            return None
        outputs, inputs = shape
        groups = groups_in(inputs, self.group, base)
        if outputs % 8:
            raise InputError(
                f"layer {base} has {outputs} outputs, which words of 8 codes do not divide",
                "use the config.json that was written with these weights",
            )
        codes = _columns(tensors.take(f"{base}.qweight", ["I32"], (inputs, outputs // 8)))
        zero = _columns(tensors.take(f"{base}.qzeros", ["I32"], (groups, outputs // 8)))
        scale = tensors.take(f"{base}.scales", ["F16", "BF16", "F32"], (groups, outputs))
        layer = checked(integers(codes.T, scale.T, zero.T, None, 4, 15.0), f"layer {base}")
        return replace(layer, input_divisor=_divisor(tensors, base, inputs))


def _columns(words: np.ndarray) -> np.ndarray:
    """Codes in the order of the outputs, ``[rows, out]``."""
    found = fields(words, 4)
    codes = np.empty_like(found)
    codes[..., list(ORDER)] = found
    return codes.reshape(len(words), -1)


def _divisor(tensors: Tensors, base: str, inputs: int) -> np.ndarray | None:
    for layer, scales in SCALED:
        name = base.removesuffix(layer) + scales
        if base.endswith(layer) and name in tensors:
            divisor = tensors.floats(name, (inputs,)).astype(np.float32)
            if (divisor <= 0).any():
                raise tensors.wrong(name, "has values that are not positive")
            return None if (divisor == 1).all() else divisor
    return None
