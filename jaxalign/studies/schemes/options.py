"""How a comparison of schemes runs."""

from __future__ import annotations

from dataclasses import dataclass, field

from jaxalign.numerics.scheme import F32, Scheme, scheme_named
from jaxalign.study.option import option, refuse_repeated, schemes_option
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
    "int6-g64",
    "int5-g64",
    "int4-g64",
    "int4-sym-g64",
    "hqq-g64",
    "awq-g64",
    "gptq-g64",
    "gptq-actorder-g64",
    "nf4",
    "nf4-dq",
    "fp4",
    "int3-g64",
)
# Above it, the list of draws alone would fill the memory.
MOST_DRAWS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class SchemesOptions(Common):
    """How the comparison runs.

    Attributes:
        schemes: low precisions to compare with f32, which is the first row whatever they are; a
            scheme or its name each.
        noise_draws: draws of weight noise beside each; of fewer than three nothing is said.
        lottery_draws: how often a method that solves (AWQ, GPTQ) is repeated on weights that are
            moved by a millionth, to see how far chance alone moves it; 0 for never.

    Raises:
        InputError: a value that cannot be used.
    """

    schemes: tuple[Scheme, ...] = field(
        default=tuple(map(scheme_named, TABLE)),
        metadata=schemes_option("low precisions"),
    )
    noise_draws: int = field(
        default=8,
        metadata=option(
            "--noise-draws",
            metavar="N",
            least=1,
            most=MOST_DRAWS,
            help="random perturbations beside each scheme",
        ),
    )
    lottery_draws: int = field(
        default=4,
        metadata=option(
            "--lottery-draws",
            metavar="N",
            least=0,
            most=MOST_DRAWS,
            help="repetitions of AWQ and GPTQ on weights that are moved by a millionth",
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_repeated(self.schemes, F32)
