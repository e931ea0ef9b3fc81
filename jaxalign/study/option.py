"""An option of a study: a field of its options dataclass, with the flag and the values it takes.

The command line is built from these fields (``commands.arguments.add_options``), and a dataclass
checks itself by them, so a value is refused in the same words wherever it comes from.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxalign.errors import InputError
from jaxalign.numerics.scheme import Scheme, as_scheme, as_schemes, scheme_named
from jaxalign.runtime.products import PRODUCTS

# JAX keeps 32 bits of a seed: a larger one would draw what a smaller one draws.
MOST = 2**32 - 1
MOST_GB = 1e9
SEED_HELP = "of everything drawn at random"
MEMORY_HELP = (
    "memory of one device for weights and activations (default: on a GPU 0.9 of what JAX may take "
    "there; on a CPU 4, or half of what a smaller machine has)"
)


@dataclass(frozen=True, kw_only=True)
class Option:
    """What the command line knows of a field.

    Attributes:
        flag: as it is typed: "--max-repair-k".
        help: what it does, without the default, which the field has.
        metavar: what stands for the value in the help.
        choices: the words that it takes; empty for any.
        least: the smallest number that it takes; None for a number above 0.
        most: the largest.
        parse: makes the value of what was typed; by default the field's type does.
        take: makes the value of what Python code gave, a scheme of its name; raises InputError.
        group: the heading of the help that it stands under.
    """

    flag: str
    help: str
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    least: int | None = None
    most: int | float = MOST
    parse: Callable[[str], Any] | None = None
    take: Callable[[Any], Any] | None = None
    group: str = "the study"


def option(flag: str, **more: Any) -> Mapping[str, Option]:
    """The ``metadata`` of a dataclass's field that is an option.

    Args:
        flag: as it is typed.
        more: the other attributes of ``Option``; ``help`` is one that has to be given.

    Example:
        >>> max_repair_k: int = field(
        ...     default=10, metadata=option("--max-repair-k", help="heads to restore", least=1)
        ... )
    """
    return {"option": Option(flag=flag, **more)}


def seed_option() -> Mapping[str, Option]:
    """The ``metadata`` of a study's seed."""
    return option("--seed", metavar="N", help=SEED_HELP, least=0)


def memory_option() -> Mapping[str, Option]:
    """The ``metadata`` of a study's memory budget, in 1e9 bytes."""
    return option("--memory-gb", metavar="GB", help=MEMORY_HELP, most=MOST_GB, group="what runs")


def products_option() -> Mapping[str, Option]:
    """The ``metadata`` of how f32 products are computed."""
    return option(
        "--products",
        choices=PRODUCTS,
        group="what runs",
        help="how a GPU computes f32 matrix products: in f32, or by three or six shorter ones on "
        "tensor cores (docs/precision.md has speed and error)",
    )


def schemes_option(help: str) -> Mapping[str, Option]:
    """The ``metadata`` of a list of precisions.

    Args:
        help: what they are for; where the names of all schemes stand is added.
    """
    help = f"{help}, with commas; docs/schemes.md has them all"
    more = {"metavar": "LIST", "parse": schemes_listed, "take": as_schemes}
    return option("--schemes", help=help, **more)


def scheme_option(help: str) -> Mapping[str, Option]:
    """The ``metadata`` of one precision.

    Args:
        help: what it is for.
    """
    more = {"metavar": "NAME", "parse": scheme_named, "take": as_scheme}
    return option("--scheme", help=help, **more)


def options_of(kind: Any) -> dict[str, Option]:
    """The options of a dataclass, by the names of their fields.

    Args:
        kind: the dataclass or an instance of it.
    """
    return {
        field.name: field.metadata["option"]
        for field in dataclasses.fields(kind)
        if "option" in field.metadata
    }


def check_options(options: Any) -> None:
    """Check each field of an options dataclass by what its ``option`` says, and take what it takes.

    Args:
        options: the instance; call it in ``__post_init__``. A scheme may be given by its name: the
            field then is the scheme.

    Raises:
        InputError: a word that is not among the choices, a number out of range, or no scheme.
    """
    for name, known in options_of(options).items():
        value = getattr(options, name)
        if known.take is not None:
            value = known.take(value)
            object.__setattr__(options, name, value)
        if known.choices:
            check_word(known, value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            _check_number(known, value)


def check_word(known: Option, value: str) -> None:
    """Check a word against those that an option takes.

    Raises:
        InputError: it is none of them.
    """
    if value not in known.choices:
        raise InputError(f"{known.flag} {value!r} is unknown", f"use {' or '.join(known.choices)}")


def _check_number(known: Option, value: int | float) -> None:
    above = value > 0 if known.least is None else value >= known.least
    if not above:
        words = {None: "a positive number", 0: "0 or a positive whole number"}
        remedy = words.get(known.least, f"at least {known.least}")
    elif value > known.most:
        remedy = "a positive number" if value == math.inf else f"at most {known.most:.10g}"
    else:
        return
    raise InputError(f"{known.flag} is {str(value)[:40]}", f"give {remedy}")


def listed(names: str) -> tuple[str, ...]:
    """A list of the command line: names with commas between them."""
    return tuple(name.strip() for name in names.split(",") if name.strip())


def refuse_repeated(schemes: Sequence[Scheme], reference: Scheme | None = None) -> None:
    """Refuse schemes that are named more than once.

    Args:
        schemes: of the options.
        reference: a scheme that is there whatever the options say.

    Raises:
        InputError: names them.
    """
    names = [scheme.name for scheme in (*([reference] if reference else []), *schemes)]
    if repeated := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        always = f" ({reference.name} is always there)" if reference else ""
        raise InputError(
            f"schemes name {', '.join(repeated)} more than once{always}", "name each scheme once"
        )


def schemes_listed(names: str) -> tuple[Scheme, ...]:
    """The schemes of a list.

    Raises:
        InputError: the list is empty, or no scheme has one of its names.
    """
    schemes = tuple(scheme_named(name) for name in listed(names))
    if not schemes:
        raise InputError(f"--schemes {names!r} names no scheme", "name one, for example nf4")
    return schemes
