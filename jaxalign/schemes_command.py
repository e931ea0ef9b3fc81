"""``schemes``: the table of precision schemes from the command line."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from jaxalign.calibration import read_texts
from jaxalign.commands.one_study import run_study
from jaxalign.errors import InputError
from jaxalign.numerics.scheme import Scheme, scheme_named
from jaxalign.prompts import PromptSet
from jaxalign.studies.schemes import SCHEMES, SchemesOptions
from jaxalign.studies.schemes.options import TABLE


def add_parser(commands: Any) -> None:
    """Add ``schemes`` to the commands of the main parser, whose options it shares."""
    schemes = commands.add_parser(
        "schemes",
        help="a table of precision schemes: size, KL, answers, drift, and their noise floors",
        description="Compare precision schemes with f32 on the prompts: what each costs, what it\n"
        "changes, and what noise alone would change.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # Suppressed defaults leave what was given before the subcommand as it is.
    kept = argparse.SUPPRESS
    schemes.add_argument("--model", metavar="ID|PATH", default=kept, help="as in the study")
    schemes.add_argument("--prompts", type=Path, metavar="F", default=kept, help="prompts file")
    schemes.add_argument(
        "--schemes", metavar="LIST", default=kept, help=f"with commas (default: {','.join(TABLE)})"
    )
    schemes.add_argument(
        "--calibration", type=Path, metavar="F", default=kept, help="texts, one a line"
    )
    schemes.add_argument("--memory-gb", type=float, metavar="GB", default=kept)
    schemes.add_argument("--seed", type=int, default=kept, help="of noise and statistics")
    schemes.add_argument(
        "--no-figures", action="store_true", default=kept, help="print and write the table only"
    )
    schemes.add_argument(
        "--output", dest="schemes_output", type=Path, default=Path("results/schemes.json"),
        metavar="F", help="result file (default: %(default)s)",
    )  # fmt: skip


def listed(names: str) -> list[str]:
    """A list of the command line: names with commas between them."""
    return [name.strip() for name in names.split(",") if name.strip()]


def named(names: str) -> tuple[Scheme, ...]:
    """The schemes of a list.

    Raises:
        InputError: the list is empty, or no scheme has one of its names.
    """
    schemes = tuple(scheme_named(name) for name in listed(names))
    if not schemes:
        raise InputError(f"--schemes {names!r} names no scheme", "name one, for example nf4")
    return schemes


def calibration(arguments: argparse.Namespace, prompts: PromptSet) -> tuple[str, ...]:
    """The texts that schemes are calibrated on: a file's, or the prompts' reference texts.

    Raises:
        InputError: the file cannot be used.
    """
    path = arguments.calibration
    return prompts.reference if path is None else read_texts(path)


def compare_schemes(arguments: argparse.Namespace) -> int:
    """Compare, print the table, write the result and its figure."""
    arguments.output = arguments.schemes_output
    schemes = named(arguments.schemes or ",".join(TABLE))
    options = SchemesOptions(schemes=schemes, memory_gb=arguments.memory_gb, seed=arguments.seed)
    run_study(SCHEMES, options, arguments)
    return 0
