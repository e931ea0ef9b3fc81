"""Pairs of prompts, clean and corrupted, that differ in what an answer hangs on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from jaxalign.checkpoints.tokenizer import encode
from jaxalign.errors import InputError
from jaxalign.model.config import ModelConfig
from jaxalign.prompts.texts import PromptSet, PromptText
from jaxalign.prompts.tokens import Prompt, answer_tokens, few, tokenize


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
        the first is used; answers without their space; pairs that are there twice, which are left
        out; how pairs were made.

    Raises:
        InputError: an empty or too long prompt, an answer that begins like a wrong one, a corrupted
            prompt that is the clean one, or prompts of which no two make a pair.
    """
    if not isinstance(prompts, PairSet):
        return _made_pairs(prompts, tokenizer, config)
    pairs: list[Pair] = []
    several: list[str] = []
    joined: list[str] = []
    for task, texts in prompts.tasks.items():
        for i, text in enumerate(texts):
            pair, longer = _tokenized(text, task, f"{task}[{i}]", tokenizer, config)
            pairs.append(pair)
            several += longer
            joined += _joined(text)
    pairs, notes = _each_once(pairs)
    for names, say in (
        (several, "answers have several tokens and are judged by their first"),
        (joined, "answers begin without a space after a word, so that they are judged as its end"),
    ):
        if names := [*dict.fromkeys(names)]:
            notes.append(f"{len(names)} {say}: {few(names)}")
    return pairs, [], notes


def _joined(text: PairText) -> list[str]:
    """Answers that would go on with the last word of a prompt, for want of a space."""
    ends = [prompt[-1:] for prompt in (text.clean, text.corrupted)]
    if not any(end.isascii() and end.isalnum() for end in ends):
        return []
    every = (*text.answers, *text.wrong_answers)
    return [repr(a) for a in every if a[0].isascii() and a[0].isalnum()]


def _each_once(pairs: Sequence[Pair]) -> tuple[list[Pair], list[str]]:
    """Pairs without those that are there before, under any task: intervals over pairs would take
    them for new evidence. And a note about those left out."""
    first: dict[Any, Pair] = {}
    elsewhere = 0
    for pair in pairs:
        key = pair.tokens, pair.corrupted, frozenset(pair.answers), frozenset(pair.wrong_answers)
        elsewhere += first.setdefault(key, pair).task != pair.task
    if not (again := len(pairs) - len(first)):
        return [*first.values()], []
    where = f" ({elsewhere} under another task)" if elsewhere else ""
    note = f"{again} pairs are left out, since the file has them twice{where}"
    return [*first.values()], [note]


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
            apart = (tokens != ids[None]).sum(axis=1)
            # The same prompt with another target is no corruption of it.
            apart = np.where((targets == prompt.target) | (apart == 0), np.inf, apart)
            if np.isfinite(apart.min()):
                pairs.append(_each_other(prompt, members[int(apart.argmin())]))
    if not pairs:
        raise InputError(
            "no two prompts of one task have as many tokens and different targets, so none makes a "
            "pair",
            'give a file of pairs: {"prompts": [{"clean": ..., "corrupted": ..., "answers": [...], '
            '"wrong_answers": [...]}]}',
        )
    left = len(single) - len(pairs)
    pairs, more = _each_once(pairs)
    notes += more
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
