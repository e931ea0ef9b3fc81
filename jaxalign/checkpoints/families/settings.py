"""Reads a ``config.json`` field by field; fields that nothing has read at the end are refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxalign.checkpoints.families.neutral import PLAIN, neutral
from jaxalign.checkpoints.tables import Table
from jaxalign.errors import InputError, shown
from jaxalign.model.config import MOST, ModelConfig

MOST_LAYERS = 100_000  # no model has nearly as many

NEEDED: Any = object()

ROTARY = ("rope_parameters", "rope_scaling")


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family of models.

    Attributes:
        title: what people call it.
        read: from settings to the fields of ``ModelConfig``; with ``family`` where the model is of
            another one's (the text model inside of a larger one).
        write: from a configuration to the settings that ``read`` takes.
        table: from its published tensors to our parameters and back.
    """

    title: str
    read: Callable[[Settings], dict[str, Any]]
    write: Callable[[ModelConfig], dict[str, Any]]
    table: Table


class Settings:
    """The settings of a ``config.json`` that may change what the model computes.

    Every reading takes its setting away; ``finish`` refuses what is left.

    Args:
        settings: the content of the file, or of an object inside of it.
        where: the file (and the object), for messages.
        ignored: settings that are not known here and that the user says change nothing.
        file: what kind of file it is, for remedies.

    Attributes:
        notes: what the user has to know about how the settings were read.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        where: str = "config.json",
        ignored: Sequence[str] = (),
        file: str = "config.json",
    ) -> None:
        self.where = where
        self.complete = f"use a complete {file}"
        self.as_published = f"use the {file} that was published with these weights"
        self.ignored = ignored
        self.given = frozenset(settings)
        self.left = {name: value for name, value in settings.items() if not neutral(name)}
        self.notes: list[str] = []

    def whole(self, name: str, default: Any = NEEDED, most: int = MOST, least: int = 1) -> int:
        """A whole number; ``default`` where it is missing or null.

        Args:
            name: the setting.
            default: what it is where it is missing; without one, the setting must be there.
            most, least: the range of values that are taken.

        Raises:
            InputError: it is missing, of another type, or out of range.
        """
        value = self.take(name, default)
        if _finite(value) and value == int(value) and least <= value <= most:
            return int(value)
        raise self.wrong(name, value, f"a whole number from {least} to {most}")

    def number(self, name: str, default: Any = NEEDED, zero: bool = False) -> float:
        """A positive, finite number; ``default`` where it is missing or null.

        Args:
            name: the setting.
            default: what it is where it is missing; without one, the setting must be there.
            zero: whether it may be 0.

        Raises:
            InputError: it is missing, of another type, or out of range.
        """
        value = self.take(name, default)
        if _finite(value) and (value > 0 or (zero and value == 0)):
            return float(value)
        raise self.wrong(name, value, "a finite number " + ("from 0 up" if zero else "above 0"))

    def flag(self, name: str, default: bool) -> bool:
        """``true`` or ``false``; ``default`` where it is missing or null.

        Raises:
            InputError: it is something else, such as a text or a number.
        """
        value = self.take(name, default)
        if isinstance(value, bool):
            return value
        raise self.wrong(name, value, "true or false")

    def word(self, name: str, default: str) -> str:
        """A text; ``default`` where it is missing or null.

        Raises:
            InputError: it is something else.
        """
        value = self.take(name, default)
        if isinstance(value, str):
            return value
        raise self.wrong(name, value, "a text")

    def optional_whole(self, name: str, default: int | None) -> int | None:
        """A positive whole number, or null, which says that the model lacks it."""
        return self.whole(name) if self.has(name) else self.left.pop(name, default)

    def optional_number(self, name: str, default: float | None) -> float | None:
        """A positive, finite number, or null, which says that the model lacks it."""
        return self.number(name) if self.has(name) else self.left.pop(name, default)

    def has(self, name: str) -> bool:
        """Whether a setting is there and not null."""
        return self.left.get(name) is not None

    def inner(self, name: str) -> Settings:
        """The settings of an object inside the file; empty where it is missing or null.

        Raises:
            InputError: it is something else.
        """
        value = self.take(name, {})
        if not isinstance(value, Mapping):
            raise self.wrong(name, value, "an object")
        return Settings(value, f"{self.where}: {name}")

    def take(self, name: str, default: Any) -> Any:
        """A setting of any type, ``default`` where it is missing or null.

        Raises:
            InputError: it is missing, and ``default`` is ``NEEDED``.
        """
        value = self.left.pop(name, None)
        if value is None and default is NEEDED:
            raise InputError(f"{self.where} lacks {name!r}", self.complete)
        return default if value is None else value

    def only(self, name: str, *values: Any) -> None:
        """Take a setting away that the decoder can have in one way only.

        Raises:
            InputError: it has another value; names it.
        """
        value = self.left.pop(name, None)
        if value is not None and not any(_same(value, known) for known in values):
            raise InputError(
                f"{self.where} has {name} {shown(value)}, expected "
                f"{' or '.join(map(repr, values))}",
                "use a model without it; it changes what the model computes",
            )

    def positions(self, default: int, name: str = "max_position_embeddings") -> int:
        """The longest sequence; where it is missing, transformers' default and a note.

        Args:
            default: what transformers assumes.
            name: the setting.
        """
        if not self.has(name):
            self.notes.append(f"{self.where} has no {name}: {default}, as transformers assumes")
        return self.whole(name, default)

    def kind(self) -> str:
        """The kind of rotary scaling: ``rope_type``, or ``type`` in the old spelling."""
        old = self.word("type", "default")
        return self.word("rope_type", old)

    def windows(self, layers: int, size: int | None) -> tuple[int | None, ...] | None:
        """Each layer's window from ``layer_types``; None where ``layer_types`` is not given.

        Args:
            layers: how many layers there are.
            size: positions that a query of a layer with a window sees.

        Raises:
            InputError: not one known type a layer, or windows without a size.
        """
        kinds = self.take("layer_types", None)
        if kinds is None:
            return None
        known = ("full_attention", "sliding_attention")
        right = isinstance(kinds, list) and len(kinds) == layers
        if not right or not all(kind in known for kind in kinds):
            raise InputError(
                f"{self.where} has layer_types {shown(kinds)}, expected one of "
                f"{' and '.join(known)} for each of {layers} layers",
                "use the config.json that belongs to these weights",
            )
        if known[1] in kinds and size is None:
            raise InputError(
                f"{self.where} has sliding_attention layers, but no sliding_window",
                self.complete,
            )
        return tuple(size if kind == known[1] else None for kind in kinds)

    def wrong(self, name: str, value: Any, expected: str) -> InputError:
        """The error of a setting that has another type or range than expected.

        Args:
            name: the setting.
            value: what it is.
            expected: what it should be, in words.
        """
        return InputError(f"{self.where}: {name} is {shown(value)}, expected {expected}",
                          self.as_published)  # fmt: skip

    def finish(self) -> None:
        """Refuse every setting that is left, since it may change the computation.

        Raises:
            InputError: a setting is not known and not ignored; or one that was to be ignored is
                missing, or known.
        """
        for name, value in PLAIN.items():
            self.only(name, value)
        for name in self.ignored:
            if name not in self.left:
                found = "is known, so it was read" if name in self.given else "is not there"
                raise InputError(
                    f"{self.where}: setting {name!r}, which was to be ignored, {found}",
                    f"leave out --ignore-setting {name}",
                )
        ignored = sorted(set(self.ignored))
        if ignored:
            self.notes.append(f"settings of {self.where} were ignored: {', '.join(ignored)}")
        left = sorted(
            name for name, value in self.left.items() if value is not None and name not in ignored
        )
        if left:
            raise InputError(
                f"{self.where} has settings that are not known: {', '.join(left)}",
                "they may change what the model computes; where you know that they do not, "
                f"give --ignore-setting {left[0]}",
            )


def _finite(value: Any) -> bool:
    """Whether a value of a JSON file is a number (``true`` is none) that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 2**1023 if isinstance(value, int) else math.isfinite(value)


def _same(value: Any, known: Any) -> bool:
    """Equality that tells 1 from true."""
    return value == known and isinstance(value, bool) == isinstance(known, bool)


def layer_types(config: ModelConfig) -> list[str]:
    """Each layer's kind of attention, by its published name."""
    windows = config.windows or (None,) * config.num_layers
    return ["full_attention" if w is None else "sliding_attention" for w in windows]


def sizes(settings: Settings) -> dict[str, Any]:
    """The fields that every family spells alike."""
    return {
        "vocab_size": settings.whole("vocab_size"),
        "num_layers": settings.whole("num_hidden_layers", most=MOST_LAYERS),
        "num_heads": settings.whole("num_attention_heads"),
        "hidden_size": settings.whole("hidden_size"),
        "intermediate_size": settings.whole("intermediate_size"),
    }
