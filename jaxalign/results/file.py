"""The result file: checked against its schema, written whole or not at all."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
from jsonschema.protocols import Validator

from jaxalign.errors import InputError
from jaxalign.results.record import from_json, precision_fields, to_json
from jaxalign.results.types import HeadsResult
from jaxalign.runtime.files import read_json, replace_file

SCHEMA = Path(__file__).parent / "experiment.schema.json"


LINE = 120  # characters; what fits stands on one line
NUMBERS = {"type": ["number", "null"]}
HEAD = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0},
    "minItems": 2,
    "maxItems": 2,
}
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


@functools.cache
def _validator() -> Validator:
    """The schema's validator, which looks at rows of numbers as wholes: they are nearly all."""
    plain = jsonschema.Draft202012Validator
    items = plain.VALIDATORS["items"]

    def quick_items(validator: Any, wanted: Any, value: Any, schema: Any) -> Iterator[Any]:
        if not (isinstance(value, list) and _all_fit(value, wanted)):
            yield from items(validator, wanted, value, schema)

    quick = jsonschema.validators.extend(plain, {"items": quick_items})
    return quick(json.loads(SCHEMA.read_text()))


def _all_fit(values: list[Any], wanted: dict[str, Any]) -> bool:
    """Whether these are numbers, heads or rows of them, as wanted; False for any other wish."""
    if wanted == NUMBERS:
        return {*map(type, values)} <= {float, int, type(None)}
    if wanted == HEAD:
        pairs = all(type(value) is list and len(value) == 2 for value in values)
        return pairs and all(type(n) is int and n >= 0 for value in values for n in value)
    if wanted.get("type") != "array" or not wanted.keys() <= {"type", "items", "minItems"}:
        return False
    least = wanted.get("minItems", 0)
    return all(
        type(value) is list and len(value) >= least and _all_fit(value, wanted["items"])
        for value in values
    )


def check(content: Any, where: Path | str) -> None:
    """Raise ``InputError`` where ``content`` fits neither schema nor itself, naming the place."""
    fault = jsonschema.exceptions.best_match(_validator().iter_errors(content))
    if fault is not None:
        place = "/".join(map(str, fault.absolute_path)) or "the top level"
        raise _misfit(where, place, fault.message[:200])
    for i, prompt in enumerate(content["prompts"]):
        _check_prompt(content, prompt, f"prompts/{i}", where)


def _check_prompt(
    content: dict[str, Any], prompt: dict[str, Any], place: str, where: Path | str
) -> None:
    """What the schema cannot say: every precision is there, and every map has the model's shape."""
    wanted = content["metadata"]["precisions"]
    fields = {name for precision in wanted for name in precision_fields(precision)}
    if {*prompt["precisions"]} != {*wanted} or not fields <= prompt.keys():
        raise _misfit(where, place, f"not every precision of {', '.join(wanted)} is there")
    L, H = content["num_layers"], content["num_heads"]
    parts = {place: prompt, f"{place}/distractor_importance": prompt["distractor_importance"] or {}}
    for name, low in prompt["precisions"].items():
        parts[f"{place}/precisions/{name}"] = low
        parts[f"{place}/precisions/{name}/first_order"] = low["first_order"]
    for owner, part in parts.items():
        for name, rows in part.items():
            is_map = isinstance(rows, list) and name != "nonfinite_heads"
            if is_map and [len(row) for row in rows] != [H] * L:
                raise _misfit(where, f"{owner}/{name}", f"there are not {L} layers of {H} heads")


def _misfit(where: Path | str, place: str, fault: str) -> InputError:
    return InputError(
        f"{where} is not a result of the heads study: at {place}, {fault}",
        "run the study again, or give the file that it wrote",
    )


def write(result: HeadsResult, path: Path | str) -> HeadsResult:
    """Check the result against its schema and write it, whole or not at all.

    Returns:
        The result as it will be read, with the digits that the file has.

    Raises:
        InputError: the file cannot be written.
    """
    content = to_json(result)
    check(content, path)
    replace_file(Path(path), f"{_layout(content)}\n".encode())
    return from_json(content)


def _layout(value: Any, margin: str = "\n") -> str:
    """JSON with a row of numbers, and whatever else is short, on one line."""
    inner = margin + " "
    if isinstance(value, dict):
        parts = [f"{_encode(key)}: {_layout(part, inner)}" for key, part in value.items()]
        start, end = "{}"
    elif isinstance(value, list) and any(isinstance(part, list | dict) for part in value):
        parts = [_layout(part, inner) for part in value]
        start, end = "[]"
    else:
        return _encode(value)
    line = f"{start}{', '.join(parts)}{end}"
    if len(line) <= LINE and "\n" not in line:
        return line
    return f"{start}{inner}{f',{inner}'.join(parts)}{margin}{end}"


def read(path: Path | str) -> HeadsResult:
    """Read a result and check it.

    Raises:
        InputError: no such file, not JSON, or not a result of this study.
    """
    path = Path(path)
    content = read_json(path, "run the study first: python cli.py")
    check(content, path)
    return from_json(content)
