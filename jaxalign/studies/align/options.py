"""What ``align`` compares: its options."""

from __future__ import annotations

from dataclasses import dataclass, field

from jaxalign.errors import InputError
from jaxalign.measures.alignment import DRAWS, FEWEST_SEEDS, SEED
from jaxalign.study.option import SEED_HELP, check_options, listed, option

PARTS = ("encoder", "decoder")
TOKENS = 1000
GROUP = "what is compared"


def folders(text: str) -> tuple[str, ...]:
    """The folders of a list of the command line.

    Args:
        text: names with commas between them.
    """
    return listed(text)


@dataclass(frozen=True, kw_only=True)
class AlignOptions:
    """What is compared, and with what it is held.

    Attributes:
        first, second: folders of two dictionaries, or of two sets of activations; a dictionary's
            may be a folder of a repository of the hub.
        floor: of dictionaries (activations) of one precision and different seeds; empty for none.
        of: which directions of a dictionary; None for "encoder", the original method's.
        layer: of activations; None where there is one alone.
        tokens: of activations, the first so many; None for 1000, the original method's.
        draws: of the null; 0 for none.
        seed: of the draws.

    Raises:
        InputError: a value that cannot be used, or one of the two is missing.
    """

    first: str | None = field(
        default=None,
        metadata=option(
            "--first",
            group=GROUP,
            metavar="DIR",
            help="a dictionary, in a folder or of the hub (REPOSITORY:FOLDER), or a folder of "
            "activations that extract wrote",
        ),
    )
    second: str | None = field(
        default=None,
        metadata=option(
            "--second", group=GROUP, metavar="DIR", help="what it is compared with, of its kind"
        ),
    )
    floor: tuple[str, ...] = field(
        default=(),
        metadata=option(
            "--floor",
            group=GROUP,
            metavar="DIR,DIR,...",
            parse=folders,
            help="the same of one precision and different seeds, three or more for a verdict: how "
            "alike two seeds are (default: none)",
        ),
    )
    of: str | None = field(
        default=None,
        metadata=option(
            "--of",
            group=GROUP,
            metavar="|".join(PARTS),
            help="which directions of a dictionary are compared (default: encoder)",
        ),
    )
    layer: int | None = field(
        default=None,
        metadata=option(
            "--layer",
            group=GROUP,
            metavar="N",
            least=0,
            help="of activations (default: the one that there is)",
        ),
    )
    tokens: int | None = field(
        default=None,
        metadata=option(
            "--tokens",
            group=GROUP,
            metavar="N",
            least=4,
            help=f"of activations, the first so many (default: {TOKENS}, the original method's; "
            "CKA is larger with fewer)",
        ),
    )
    draws: int = field(
        default=DRAWS,
        metadata=option(
            "--draws", group=GROUP, metavar="N", least=0, help="of what chance gives; 0 for none"
        ),
    )
    seed: int = field(
        default=SEED, metadata=option("--seed", group=GROUP, metavar="N", help=SEED_HELP, least=0)
    )

    def __post_init__(self) -> None:
        check_options(self)
        for flag, value in (("--first", self.first), ("--second", self.second)):
            if not value:
                raise InputError(f"{flag} is missing", "name two dictionaries, or two activations")
        if self.of is not None and self.of not in PARTS:
            raise InputError(f"--of {self.of!r} is unknown", f"use {' or '.join(PARTS)}")
        if self.floor and len(self.floor) < FEWEST_SEEDS:
            raise InputError(
                f"--floor names {self.floor[0]} alone, and one seed has no pair",
                "name two or more, or leave it out",
            )
