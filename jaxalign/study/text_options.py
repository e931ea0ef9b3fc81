"""Options of how texts are read, which several commands take: the ``metadata`` of their fields."""

from __future__ import annotations

from collections.abc import Mapping

from jaxalign.prompts.named_texts import NAMES
from jaxalign.study.option import Option, option

POSITIONS = ("all", "last")


def texts_option() -> Mapping[str, Option]:
    """Which texts: a file or a name."""
    return option(
        "--texts",
        metavar="F",
        help="a text file, JSON lines with a field 'text', or one of "
        f"{', '.join(NAMES)} (default: demo for the bundled model, code for others)",
    )


def window_option() -> Mapping[str, Option]:
    """Tokens of a window."""
    return option("--window", metavar="N", least=2, help="tokens that are read together")


def stride_option() -> Mapping[str, Option]:
    """Tokens from the beginning of a window to that of the next."""
    return option(
        "--stride",
        metavar="N",
        least=1,
        help="tokens from one window's beginning to the next's (default: no overlap)",
    )


def tokens_option() -> Mapping[str, Option]:
    """How many tokens of the texts."""
    return option("--tokens", metavar="N", least=1, help="at most so many are read")


def positions_option() -> Mapping[str, Option]:
    """Which positions of a window."""
    return option(
        "--positions",
        choices=POSITIONS,
        help="all but the first of each window, or its last alone",
    )
