"""``schemes``: the table of precision schemes from the command line."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from jaxalign import results
from jaxalign.calibration import preparer, read_texts
from jaxalign.compilation_cache import enable_compilation_cache
from jaxalign.convert import load, locate
from jaxalign.environment import select_device
from jaxalign.errors import InputError
from jaxalign.experiments.schemes import schemes_study
from jaxalign.numerics.scheme import Scheme, scheme_named
from jaxalign.plots import draw
from jaxalign.prompts import PromptSet, read_prompts
from jaxalign.runtime.files import check_writable
from jaxalign.studies.schemes.figures import FIGURES
from jaxalign.studies.schemes.table import table

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
    output = arguments.schemes_output
    check_writable(output)
    schemes = named(arguments.schemes or ",".join(TABLE))
    prompts = read_prompts(arguments.prompts)
    device = select_device(arguments.device)
    source = locate(arguments.model, arguments.revision)
    print(f"{len(schemes)} schemes of {source.model} on {device.platform}", flush=True)
    if not arguments.no_compilation_cache:
        enable_compilation_cache(arguments.compilation_cache)
    model = load(source)
    result = schemes_study(
        model,
        prompts,
        schemes,
        prepare=preparer(model, calibration(arguments, prompts)),
        memory_gb=arguments.memory_gb,
        seed=arguments.seed,
        progress=True,
    )
    results.write_schemes(result, output)
    print(f"\n{table(result)}\n\nresult: {output}")
    if not arguments.no_figures:
        [path, _] = draw(FIGURES, result, output.parent / "figures")
        print(f"figure: {path}")
    return 0
