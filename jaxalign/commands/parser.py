"""A parser that ignores nothing, and options that come from the fields of a dataclass."""

from __future__ import annotations

import argparse
import re
import textwrap
import types
import typing
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from jaxalign.errors import InputError
from jaxalign.study.option import Option, check_word, listed, options_of
from jaxalign.version import VERSION

PROGRAM = "jaxalign"
T = TypeVar("T")


class Parser(argparse.ArgumentParser):
    """A parser whose errors are ``InputError``s and that takes nothing for something else."""

    def _get_value(self, action: Any, arg_string: str) -> Any:
        """The value that was typed; what refuses it by name keeps its own words.

        ``argparse`` would take an ``InputError`` for any ``ValueError`` and say "invalid value".
        """
        parse = self._registry_get("type", action.type, action.type)
        try:
            parse(arg_string)
        except InputError:
            raise
        except Exception:
            pass  # said below, in argparse's words
        return super()._get_value(action, arg_string)

    def __init__(self, **how: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_Help, **how)
        self.register("action", None, _StoreOnce)
        self.register("action", "store", _StoreOnce)
        self.add_argument("--version", action="version", version=f"{PROGRAM} {VERSION}")
        self.groups: dict[str, Any] = {}

    def group(self, title: str) -> Any:
        """The group of options under a heading, made where it is missing."""
        if title not in self.groups:
            self.groups[title] = self.add_argument_group(title)
        return self.groups[title]

    def error(self, message: str) -> NoReturn:
        """Say what cannot be used, in one line."""
        raise InputError(f"{self.prog}: {message}", f"see {self.prog} --help")


class _Wrapper(textwrap.TextWrapper):
    """Breaks lines at spaces and behind commas, so that a name such as ``llm-int8`` stays whole."""

    wordsep_simple_re = re.compile(r"(\s+|(?<=,)(?=\S))")


class _Help(argparse.RawDescriptionHelpFormatter):
    """Help whose names can be searched and copied."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return _Wrapper(width, break_on_hyphens=False).wrap(" ".join(text.split()))


class _StoreOnce(argparse.Action):
    """Keeps a value, and refuses a second one, which would leave the first without effect."""

    def __call__(
        self, parser: Any, namespace: Any, values: Any, option_string: str | None = None
    ) -> None:
        if values == []:  # what argparse makes of ``--option=--``
            raise argparse.ArgumentError(self, "expected one value, not '--'")
        given = namespace.__dict__.setdefault("_given", set())
        if self.dest in given:
            raise argparse.ArgumentError(self, "is given twice")
        given.add(self.dest)
        setattr(namespace, self.dest, values)


def whole(text: str) -> int:
    """A whole number of the command line.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    try:
        return int(_plain_number(text))
    except ValueError:  # more than 4300 digits, too
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no whole number") from None


def _plain_number(text: str) -> str:
    """The number as typed, unless only Python would take it for one: ``1_0``, ``" 7"``."""
    if not text.isascii() or "_" in text or text != text.strip():
        raise ValueError("no number")
    return text


def real(text: str) -> float:
    """A number of the command line, which may be infinite or not a number.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    try:
        return float(_plain_number(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no number") from None


def numbers(one: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """What reads a list of numbers with commas between them.

    Args:
        one: reads one of them: ``whole`` or ``real``.
    """
    return lambda text: tuple(one(word) for word in listed(text))


def path(text: str) -> Path:
    """A path of the command line.

    Raises:
        argparse.ArgumentTypeError: it is empty, or has a NUL character.
    """
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no path")
    return Path(text)


PARSERS: dict[Any, Callable[[str], Any]] = {int: whole, float: real, str: str, Path: path}


def add_options(parser: Parser, kind: type) -> None:
    """Add the options that a dataclass's fields describe; what is not given stays None.

    Args:
        parser: gets them, under the headings that the options name.
        kind: the dataclass. A field of type ``bool`` is a flag without a value.
    """
    hints = typing.get_type_hints(kind)
    defaults = {field.name: field.default for field in fields(kind)}
    for name, known in options_of(kind).items():
        add = parser.group(known.group).add_argument
        if hints[name] is bool:
            add(known.flag, dest=name, action="store_const", const=True, help=known.help)
            continue
        add(
            known.flag,
            dest=name,
            metavar=known.metavar or "|".join(known.choices) or None,
            type=known.parse or _word_of(known) or PARSERS[_plain(hints[name])],
            help=_with_default(known, defaults[name]),
        )


def _word_of(known: Option) -> Callable[[str], str] | None:
    """What takes one of an option's words and refuses others; None for any other option."""
    if not known.choices:
        return None

    def word(text: str) -> str:
        check_word(known, text)
        return text

    return word


def _plain(hint: Any) -> Any:
    """``str`` of ``str | None``."""
    if isinstance(hint, types.UnionType):
        [hint] = (one for one in typing.get_args(hint) if one is not type(None))
    return hint


def _with_default(known: Option, default: Any) -> str:
    if default in (None, (), MISSING):
        return known.help
    if isinstance(default, tuple):
        default = ",".join(getattr(each, "name", str(each)) for each in default)
    default = getattr(default, "name", default)  # a scheme
    return f"{known.help} (default: {default})".replace("%", "%%")


def options_from(arguments: argparse.Namespace, kind: Callable[..., T], **derived: Any) -> T:
    """The options of a study, as given; the dataclass has the defaults.

    Args:
        arguments: from ``parse``.
        kind: the dataclass.
        derived: fields that do not come from an option of the same name, or are settled already.

    Raises:
        InputError: a value that the dataclass refuses.
    """
    given = {name: getattr(arguments, name) for name in options_of(kind)}
    return kind(**{name: value for name, value in given.items() if value is not None} | derived)
