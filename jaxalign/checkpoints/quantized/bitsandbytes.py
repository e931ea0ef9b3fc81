"""What transformers saves of a model that bitsandbytes quantized (arXiv 2305.14314, 2208.07339).

4-bit, for a layer of ``n`` weights in C order and blocks of ``b``:

=======================================  ======================================================
``weight``                               ``n/2`` bytes, the first code of a pair in the high
                                         half; in any dtype (``quant_storage``)
``weight.absmax``                        f32 ``[n/b]``, or u8 codes of it with double quantization
``weight.quant_map``                     f32 ``[16]``, the codebook
``weight.nested_absmax``, ``.nested_quant_map``  f32 ``[n/b/256]`` and ``[256]``
``weight.quant_state.bitsandbytes__nf4``  JSON in bytes: type, blocksize, dtype, shape, …
=======================================  ======================================================

``W = quant_map[q] · absmax`` in f32, then in the dtype of the JSON. 8-bit: ``weight`` i8
``[out, in]``, ``SCB`` f32 ``[out]`` (the rows' largest magnitudes), ``W = q · SCB / 127``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxalign.checkpoints.quantized.linear import PackedLinear, checked
from jaxalign.checkpoints.quantized.settings import flag, refused, shown, text
from jaxalign.checkpoints.quantized.tensors import Tensors
from jaxalign.errors import InputError
from jaxalign.numerics.codebooks import CODEBOOKS
from jaxalign.numerics.double_quantization import nested_scales
from jaxalign.numerics.scheme import WeightFormat

STATE = ".weight.quant_state.bitsandbytes__"
STORAGE = ("U8", "I8", "F16", "BF16", "F32")


@dataclass(frozen=True)
class BitsAndBytes:
    """Settings of a bitsandbytes checkpoint; ``settings.Format`` has the rest."""

    bits: int
    title: str = "bitsandbytes"
    inputs: str | None = None
    rescales: bool = False
    kind: str = ""

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> BitsAndBytes:
        """From a ``quantization_config``.

        Raises:
            InputError: it is neither 4-bit nor 8-bit, or both.
        """
        four, eight = flag(settings, "load_in_4bit"), flag(settings, "load_in_8bit")
        if four == eight:
            raise refused(f"load_in_4bit is {four} and load_in_8bit is {eight}, expected one")
        if eight:
            return cls(8, "bitsandbytes LLM.int8, 8 bits, one scale an output", "llm-int8")
        kind = text(settings, "bnb_4bit_quant_type")
        if kind not in ("", *CODEBOOKS):
            raise refused(f"bnb_4bit_quant_type is {shown(kind)}, expected "
                          f"{' or '.join(CODEBOOKS)}")  # fmt: skip
        double = flag(settings, "bnb_4bit_use_double_quant")
        title = f"bitsandbytes {kind}".rstrip() + ", double quantization" * double
        return cls(4, f"{title}, 4 bits", kind=kind)

    def read(self, tensors: Tensors, base: str, shape: tuple[int, int]) -> PackedLinear | None:
        """One layer, or None where it is not quantized.

        Args:
            tensors: the checkpoint's.
            base: the layer's published name, without ``.weight``.
            shape: outputs and inputs.
        """
        if self.bits == 8:
            return _int8(tensors, base, shape)
        states = tensors.starting(base + STATE)
        if not states:
            if f"{base}.weight.absmax" in tensors:
                tensors.shape(f"{base}{STATE}nf4")  # missing, which it says
            return None
        if len(states) > 1:
            raise tensors.wrong(states[1], f"stands beside {states[0]!r}, expected one of them")
        if self.kind and states[0] != f"{base}{STATE}{self.kind}":
            raise tensors.wrong(states[0], f"has codes that config.json calls {self.kind}")
        return _four_bits(tensors, base, shape, states[0])


def _int8(tensors: Tensors, base: str, shape: tuple[int, int]) -> PackedLinear | None:
    if f"{base}.SCB" not in tensors:
        return None
    codes = tensors.take(f"{base}.weight", ["I8"], shape)
    largest = tensors.take(f"{base}.SCB", ["F32"], (shape[0],), (shape[0], 1)).reshape(-1, 1)
    if (layout := f"{base}.weight_format") in tensors:
        stored = tensors.take(layout, ["U8"], (), (1,))
        if stored.any():
            raise tensors.wrong(layout, f"is {int(stored.max())}, expected 0 (by rows)")
    form = WeightFormat("int8", levels=127, absmax=True)
    return checked(PackedLinear(codes, largest, None, None, form), f"layer {base}")


def _four_bits(tensors: Tensors, base: str, shape: tuple[int, int], name: str) -> PackedLinear:
    state, kind = _state(tensors, name), name.removeprefix(base + STATE)
    if kind not in CODEBOOKS or state.get("quant_type") != kind:
        raise tensors.wrong(name, f"says quant_type {shown(state.get('quant_type'))}, expected "
                            f"{' or '.join(CODEBOOKS)} as in its name")  # fmt: skip
    if state.get("shape") != list(shape):
        raise tensors.wrong(name, f"says shape {shown(state.get('shape'))}, expected {list(shape)}")
    (outputs, inputs), block = shape, _positive(state.get("blocksize"))
    if not block or (inputs % block and block % inputs) or outputs * inputs % block:
        raise InputError(
            f"layer {base} has {outputs} × {inputs} weights, whose rows blocks of "
            f"{shown(state.get('blocksize'))} do not divide",
            "quantize with a blocksize that divides the number of inputs",
        )
    codes = _codes(tensors, f"{base}.weight", outputs * inputs).reshape(shape)
    book = tensors.take(f"{base}.weight.quant_map", ["F32"], (16,))
    if not np.array_equal(book, CODEBOOKS[kind]):
        raise tensors.wrong(f"{base}.weight.quant_map", f"is not the codebook of {kind}")
    largest = _largest(tensors, f"{base}.weight", state, outputs * inputs // block)
    # A block may hold several rows, which then share its scale.
    scale = np.repeat(largest, max(block // inputs, 1)).reshape(outputs, -1)
    form = WeightFormat(
        kind, min(block, inputs), double=_is_double(tensors, f"{base}.weight", state)
    )
    return checked(PackedLinear(codes, scale, None, None, form), f"layer {base}")


def _state(tensors: Tensors, name: str) -> dict[str, Any]:
    try:
        state = json.loads(tensors.take(name, ["U8"]).tobytes())
    except (ValueError, RecursionError) as error:
        raise tensors.wrong(name, f"is not JSON ({error})") from error
    if not isinstance(state, dict):
        raise tensors.wrong(name, "is not a JSON object")
    return state


def _positive(number: Any) -> int:
    """The number if it is a positive whole one, else 0."""
    whole = isinstance(number, int) and not isinstance(number, bool)
    return number if whole and number > 0 else 0


def _float(number: Any) -> float:
    """A number of a JSON file, NaN if it is none or too large for a float."""
    if isinstance(number, bool) or not isinstance(number, int | float):
        return float("nan")
    try:
        return float(number)
    except OverflowError:
        return float("nan")


def _codes(tensors: Tensors, name: str, count: int) -> np.ndarray:
    """The codes in C order, from bytes stored in whatever dtype."""
    shape = tensors.shape(name)
    stored = np.ascontiguousarray(tensors.checkpoint.stored(name, STORAGE)).view(np.uint8)
    tensors.used.add(name)
    if stored.size != count / 2:
        raise tensors.wrong(
            name, f"of shape {list(shape)} has {stored.size} bytes, expected {count / 2:g} for "
            f"{count} weights of 4 bits",
        )  # fmt: skip
    stored = stored.reshape(-1)
    return np.stack([stored >> 4, stored & 15], axis=-1).reshape(-1)


def _is_double(tensors: Tensors, name: str, state: Mapping[str, Any]) -> bool:
    return f"{name}.nested_absmax" in tensors or "nested_blocksize" in state


def _largest(tensors: Tensors, name: str, state: Mapping[str, Any], blocks: int) -> np.ndarray:
    """The scale of every block, f32, decoded where the scales themselves are quantized.

    Scales are quantized around their mean, so a small one may decode to a value below zero or to
    zero. bitsandbytes multiplies by it all the same.
    """
    if not _is_double(tensors, name, state):
        return tensors.take(f"{name}.absmax", ["F32"], (blocks,))
    size, offset = _positive(state.get("nested_blocksize")), _float(state.get("nested_offset"))
    if not size or not abs(offset) < np.finfo(np.float32).max:
        raise InputError(
            f"{tensors.checkpoint.folder}: the quant_state of {name!r} says nested_blocksize "
            f"{shown(state.get('nested_blocksize'))} and nested_offset "
            f"{shown(state.get('nested_offset'))}, expected numbers",
            "quantize the model again",
        )
    codes = tensors.take(f"{name}.absmax", ["U8"], (blocks,))
    values = tensors.take(f"{name}.nested_quant_map", ["F32"], (256,))
    block = tensors.take(f"{name}.nested_absmax", ["F32"], (-(-blocks // size),))
    return nested_scales(codes, block, values, offset, size)
