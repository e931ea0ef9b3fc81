"""``schemes``: the table of precision schemes from the command line."""

from __future__ import annotations

import argparse

from jaxalign import results
from jaxalign.compilation_cache import enable_compilation_cache
from jaxalign.convert import load, locate
from jaxalign.environment import select_device
from jaxalign.errors import InputError
from jaxalign.experiments.schemes import schemes_study
from jaxalign.grammar import TABLE
from jaxalign.numerics.scheme import Scheme, scheme_named
from jaxalign.plots import draw_schemes
from jaxalign.prompts import read_prompts
from jaxalign.report import schemes_table


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


def compare_schemes(arguments: argparse.Namespace) -> int:
    """Compare, print the table, write the result and its figure."""
    output = arguments.schemes_output
    results.check_writable(output)
    schemes = named(arguments.schemes or ",".join(TABLE))
    prompts = read_prompts(arguments.prompts)
    device = select_device(arguments.device)
    source = locate(arguments.model, arguments.revision)
    print(f"{len(schemes)} schemes of {source.model} on {device.platform}", flush=True)
    if not arguments.no_compilation_cache:
        enable_compilation_cache(arguments.compilation_cache)
    result = schemes_study(
        load(source),
        prompts,
        schemes,
        memory_gb=arguments.memory_gb,
        seed=arguments.seed,
        progress=True,
    )
    results.write_schemes(result, output)
    print(f"\n{schemes_table(result)}\n\nresult: {output}")
    if not arguments.no_figures:
        [path, _] = draw_schemes(result, output.parent / "figures")
        print(f"figure: {path}")
    return 0
