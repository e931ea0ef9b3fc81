"""The file of a heads study."""

from __future__ import annotations

from pathlib import Path

from jaxalign.results.edge_align import FORMAT_1, read_1
from jaxalign.results.types import HeadsResult
from jaxalign.study import codec

FORMAT = "jaxalign.heads/2"


def write(result: HeadsResult, path: Path | str) -> HeadsResult:
    """Write the result, whole or not at all.

    Args:
        result: of ``heads_study``.
        path: the file; its folder is made.

    Returns:
        The result as it will be read, with the digits that the file has.

    Raises:
        InputError: the file cannot be written; names the file in which the result is kept.
    """
    return codec.write(result, path, FORMAT)


def read(path: Path | str) -> HeadsResult:
    """Read a result and check it.

    Args:
        path: a file of this version, or of the one before, which had other names.

    Raises:
        InputError: no such file, not JSON, or not a result of this study.
    """
    kinds = {FORMAT: HeadsResult, FORMAT_1: read_1}
    result: HeadsResult = codec.read(path, kinds, "run the study first: python cli.py")
    return result
