"""Prompt sets: read, checked, tokenized, and batched by length."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from jaxalign.checkpoints.tokenizer import check_known, encode, token_ids
from jaxalign.errors import InputError, shown
from jaxalign.model.config import ModelConfig
from jaxalign.runtime.files import read_json

SHIPPED = Path(__file__).parent / "prompts.json"
REFERENCE = "reference"
# How published results name the two original tasks; others keep the name of their list.
TASK_NAMES = {"factual": "FactualRecall", "ioi": "IOI"}
# What results call the prompts of all tasks together.
ALL_TASKS = "all"
# Lengths are rounded up to a multiple of this, so that few shapes have to be compiled.
BUCKET = 8
# Fewer prompts than this are padded to the next length instead, if it is at most twice theirs:
# compiling a shape takes longer than computing their padding.
FEW = 64


@dataclass(frozen=True)
class PromptText:
    """One prompt as written: the model should continue ``prompt`` with ``target``."""

    prompt: str
    target: str
    distractor: str | None = None


@dataclass(frozen=True)
class PromptSet:
    """A prompts file. ``tasks`` maps a task's name to its prompts; ``reference`` are texts."""

    tasks: dict[str, tuple[PromptText, ...]]
    reference: tuple[str, ...]


@dataclass(frozen=True)
class Prompt:
    """One tokenized prompt.

    Attributes:
        text: as written.
        task: its task's name in results.
        tokens: token ids of the prompt.
        target: id of the target's first token.
        distractor: id of the distractor's first token, or None.
    """

    text: PromptText
    task: str
    tokens: tuple[int, ...]
    target: int
    distractor: int | None = None


@dataclass(frozen=True)
class Batch:
    """Prompts of similar length, padded on the right.

    Attributes:
        index: which prompts of the list these are; shorter than ``B`` where rows are filler.
        tokens: int32 ``[B, S]``.
        lengths: int32 ``[B]``, real tokens of each.
    """

    index: tuple[int, ...]
    tokens: np.ndarray
    lengths: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """``(B, S)``."""
        return self.tokens.shape

    def fill(self, values: Sequence[Any]) -> np.ndarray:
        """One array ``[B, …]`` from a list with an entry a prompt; filler repeats the first."""
        rows = [values[i] for i in self.index]
        return np.stack(rows + [rows[0]] * (len(self.lengths) - len(rows)))

    def widen(self, multiple: int) -> Batch:
        """The batch with as much more filler as makes ``B`` a multiple of ``multiple``."""
        filler = -len(self.lengths) % multiple
        if not filler:
            return self
        tokens = np.concatenate([self.tokens, np.repeat(self.tokens[:1], filler, axis=0)])
        lengths = np.concatenate([self.lengths, np.repeat(self.lengths[:1], filler)])
        return Batch(self.index, tokens, lengths)

    def scatter(self, out: np.ndarray, values: np.ndarray, axis: int = -1) -> None:
        """Write the batch's entries of ``values`` to their prompts' places in ``out``.

        Args:
            out: ``axis`` counts all prompts; changed in place.
            values: ``axis`` counts the rows of the batch; filler is left out.
            axis: from the front or, negative, from the end.
        """
        places, used = np.moveaxis(out, axis, 0), np.moveaxis(values, axis, 0)
        places[list(self.index)] = used[: len(self.index)]


def read_prompts(path: Path | str | None = None) -> PromptSet:
    """Read and check a prompts file (the one that is shipped by default).

    Raises:
        InputError: the file is missing or malformed; says where and what was expected.
    """
    path = Path(path) if path is not None else SHIPPED
    content = read_json(path, "check --prompts")
    if not isinstance(content, dict):
        raise _malformed(path, "the top level", 'an object like {"factual": [...]}', content)
    for name in content:
        if any("\ud800" <= c <= "\udfff" for c in name):
            raise InputError(f"prompts file {path}: {name!r} is not Unicode text", "rename it")
    reference = content.pop(REFERENCE, [])
    if not isinstance(reference, list) or not all(isinstance(text, str) for text in reference):
        raise _malformed(path, REFERENCE, "a list of texts", reference)
    tasks = {name: _read_task(path, name, items) for name, items in content.items()}
    if not any(tasks.values()):
        raise InputError(f"prompts file {path} has no prompts", 'add a list such as "factual"')
    if not reference:
        raise InputError(
            f"prompts file {path} has no {REFERENCE!r} texts, which mean ablation averages over",
            f'add "{REFERENCE}": ["…", …]',
        )
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


