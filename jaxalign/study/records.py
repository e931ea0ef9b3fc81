"""What every result can do: a short ``repr``, its screen, its figures, its rows for a table."""

from __future__ import annotations

import dataclasses
import itertools
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from jaxalign.errors import InputError
from jaxalign.study import codec

if TYPE_CHECKING:
    from jaxalign.study.kind import ResultKind

# The kind of each type of result; a kind enters itself when it is made.
KIND_OF: dict[type, ResultKind[Any]] = {}
# Columns for the axes of arrays that have a row a number.
COLUMNS = {"L": "layer", "H": "head"}
Record = dict[str, Any]


class Result:
    """A result; its dataclass inherits this and has a field ``provenance``.

    Class arguments:
        rows: the field whose entries ``records()`` returns: "rows", "prompts",
            "statistics.correlations".
        headline: the fields that ``--json`` prints; all but ``provenance`` by default.

    Example:
        >>> class SchemesResult(Result, rows="rows"): ...
    """

    _rows: ClassVar[str] = ""
    _headline: ClassVar[tuple[str, ...]] = ()
    provenance: Any

    def __init_subclass__(cls, rows: str = "", headline: Sequence[str] = (), **more: Any) -> None:
        super().__init_subclass__(**more)
        cls._rows, cls._headline = rows or cls._rows, tuple(headline) or cls._headline
        cls.__repr__ = Result.__repr__  # type: ignore[method-assign] # dataclasses keep what is there

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} of {self.provenance.subject}: "
            ".summary(), .details(), .records(), .plot(folder)>"
        )

    @property
    def _kind(self) -> ResultKind[Any]:
        for kind in type(self).__mro__:
            if kind in KIND_OF:
                return KIND_OF[kind]
        raise TypeError(f"no kind of result has the type {type(self).__name__}")

    def summary(self) -> str:
        """The screen that the command prints."""
        return self._kind.table(self)

    def details(self) -> str:
        """What the command prints after it with ``--verbose``."""
        return self._kind.details(self)

    def plot(self, folder: Path | str) -> list[Path]:
        """Draw the figures; returns the paths written.

        Args:
            folder: made where it is missing.

        Raises:
            InputError: the folder cannot be written.
        """
        return self._kind.draw(self, Path(folder))

    def write(self, path: Path | str) -> Any:
        """Write the file that ``jaxalign.read`` reads; returns the result as it will be read.

        Args:
            path: the file.

        Raises:
            InputError: it cannot be written.
        """
        return self._kind.write(self, path)

    def records(self, rows: str | None = None) -> list[Record]:
        """Rows as flat dictionaries, ready for ``pandas.DataFrame``.

        A part of a part has its place in its name (``"f16.drift"`` of ``precisions``,
        ``"kl.low"``). Where arrays count layers and heads, there is a row for each head.

        Args:
            rows: which part of the result, a tuple of dataclasses: ``"statistics.correlations"``;
                the study's rows by default.

        Raises:
            InputError: the result has no such part; names those that it has.

        Example:
            >>> pandas.DataFrame(jaxalign.read("results/experiment.json").records())
        """
        place = self._rows if rows is None else rows
        found: Any = self
        for name in place.split("."):
            found = getattr(found, name, None) if dataclasses.is_dataclass(found) else None
        if not _is_rows(found):
            parts = ", ".join(_parts(self)) or "none"
            raise InputError(f"{place!r} names no rows of the result", f"use one of: {parts}")
        return [record for entry in found for record in _records(entry)]

    def to_dataframe(self, rows: str | None = None) -> Any:
        """``records`` as a ``pandas.DataFrame``.

        Args:
            rows: as for ``records``.

        Raises:
            InputError: there is no such part, or pandas is not installed.
        """
        records = self.records(rows)
        try:
            import pandas
        except ImportError as error:
            raise InputError(
                "pandas is not installed", "pip install pandas, or use .records()"
            ) from error
        return pandas.DataFrame(records)


