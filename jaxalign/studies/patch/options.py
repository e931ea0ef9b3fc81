"""How a patching study runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from jaxalign.errors import InputError
from jaxalign.studies.patch.result import KNOCKOUT, NAMES, PATHS, SWEEPS
from jaxalign.study.option import listed, option
from jaxalign.study.options import Common

Direction = Literal["denoising", "noising"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
RECEIVERS, WINDOW = 3, 3  # where none are given


@dataclass(frozen=True, kw_only=True)
class PatchOptions(Common):
    """How the study runs.

    Attributes:
        sweep: what is exchanged, names of ``NAMES``.
        direction: denoising puts the clean run's values into the corrupted run, noising the other
            way round; both may be named. A knock-out cuts the clean run whatever it is. None:
            denoising.
        screen: exact values only for so many places that a gradient puts first, and for as many
            drawn at random from the others; 0 for exact values of all places.
        receivers: heads that path patching sends to beside the logits: those with the largest
            direct effect there. None: ``RECEIVERS``.
        window: layers in a row in which a knock-out cuts attention. None: ``WINDOW``.
        least_gap: logits between the clean and the corrupted run below which a pair does not count.
        use_all_prompts: keep pairs that the model does not answer.

    Raises:
        InputError: a value that cannot be used, or one that ``sweep`` has no use for.
    """

    sweep: tuple[str, ...] = field(
        default=("resid", "attn_out", "mlp_out", "heads", KNOCKOUT, PATHS),
        metadata=option(
            "--sweep",
            metavar="LIST",
            parse=listed,
            help=f"what is exchanged one by one, with commas: some of {', '.join(NAMES)}",
        ),
    )
    # What is not given is None, so that what is given in vain can be refused.
    direction: tuple[Direction, ...] | None = field(
        default=None,
        metadata=option(
            "--direction",
            metavar="LIST",
            parse=listed,
            help="denoising: clean values into the corrupted run; noising: corrupted values into "
            "the clean run; or both, with a comma (default: denoising)",
        ),
    )
    screen: int = field(
        default=0,
        metadata=option(
            "--screen",
            metavar="N",
            least=0,
            help="estimate all places of a sweep by one gradient, and patch exactly only the N "
            "that it puts first and N others at random; 0 patches all exactly",
        ),
    )
    receivers: int | None = field(
        default=None,
        metadata=option(
            "--receivers",
            metavar="N",
            least=0,
            most=1000,
            help="heads that path patching sends to: those with the largest direct effect "
            f"(default: {RECEIVERS})",
        ),
    )
    window: int | None = field(
        default=None,
        metadata=option(
            "--window",
            metavar="LAYERS",
            least=1,
            help=f"layers in a row in which a knock-out cuts attention (default: {WINDOW})",
        ),
    )
    least_gap: float = field(
        default=1.0,
        metadata=option(
            "--least-gap",
            metavar="LOGITS",
            help="a pair counts where clean and corrupted run differ by so much or more",
        ),
    )
    use_all_prompts: bool = field(
        default=False,
        metadata=option(
            "--use-all-prompts",
            help="keep pairs where the model prefers a wrong answer to the clean prompt, or a "
            "right one to the corrupted prompt",
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_words("--sweep", self.sweep, NAMES)
        _check_words("--direction", self.directions, DIRECTIONS)
        exchanged = [name for name in self.sweep if name in SWEEPS]
        if self.screen and not exchanged:
            raise InputError(
                f"--screen {self.screen} estimates patching, and --sweep names none of it",
                f"name some of {', '.join(SWEEPS)}, or leave out --screen",
            )
        for flag, value, use, names in (
            ("--window", self.window, "is of a knock-out", (KNOCKOUT,)),
            ("--receivers", self.receivers, "is of path patching", (PATHS,)),
            ("--direction", self.direction, "is of an exchange", (*SWEEPS, PATHS)),
        ):
            if value is not None and not {*names} & {*self.sweep}:
                words = ",".join(value) if isinstance(value, tuple) else value
                some = "some of " * (len(names) > 1) + ", ".join(names)
                raise InputError(
                    f"{flag} {words} {use}, and --sweep {','.join(self.sweep)} has none",
                    f"name {some} in --sweep, or leave out {flag}",
                )

    @property
    def directions(self) -> tuple[Direction, ...]:
        """The directions, given or not."""
        return ("denoising",) if self.direction is None else self.direction

    @property
    def layers_cut(self) -> int:
        """How many layers in a row a knock-out cuts."""
        return WINDOW if self.window is None else self.window

    @property
    def most_receivers(self) -> int:
        """How many heads path patching sends to at most."""
        return RECEIVERS if self.receivers is None else self.receivers


def _check_words(flag: str, words: tuple[str, ...], known: tuple[str, ...]) -> None:
    if unknown := [word for word in words if word not in known]:
        raise InputError(f"{flag} {str(unknown[0])[:40]!r} is unknown", f"use {', '.join(known)}")
    if not words or len(set(words)) < len(words):
        raise InputError(
            f"{flag} is {','.join(words)!r}, expected names, each once", f"use {', '.join(known)}"
        )
