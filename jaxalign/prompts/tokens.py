"""Prompts as token numbers, and the tokens that answers add behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from jaxalign.checkpoints.tokenizer import check_known, encode, token_ids
from jaxalign.errors import InputError
from jaxalign.model.config import ModelConfig
from jaxalign.prompts.texts import TASK_NAMES, PromptSet, PromptText


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

    @property
    def facts(self) -> list[Any]:
        """What decides the numbers of a study of this prompt."""
        return [self.task, self.tokens, self.target, self.distractor]


def continuation(prompt: str, answer: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The tokens that ``answer`` adds behind a prompt; none where it changes the prompt's own.

    An answer by itself may be other tokens: Llama 2's tokenizer puts a space before every text.
    """
    whole, alone = token_ids(tokenizer, prompt + answer), token_ids(tokenizer, prompt)
    return whole[len(alone) :] if whole[: len(alone)] == alone else ()


def answer_tokens(
    prompt: str, answer: str, where: str, tokenizer: Tokenizer, config: ModelConfig
) -> tuple[int, ...]:
    """The tokens of an answer: those that it adds behind the prompt, or by itself where it changes
    the prompt's own.

    Args:
        prompt, answer: as written.
        where: they stand, for messages.
        tokenizer: of the model.
        config: of the model: its vocabulary.

    Raises:
        InputError: an answer without tokens, or that the model does not know.
    """
    alone = encode(answer, where, tokenizer, config)
    return check_known(continuation(prompt, answer, tokenizer), answer, where, config) or alone


def tokenize(
    prompts: PromptSet, tokenizer: Tokenizer, config: ModelConfig
) -> tuple[list[Prompt], list[tuple[int, ...]], list[str]]:
    """Tokenize a prompt set.

    Args:
        prompts: as written.
        tokenizer: of the model.
        config: of the model: its context and its vocabulary.

    Returns:
        The prompts, the reference texts' tokens, and notes for the user: targets of several
        tokens, of which the first is used; distractors that begin with their target's token, so
        that nothing tells the two apart (the prompt is then one without distractor); prompts that
        their task has already, with the same target. Those are left out: intervals over prompts
        would take them for new evidence.

    Raises:
        InputError: an empty or too long prompt, or a target without tokens, saying which; or pairs.
    """
    tokenized = []
    remarks = _Remarks([], [], [])
    seen: set[tuple[str, tuple[int, ...], int]] = set()
    for name, items in prompts.tasks.items():
        for i, item in enumerate(items):
            if not isinstance(item, PromptText):
                raise InputError(
                    f"{name} has pairs, and this study reads single prompts",
                    "give prompts, from read_prompts, or run the study patch",
                )
            own = _Remarks([], [], [])
            prompt = _prompt(item, f"{name}[{i}]", name, tokenizer, config, own)
            if (prompt.task, prompt.tokens, prompt.target) in seen:
                remarks.again.append(f"{name}[{i}] {item.prompt[:40]!r}")
                continue
            seen.add((prompt.task, prompt.tokens, prompt.target))
            tokenized.append(prompt)
            remarks.several.extend(own.several)
            remarks.alike.extend(own.alike)
    reference = [
        encode(text, f"reference[{i}]", tokenizer, config, special=True)
        for i, text in enumerate(prompts.reference)
    ]
    return tokenized, reference, remarks.notes()


@dataclass(frozen=True)
class _Remarks:
    """What the user has to know of some prompts: targets, pairs of answers, repeated prompts."""

    several: list[str]
    alike: list[str]
    again: list[str]

    def notes(self) -> list[str]:
        several, alike, again = self.several, self.alike, self.again
        notes = []
        if several:
            notes.append(
                f"{len(several)} targets have several tokens; their first is used: {few(several)}"
            )
        if alike:
            notes.append(
                f"{len(alike)} distractors begin with the same token as their target, so these "
                f"prompts have no importance against a distractor: {few(alike)}"
            )
        if again:
            notes.append(
                f"{len(again)} prompts are left out, since their task has them already, with the "
                f"same target: {few(again)}"
            )
        return notes


def _prompt(
    item: PromptText, where: str, name: str, tokenizer: Tokenizer, config: ModelConfig,
    remarks: _Remarks,
) -> Prompt:  # fmt: skip
    """One prompt of the task ``name``; ``where`` it stands is for messages."""
    place = f"prompt of {where}"
    encode(item.prompt, place, tokenizer, config)  # special tokens alone are no prompt
    tokens = encode(item.prompt, place, tokenizer, config, special=True)
    target = answer_tokens(item.prompt, item.target, f"target of {where}", tokenizer, config)
    distractor = None
    if item.distractor is not None:
        other = f"distractor of {where}"
        [distractor, *_] = answer_tokens(item.prompt, item.distractor, other, tokenizer, config)
        if distractor == target[0]:
            remarks.alike.append(f"{item.target!r} and {item.distractor!r} of {where}")
            distractor = None
    if len(target) > 1:
        remarks.several.append(f"{item.target!r}")
    return Prompt(item, TASK_NAMES.get(name, name), tokens, target[0], distractor)


def few(names: Sequence[str]) -> str:
    """The first three names, and a mark where there are more."""
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
