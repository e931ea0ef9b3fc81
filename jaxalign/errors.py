"""The one error a user is meant to read: what is wrong, where, and what to do about it."""

from __future__ import annotations

import json
import unicodedata
from typing import Any


def printable(text: str) -> str:
    """``text`` with what a terminal or a figure would act on (Unicode category C) escaped.

    New lines stay. A file may name a task or a tensor with an escape sequence that clears the
    screen; what is shown is then its escape in Python's notation.

    Example:
        >>> printable("a\\x1b[2J")
        'a\\\\x1b[2J'
    """
    if text.isprintable():
        return text
    return "".join(
        c if c == "\n" or unicodedata.category(c)[0] != "C" else repr(c)[1:-1] for c in text
    )


def shortened(text: str, longest: int) -> str:
    """``text`` with an ellipsis in its middle where it is longer than ``longest`` characters."""
    if len(text) <= longest:
        return text
    kept = longest - 1
    return f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"


def counted(n: int, noun: str) -> str:
    """``1 prompt``, ``2 prompts``."""
    return f"{n} {noun}" + ("" if n == 1 else "s")


def shown(value: Any, most: int = 80) -> str:
    """A value of a JSON file for a message: as JSON, cut after ``most`` characters.

    Example:
        >>> shown([1, None], most=6)
        '[1,...'
    """
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):  # a Python object, or nested too deeply
        text = f"of type {type(value).__name__}"
    return text if len(text) <= most else f"{text[: most - 3]}..."


MOST_SHOWN = 2000  # characters of a message; a file may give anything a longer name


class InputError(ValueError):
    """Input that cannot be used: a file, an argument, a checkpoint, a device.

    The command line prints it as one line and leaves with exit code 2.

    Args:
        problem: what is wrong and where, with what was expected and what was found.
        remedy: what the reader can do about it, as an imperative.
    """

    def __init__(self, problem: str, remedy: str) -> None:
        problem = problem if len(problem) <= MOST_SHOWN else f"{problem[:MOST_SHOWN]}..."
        self.problem = " ".join(printable(problem).split())
        self.remedy = " ".join(printable(remedy).split())
        super().__init__(f"{self.problem.rstrip('.')}. {self.remedy.rstrip('.')}.")


def require_type(
    name: str, value: Any, kinds: type | tuple[type, ...], expected: str, remedy: str = ""
) -> None:
    """Refuse a value of another type by the argument's name.

    Args:
        name: of the argument.
        value: what was given.
        kinds: the types that it may have; True and False are no numbers.
        expected: what it should be, in words.
        remedy: what to do about it; by default to give what is expected.

    Raises:
        InputError: it has none of the types.

    Example:
        >>> require_type("model", 7, str, "the name of a model")
        InputError: model is 7 (an int), expected the name of a model. give the name of a model.
    """
    number = isinstance(kinds, tuple) and int in kinds
    if isinstance(value, kinds) and not (number and isinstance(value, bool)):
        return
    kind = type(value).__name__
    article = "an" if kind[0] in "aeiouAEIOU" else "a"
    short = value is None or isinstance(value, str | int | float)
    found = f"{str(value)[:40]!s} ({article} {kind})" if short else f"{article} {kind}"
    raise InputError(f"{name} is {found}, expected {expected}", remedy or f"give {expected}")
