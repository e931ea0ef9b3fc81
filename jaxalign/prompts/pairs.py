"""Pairs of prompts, clean and corrupted, that differ in what an answer hangs on.

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from jaxalign.checkpoints.tokenizer import encode
from jaxalign.errors import InputError, require_type, shown
from jaxalign.model.config import ModelConfig
from jaxalign.prompts.texts import PromptSet, PromptText, read_prompts
from jaxalign.prompts.tokens import Prompt, answer_tokens, few, tokenize
from jaxalign.runtime.files import read_json, read_text

SHIPPED_PAIRS = Path(__file__).parent / "shipped_pairs.json"
SEPARATOR = "|"  # between the answers of a cell of CSV
TASK = "pairs"  # of pairs that name none
NEEDED = ("clean", "corrupted", "answers", "wrong_answers")


@dataclass(frozen=True)
class PairText:
    """One pair as written: what a model should say to ``clean`` it should not say to ``corrupted``.

    Attributes:
        clean, corrupted: the prompts.
        answers: right after ``clean``, with their space in front.
        wrong_answers: what they are held against, as a rule right after ``corrupted``.
    """

    clean: str
    corrupted: str
    answers: tuple[str, ...]
    wrong_answers: tuple[str, ...]


@dataclass(frozen=True)
class PairSet(PromptSet):
    """A pairs file: ``tasks`` maps a task's name to its pairs."""

    tasks: dict[str, tuple[PairText, ...]]  # type: ignore[assignment]  # pairs in prompts' place
    reference: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Pair(Prompt):
    """One tokenized pair: the clean prompt, and what it is held against.

    Attributes:
        pair: as written.
        corrupted: token ids of the corrupted prompt.
        answers, wrong_answers: ids of the answers' first tokens.
    """

    pair: PairText
    corrupted: tuple[int, ...]
    answers: tuple[int, ...]
    wrong_answers: tuple[int, ...]

    @property
    def facts(self) -> list[Any]:
        """What decides the numbers of a study of this pair."""
        return [*super().facts, self.corrupted, self.answers, self.wrong_answers]

    @property
    def aligned(self) -> bool:
        """Whether both prompts have as many tokens, so that positions can be exchanged."""
        return len(self.tokens) == len(self.corrupted)


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
    content = read_json(path, "check --prompts")
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
    return _pair_set(path, entries)


def _are_pairs(entries: Any) -> bool:
    """Whether ``prompts`` are pairs, not a task of single prompts that has this name."""
    if not isinstance(entries, list) or not entries or not isinstance(entries[0], dict):
        return True
    return "prompt" not in entries[0]


