"""What matrices cost in bytes, and budgets as users write them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxalign.checkpoints.linear_layers import linear_layers
from jaxalign.errors import InputError
from jaxalign.model.config import ModelConfig
from jaxalign.model.params import param_shapes
from jaxalign.numerics.scheme import SCALES_PER_BLOCK, WeightFormat

HIGH_BITS = 16
UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9}
UNITS |= {"bytes": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
_BUDGET = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z]+)\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Unit:
    """Matrices of a layer that are kept or quantized together, since they are published as one.

    Attributes:
        matrices: of ``params.MATRICES``.
        modules: names of the published linear layers.
        weights: how many numbers they hold.
        low, high: bytes in the scheme's format and in 16 bit.
    """

    layer: int
    matrices: tuple[str, ...]
    modules: tuple[str, ...]
    weights: int
    low: int
    high: int

    @property
    def extra(self) -> int:
        """Bytes that keeping it in 16 bit costs."""
        return self.high - self.low

    def __str__(self) -> str:
        return f"L{self.layer} {'+'.join(self.matrices)}"


def packed_bits(inputs: int, outputs: int, form: WeightFormat) -> int:
    """Bits of a matrix as deployed: codes, scales and zero points.

    Scales that are quantized, too, have 8 bits and another scale for 256 of them (QLoRA, arXiv
    2305.14314, section 3); ``WeightFormat.bits_per_weight`` leaves out that the last of those may
    serve fewer.

    Args:
        inputs, outputs: the shape of the matrix.
        form: how its weights are packed.

    Raises:
        InputError: the format's groups do not divide the inputs.
    """
    scales = form.groups(inputs) * outputs
    each = 8 if form.double else form.scale_bits
    blocks = math.ceil(scales / SCALES_PER_BLOCK) if form.double else 0
    bits = scales * (each + form.zero_bits * form.zero) + blocks * form.scale_bits
    return inputs * outputs * form.bits + bits


def units_of(config: ModelConfig, form: WeightFormat) -> list[Unit]:
    """What a plan chooses among, layer by layer.

    A published layer that fills several matrices (GPT-NeoX's query_key_value), or several that
    fill one, make one unit.
    """
    groups: list[tuple[int, list[str], list[str]]] = []
    for linear in linear_layers(config):
        layer, matrices, modules = linear.layer, list(linear.matrices), [linear.module]
        for group in [g for g in groups if g[0] == layer and {*g[1]} & {*matrices}]:
            groups.remove(group)
            matrices = list(dict.fromkeys(group[1] + matrices))
            modules = group[2] + modules
        groups.append((layer, matrices, modules))
    blocks = param_shapes(config).blocks
    shapes = {**vars(blocks.attention), **vars(blocks.mlp)}
    return [_unit(*group, shapes, form) for group in groups]


def _unit(
    layer: int,
    matrices: Sequence[str],
    modules: Sequence[str],
    shapes: dict[str, Any],
    form: WeightFormat,
) -> Unit:
    sizes = [(shapes[name].shape[1], math.prod(shapes[name].shape[2:])) for name in matrices]
    weights = sum(inputs * outputs for inputs, outputs in sizes)
    bits = sum(packed_bits(inputs, outputs, form) for inputs, outputs in sizes)
    high = weights * HIGH_BITS // 8
    return Unit(layer, tuple(matrices), tuple(modules), weights, math.ceil(bits / 8), high)


def budget_bytes(text: str, units: Sequence[Unit]) -> int:
    """Bytes for the matrices of all blocks, from ``5.0bits`` (a weight, on average) or ``1.5MB``.

    Raises:
        InputError: not a budget, less than everything in the low format needs, or more than
            everything in 16 bit.
    """
    match = _BUDGET.fullmatch(text)
    unit = match.group(2).lower() if match else ""
    if not match or unit not in {"bit", "bits", *UNITS}:
        raise InputError(
            f"--budget {text!r} is not a budget",
            "give bits a weight such as 5.0bits, or bytes such as 1.5MB or 800000B",
        )
    weights = sum(each.weights for each in units)
    scale = weights / 8 if unit in ("bit", "bits") else UNITS[unit]
    budget = math.floor(float(match.group(1)) * scale + 1e-6)
    least, most = sum(each.low for each in units), sum(each.high for each in units)
    if not least <= budget <= most:
        which, bound = ("less", least) if budget < least else ("more", most)
        what = "the low scheme" if budget < least else f"{HIGH_BITS} bit"
        raise InputError(
            f"--budget {text} is {budget} bytes, {which} than the {bound} bytes "
            f"({bits_per_weight(bound, units):.3f} bits a weight) of everything in {what}",
            f"give {bits_per_weight(least, units):.3f} to {bits_per_weight(most, units):.3f} bits",
        )
    return budget


def bits_per_weight(size: int, units: Sequence[Unit]) -> float:
    """Bytes of all units as bits a weight."""
    return 8 * size / sum(each.weights for each in units)