def content_of(kind: ResultKind[Any], result: Any) -> dict[str, Any]:
    """What a result says, as what JSON holds: ``--json``.

    Args:
        kind: of the result.
        result: any.
    """
    where = result.provenance
    names = getattr(result, "_headline", ()) or [
        f.name for f in dataclasses.fields(result) if f.name != "provenance"
    ]
    return {
        "format": kind.format,
        **codec.encode(where.headline),
        "device": where.environment.device_kind,
        "seconds": codec.encode(float(where.total_seconds)),
        "notes": list(where.notes),
        "options": codec.encode(where.options),
        **{name: codec.encode(getattr(result, name)) for name in names},
    }


def _is_rows(value: Any) -> bool:
    return isinstance(value, tuple | list) and all(map(dataclasses.is_dataclass, value))


def _parts(value: Any, place: str = "") -> Iterator[str]:
    """The places of all tuples of dataclasses that are not within one."""
    for field in dataclasses.fields(value):
        part = getattr(value, field.name)
        if _is_rows(part) and part:
            yield f"{place}{field.name}"
        elif dataclasses.is_dataclass(part) and field.name != "provenance":
            yield from _parts(part, f"{place}{field.name}.")


def _records(entry: Any) -> Iterator[Record]:
    """The rows of one dataclass: one, or one for each place of the arrays that count something."""
    plain: Record = {}
    arrays: dict[str, tuple[tuple[str, ...], np.ndarray]] = {}
    for name, axes, value in _leaves(entry):
        if axes:
            arrays[name] = axes, value
        else:
            plain[name] = value
    counted = [axes for axes, _ in arrays.values() if set(axes) <= set(COLUMNS)]
    axes = max(counted, key=len, default=())
    # Several values a place, such as draws, are a list in the place's row.
    rows = {
        name: np.moveaxis(value, range(-len(axes), 0), range(len(axes)))
        for name, (own, value) in arrays.items()
        if own[len(own) - len(axes) :] == axes
    }
    rest = {name: value.tolist() for name, (_, value) in arrays.items() if name not in rows}
    if not axes:
        yield plain | rest
        return
    shape = next(iter(rows.values())).shape[: len(axes)]
    for place in itertools.product(*map(range, shape)):
        at = dict(zip((COLUMNS[axis] for axis in axes), place, strict=True))
        yield plain | at | {name: value[place].tolist() for name, value in rows.items()} | rest


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, tuple[str, ...], Any]]:
    """Names, axes of arrays, and values of everything in a dataclass."""
    hints = typing.get_type_hints(type(value))
    for field in dataclasses.fields(value):
        yield from _leaf(f"{prefix}{field.name}", hints[field.name], getattr(value, field.name))


def _leaf(name: str, hint: Any, value: Any) -> Iterator[tuple[str, tuple[str, ...], Any]]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from _leaves(value, f"{name}.")
    elif isinstance(value, Mapping):
        part = next(iter(typing.get_args(_present(hint))[1:]), Any)
        for key, each in value.items():
            # "f16.drift", not "precisions.f16.drift": the key says what it is.
            place = str(key) if dataclasses.is_dataclass(each) else f"{name}.{key}"
            yield from _leaf(place, part, each)
    elif isinstance(value, np.ndarray):
        yield name, tuple(getattr(_present(hint), "dim_str", "").split()), value
    elif value is None and dataclasses.is_dataclass(_present(hint)):
        # What is not there has its columns all the same.
        hints = typing.get_type_hints(_present(hint))
        for field in dataclasses.fields(_present(hint)):
            yield from _leaf(f"{name}.{field.name}", hints[field.name], None)
    else:
        yield name, (), value


def _present(hint: Any) -> Any:
    """``X`` of ``X | None``."""
    kinds = [one for one in typing.get_args(hint) if one is not type(None)]
    optional = type(None) in typing.get_args(hint)
    return kinds[0] if optional and len(kinds) == 1 else hint
