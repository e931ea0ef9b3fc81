"""What matrices cost in bytes, and budgets as users write them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxalign.checkpoints.linear_layers import linear_layers
from jaxalign.errors import InputError
from jaxalign.model.config import ModelConfig
from jaxalign.model.size import bits_of_matrix, matrix_sizes
from jaxalign.numerics.scheme import WeightFormat

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
    sizes = matrix_sizes(config)
    bits = {name: bits_of_matrix(name, config, form) for name in sizes}
    return [_unit(*group, sizes, bits) for group in groups]


def _unit(
    layer: int,
    matrices: Sequence[str],
    modules: Sequence[str],
    all_sizes: Mapping[str, tuple[int, int]],
    all_bits: Mapping[str, int],
) -> Unit:
    weights = sum(math.prod(all_sizes[name]) for name in matrices)
    bits = sum(all_bits[name] for name in matrices)
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
