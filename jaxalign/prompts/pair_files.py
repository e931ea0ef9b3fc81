"""Files of pairs of prompts.

A pairs file is JSON in the layout in which circuits are published, or a bare list of its entries::

    {"prompts": [{"clean": "The capital of France is", "corrupted": "The capital of Japan is",
                  "answers": [" Paris"], "wrong_answers": [" Tokyo"]}, ...]}

or CSV with a column each, several answers with ``|`` between them. ``corrupt`` will do for
``corrupted``, and ``task`` may name a group of pairs.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign.errors import InputError, require_type, shown
from jaxalign.prompts.pairs import PairSet, PairText
from jaxalign.prompts.texts import PromptSet, read_prompts
from jaxalign.runtime.files import read_json, read_text

SHIPPED_PAIRS = Path(__file__).parent / "shipped_pairs.json"
SEPARATOR = "|"  # between the answers of a cell of CSV
TASK = "pairs"  # of pairs that name none
NEEDED = ("clean", "corrupted", "answers", "wrong_answers")
FIELDS = (*NEEDED, "task")


def read_pairs(path: Path | str | None = None) -> PromptSet:
    """Read and check a file of pairs (the one that is shipped by default), or of prompts.

    Args:
        path: JSON or, where its name ends in ``.csv``, CSV.

    Returns:
        A ``PairSet``; of a prompts file, whose prompts ``tokenize_pairs`` pairs, a ``PromptSet``.

    Raises:
        InputError: the file is missing or malformed; says where and what was expected.
    """
    require_type("path", path, (str, Path, type(None)), "the path of a file of pairs")
    path = Path(path) if path is not None else SHIPPED_PAIRS
    if path.suffix.lower() == ".csv":
        return _pair_set(path, [*_csv_rows(path)])
    _refuse_csv(path)
    content = read_json(path, "check --prompts")
    _refuse_other_keys(path, content)
    if isinstance(content, dict) and not ("prompts" in content and _are_pairs(content["prompts"])):
        return read_prompts(path)
    entries = content["prompts"] if isinstance(content, dict) else content
    if not isinstance(entries, list):
        raise _malformed(path, "the top level", '{"prompts": [...]} or a list of pairs', content)
    if isinstance(content, dict) and (more := [name for name in content if name != "prompts"]):
        raise InputError(
            f"pairs file {path}: {more[0]!r} stands beside the pairs, and nothing reads it",
            "leave it out",
        )
    return _pair_set(path, [(f"prompts[{i}]", entry) for i, entry in enumerate(entries)])


def _refuse_csv(path: Path) -> None:
    """Say of CSV that it is, where its name does not."""
    text = read_text(path, "check --prompts").lstrip()
    if text[:1] not in ("{", "[") and "clean" in (line := text.partition("\n")[0]) and "," in line:
        raise InputError(f"pairs file {path} looks like CSV", "give it a name that ends in .csv")


def _refuse_other_keys(path: Path, content: Any) -> None:
    """Say where pairs have to stand, of a file that has them somewhere else."""
    if not isinstance(content, dict) or "prompts" in content:
        return
    for name, entries in content.items():
        first = entries[0] if isinstance(entries, list) and entries else None
        if isinstance(first, dict) and "clean" in first:
            raise InputError(
                f'pairs file {path} has pairs under {shown(name)}, expected them under "prompts"',
                'name it so; a pair\'s group is its "task"',
            )


def _are_pairs(entries: Any) -> bool:
    """Whether ``prompts`` are pairs, not a task of single prompts that has this name."""
    if not isinstance(entries, list) or not entries or not isinstance(entries[0], dict):
        return True
    return "prompt" not in entries[0]


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a CSV file as JSON would have them, and where they stand."""
    text = read_text(path, "check --prompts")
    if not text.strip():
        raise InputError(f"pairs file {path} is empty", f"give the columns {', '.join(NEEDED)}")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = _columns(path, next(reader))
        for number, cells in enumerate(filter(None, reader), 2):
            if len(cells) != len(columns):
                raise InputError(
                    f"pairs file {path}: row {number} has not as many cells as there are columns",
                    'put texts with commas in quotation marks: "When Mary, ..."',
                )
            row = dict(zip(columns, cells, strict=True))
            answers = {k: row[k].split(SEPARATOR) for k in ("answers", "wrong_answers")}
            named = {name: cell for name, cell in row.items() if cell or name != "task"}
            yield f"row {number}", named | answers
    except csv.Error as error:
        raise InputError(
            f"pairs file {path}, line {reader.line_num}, is not CSV ({error})",
            "correct it; a quotation mark within a quoted text is written twice",
        ) from error


