"""The command line: it finds the command, runs it, and says in one line what was wrong."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from jaxalign.commands.arguments import COMMANDS, parse
from jaxalign.errors import InputError
from jaxalign.runtime.terminal import interruptible, lasting_streams

BAD_INPUT = 2
OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"  # as XLA says it


def main(argv: Sequence[str] | None = None, *, alone: bool = False) -> int:
    """Run the command; returns the exit code.

    Args:
        argv: what was typed behind the program's name; this process's by default.
        alone: the process is the command's, so an interruption ends it at once: Python would wait
            for programs that are still being compiled, and a second interruption would break that.

    Raises:
        SystemExit: after the help or the version was printed.
    """
    arguments = argparse.Namespace()
    with lasting_streams() as out, interruptible() as interruption:
        try:
            arguments = parse(sys.argv[1:] if argv is None else argv)
            command = COMMANDS[arguments.command]
            module = importlib.import_module(f"jaxalign.commands.{command.module}")
            code: int = module.run(arguments)
            out.flush()
            return code or (BAD_INPUT if out.lost else 0)
        except SystemExit:  # the help or the version was printed, or could not be
            out.flush()
            if out.lost:
                return BAD_INPUT
            raise
        except (Exception, KeyboardInterrupt) as error:
            # What an interruption breaks may raise an error of any kind.
            stopped = interruption.asked or isinstance(error, KeyboardInterrupt)
            line = _interrupted(arguments) if stopped else _expected(error)
            if line is None:
                raise
            interruption.answered = True
            print(f"jaxalign: error: {line}", file=sys.stderr)
            if alone and stopped:
                out.flush()
                sys.stderr.flush()
                os._exit(BAD_INPUT)
            return BAD_INPUT


def _expected(error: BaseException) -> str | None:
    """What is said of an error that is no fault of the program's."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, MemoryError) or OUT_OF_MEMORY in str(error):
        return str(InputError("there is not enough memory", "lower --memory-gb"))
    return None


def _interrupted(arguments: argparse.Namespace) -> str:
    if written := getattr(arguments, "written", None):
        return (
            f"interrupted, but the result is in {written}; for its figures: jaxalign plot --input "
            f"{written}"
        )
    return f"interrupted; earlier results are unchanged. Run it again{_what_is_kept(arguments)}."


def _what_is_kept(arguments: argparse.Namespace) -> str:
    if hasattr(arguments, "output"):
        from jaxalign.commands.one_study import resume_folder
        from jaxalign.runtime.resume import finished

        if finished(resume_folder(arguments.output)):
            return ": with the same options it goes on from the calls that are finished"
    return ""
