"""How a comparison of schemes runs."""

from __future__ import annotations

from dataclasses import dataclass, field

from jaxalign.numerics.scheme import F32, Scheme, scheme_named
from jaxalign.study.option import refuse_repeated, schemes_option
from jaxalign.study.options import Common

# The schemes of the table, from many bits to few.
TABLE = (
    "bf16",
    "f16",
    "int8-sim",
    "int8",
    "smoothquant",
    "llm-int8",
    "fp8-e4m3",
    "fp8-e5m2",
    "int4-g64",
    "int4-sym-g64",
    "hqq-g64",
    "awq-g64",
    "gptq-g64",
    "gptq-actorder-g64",
    "nf4",
    "nf4-dq",
    "fp4",
)


@dataclass(frozen=True, kw_only=True)
class SchemesOptions(Common):
    """How the comparison runs.

    Attributes:
        schemes: low precisions to compare with f32, which is the first row whatever they are.

    Raises:
        InputError: a value that cannot be used.
    """

    schemes: tuple[Scheme, ...] = field(
        default=tuple(map(scheme_named, TABLE)),
        metadata=schemes_option("low precisions"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_repeated(self.schemes, F32)
