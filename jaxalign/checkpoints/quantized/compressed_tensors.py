"""compressed-tensors, which llm-compressor writes: packed integers, int8 and float8.

``pack-quantized``, ``b`` = 4 or 8 bits:

=======================  ======================  ==============================================
``weight_packed``        i32 ``[out, in·b/32]``  fields along the inputs: ``q + 2^(b−1)``
``weight_scale``         ``[out, G]``            in the dtype of the model
``weight_zero_point``    i32 ``[out·b/32, G]``   fields along the outputs, in the same way; only
                                                 for asymmetric codes
``weight_shape``         ``[2]``                 ``[out, in]``
``weight_g_idx``         i32 ``[in]``            act-order (older versions)
=======================  ======================  ==============================================

``int-quantized``, ``float-quantized``, ``naive-quantized``: ``weight`` i8 or float8
``[out, in]``, ``weight_scale`` ``[out, G]``, ``[out, 1]`` or ``[1]``, ``weight_zero_point`` i8.
``float-quantized`` and ``naive-quantized`` of float8 also by blocks: ``weight_scale`` is then
``[⌈out/r⌉, ⌈in/c⌉]`` of a ``block_structure`` ``[r, c]``. 4-bit floats are in ``float4``.
``W = (q − z) · s``, rounded to the scale's dtype. Symmetric scales are ``max|w|`` over 7.5, 127.5
or 448, and those of activations, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxalign.checkpoints.quantized.float4 import SCHEMES, Float4
from jaxalign.checkpoints.quantized.linear import (
    PackedLinear,
    block_float8,
    checked,
    fields,
    float8,
    integers,
)
from jaxalign.checkpoints.quantized.settings import (
    bits_of,
    block_of,
    flag,
    integer,
    known_alone,
    refused,
    shown,
    text,
)
from jaxalign.checkpoints.quantized.tensors import Tensors
from jaxalign.errors import InputError

PACKED = "pack-quantized"
PLAIN = ("int-quantized", "float-quantized", "naive-quantized")
SCALES = ("F16", "BF16", "F32")
STATUSES = ("initialized", "calibration", "frozen", "compressed", "decompressed")
FLOAT8 = ("F8_E4M3", "F8_E5M2")
# What compressed-tensors 0.20 says of weights. Observers and the like chose codes and scales.
KNOWN = (
    *("num_bits", "type", "symmetric", "strategy", "group_size", "block_structure", "dynamic"),
    *("actorder", "scale_dtype", "zp_dtype", "observer", "observer_kwargs"),
)


@dataclass(frozen=True)
class CompressedTensors:
    """Settings of a compressed-tensors checkpoint; ``settings.Format`` has the rest."""

    bits: int
    group: int | None
    kind: str
    symmetric: bool
    packed: bool
    title: str = "compressed-tensors"
    inputs: str | None = None
    rescales: bool = True
    block: tuple[int, int] | None = None

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> CompressedTensors | Float4:
        """From a ``quantization_config``.

        Raises:
            InputError: a format, a strategy or a width that is not read here.
        """
        one = _one_group(settings)
        layout = text(one, "format") or text(settings, "format")
        layouts = (PACKED, *PLAIN, *SCHEMES)
        if layout not in layouts:
            raise InputError(
                f"the compressed-tensors checkpoint has the format {shown(layout)}, expected one "
                f"of {', '.join(layouts)}",
                "other formats are not read; quantize the model to one that is",
            )
        weights = one.get("weights")
        if not isinstance(weights, Mapping):
            raise refused("its config group says nothing of weights")
        rounded = _inputs(one.get("input_activations"))
        if layout in SCHEMES:
            known_alone(weights, KNOWN)
            return Float4.of(layout, weights, rounded)
        if text(weights, "strategy") == "block":
            return cls._by_blocks(layout, weights, rounded)
        bits, kind = bits_of(weights, 4, 8), text(weights, "type", "int")
        allowed = (4, 8) if layout == PACKED else (8,)
        if bits not in allowed or kind not in (("int",) if layout == PACKED else ("int", "float")):
            raise InputError(
                f"the compressed-tensors checkpoint has {kind} weights of {bits} bits as {layout}, "
                f"expected {' or '.join(map(str, allowed))} bits",
                "other widths are not read; quantize the model to one that is",
            )
        strategy, symmetric = text(weights, "strategy"), flag(weights, "symmetric", True)
        if strategy not in ("tensor", "channel", "group"):
            raise refused(f"scales by {strategy!r}, expected 'tensor', 'channel' or 'group'")
        group = integer(weights, "group_size") if strategy == "group" else None
        called = f"{kind}{bits}" if kind == "int" else "float8"
        sides = "symmetric" if symmetric else "asymmetric"
        by = f"groups of {group}" if group else f"one scale a {strategy}"
        title = f"compressed-tensors {layout}, {called}, {sides}, {by}"
        return cls(bits, group, kind, symmetric, layout == PACKED, title, rounded)

    @classmethod
    def _by_blocks(
        cls, layout: str, weights: Mapping[str, Any], inputs: str | None
    ) -> CompressedTensors:
        known_alone(weights, KNOWN)
        kind, symmetric = text(weights, "type", "int"), flag(weights, "symmetric", True)
        bits, block = integer(weights, "num_bits"), block_of(weights, "block_structure")
        if (bits, kind, symmetric) != (8, "float", True) or layout == PACKED:
            sides = "symmetric" if symmetric else "asymmetric"
            raise refused(
                f"blocks of {sides} {kind} weights of {bits} bits as {layout}, expected symmetric "
                "float weights of 8 bits as float-quantized"
            )
        title = f"compressed-tensors {layout}, float8, blocks of {block[0]} × {block[1]}"
        return cls(bits, block[1], kind, True, False, title, inputs, block=block)

    def read(self, tensors: Tensors, base: str, shape: tuple[int, int]) -> PackedLinear | None:
        """One layer, or None where it is not quantized.

        Args:
            tensors: the checkpoint's.
            base: the layer's published name, without ``.weight``.
            shape: outputs and inputs.
        """
        if not any(f"{base}.{part}" in tensors for part in ("weight_packed", "weight_scale")):
            return None
        layer = (self._packed if self.packed else self._plain)(tensors, base, shape)
        for unused in ("input_scale", "input_zero_point"):  # static inputs, not rounded here
            if f"{base}.{unused}" in tensors:
                tensors.take(f"{base}.{unused}", (*SCALES, "I8", *FLOAT8), (1,), ())
        return checked(layer, f"layer {base}")

    def _packed(self, tensors: Tensors, base: str, shape: tuple[int, int]) -> PackedLinear:
        (outputs, inputs), bits = shape, self.bits
        said = tensors.take(f"{base}.weight_shape", ["I64", "I32"], (2,))
        if tuple(said.tolist()) != shape:
            raise tensors.wrong(
                f"{base}.weight_shape", f"says {said.tolist()}, expected {list(shape)}"
            )
        words = tensors.take(f"{base}.weight_packed", ["I32"], (outputs, -(-inputs * bits // 32)))
        codes = fields(words, bits).reshape(outputs, -1)[:, :inputs]
        groups = self._groups(tensors, base, inputs)
        scale = tensors.take(f"{base}.weight_scale", SCALES, (outputs, groups))
        zero = None
        if not self.symmetric:
            packed = -(-outputs * bits // 32)
            stored = tensors.take(f"{base}.weight_zero_point", ["I32"], (packed, groups))
            zero = fields(stored.T.copy(), bits).reshape(groups, -1)[:, :outputs].T
        order = None
        if (name := f"{base}.weight_g_idx") in tensors:
            order = tensors.take(name, ["I32"], (inputs,))
            if order.min() < 0 or order.max() >= groups:
                raise tensors.wrong(
                    name, f"has groups outside 0 to {groups - 1} ({order.min()}, {order.max()})"
                )
        return integers(codes, scale, zero, order, bits, 2 ** (bits - 1) - 0.5)

    def _plain(self, tensors: Tensors, base: str, shape: tuple[int, int]) -> PackedLinear:
        outputs, inputs = shape
        codes = tensors.take(f"{base}.weight", FLOAT8 if self.kind == "float" else ["I8"], shape)
        if self.block:
            blocks = tuple(-(-size // of) for size, of in zip(shape, self.block, strict=True))
            scale = tensors.take(f"{base}.weight_scale", SCALES, blocks)
            return block_float8(codes, scale, self.block)
        groups = self._groups(tensors, base, inputs)
        shapes = ((outputs, groups),) if self.group else ((outputs, 1), (outputs,), (1,), ())
        scale = tensors.take(f"{base}.weight_scale", SCALES, *shapes)
        scale = _spread(scale, outputs, groups)
        if self.kind == "float":
            return float8(codes, scale)
        name, zero = f"{base}.weight_zero_point", None
        if not self.symmetric:
            zero = _spread(tensors.take(name, ["I8"], *shapes), outputs, groups).view(np.uint8)
            zero = zero + np.uint8(128)
        return integers(codes.view(np.uint8) + np.uint8(128), scale, zero, None, 8, 127.5)

    def _groups(self, tensors: Tensors, base: str, inputs: int) -> int:
        if self.group is None:
            return 1
        if self.group < 1 or inputs % self.group:
            raise tensors.wrong(
                f"{base}.weight_scale",
                f"belongs to {inputs} inputs, which groups of {self.group} do not divide",
            )
        return inputs // self.group


def _spread(part: np.ndarray, outputs: int, groups: int) -> np.ndarray:
    """``[out, G]`` of what may be one number for the whole matrix."""
    wide = part.reshape(-1, groups if part.size > 1 else 1)
    return np.ascontiguousarray(np.broadcast_to(wide, (outputs, groups)))


def _one_group(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    groups = settings.get("config_groups")
    if not isinstance(groups, Mapping) or len(groups) != 1:
        count = len(groups) if isinstance(groups, Mapping) else "no"
        raise refused(f"there are {count} config_groups, expected one")
    one = next(iter(groups.values()))
    if not isinstance(one, Mapping):
        raise refused("its config group is not an object")
    # Files of 2024 say "frozen", some null: the types of the tensors show whether they are packed.
    status = text(settings, "quantization_status", "compressed")
    if status not in STATUSES:
        raise refused(f"quantization_status is {shown(status)}, expected one of "
                      f"{', '.join(STATUSES)}")  # fmt: skip
    if settings.get("kv_cache_scheme"):
        raise refused("kv_cache_scheme is set; a quantized cache is not handled")
    if settings.get("transform_config"):
        raise refused("transform_config is set; rotated weights are not handled")
    return one


def _inputs(settings: Any) -> str | None:
    """How the layers' inputs are rounded when the checkpoint runs, of ``scheme.INPUTS``."""
    if settings is None:
        return None
    if not isinstance(settings, Mapping):
        raise refused(f"input_activations is {shown(settings)}, expected an object")
    token = settings.get("strategy") == "token" and settings.get("dynamic") is True
    if settings.get("num_bits") != 8 or not token or not flag(settings, "symmetric", True):
        return "other"
    return {"int": "int8-token", "float": "e4m3fn-token"}.get(str(settings.get("type")), "other")
