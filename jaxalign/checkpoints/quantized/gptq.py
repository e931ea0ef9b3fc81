"""GPTQ's layout, as AutoGPTQ and gptqmodel write it (GPTQ: Frantar et al., arXiv 2210.17323).

=========  =======================  =====================================================
``qweight``  i32 ``[in·b/32, out]``   field ``i`` of word ``r``: the code of input
                                      ``r·32/b + i``
``qzeros``   i32 ``[G, out·b/32]``    fields along the outputs: ``z − 1`` (``gptq``, v1) or
                                      ``z`` (``gptq_v2``)
``scales``   f16 ``[G, out]``
``g_idx``    i32 ``[in]``             the group of each input; not ``a // g`` with act-order
=========  =======================  =====================================================

``W[o, a] = (q − z) · s``, rounded to f16.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxalign.checkpoints.quantized.linear import (
    PackedLinear,
    checked,
    fields,
    groups_in,
    in_order,
    integers,
)
from jaxalign.checkpoints.quantized.settings import (
    bits_of,
    by_group,
    flag,
    group_of_settings,
    refused,
    shown,
    text,
)
from jaxalign.checkpoints.quantized.tensors import Tensors
from jaxalign.errors import InputError

# What is added to a stored zero point, by ``checkpoint_format``.
OFFSET = {"gptq": 1, "gptq_v2": 0}


@dataclass(frozen=True)
class GPTQ:
    """Settings of a GPTQ checkpoint; ``settings.Format`` has the rest."""

    bits: int
    group: int | None
    offset: int
    title: str = "GPTQ"
    inputs: str | None = None
    rescales: bool = False

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> GPTQ:
        """From a ``quantization_config``.

        Raises:
            InputError: a checkpoint format or settings that are not handled.
        """
        kind = text(settings, "checkpoint_format", "gptq")
        if kind not in OFFSET or flag(settings, "is_marlin_format"):
            raise InputError(
                f"the GPTQ checkpoint has the format {kind if kind not in OFFSET else 'marlin'!r}, "
                "expected 'gptq' or 'gptq_v2'",
                "save it again in one of these",
            )
        _check_dynamic(settings.get("dynamic"))
        bits, group = bits_of(settings, 4, 8), group_of_settings(settings)
        order = ", act-order" if flag(settings, "desc_act") else ""
        version = "v2" if kind == "gptq_v2" else "v1"
        title = f"GPTQ {version}, {bits} bits, {by_group(group)}{order}"
        return cls(bits, group, OFFSET[kind], title)

    def read(self, tensors: Tensors, base: str, shape: tuple[int, int]) -> PackedLinear | None:
        """One layer, or None where it is not quantized.

        Args:
            tensors: the checkpoint's.
            base: the layer's published name, without ``.weight``.
            shape: outputs and inputs.
        """
        parts = ("qweight", "qzeros", "scales", "g_idx")
        if not any(f"{base}.{part}" in tensors for part in parts):
            return None
        (outputs, inputs), bits = shape, self.bits
        groups, word = groups_in(inputs, self.group, base), 32 // bits
        if inputs % word or outputs % word:
            raise InputError(
                f"layer {base} has {inputs} inputs and {outputs} outputs, which words of {word} "
                "codes do not divide",
                "use the config.json that was written with these weights",
            )
        words = tensors.take(f"{base}.qweight", ["I32"], (inputs // word, outputs))
        codes = fields(words, bits).transpose(1, 0, 2).reshape(outputs, inputs)
        stored = tensors.take(f"{base}.qzeros", ["I32"], (groups, outputs // word))
        scale = tensors.take(f"{base}.scales", ["F16", "BF16", "F32"], (groups, outputs))
        zero = fields(_of_v2(stored, bits, self.offset), bits).reshape(groups, outputs)
        order = _groups(tensors, base, inputs, groups)
        return checked(
            integers(codes, scale.T, zero.T, order, bits, 2.0**bits - 1), f"layer {base}"
        )


def _check_dynamic(rules: Any) -> None:
    """Rules by layer: ``-:PATTERN`` leaves layers in floating point, which the tensors show, too;
    any other rule quantizes its layers in another way than the rest."""
    if not isinstance(rules, Mapping | None):
        raise refused(f"dynamic is {shown(rules)}, expected an object")
    other = [rule for rule in rules or () if not rule.startswith("-:")]
    if other:
        raise InputError(
            f"the GPTQ checkpoint has other settings for some layers (dynamic: {shown(other[0])})",
            "quantize all layers alike, or leave those layers out ('-:')",
        )


def _of_v2(words: np.ndarray, bits: int, offset: int) -> np.ndarray:
    """Words of ``z``. gptqmodel takes 1 from all fields of v1 as it does from one number, so that a
    ``z`` of 0 borrows from its neighbour; added to the whole word, 1 in each field undoes that."""
    ones = sum(offset << shift for shift in range(0, 32, bits))
    return (words.view(np.uint32) + np.uint32(ones)).view(np.int32)


def _groups(tensors: Tensors, base: str, inputs: int, groups: int) -> np.ndarray | None:
    """``g_idx``, or None where the inputs of a group stand together."""
    name = f"{base}.g_idx"
    if name not in tensors:
        return None
    order = tensors.take(name, ["I32", "I64"], (inputs,))
    if order.min() < 0 or order.max() >= groups:
        raise tensors.wrong(
            name,
            f"has groups from {order.min()} to {order.max()}, expected numbers from 0 to "
            f"{groups - 1}",
        )
    standing = in_order(inputs, groups)
    return None if np.array_equal(order, standing) else order.astype(np.int32)
