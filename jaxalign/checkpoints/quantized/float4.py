"""compressed-tensors' 4-bit floats: ``nvfp4-pack-quantized`` and ``mxfp4-pack-quantized``.

=======================  ===============================  =========================================
``weight_packed``        u8 ``[out, in/2]``               e2m1 codes, the first of two in the low
                                                          half
``weight_scale``         e4m3 ``[out, in/16]``, or        one a group; MXFP4's are exponents, and a
                         u8 ``[out, in/32]``              scale is ``2^(e − 127)``
``weight_global_scale``  f32 ``[1]``                      NVFP4: what all scales are divided by
``input_global_scale``   f32 ``[1]``                      of inputs that are rounded, too
=======================  ===============================  =========================================

``W = value(code) · (scale / global)``. compressed-tensors rounds that to bf16 when it unpacks a
model; the kernels that deploy these files do not, and neither is it rounded here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxalign.checkpoints.quantized.linear import PackedLinear, checked, groups_in
from jaxalign.checkpoints.quantized.settings import flag, integer, refused, shown, text
from jaxalign.checkpoints.quantized.tensors import Tensors
from jaxalign.numerics.scheme import WeightFormat, scheme_named

# The scheme whose packed matrices each format holds, and its names for the scales.
SCHEMES = {"nvfp4-pack-quantized": "nvfp4", "mxfp4-pack-quantized": "mxfp4"}
STRATEGY = {"nvfp4": "tensor_group", "mxfp4": "group"}
SCALE_DTYPE = {"nvfp4": "torch.float8_e4m3fn", "mxfp4": "torch.uint8"}
NAN_EXPONENT = 255


@dataclass(frozen=True)
class Float4:
    """Settings of a checkpoint of 4-bit floats; ``settings.Format`` has the rest."""

    kind: str
    title: str = "compressed-tensors"
    inputs: str | None = None
    rescales: bool = True

    @classmethod
    def of(cls, layout: str, weights: Mapping[str, Any], inputs: str | None) -> Float4:
        """From the settings of a config group.

        Args:
            layout: the format, of ``SCHEMES``.
            weights: what the group says of weights.
            inputs: how its inputs are rounded (``settings.Format``).

        Raises:
            InputError: the settings are not those of the format.
        """
        kind = SCHEMES[layout]
        form = _form(kind)
        for name, found, wanted in (
            ("num_bits", integer(weights, "num_bits"), form.bits),
            ("type", text(weights, "type", "int"), "float"),
            ("group_size", integer(weights, "group_size"), form.group),
            ("strategy", text(weights, "strategy", STRATEGY[kind]), STRATEGY[kind]),
            ("scale_dtype", text(weights, "scale_dtype", SCALE_DTYPE[kind]), SCALE_DTYPE[kind]),
            ("symmetric", flag(weights, "symmetric", True), True),
        ):
            if found != wanted:
                raise refused(f"{name} is {shown(found)}, expected {wanted!r} of {layout}")
        title = f"compressed-tensors {layout}, e2m1, groups of {form.group}"
        return cls(kind, title, inputs)

    def read(self, tensors: Tensors, base: str, shape: tuple[int, int]) -> PackedLinear | None:
        """One layer, or None where it is not quantized.

        Args:
            tensors: the checkpoint's.
            base: the layer's published name, without ``.weight``.
            shape: outputs and inputs.

        Raises:
            InputError: one of its tensors is missing or cannot be what it says.
        """
        if not any(f"{base}.{part}" in tensors for part in ("weight_packed", "weight_scale")):
            return None
        outputs, inputs = shape
        form = _form(self.kind)
        groups = groups_in(inputs, form.group, base)
        halves = tensors.take(f"{base}.weight_packed", ["U8"], (outputs, inputs // 2))
        codes = np.stack([halves & 15, halves >> 4], axis=-1).reshape(shape)
        read = self._e4m3 if self.kind == "nvfp4" else powers_of_two
        scale = read(tensors, f"{base}.weight_scale", (outputs, groups))
        if (unused := f"{base}.input_global_scale") in tensors:  # inputs are not rounded here
            tensors.take(unused, ["F32"], (1,), ())
        return checked(PackedLinear(codes, scale, None, None, form), f"layer {base}")

    def _e4m3(self, tensors: Tensors, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Scales over that of the whole matrix, f32."""
        scale = tensors.take(name, ["F8_E4M3"], shape).astype(np.float32)
        beside = name.replace("weight_scale", "weight_global_scale")
        whole = tensors.take(beside, ["F32"], (1,), ())
        if not whole.reshape(-1)[0] > 0:
            raise tensors.wrong(beside, f"is {whole.reshape(-1)[0]}, expected a number above 0")
        return scale / whole.reshape(1, 1)


def powers_of_two(tensors: Tensors, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Scales from a tensor of exponents (e8m0), f32.

    Args:
        tensors: the checkpoint's.
        name: the tensor's.
        shape: that it must have.

    Raises:
        InputError: the tensor is missing, or has another type or shape, or its NaN.
    """
    exponents = tensors.take(name, ["U8"], shape)
    if lost := int((exponents == NAN_EXPONENT).sum()):
        raise tensors.wrong(name, f"has {lost} exponents of {NAN_EXPONENT}, which are no numbers")
    return np.ldexp(np.float32(1), exponents.astype(np.int32) - 127)


def _form(kind: str) -> WeightFormat:
    form = scheme_named(kind).weights
    assert form is not None
    return form
