"""The file of a result: JSON that begins with its format, ``"jaxalign.NAME/VERSION"``."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from jaxalign.errors import InputError
from jaxalign.runtime.files import read_text, replace_file
from jaxalign.study.codec import REMEDY, decode, encode, shown_value

R = TypeVar("R")

FORMAT = "format"
LINE = 120  # characters; what fits stands on one line


def write(result: R, path: Path | str, form: str) -> R:
    """Write a result, whole or not at all, after reading it back.

    A result that cannot be written to ``path`` is not lost: it is written to another file, which
    the error names.

    Args:
        result: a dataclass whose hints are of the table above.
        path: the file; its folder is made.
        form: the format, ``"jaxalign.NAME/VERSION"``.

    Returns:
        The result as it will be read, with the digits that the file has.

    Raises:
        InputError: the file cannot be written, or what it would hold could not be read.
    """
    path, content = Path(path), encode(result)
    try:
        again = decode(type(result), content, path)
        replace_file(path, _file(content, form))
    except InputError as error:
        beside = _write_beside(path, _file(content, form))
        if beside is None:
            raise
        raise InputError(
            f"{error.problem}; the result is kept in {beside}", error.remedy
        ) from error
    return again


def _file(content: dict[str, Any], form: str) -> bytes:
    if FORMAT in content:
        raise TypeError(f"a result has no field of its own that is called {FORMAT!r}")
    return f"{layout({FORMAT: form, **content})}\n".encode()


def _write_beside(path: Path, content: bytes) -> Path | None:
    """Write ``content`` near ``path``, or else where it can be; where that was."""
    for folder in (path.parent, Path.cwd(), Path(tempfile.gettempdir())):
        for n in range(100):
            beside = folder / f"{path.name[:100]}.kept{n or ''}"
            if not beside.exists():
                break
        try:
            replace_file(beside, content)
        except InputError:
            continue
        return beside
    return None


def read(path: Path | str, kinds: Mapping[str, Any], remedy: str = REMEDY) -> Any:
    """Read a result.

    Args:
        path: a file that ``write`` wrote, or one of an older format.
        kinds: by format, its dataclass, or a function that reads it:
            ``(content without its format, path) → result``.
        remedy: what the reader of the error can do where there is no such file, as an imperative.

    Raises:
        InputError: no such file, not JSON, a key twice in an object, a number that is not one
            (``NaN``), none of these formats, or what it holds does not fit.
    """
    path = Path(path)
    content = _parse(read_text(path, remedy), path)
    form = content.pop(FORMAT, None) if isinstance(content, dict) else None
    if not isinstance(form, str) or form not in kinds:
        expected = " or ".join(map(shown_value, kinds))
        raise InputError(f"{path}: {FORMAT}: {shown_value(form)}, expected {expected}", remedy)
    kind = kinds[form]
    return decode(kind, content, path) if isinstance(kind, type) else kind(content, path)


def _parse(text: str, path: Path) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON of a result ({error})", REMEDY) from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        [(twice, _)] = counts.most_common(1)
        raise ValueError(f"an object has {shown_value(twice)} twice")
    return entries


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def layout(value: Any, margin: str = "\n") -> str:
    """Return JSON text with a row of numbers, and whatever else is short, on one line.

    Args:
        value: what JSON can hold.
        margin: a new line and the spaces in front of this value.
    """
    inner = margin + " "
    parts: Iterable[str]
    if isinstance(value, dict):
        parts = [f"{_json(key)}: {layout(part, inner)}" for key, part in value.items()]
        start, end = "{}"
    elif isinstance(value, list) and any(isinstance(part, list | dict) for part in value):
        parts = [layout(part, inner) for part in value]
        start, end = "[]"
    else:
        return _json(value)
    line = f"{start}{', '.join(parts)}{end}"
    if len(line) <= LINE and "\n" not in line:
        return line
    return f"{start}{inner}{f',{inner}'.join(parts)}{margin}{end}"
