"""How a plan is made."""

from __future__ import annotations

from dataclasses import dataclass, field

from jaxalign.errors import InputError
from jaxalign.numerics.scheme import Scheme, scheme_named
from jaxalign.study.option import option, scheme_option
from jaxalign.study.options import Common

# Above it, the list of draws alone would fill the memory.
MOST_DRAWS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class PlanOptions(Common):
    """How the study runs.

    Attributes:
        scheme: of the weights that are not kept in 16 bit; computed in f32.
        budget: bits a weight ("5.0bits") or bytes ("1.5MB") of the matrices of all blocks.
        noise_draws: draws of random noise beside each component, which is tested against them; of
            fewer than three nothing is said.
        random_choices: choices that the plan is judged against; at least 20.
        curve_choices: random choices at each budget of the curve.

    Raises:
        InputError: a value that cannot be used.
    """

    scheme: Scheme = field(
        default=scheme_named("int4-g32"),
        metadata=scheme_option("of the weights that are not kept in 16 bit"),
    )
    budget: str = field(
        default="5.0bits",
        metadata=option(
            "--budget",
            metavar="SIZE",
            help="for the matrices of all blocks: bits a weight (5.0bits) or bytes (1.5MB)",
        ),
    )
    noise_draws: int = field(
        default=20,
        metadata=option(
            "--noise-draws",
            metavar="N",
            least=1,
            most=MOST_DRAWS,
            help="random perturbations beside each component",
        ),
    )
    random_choices: int = field(
        default=50,
        metadata=option(
            "--random-choices",
            metavar="N",
            least=20,
            most=MOST_DRAWS,
            help="random choices to judge the plan against",
        ),
    )
    curve_choices: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.curve_choices < 1:
            raise InputError("curve choices are a count", "give 1 or more")