def _csv_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a CSV file as JSON would have them."""
    reader = csv.DictReader(io.StringIO(read_text(path, "check --prompts"), newline=""))
    try:
        columns = [{"corrupt": "corrupted"}.get(name, name) for name in reader.fieldnames or ()]
        if missing := [name for name in NEEDED if name not in columns]:
            raise InputError(
                f"pairs file {path} has no column {missing[0]!r}",
                f"give the columns {', '.join(NEEDED)}; several answers with {SEPARATOR} between",
            )
        for number, row in enumerate(reader, 2):
            if None in row or None in row.values():
                raise InputError(
                    f"pairs file {path}: row {number} has not as many cells as there are columns",
                    'put texts with commas in quotation marks: "When Mary, ..."',
                )
            answers = {k: row[k].split(SEPARATOR) for k in ("answers", "wrong_answers")}
            yield {name: cell for name, cell in row.items() if cell or name != "task"} | answers
    except csv.Error as error:
        raise InputError(f"pairs file {path} is not CSV ({error})", "correct it") from error


def _pair_set(path: Path, entries: Sequence[Any]) -> PairSet:
    tasks: dict[str, list[PairText]] = {}
    for i, entry in enumerate(entries):
        task, pair = _pair(path, f"prompts[{i}]", entry)
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
    fields = {*NEEDED, "task"}
    if not {*NEEDED} <= entry.keys() <= fields:
        raise _malformed(path, where, expected, dict(entry))
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


def tokenize_pairs(
    prompts: PromptSet, tokenizer: Tokenizer, config: ModelConfig
) -> tuple[list[Pair], list[tuple[int, ...]], list[str]]:
    """Tokenize pairs, or make them of single prompts.

    Two prompts of one task and token length whose targets differ are each other's corruption; of
    several each takes the one that differs in the fewest tokens.

    Args:
        prompts: a ``PairSet``, or single prompts.
        tokenizer: of the model.
        config: of the model: its context and its vocabulary.

    Returns:
        The pairs, no reference texts, and notes for the user: answers of several tokens, of which
        the first is used; pairs that are there twice; how pairs were made.

    Raises:
        InputError: an empty or too long prompt, an answer that begins like a wrong one, a corrupted
            prompt that is the clean one, or prompts of which no two make a pair.
    """
    if not isinstance(prompts, PairSet):
        return _made_pairs(prompts, tokenizer, config)
    pairs: list[Pair] = []
    several: list[str] = []
    seen: set[str] = set()
    for task, texts in prompts.tasks.items():
        for i, text in enumerate(texts):
            pair, longer = _tokenized(text, task, f"{task}[{i}]", tokenizer, config)
            if (key := repr(pair.facts)) not in seen:
                pairs.append(pair)
                several += longer
            seen.add(key)
    notes = []
    if several:
        notes.append(
            f"{len(several)} answers have several tokens and are judged by their first: "
            f"{few(several)}"
        )
    if again := sum(map(len, prompts.tasks.values())) - len(pairs):
        notes.append(f"{again} pairs are left out, since the file has them twice")
    return pairs, [], notes


def _tokenized(
    text: PairText, task: str, where: str, tokenizer: Tokenizer, config: ModelConfig
) -> tuple[Pair, list[str]]:
    """A pair, and its answers that have several tokens."""

    def prompt(name: str) -> tuple[int, ...]:
        written, place = getattr(text, name), f"{name} prompt of {where}"
        encode(written, place, tokenizer, config)  # special tokens alone are no prompt
        return encode(written, place, tokenizer, config, special=True)

    def firsts(name: str) -> tuple[tuple[int, ...], list[str]]:
        found = {
            answer: answer_tokens(text.clean, answer, f"{name} of {where}", tokenizer, config)
            for answer in getattr(text, name)
        }
        longer = [repr(answer) for answer, ids in found.items() if len(ids) > 1]
        return tuple(dict.fromkeys(ids[0] for ids in found.values())), longer

    clean, corrupted = prompt("clean"), prompt("corrupted")
    if clean == corrupted:
        raise InputError(f"{where}: the corrupted prompt is the clean one", "change what decides")
    (answers, longer), (wrong, more) = firsts("answers"), firsts("wrong_answers")
    if both := {*answers} & {*wrong}:
        alike = tokenizer.decode([min(both)])
        raise InputError(
            f"{where}: an answer and a wrong answer begin with the same token, {alike!r}",
            "give answers that their first token tells apart",
        )
    written = PromptText(text.clean, text.answers[0], text.wrong_answers[0])
    pair = Pair(
        written, task, clean, answers[0], wrong[0],
        pair=text, corrupted=corrupted, answers=answers, wrong_answers=wrong,
    )  # fmt: skip
    return pair, longer + more


def _made_pairs(
    prompts: PromptSet, tokenizer: Tokenizer, config: ModelConfig
) -> tuple[list[Pair], list[tuple[int, ...]], list[str]]:
    """Pairs of single prompts, each other's corruption."""
    single, _, notes = tokenize(prompts, tokenizer, config)
    groups: dict[tuple[str, int], list[Prompt]] = {}
    for prompt in single:
        groups.setdefault((prompt.task, len(prompt.tokens)), []).append(prompt)
    pairs = []
    for members in groups.values():
        tokens = np.array([prompt.tokens for prompt in members])
        targets = np.array([prompt.target for prompt in members])
        for prompt, ids in zip(members, tokens, strict=True):
            apart = np.where(targets == prompt.target, np.inf, (tokens != ids[None]).sum(axis=1))
            other = members[int(apart.argmin())]
            if np.isfinite(apart.min()) and apart.min() > 0:
                pairs.append(_each_other(prompt, other))
    if not pairs:
        raise InputError(
            "no two prompts of one task have as many tokens and different targets, so none makes a "
            "pair",
            'give a file of pairs: {"prompts": [{"clean": ..., "corrupted": ..., "answers": [...], '
            '"wrong_answers": [...]}]}',
        )
    left = len(single) - len(pairs)
    notes.append(
        f"{len(pairs)} pairs are made of single prompts: each is corrupted by the one of its task "
        "and token length that differs in the fewest tokens and has another target"
        + (f"; {left} have none and are left out" if left else "")
    )
    return pairs, [], notes


def _each_other(prompt: Prompt, other: Prompt) -> Pair:
    texts = prompt.text, other.text
    return Pair(
        prompt.text, prompt.task, prompt.tokens, prompt.target, other.target,
        pair=PairText(texts[0].prompt, texts[1].prompt, (texts[0].target,), (texts[1].target,)),
        corrupted=other.tokens, answers=(prompt.target,), wrong_answers=(other.target,),
    )  # fmt: skip
