"""Float8 by blocks as DeepSeek and Qwen publish it, and as transformers' FineGrainedFP8Config.

====================  =========================  ================================================
``weight``            e4m3 ``[out, in]``
``weight_scale_inv``  f32, f16 or bf16           one a block of ``weight_block_size`` outputs and
                      ``[⌈out/r⌉, ⌈in/c⌉]``      inputs, ``[r, c]``; a block at the edge is smaller
``activation_scale``  ``[1]``                    of static inputs
====================  =========================  ================================================

``W = code · scale``, whatever ``inv`` says, rounded to the scale's dtype. ``scale_fmt: ue8m0`` says
that scales are powers of two, which are kept as floats or as exponents in u8.

Source: DeepSeek-V3 (arXiv 2412.19437), section 3.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxalign.checkpoints.quantized.float4 import powers_of_two
from jaxalign.checkpoints.quantized.linear import PackedLinear, block_float8, checked
from jaxalign.checkpoints.quantized.settings import (
    block_of,
    known_alone,
    one_of,
    text,
)
from jaxalign.checkpoints.quantized.tensors import Tensors

SCALES = ("F32", "BF16", "F16")
# Which layers are quantized is seen from their tensors.
KNOWN = (
    *("quant_method", "activation_scheme", "weight_block_size", "fmt", "scale_fmt"),
    *("modules_to_not_convert", "ignored_layers", "modules_to_convert"),
    *("expert_dtype", "dequantize"),
)


@dataclass(frozen=True)
class FineGrainedFP8:
    """Settings of a checkpoint in float8 by blocks; ``settings.Format`` has the rest."""

    block: tuple[int, int]
    exponents: bool = False
    title: str = "FP8"
    # A scale for 128 inputs of a token, which is not computed here.
    inputs: str | None = "other"
    rescales: bool = False

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> FineGrainedFP8:
        """From a ``quantization_config``.

        Raises:
            InputError: a setting that is not known, or of a kind that is not read here.
        """
        known_alone(settings, KNOWN)
        one_of("fmt", text(settings, "fmt", "e4m3"), ("e4m3",))
        one_of("expert_dtype", text(settings, "expert_dtype", "fp8"), ("fp8",))
        kind = text(settings, "activation_scheme", "dynamic").lower()
        one_of("activation_scheme", kind, ("dynamic", "static"))
        scales = text(settings, "scale_fmt", "float")
        one_of("scale_fmt", scales, ("float", "ue8m0"))
        block = block_of(settings, "weight_block_size")
        title = f"FP8, e4m3, blocks of {block[0]} × {block[1]}"
        return cls(block, scales == "ue8m0", title)

    def read(self, tensors: Tensors, base: str, shape: tuple[int, int]) -> PackedLinear | None:
        """One layer, or None where it is not quantized.

        Args:
            tensors: the checkpoint's.
            base: the layer's published name, without ``.weight``.
            shape: outputs and inputs.

        Raises:
            InputError: one of its tensors is missing or cannot be what it says.
        """
        name = f"{base}.weight_scale_inv"
        if name not in tensors:
            return None
        codes = tensors.take(f"{base}.weight", ["F8_E4M3"], shape)
        blocks = tuple(-(-size // of) for size, of in zip(shape, self.block, strict=True))
        if self.exponents and tensors.checkpoint.type(name) == "U8":
            scale = powers_of_two(tensors, name, blocks)
        else:
            scale = tensors.take(name, SCALES, blocks)
        if (unused := f"{base}.activation_scale") in tensors:  # inputs are not rounded here
            tensors.take(unused, SCALES, (1,), ())
        return checked(block_float8(codes, scale, self.block), f"layer {base}")
