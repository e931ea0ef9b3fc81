"""Texts by name: those that come with the project, or a file of somebody's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from jaxalign.checkpoints.hub import BUNDLED, BUNDLED_NAME
from jaxalign.checkpoints.tokenizer import token_ids
from jaxalign.errors import InputError
from jaxalign.model.config import ModelConfig
from jaxalign.prompts.code import code_prompts
from jaxalign.prompts.documents import read_documents
from jaxalign.prompts.texts import PromptSet, PromptText, read_prompts
from jaxalign.prompts.tokens import Prompt

CODE, SHIPPED_TEXTS, DEMO = "code", "shipped", "demo"
DEMO_TEXTS = BUNDLED / "texts.jsonl"
NAMES = (DEMO, CODE, SHIPPED_TEXTS)


def named_texts(name: str | Path | None, model: str) -> tuple[tuple[str, ...], str]:
    """The documents of a name, and what they are called.

    Args:
        name: "demo": documents that the bundled model was not trained on, of its own kinds; "code":
            beginnings of programs; "shipped": the shipped prompts with their answers and the
            reference texts; or a file. None: "demo" for the bundled model, "code" for others.
        model: the model's name.

    Raises:
        InputError: a file that cannot be used.
    """
    if name is None:
        name = DEMO if model == BUNDLED_NAME else CODE
    if name == DEMO:
        return read_documents(DEMO_TEXTS), "the bundled model's unseen documents"
    if name == CODE:
        return tuple(prompt.text for prompt in code_prompts()), "generated code prompts"
    if name == SHIPPED_TEXTS:
        prompts = read_prompts()
        said = [one.prompt + one.target for each in prompts.tasks.values() for one in each]
        return (*said, *prompts.reference), "shipped prompts and reference texts"
    path = Path(name).expanduser()
    if not path.exists():
        raise InputError(
            f"--texts {name} is no file", f"give a text file, or one of {', '.join(NAMES)}"
        )
    return read_documents(path), path.name


def read_texts(path: Path | str | None) -> PromptSet:
    """Documents as the prompts of a study.

    Args:
        path: a file, or a name of ``named_texts``; None for the bundled model's documents.

    Raises:
        InputError: a file that cannot be used.
    """
    name: str | Path | None = None if path is None else path
    if isinstance(path, Path) and str(path) in NAMES and not path.exists():
        name = str(path)
    texts, called = named_texts(name, BUNDLED_NAME)
    return PromptSet({called: tuple(PromptText(text, "") for text in texts)}, ())


def tokenize_texts(
    prompts: PromptSet, tokenizer: Tokenizer, config: ModelConfig
) -> tuple[Sequence[Prompt], Any, list[str]]:
    """Documents as tokens, of any length: a study cuts them into windows.

    Args:
        prompts: from ``read_texts``.
        tokenizer: of the model.
        config: not read.
    """
    found = [
        Prompt(text, called, tuple(token_ids(tokenizer, text.prompt, called)), 0)
        for called, texts in prompts.tasks.items()
        for text in texts
    ]
    return found, (), []
