"""Beginnings of code for a model to continue: templates filled with words, by category.

The templates are a file of their own. Every one names a *thing* (an order, a sensor, …) that the
code is about, so a category has as many prompts as it has templates times things, all distinct.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from jaxalign.errors import InputError, require_type
from jaxalign.runtime.files import read_text

# Prompts of each category by default.
CODE_COUNTS: Mapping[str, int] = MappingProxyType(
    {
        "python_functions": 230,
        "type_annotations": 100,
        "class_definitions": 50,
        "javascript_typescript": 320,
        "rust": 150,
        "go": 120,
        "error_handling": 96,
    }
)
TEMPLATES = Path(__file__).parent / "code_templates.txt"
MARK = "%%"  # a line of it stands before every template; the first of a category names it
SLOT = re.compile("«([A-Za-z]+)»")
# What code is about: one, several, a field of text, a field that is a number.
THINGS = """
account accounts owner balance; airport airports city elevation; article articles title length;
author authors name age; battery batteries label voltage; book books title pages;
booking bookings reference price; building buildings address height; camera cameras model zoom;
city cities country population; comment comments author score; course courses title credits;
customer customers email balance; delivery deliveries address weight; device devices serial voltage;
employee employees name salary; event events location duration; flight flights carrier distance;
game games title score; garden gardens name area; image images caption width;
invoice invoices reference amount; item items label price; library libraries city capacity;
line_item line_items label quantity; machine machines serial speed; message messages sender size;
order orders status total; patient patients name age; payment payments currency amount;
planet planets name mass; player players nickname score; product products title price;
recipe recipes title servings; river rivers name length; sensor sensors location reading;
song songs artist duration; student students name grade; task tasks owner priority;
team teams name points; ticket tickets subject priority; tree trees species height;
user users email age; vehicle vehicles model mileage; weather_report weather_reports city pressure
"""
STATES = "active archived closing expired hidden open pending recent urgent valid verified visible"
VERBS = "add archive create find load publish remove save schedule send update validate"
NUMBERS = "2 3 4 5 8 10 12 16 20 24 32 50 64 100"


@dataclass(frozen=True, kw_only=True)
class CodePrompt:
    """The beginning of a piece of code.

    Attributes:
        category: a key of ``CODE_COUNTS``.
        text: the code; it ends in the middle of a statement or before a body, without white space.
    """

    category: str
    text: str


def code_prompts(counts: Mapping[str, int] | None = None, seed: int = 0) -> tuple[CodePrompt, ...]:
    """Distinct prompts of code, the same ones on every machine.

    Fewer prompts of a category are the first of more, and one category does not change another.

    Args:
        counts: prompts of each category, ``CODE_COUNTS`` by default; a category that is left out
            has none.
        seed: chooses the words, and the order of the templates.

    Raises:
        InputError: a category that there is not, a count that is no whole number or below 0, or
            more prompts than the category has.

    Example:
        >>> code_prompts({"rust": 1, "go": 2})[0].category
        'rust'
    """
    require_type("counts", counts, (Mapping, type(None)), "a dict of prompts by category")
    require_type("seed", seed, (int,), "a whole number")
    counts = CODE_COUNTS if counts is None else counts
    known = _templates()
    for category, count in counts.items():
        _check(category, count, known)
    return tuple(
        CodePrompt(category=category, text=text)
        for category, count in counts.items()
        for text, _ in zip(_texts(known[category], seed), range(count), strict=False)
    )


def _check(category: str, count: int, known: Mapping[str, tuple[str, ...]]) -> None:
    if category not in known:
        raise InputError(
            f"counts name the category {category!r}, expected some of {', '.join(known)}",
            "name one of these",
        )
    require_type(f"counts[{category!r}]", count, (int,), "a whole number")
    most = len(known[category]) * len(_things())
    if not 0 <= count <= most:
        raise InputError(
            f"counts[{category!r}] is {count}, expected 0 to {most}: the category has no more "
            "distinct prompts",
            f"ask for at most {most}",
        )


def _texts(templates: tuple[str, ...], seed: int) -> Iterator[str]:
    """All prompts of a category, every template in turn, each time with another thing."""
    templates = tuple(sorted(templates, key=lambda template: _drawn(seed, template)))
    for things in zip(*(_shuffled(template, seed) for template in templates), strict=True):
        for template, thing in zip(templates, things, strict=True):
            yield _filled(template, thing, seed)


def _shuffled(template: str, seed: int) -> list[tuple[str, ...]]:
    return sorted(_things(), key=lambda thing: _drawn(seed, template, *thing))


def _filled(template: str, thing: tuple[str, ...], seed: int) -> str:
    """The template with its thing, and with a verb, a state and a number drawn for the two."""
    noun, nouns, text, number = thing
    state, verb, n = (
        choices[_drawn(seed, template, noun, name) % len(choices)]
        for name, choices in (
            ("state", STATES.split()), ("verb", VERBS.split()), ("n", NUMBERS.split())
        )
    )  # fmt: skip
    words = {"noun": noun, "nouns": nouns, "text": text, "number": number}
    words |= {"state": state, "verb": verb, "n": n}
    capital = {name.capitalize(): _pascal(word) for name, word in words.items()}
    camel = {f"{name}Camel": _camel(words[name]) for name in ("noun", "nouns")}
    other = {"words": noun.replace("_", " "), "STATE": state.upper()}
    slots = words | capital | camel | other
    return SLOT.sub(lambda found: slots[found[1]], template)


def _pascal(word: str) -> str:
    return "".join(part.capitalize() for part in word.split("_"))


def _camel(word: str) -> str:
    return word[0] + _pascal(word)[1:]


def _drawn(seed: int, *names: str) -> int:
    """A number from the hash of what it is for: no generator's version changes it."""
    text = "\0".join((str(seed), *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


@functools.cache
def _things() -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(thing.split()) for thing in THINGS.split(";"))


@functools.cache
def _templates() -> Mapping[str, tuple[str, ...]]:
    """The templates of each category, in the order of ``CODE_COUNTS``."""
    found: dict[str, list[str]] = {}
    category = ""
    for part in f"\n{read_text(TEMPLATES)}".split(f"\n{MARK}")[1:]:
        name, _, template = part.partition("\n")
        category = name.strip() or category
        found.setdefault(category, []).append(template.rstrip())
    return MappingProxyType({name: tuple(templates) for name, templates in found.items()})
