"""Results as what JSON holds: a dataclass and its type hints say what is in its file.

What a hint may be, and what it is in the file:

=================================  ================================================================
``str``, ``bool``, ``None``        the same
``int``                            an integer below 2⁶³ in size
``float``                          a number with seven digits, all that f32 holds
``float | None``                   the same, or null where it is not finite
``Literal[…]``                     one of these values
``tuple[X, …]``, ``list[X]``       an array; ``tuple[X, Y]`` has exactly two entries
``dict[str, X]``                   an object; keys may be a ``Literal``
``Float[np.ndarray, "L H"]``       arrays of numbers, null where not finite; read as float64. A
                                   letter stands for the same length in the whole file.
``np.ndarray``                     the same, with any number of axes
a frozen dataclass                 an object with its fields, by name; a field with a default may be
                                   missing. A ``ValueError`` of ``__post_init__`` is a misfit.
a ``TypedDict``                    an object with its keys
``Any``                            whatever JSON can hold
=================================  ================================================================

Decoding checks everything; a misfit is an ``InputError`` that names the file and the place in it
(``prompts/3/zero_importance/1``). The file itself is read and written by ``study.result_file``.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from jaxalign.errors import InputError

R = TypeVar("R")

# No logit, norm, count or time is outside of these; drawing squares and divides what is inside.
SMALLEST, LARGEST = 1e-100, 1e100
INTEGERS = 2**63
REMEDY = "run the study again, or give the file that it wrote"


class _Misfit(Exception):
    """What does not fit, and the keys and indices that lead there, outermost first."""

    def __init__(self, fault: str, *place: str | int) -> None:
        super().__init__(fault)
        self.fault = fault
        self.place = list(place)


def encode(value: Any) -> Any:
    """Return what JSON holds of a result: objects, arrays, numbers with seven digits.

    Args:
        value: a dataclass, or anything that a field of one may be (table above).

    Raises:
        TypeError: there is no way to write such a value.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {_key(key): encode(part) for key, part in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return encode(value.tolist())
    if isinstance(value, list | tuple):
        return [encode(part) for part in value]
    if isinstance(value, float):
        return _seven_digits(value)
    if isinstance(value, str):
        return _unicode(value)
    if value is None or isinstance(value, bool | int):
        return value
    raise TypeError(f"a result cannot hold a {type(value).__name__}")


def _key(key: Any) -> str:
    if not isinstance(key, str):
        raise TypeError(f"a key of a result is a text, not {key!r}")
    return _unicode(key)


def _unicode(text: str) -> str:
    """Half a surrogate pair has no UTF-8, but the name of a file can hold it: it is escaped."""
    return text.encode(errors="backslashreplace").decode()


def _seven_digits(x: float) -> float | None:
    if not abs(x) <= LARGEST:  # NaN, too
        return None
    return 0.0 if abs(x) < SMALLEST else float(f"{x:.7g}")


def decode(kind: type[R], content: Any, where: Path | str) -> R:
    """Return the result that ``content`` holds, checked against the type hints of ``kind``.

    Args:
        kind: a dataclass whose hints are of the table above.
        content: as ``encode`` returns; not changed.
        where: the file, for the error.

    Raises:
        InputError: ``content`` does not fit; names the place and what was expected there.
    """
    try:
        return typing.cast("R", _Reader().read(kind, content))
    except _Misfit as misfit:
        place = "/".join(map(str, misfit.place)) or "the top level"
        raise InputError(f"{where}: {place}: {misfit.fault}", REMEDY) from misfit
    except RecursionError as error:
        raise InputError(f"{where} is nested too deeply", REMEDY) from error


class _Reader:
    """Reads one file. ``axes``: the length that each axis letter has in it."""

    def __init__(self) -> None:
        self.axes: dict[str, int] = {}

    def read(self, hint: Any, value: Any) -> Any:
        """The value of one place, which has to fit its hint."""
        origin, args = typing.get_origin(hint), typing.get_args(hint)
        if dataclasses.is_dataclass(hint) or typing.is_typeddict(hint):
            return self.record(hint, value)
        if hint is Any:
            return _plain(value)
        if hint is np.ndarray or origin is np.ndarray or hasattr(hint, "dim_str"):
            return self.array(hint, value)
        if origin is Literal:
            return _literal(args, value)
        if origin in (typing.Union, types.UnionType):
            return self.union(args, value)
        if hint is tuple or origin in (tuple, list):
            return self.sequence(hint, value)
        if hint is dict or origin in (dict, Mapping):
            key, part = args or (str, Any)
            entries = _of(dict, value).items()
            return {_at(k, self.read, key, k): _at(k, self.read, part, v) for k, v in entries}
        return _scalar(hint, value)

    def record(self, kind: Any, value: Any) -> Any:
        """A dataclass or a dictionary of an object: every field there, and no other."""
        (hints, needed), value = _fields(kind), _of(dict, value)
        for name in value:
            if name not in hints:
                raise _Misfit(f"unknown, expected {', '.join(hints)}", name)
        for name in needed:
            if name not in value:
                raise _Misfit("missing, as in files of an older version", name)
        read = {name: _at(name, self.read, hints[name], part) for name, part in value.items()}
        try:
            return kind(**read)
        except ValueError as error:
            raise _Misfit(str(error)) from error

    def union(self, kinds: tuple[Any, ...], value: Any) -> Any:
        """The first of several kinds that fits."""
        if value is None and types.NoneType in kinds:
            return None
        faults = []
        for kind in kinds:
            if kind is not types.NoneType:
                try:
                    return self.read(kind, value)
                except _Misfit as misfit:
                    faults.append(misfit)
        raise max(faults, key=lambda misfit: len(misfit.place))  # of what it is most like

    def sequence(self, hint: Any, value: Any) -> Any:
        """A tuple or a list of an array."""
        origin, args = typing.get_origin(hint) or hint, typing.get_args(hint)
        value = _of(list, value)
        if origin is list or (len(args) == 2 and args[1] is Ellipsis):
            kinds = args[:1] * len(value)
        else:
            kinds = args
        if len(kinds) != len(value):
            raise _Misfit(f"{len(value)} entries, expected {len(kinds)}")
        return origin(_at(i, self.read, kinds[i], part) for i, part in enumerate(value))

    def array(self, hint: Any, value: Any) -> np.ndarray:
        """Nested arrays of numbers, every row as long as its neighbours and as its letter says."""
        letters = hint.dim_str.split() if hasattr(hint, "dim_str") else None
        if letters is None:
            return _numbers(value, None)
        array = _numbers(value, len(letters))
        if array.size == 0:  # no row that could say how long rows are
            array = array.reshape([*array.shape, *[0] * len(letters)][: len(letters)])
        wanted = [
            int(letter) if letter.isdigit() else self.axes.setdefault(letter, n)
            for letter, n in zip(letters, array.shape, strict=True)
        ]
        if [*array.shape] != wanted:
            found, expected = (" × ".join(map(str, shape)) for shape in (array.shape, wanted))
            raise _Misfit(f"{found} numbers, expected {expected} ({' × '.join(letters)})")
        return array


@functools.cache
def _fields(kind: Any) -> tuple[dict[str, Any], list[str]]:
    """The hint of each field, and the fields that may not be missing."""
    hints = typing.get_type_hints(kind)
    if not dataclasses.is_dataclass(kind):
        return hints, sorted(kind.__required_keys__)
    fields = dataclasses.fields(kind)
    none = dataclasses.MISSING
    needed = [f.name for f in fields if f.default is none and f.default_factory is none]
    return {field.name: hints[field.name] for field in fields}, needed


def _at(key: str | int, function: Callable[..., Any], *args: Any) -> Any:
    """``function(*args)``, with ``key`` in front of the place of a misfit."""
    try:
        return function(*args)
    except _Misfit as misfit:
        misfit.place.insert(0, key)
        raise


def shown_value(value: Any) -> str:
    """A value of a file for an error, at most 60 characters long."""
    text = json.dumps(value, ensure_ascii=False) if type(value) is not int else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


NAMES = {dict: "an object", list: "an array", str: "a text", bool: "true or false"}


def _of(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise _Misfit(f"{shown_value(value)}, expected {NAMES[kind]}")
    return value


def _literal(values: tuple[Any, ...], value: Any) -> Any:
    for each in values:
        if type(each) is type(value) and each == value:
            return each
    raise _Misfit(f"{shown_value(value)}, expected {' or '.join(map(shown_value, values))}")


def _scalar(hint: Any, value: Any) -> Any:
    if hint is str:
        try:
            _of(str, value).encode()
        except UnicodeEncodeError as error:
            raise _Misfit(f"{value[:60]!r} is not Unicode text") from error
        return value
    if hint in (bool, types.NoneType):
        return _of(bool, value) if hint is bool else _literal((None,), value)
    if hint is int:
        if type(value) is not int or abs(value) >= INTEGERS:
            raise _Misfit(f"{shown_value(value)}, expected an integer below 2^63 in size")
        return value
    if hint is float:
        return _number(value)
    raise TypeError(f"a field of a result cannot be a {hint}")


def _number(value: Any) -> float:
    if type(value) not in (int, float):
        raise _Misfit(f"{shown_value(value)}, expected a number")
    if value != 0 and not SMALLEST <= abs(value) <= LARGEST:
        within = f"0 or from {SMALLEST:g} to {LARGEST:g} in size"
        raise _Misfit(f"{shown_value(value)}, expected a number that is {within}")
    return float(value)


def _numbers(value: Any, axes: int | None) -> np.ndarray:
    """float64 of nested arrays with that many axes (any number: None)."""
    rows = _of(list, value)
    if axes == 1 or (axes is None and not any(type(row) is list for row in rows)):
        return np.array([_at(i, _entry, x) for i, x in enumerate(rows)], np.float64)
    parts = [_at(i, _numbers, row, axes and axes - 1) for i, row in enumerate(rows)]
    for i, part in enumerate(parts):
        if part.shape != parts[0].shape:
            raise _Misfit(f"{len(part)} entries, expected {len(parts[0])} as in the first row", i)
    return np.array(parts, np.float64)


def _entry(value: Any) -> float:
    """A number of an array; NaN where it is null."""
    if type(value) is float and SMALLEST <= abs(value) <= LARGEST:  # nearly every number
        return value
    return math.nan if value is None else _number(value)


def _plain(value: Any) -> Any:
    """Whatever JSON can hold, its numbers and texts within bounds."""
    if type(value) is dict:
        return {_at(key, _scalar, str, key): _at(key, _plain, v) for key, v in value.items()}
    if type(value) is list:
        return [_at(i, _plain, part) for i, part in enumerate(value)]
    if value is None or type(value) in (str, bool, int, float):
        return value if value is None else _scalar(type(value), value)
    raise _Misfit(f"a {type(value).__name__}, expected what JSON can hold")
