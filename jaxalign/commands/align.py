"""``align``: two dictionaries or two sets of activations, beside chance and two seeds."""

from __future__ import annotations

import argparse

from jaxalign.commands.one_study import check_inputs_stay, check_output, resume_folder
from jaxalign.commands.parser import options_from
from jaxalign.commands.reporting import report
from jaxalign.commands.screen import Screen
from jaxalign.runtime.environment import select_device
from jaxalign.runtime.progress import Progress
from jaxalign.runtime.resume import Resume
from jaxalign.studies.align import ALIGN, AlignOptions
from jaxalign.studies.align.compare import compare, environment_of, facts_of
from jaxalign.studies.align.sides import open_sides


def run(arguments: argparse.Namespace) -> int:
    """Compare, write, print and draw; returns the exit code.

    Args:
        arguments: from ``parse``.

    Raises:
        InputError: anything that cannot be used.
    """
    options, output = options_from(arguments, AlignOptions), arguments.output
    device, screen = select_device(arguments.device), Screen.of(arguments)
    check_output(output, not arguments.no_figures)
    given = {"--first": options.first, "--second": options.second}
    given |= {f"--floor {name}": name for name in options.floor}
    check_inputs_stay(given, output, () if arguments.no_figures else ALIGN.figures)
    progress = Progress(not screen.quiet)
    with progress.phase("opening the two"):
        sides = open_sides(options)
    environment = environment_of(device)
    resume = Resume(resume_folder(output), facts_of(sides, options, environment))
    try:
        result = compare(
            sides, options, environment, resume=resume, progress=progress, say=screen.say
        )
        result = ALIGN.write(result, output)
        arguments.written = output
        resume.remove()
    finally:  # an interruption leaves the parts that are finished
        resume.close()
    report(ALIGN, result, arguments, screen, ())
    return 0
