"""Text of figures: names from files made short and safe to draw, numbers as a reader expects them.

Every text of a figure passes ``shown``: the words of a page where its lines are broken, everything
else when the page is settled (``Page.settled``).
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Sequence

from matplotlib.font_manager import FontProperties, findfont, get_font

from jaxalign.errors import printable, shortened

FAMILY = "DejaVu Sans"  # comes with matplotlib, so figures look the same everywhere
PRECISION_NAMES = {"f32": "f32", "f16": "f16", "int8-sim": "simulated int8"}
LONGEST_NAME = 20  # characters
LONGEST_PRECISION = 26
LONGEST_LINE = 2000
LISTED = 8  # names in a sentence
PLAIN = (1e-6, 1e6)  # sizes written without an exponent


@functools.cache
def _glyphs() -> frozenset[int]:
    """Code points that the font can draw, regular and bold."""
    fonts = (get_font(findfont(FontProperties(family=FAMILY, weight=w))) for w in (400, 700))
    regular, bold = (frozenset(font.get_charmap()) for font in fonts)
    return regular & bold


def shown(text: str) -> str:
    """``text`` as a figure can draw it, and an SVG file can hold it.

    Control characters and characters that the font lacks are escaped in Python's notation; a line
    of more than ``LONGEST_LINE`` characters loses its middle.
    """
    lines = [shortened(line, LONGEST_LINE) for line in text.split("\n")]
    return "\n".join(shortened(_drawable(printable(line)), LONGEST_LINE) for line in lines)


def _drawable(text: str) -> str:
    if text.isascii():
        return text
    drawable = _glyphs()
    return "".join(
        c if ord(c) in drawable else c.encode("unicode_escape").decode("ascii") for c in text
    )


@functools.lru_cache
def short_names(names: tuple[str, ...], longest: int = LONGEST_NAME) -> dict[str, str]:
    """Each name as one short line; names that look the same then are numbered.

    Args:
        names: as a file has them, each once.
        longest: characters of a short name, the number not counted.
    """
    short = {name: shortened(shown(name.replace("\n", "\\n")), longest) for name in names}
    count = Counter(short.values())
    place: Counter[str] = Counter()
    for name, text in short.items():
        if count[text] > 1:
            place[text] += 1
            short[name] = f"{text} ({place[text]})"
    return short


def short_name(name: str, longest: int = LONGEST_NAME) -> str:
    """One name as a short line, for a label that stands alone."""
    return short_names((name,), longest)[name]


def precision_name(name: str) -> str:
    """The precision in words."""
    return PRECISION_NAMES.get(name) or short_name(name, LONGEST_PRECISION)


def listed(parts: Sequence[str]) -> str:
    """Parts with commas between them, at most ``LISTED`` and how many more there are."""
    more = len(parts) - LISTED
    return ", ".join([*parts[:LISTED], *([f"and {more} more"] if more > 0 else [])])


def model_words(model: dict[str, str]) -> tuple[str, str]:
    """A model's name and revision for a caption.

    Args:
        model: a result's ``provenance.model``: name, revision (or none) and weights_sha256.
    """
    revision = model["revision"] or f"none (weights sha256 {model['weights_sha256'][:12]})"
    return f"Model {short_name(model['name'], 80)}", f"revision {short_name(revision, 80)}"


def significant(value: float, digits: int = 2) -> str:
    """The value with ``digits`` significant digits; an exponent only for an extreme value."""
    if not math.isfinite(value) or value == 0:
        return "0" if value == 0 else "–"
    if not PLAIN[0] <= abs(value) < PLAIN[1]:
        return f"{value:.{digits - 1}e}".replace("-", "−")
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{places}f}".replace("-", "−")


def signed(value: float, places: int) -> str:
    """The value with its sign, typeset; no sign where it rounds to 0."""
    form = "f" if abs(value) < PLAIN[1] else "e"
    text = f"{value:+.{places}{form}}".replace("-", "−")
    return text if text.strip("+−0.") else text[1:]


def p_text(p: float) -> str:
    """``p = 0.012``; never ``p = 0.000``."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.0995 else f"p = {p:.2f}"


def places_for(*values: float | None) -> int:
    """Decimal places that show three significant digits of the largest of these values."""
    sizes = [abs(v) for v in values if v]
    return min(6, max(2, 2 - math.floor(math.log10(max(sizes))))) if sizes else 2
