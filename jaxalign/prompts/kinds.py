"""What kind of prompts a study reads: single ones, pairs, or texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxalign.prompts.named_texts import DEMO_TEXTS, read_texts, tokenize_texts
from jaxalign.prompts.pair_files import SHIPPED_PAIRS, read_pairs
from jaxalign.prompts.pairs import tokenize_pairs
from jaxalign.prompts.texts import SHIPPED, PromptSet, read_prompts
from jaxalign.prompts.tokens import Prompt, tokenize


@dataclass(frozen=True, kw_only=True)
class PromptKind:
    """How prompts are read and tokenized.

    Attributes:
        shipped: the file that is read by default.
        read: reads a file, that one where it is given None.
        tokenize: ``(prompts, tokenizer, config) → (prompts, reference texts' tokens, notes)``.
    """

    shipped: Path
    read: Callable[[Path | None], PromptSet]
    tokenize: Callable[[PromptSet, Any, Any], tuple[Sequence[Prompt], Any, list[str]]]


SINGLE = PromptKind(shipped=SHIPPED, read=read_prompts, tokenize=tokenize)
PAIRS = PromptKind(shipped=SHIPPED_PAIRS, read=read_pairs, tokenize=tokenize_pairs)
TEXTS = PromptKind(shipped=DEMO_TEXTS, read=read_texts, tokenize=tokenize_texts)
