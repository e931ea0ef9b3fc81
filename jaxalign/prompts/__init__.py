"""Prompt sets: read and checked, tokenized, batched by length."""

from jaxalign.checkpoints.tokenizer import encode
from jaxalign.engine.compiled import BUCKET, bucket_length
from jaxalign.prompts.batches import FEW, Batch, batches
from jaxalign.prompts.code import CODE_COUNTS, CodePrompt, code_prompts
from jaxalign.prompts.documents import read_documents
from jaxalign.prompts.kinds import PAIRS, SINGLE, TEXTS, PromptKind
from jaxalign.prompts.pair_files import read_pairs
from jaxalign.prompts.pairs import Pair, PairSet, PairText, tokenize_pairs
from jaxalign.prompts.texts import (
    REFERENCE,
    SHIPPED,
    TASK_NAMES,
    PromptSet,
    PromptText,
    one_prompt,
    read_prompts,
)
from jaxalign.prompts.tokens import Prompt, continuation, tokenize
from jaxalign.prompts.windows import Windows, bos_token, cut_windows, first_tokens

__all__ = [
    "BUCKET",
    "CODE_COUNTS",
    "FEW",
    "PAIRS",
    "REFERENCE",
    "SHIPPED",
    "SINGLE",
    "TASK_NAMES",
    "TEXTS",
    "Batch",
    "CodePrompt",
    "Pair",
    "PairSet",
    "PairText",
    "Prompt",
    "PromptKind",
    "PromptSet",
    "PromptText",
    "Windows",
    "batches",
    "bos_token",
    "bucket_length",
    "code_prompts",
    "continuation",
    "cut_windows",
    "encode",
    "first_tokens",
    "one_prompt",
    "read_documents",
    "read_pairs",
    "read_prompts",
    "tokenize",
    "tokenize_pairs",
]
