"""How a heads study runs, as a frozen value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from jaxalign.edits import HEAD_MODES, HeadMode
from jaxalign.engine import ENGINES, Engine
from jaxalign.errors import InputError
from jaxalign.measures.stats import FEWEST_DRAWS
from jaxalign.numerics.scheme import F16, F32, INT8_SIM, SCHEMES, Scheme
from jaxalign.studies.heads.findings import REPLACEMENTS, Replacement
from jaxalign.study.option import listed, option, refuse_repeated, schemes_option
from jaxalign.study.options import Common

MeanPositions = Literal["last", "all"]


@dataclass(frozen=True, kw_only=True)
class HeadsOptions(Common):
    """How the study runs.

    Attributes:
        schemes: low precisions to compare with f32.
        repaired: names of the schemes whose repair curves are computed.
        head_mode: "true" or "edge-align".
        mean_positions: "last" or "all": where reference means are taken.
        ablations: what stands in for a head, in f32 and in every precision; "zero" is among them,
            since heads are ranked by it.
        noise_draws: how often f32 with noise of a scheme's size is ablated, too, by zero and mean:
            the floor that a precision's importance stands beside; 0 for none.
        screen: how many heads a screen leaves to be computed exactly; None computes all.
        max_repair_k: how many heads are restored at most.
        use_all_prompts: keep prompts that the model answers wrongly.
        engine: "wave", or "vmap" for the plain path that defines it.

    Raises:
        InputError: a value that cannot be used.
    """

    schemes: tuple[Scheme, ...] = field(
        default=(F16, INT8_SIM, SCHEMES["nf4"]),
        metadata=schemes_option(
            "low precisions such as f16, bf16, int8-sim, int8, llm-int8, nf4, fp4, int4-g128, "
            "awq-g128, gptq-g128, hqq-g64, smoothquant, fp8-e4m3, fp8-block, nvfp4, mxfp4"
        ),
    )
    repaired: tuple[str, ...] = ("f16", "nf4")
    head_mode: HeadMode = field(
        default="true",
        metadata=option(
            "--head-mode",
            choices=HEAD_MODES,
            help="true: a head is what it adds to the residual stream; edge-align: blocks of the "
            "projected output, for parity with published results",
        ),
    )
    mean_positions: MeanPositions = field(
        default="last",
        metadata=option(
            "--mean-positions",
            choices=get_args(MeanPositions),
            help="where the reference means of mean ablation are taken",
        ),
    )
    ablations: tuple[Replacement, ...] = field(
        default=REPLACEMENTS,
        metadata=option(
            "--ablations",
            metavar="LIST",
            parse=listed,
            help=f"what stands in for a head, of {', '.join(REPLACEMENTS)}; zero is always among "
            "them, resample takes four runs a head",
        ),
    )
    noise_draws: int = field(
        default=5,
        metadata=option(
            "--noise-draws",
            metavar="N",
            least=0,
            most=1000,
            help="models with random noise of the scheme's size in their weights that are ablated, "
            "too: what a precision's importance stands beside",
        ),
    )
    screen: int | None = field(
        default=None,
        metadata=option(
            "--screen",
            metavar="N",
            least=1,
            help="for large models: zero all heads on a few prompts and ever fewer heads on more, "
            "for at most a fifth of the exact sweep; the N heads that are left and a random sample "
            "are exact, in every precision, the others estimated (default: all heads are exact)",
        ),
    )
    max_repair_k: int = field(
        default=10,
        metadata=option("--max-repair-k", metavar="K", least=1, help="restore the top 1 … K heads"),
    )
    use_all_prompts: bool = field(
        default=False,
        metadata=option(
            "--use-all-prompts",
            help="keep prompts whose target is not the f32 model's top-1 token",
        ),
    )
    engine: Engine = field(
        default="wave",
        metadata=option(
            "--engine",
            choices=ENGINES,
            group="what runs",
            help="wave: every edited run starts where its edit does; vmap: the plain path that "
            "defines it, slower",
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_repeated(self.schemes)
        names = [scheme.name for scheme in self.schemes]
        if F32.name in names:
            raise InputError(
                "f32 is among the schemes, but it is what all others are compared with",
                "leave it out",
            )
        words: tuple[str, ...] = self.ablations
        if unknown := [word for word in words if word not in REPLACEMENTS]:
            raise InputError(
                f"{', '.join(map(str, unknown))} is no ablation",
                f"use some of {', '.join(REPLACEMENTS)}",
            )
        if "zero" not in self.ablations or len({*self.ablations}) < len(self.ablations):
            raise InputError(
                f"the ablations are {', '.join(self.ablations) or 'none'}, but zero has to be "
                "among them, and each once",
                f"use zero and any of {', '.join(REPLACEMENTS[1:])}",
            )
        if self.mean_positions != "last" and "mean" not in self.ablations:
            raise InputError(
                f"means are taken over {self.mean_positions} positions, but none replaces a head",
                "leave out --mean-positions, or name mean among the ablations",
            )
        if 0 < self.noise_draws < FEWEST_DRAWS:
            raise InputError(
                f"{self.noise_draws} draws of noise have too little spread to test against",
                f"give 0 for none, or at least {FEWEST_DRAWS}",
            )
        if unknown := [name for name in self.repaired if name not in names]:
            raise InputError(
                f"repair is asked for in {', '.join(unknown)}, which is not among the schemes",
                f"name schemes of {', '.join(names) or 'the study'}",
            )
