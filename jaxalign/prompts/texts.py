"""Prompts as written: a file of them, read and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxalign.errors import InputError, require_type, shown
from jaxalign.measures.estimates import ALL_TASKS
from jaxalign.runtime.files import read_json

SHIPPED = Path(__file__).parent / "shipped.json"
REFERENCE = "reference"
# What results call these tasks, as the original program did; any other keeps its name.
TASK_NAMES = {"factual": "FactualRecall", "ioi": "IOI"}


@dataclass(frozen=True)
class PromptText:
    """One prompt as written: the model should continue ``prompt`` with ``target``."""

    prompt: str
    target: str
    distractor: str | None = None


@dataclass(frozen=True)
class PromptSet:
    """A prompts file. ``tasks`` maps a task's name to its prompts; ``reference`` are texts that
    mean ablation averages over, perhaps none."""

    tasks: dict[str, tuple[PromptText, ...]]
    reference: tuple[str, ...]

    def only(self, tasks: Sequence[str] | None = None, limit: int | None = None) -> PromptSet:
        """Some of the prompts, with all of the reference texts.

        Args:
            tasks: by the file's names or the results' ("factual", "FactualRecall"); all by default.
            limit: the first so many prompts of each task; all by default.

        Raises:
            InputError: a task that there is not or that is named twice, or a limit below 1.
        """
        names = {TASK_NAMES.get(name, name): name for name in self.tasks}
        asked = list(self.tasks) if tasks is None else [names.get(name, name) for name in tasks]
        if unknown := [name for name in asked if name not in self.tasks]:
            raise InputError(
                f"--tasks: there is no task {', '.join(map(repr, unknown))}",
                f"name some of {', '.join(self.tasks)}",
            )
        if not asked or len(set(asked)) < len(asked):
            raise InputError(
                "--tasks: expected names, each once", f"name some of {', '.join(self.tasks)}"
            )
        if limit is not None and limit < 1:
            raise InputError(f"--limit is {limit}", "give 1 or more")
        return replace(self, tasks={name: self.tasks[name][:limit] for name in asked})


ONE = "prompt"  # the task of a prompt that is given by itself


def one_prompt(prompt: str, target: str, distractor: str | None = None) -> PromptSet:
    """A prompt set of one prompt, with the shipped reference texts.

    Args:
        prompt: what the model reads.
        target: how it should go on, with its space in front: ``" Paris"``.
        distractor: a wrong answer that the target is held against.

    Raises:
        InputError: one of them is no text.

    Example:
        >>> heads_study(jaxalign.load("demo"), one_prompt("The capital of France is", " Paris"))
    """
    require_type("prompt", prompt, str, "a text")
    require_type("target", target, str, "a text")
    require_type("distractor", distractor, (str, type(None)), "a text, or None")
    given = PromptText(prompt, target, distractor)
    return PromptSet({ONE: (given,)}, read_prompts().reference)


def read_prompts(path: Path | str | None = None) -> PromptSet:
    """Read and check a prompts file (the one that is shipped by default).

    Raises:
        InputError: the file is missing or malformed; says where and what was expected.
    """
    require_type("path", path, (str, Path, type(None)), "the path of a prompts file")
    path = Path(path) if path is not None else SHIPPED
    content = read_json(path, "check --prompts")
    if not isinstance(content, dict):
        raise _malformed(path, "the top level", 'an object like {"factual": [...]}', content)
    for name in content:
        if any("\ud800" <= c <= "\udfff" for c in name):
            raise InputError(f"prompts file {path}: {name!r} is not Unicode text", "rename it")
        if not name.strip():
            raise InputError(f"prompts file {path}: a task has no name", "give it one")
    reference = content.pop(REFERENCE, [])
    if not isinstance(reference, list) or not all(isinstance(text, str) for text in reference):
        raise _malformed(path, REFERENCE, "a list of texts", reference)
    tasks = {name: _read_task(path, name, items) for name, items in content.items()}
    for short, name in TASK_NAMES.items():
        if short in tasks and name in tasks:
            raise InputError(
                f"prompts file {path}: results call {short!r} {name!r}, too, so the two lists "
                "would become one task",
                "join them, or give one another name",
            )
    if not any(tasks.values()):
        raise InputError(f"prompts file {path} has no prompts", 'add a list such as "factual"')
    return PromptSet({name: items for name, items in tasks.items() if items}, tuple(reference))


def _read_task(path: Path, name: str, items: Any) -> tuple[PromptText, ...]:
    expected = 'an object with texts "prompt" and "target", and perhaps "distractor"'
    if not isinstance(items, list):
        raise _malformed(path, name, "a list of prompts", items)
    if name == ALL_TASKS:
        raise InputError(
            f"prompts file {path}: {name!r} is what results call all tasks together",
            "give that list another name",
        )
    prompts = []
    for i, item in enumerate(items):
        fields = {"prompt", "target", "distractor"}
        if (
            not isinstance(item, dict)
            or not {"prompt", "target"} <= item.keys() <= fields
            or not all(isinstance(item[name], str) for name in ("prompt", "target"))
            or not isinstance(item.get("distractor"), str | None)
        ):
            raise _malformed(path, f"{name}[{i}]", expected, item)
        prompts.append(PromptText(**item))
    return tuple(prompts)


def _malformed(path: Path, where: str, expected: str, found: Any) -> InputError:
    return InputError(
        f"prompts file {path}: {where} is {shown(found)}, expected {expected}", "correct it"
    )
