"""``plot``: the figures of a result, from its file alone."""

from __future__ import annotations

import argparse

from jaxalign.errors import InputError
from jaxalign.runtime.files import check_writable
from jaxalign.studies.registry import read_any


def run(arguments: argparse.Namespace) -> int:
    """Draw and print the paths; returns the exit code.

    Args:
        arguments: ``input``, a result of any kind, and ``figures``, a folder or None.

    Raises:
        InputError: the file is no result, or the folder cannot be written.
    """
    try:
        kind, result = read_any(arguments.input)
    except InputError as error:
        raise InputError(f"--input: {error.problem}", error.remedy) from error
    folder = arguments.figures or arguments.input.parent / "figures"
    check_writable(folder / "figure.png")
    for path in kind.draw(result, folder):
        print(path)
    return 0
