"""The command ``plan``: it reads arguments, runs the damage study, and reports."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from jaxalign.calibration import preparer
from jaxalign.compilation_cache import enable_compilation_cache
from jaxalign.convert import load, locate
from jaxalign.environment import select_device
from jaxalign.experiments.damage import PlanOptions, plan_study, write_recipes
from jaxalign.numerics.scheme import scheme_named
from jaxalign.plots import draw
from jaxalign.prompts import read_prompts
from jaxalign.results.damage import write_plan
from jaxalign.runtime.files import check_writable
from jaxalign.schemes_command import calibration
from jaxalign.studies.plan.figures import FIGURES
from jaxalign.studies.plan.table import table

PLAN_OUTPUT = Path("results/plan.json")


def add_parser(commands: Any) -> None:
    """Add ``plan`` to the commands of the main parser, whose options it shares."""
    parser = commands.add_parser(
        "plan", help="where quantization does its damage, and what to keep in 16 bit in a budget"
    )
    parser.add_argument("--scheme", default="int4-g32", metavar="NAME", help="of the other weights")
    parser.add_argument(
        "--budget",
        default=PlanOptions.budget,
        metavar="SIZE",
        help="for the matrices of all blocks: bits a weight (5.0bits) or bytes (1.5MB); "
        "default: %(default)s",
    )
    parser.add_argument(
        "--noise-draws", type=int, default=PlanOptions.noise_draws, metavar="N",
        help="random perturbations beside each component (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--random-choices", type=int, default=PlanOptions.random_choices, metavar="N",
        help="random choices to judge the plan against (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--output", dest="plan_output", type=Path, default=PLAN_OUTPUT, metavar="F",
        help="result file (default: %(default)s); recipes for other tools and a folder 'figures' "
        "go beside it",
    )  # fmt: skip
    # Options of the main command, which may stand on either side of the word "plan".
    for option, kind in (
        ("--model", str),
        ("--revision", str),
        ("--prompts", Path),
        ("--calibration", Path),
        ("--device", str),
        ("--memory-gb", float),
        ("--seed", int),
    ):
        parser.add_argument(option, type=kind, default=argparse.SUPPRESS, help="as for the study")
    for flag in ("--no-figures", "--no-compilation-cache"):
        parser.add_argument(
            flag, action="store_true", default=argparse.SUPPRESS, help="as for the study"
        )


def run(arguments: argparse.Namespace) -> int:
    """Run the study and write result, recipes and figures; returns the exit code."""
    output = arguments.plan_output
    check_writable(output)
    scheme = scheme_named(arguments.scheme)
    options = PlanOptions(
        budget=arguments.budget,
        noise_draws=arguments.noise_draws,
        random_choices=arguments.random_choices,
        memory_gb=arguments.memory_gb,
        seed=arguments.seed,
    )
    prompts = read_prompts(arguments.prompts)
    device = select_device(arguments.device)
    source = locate(arguments.model, arguments.revision)
    print(f"damage of {scheme.name} in {source.model} on {device.platform}", flush=True)
    if not arguments.no_compilation_cache:
        enable_compilation_cache(arguments.compilation_cache)
    model = load(source)
    prepare = preparer(model, calibration(arguments, prompts), progress=True)
    low = prepare(model.params, scheme) if scheme.method else None
    result = plan_study(model, prompts, scheme, options, low=low, progress=True)
    write_plan(result, output)
    modules = [name for unit in result.plan.kept for name in unit.modules]
    written = [output, *write_recipes(modules, model.config, scheme, output)]
    print(f"\n{table(result)}\n")
    for path in written:
        print(path)
    if not arguments.no_figures:
        for path in draw(FIGURES, result, output.parent / "figures"):
            print(path)
    return 0
