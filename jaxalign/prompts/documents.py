"""Documents: the texts of a file of any length, for passes that stream over them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from jaxalign.errors import InputError, require_type, shown
from jaxalign.runtime.files import read_json_lines, read_text

FIELD = "text"
REMEDY = "give a text file, or JSON lines whose name ends in .jsonl"
# A plain text is cut into documents of at least so many characters, about 500 tokens: long enough
# for a window to have context, short enough for intervals over documents to have many.
FEWEST_CHARACTERS = 2000
# The title of an article of WikiText, ` = Title = `; those of its sections begin with ` = = `.
TITLE = re.compile(r" = (?!=).*(?<!=) = ?\r?")


def read_documents(path: Path | str, field: str = FIELD) -> tuple[str, ...]:
    """The documents of a text file.

    * JSON lines (a name that ends in ``.jsonl``): the string ``field`` of every line is one.
    * A text with WikiText's titles, lines ``= Title =`` between blank lines: every article is one,
      its title included; a line inside a paragraph that looks like a title is none.
    * Any other text: paragraphs (blank lines divide them) are put together until there are at
      least 2000 characters; what is left at the end belongs to the last document.

    Blank lines around a document are left out, and so are documents of white space.

    Args:
        path: the file, UTF-8.
        field: the key of JSON lines that has the text.

    Raises:
        InputError: the file is missing, no regular file, no UTF-8 text, or has no text; a line is
            no JSON object, or has no such field.
    """
    require_type("path", path, (str, Path), "the path of a text file")
    require_type("field", field, str, "the key of JSON lines that has the text")
    path = Path(path)
    if path.suffix.lower() == ".jsonl":
        texts = [*_json_texts(path, field)]
    else:
        text = read_text(path, REMEDY)
        _refuse_json_lines(path, text)
        texts = _articles(text) or _passages(text)
    documents = tuple(text for text in texts if text.strip())
    if not documents:
        raise InputError(f"{path} has no text, expected at least one document", REMEDY)
    return documents


def _json_texts(path: Path, field: str) -> Iterator[str]:
    for number, entry in read_json_lines(path, REMEDY):
        text = entry.get(field) if isinstance(entry, dict) else None
        if not isinstance(text, str):
            raise InputError(
                f"{path}: line {number} is {shown(entry)}, expected an object with a string "
                f"{shown(field)}",
                "correct it, or name the field that has the text",
            )
        yield text


def _refuse_json_lines(path: Path, text: str) -> None:
    """Say of JSON lines that they are, where the name does not."""
    first = text.lstrip().partition("\n")[0].strip()
    if first.startswith('{"') and first.endswith("}"):
        raise InputError(
            f"{path} looks like JSON lines, its first line is {shown(first)}",
            "give it a name that ends in .jsonl",
        )


def _articles(text: str) -> list[str]:
    """The articles of WikiText, what stands before the first title too; none without a title."""
    lines = ["", *text.split("\n"), ""]
    starts = [
        i
        for i in range(1, len(lines) - 1)
        if TITLE.fullmatch(lines[i]) and not (lines[i - 1].strip() or lines[i + 1].strip())
    ]
    bounds = [0, *starts, len(lines)]
    parts = (lines[low:high] for low, high in itertools.pairwise(bounds))
    return [_trimmed(part) for part in parts] if starts else []


def _passages(text: str) -> list[str]:
    """Paragraphs put together to at least ``FEWEST_CHARACTERS`` each, if the text has as many."""
    passages: list[list[str]] = [[]]
    size = total = 0  # characters up to the last line that is written, and with blank ones behind
    for line in text.split("\n"):
        if not line.strip() and size >= FEWEST_CHARACTERS:
            passages.append([])
            size = total = 0
        passages[-1].append(line)
        if line.strip() or size:
            total += len(line) + 1
        if line.strip():
            size = total - 1
    if size < FEWEST_CHARACTERS and len(passages) > 1:
        rest = passages.pop()
        passages[-1] += rest
    return [_trimmed(passage) for passage in passages]


def _trimmed(lines: list[str]) -> str:
    """The lines without blank ones at both ends."""
    written = [i for i, line in enumerate(lines) if line.strip()]
    return "\n".join(lines[written[0] : written[-1] + 1]) if written else ""