def continuation(prompt: str, answer: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The tokens that ``answer`` adds behind a prompt; none where it changes the prompt's own.

    An answer by itself may be other tokens: Llama 2's tokenizer puts a space before every text.
    """
    whole, alone = token_ids(tokenizer, prompt + answer), token_ids(tokenizer, prompt)
    return whole[len(alone) :] if whole[: len(alone)] == alone else ()


def _answer(
    prompt: str, answer: str, where: str, tokenizer: Tokenizer, config: ModelConfig
) -> tuple[int, ...]:
    alone = encode(answer, where, tokenizer, config)
    return check_known(continuation(prompt, answer, tokenizer), answer, where, config) or alone


def tokenize(
    prompts: PromptSet, tokenizer: Tokenizer, config: ModelConfig
) -> tuple[list[Prompt], list[tuple[int, ...]], list[str]]:
    """Tokenize a prompt set.

    Returns:
        The prompts, the reference texts' tokens, and notes for the user: targets of several
        tokens, of which the first is used; distractors that begin with their target's token, so
        that nothing tells the two apart (the prompt is then one without distractor).

    Raises:
        InputError: an empty or too long prompt, or a target without tokens, saying which.
    """
    tokenized = []
    several, alike = [], []
    for name, items in prompts.tasks.items():
        for i, item in enumerate(items):
            where = f"{name}[{i}]"
            place = f"prompt of {where}"
            encode(item.prompt, place, tokenizer, config)  # special tokens alone are no prompt
            tokens = encode(item.prompt, place, tokenizer, config, special=True)

            target = _answer(item.prompt, item.target, f"target of {where}", tokenizer, config)
            distractor = None
            if item.distractor is not None:
                other = f"distractor of {where}"
                [distractor, *_] = _answer(item.prompt, item.distractor, other, tokenizer, config)
                if distractor == target[0]:
                    alike.append(f"{item.target!r} and {item.distractor!r} of {where}")
                    distractor = None
            if len(target) > 1:
                several.append(f"{item.target!r}")
            task = TASK_NAMES.get(name, name)
            tokenized.append(Prompt(item, task, tokens, target[0], distractor))
    reference = [
        encode(text, f"reference[{i}]", tokenizer, config, special=True)
        for i, text in enumerate(prompts.reference)
    ]
    notes = []
    if several:
        notes.append(
            f"{len(several)} targets have several tokens; their first is used: {_few(several)}"
        )
    if alike:
        notes.append(
            f"{len(alike)} distractors begin with the same token as their target, so these prompts "
            f"have no importance against a distractor: {_few(alike)}"
        )
    return tokenized, reference, notes


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def bucket_length(length: int, limit: int) -> int:
    """``length`` rounded up to a multiple of ``BUCKET``, at most the model's context."""
    return min(-(-length // BUCKET) * BUCKET, max(limit, length))


def batches(
    tokens: Sequence[Sequence[int]], max_batch: dict[int, int] | int, limit: int
) -> Iterator[Batch]:
    """Batches of equal shape within each length bucket, shortest first.

    Args:
        tokens: token ids of each prompt.
        max_batch: most prompts in one batch, for all or by bucket length.
        limit: the model's context.
    """
    buckets: dict[int, list[int]] = {}
    for i, ids in enumerate(tokens):
        buckets.setdefault(bucket_length(len(ids), limit), []).append(i)
    sizes = sorted(buckets)
    for size, longer in itertools.pairwise(sizes):
        if len(buckets[size]) < FEW and longer <= 2 * size:
            buckets[longer] = sorted(buckets.pop(size) + buckets[longer])
    for size, members in sorted(buckets.items()):
        most = max_batch if isinstance(max_batch, int) else max_batch[size]
        # Even batches: 17 prompts at 16 a batch become 9 and 8, not 16 and 1.
        count = -(-len(members) // most)
        width = -(-len(members) // count)
        for start in range(0, len(members), width):
            chosen = tuple(members[start : start + width])
            yield _pad(chosen, [tokens[i] for i in chosen], width, size)


def _pad(index: tuple[int, ...], rows: list[Sequence[int]], width: int, size: int) -> Batch:
    rows = rows + [rows[0]] * (width - len(rows))
    padded = np.zeros((width, size), np.int32)
    for row, ids in zip(padded, rows, strict=True):
        row[: len(ids)] = ids
    return Batch(index, padded, np.array([len(ids) for ids in rows], np.int32))