def _columns(path: Path, header: Sequence[str]) -> list[str]:
    """The columns of a CSV file, each of which is read."""
    names = [name.strip() for name in header]
    columns = ["corrupted" if name == "corrupt" else name for name in names]
    remedy = (
        f"give the columns {', '.join(NEEDED)} with commas between; several answers with "
        f"{SEPARATOR} between"
    )
    found = f"found {', '.join(repr(name[:80]) for name in names[:8])}"
    if missing := [name for name in NEEDED if name not in columns]:
        raise InputError(f"pairs file {path} has no column {missing[0]!r}; {found}", remedy)
    for name in columns:
        if columns.count(name) > 1:
            raise InputError(f"pairs file {path} has two columns {name!r}; {found}", "keep one")
        if name not in FIELDS:
            raise InputError(
                f"pairs file {path} has a column {name[:80]!r}, and nothing reads it",
                "leave it out",
            )
    return columns


def _pair_set(path: Path, entries: Sequence[tuple[str, Any]]) -> PairSet:
    """The pairs of a file's entries, each with its place."""
    tasks: dict[str, list[PairText]] = {}
    for where, entry in entries:
        task, pair = _pair(path, where, entry)
        tasks.setdefault(task, []).append(pair)
    if not tasks:
        raise InputError(f"pairs file {path} has no pairs", "add some")
    return PairSet({name: tuple(pairs) for name, pairs in tasks.items()})


def _pair(path: Path, where: str, entry: Any) -> tuple[str, PairText]:
    """One pair of a file and its task."""
    texts, lists = '"clean" and "corrupted"', '"answers" and "wrong_answers"'
    expected = f"an object with texts {texts} and lists of texts {lists}"
    if not isinstance(entry, Mapping):
        raise _malformed(path, where, expected, entry)
    if "corrupt" in entry and "corrupted" not in entry:
        entry = {("corrupted" if name == "corrupt" else name): v for name, v in entry.items()}
    if missing := [name for name in NEEDED if name not in entry]:
        raise InputError(
            f"pairs file {path}: {where} has no {missing[0]!r}, expected {expected}", "add it"
        )
    if more := [name for name in entry if name not in FIELDS]:
        raise InputError(
            f"pairs file {path}: {where} has {more[0]!r}, and nothing reads it", "leave it out"
        )
    for name in ("clean", "corrupted", "task"):
        if not isinstance(entry.get(name, ""), str):
            raise _malformed(path, f"{where}.{name}", "a text", entry[name])
    for name in ("answers", "wrong_answers"):
        given = entry[name]
        if not isinstance(given, list) or not given or not all(isinstance(a, str) for a in given):
            raise _malformed(path, f"{where}.{name}", "a list of one text or more", given)
        if any(not answer for answer in given):
            raise InputError(
                f"pairs file {path}: {where}.{name} has an answer that is empty", "leave it out"
            )
    answers, wrong = (tuple(entry[name]) for name in ("answers", "wrong_answers"))
    return entry.get("task", TASK), PairText(entry["clean"], entry["corrupted"], answers, wrong)


def _malformed(path: Path, where: str, expected: str, found: Any) -> InputError:
    return InputError(
        f"pairs file {path}: {where} is {shown(found)}, expected {expected}", "correct it"
    )
