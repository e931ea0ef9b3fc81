"""Prompt sets: read and checked, tokenized, batched by length."""

from jaxalign.checkpoints.tokenizer import encode
from jaxalign.engine.compiled import BUCKET, bucket_length
from jaxalign.prompts.batches import FEW, Batch, batches
from jaxalign.prompts.kinds import PAIRS, SINGLE, PromptKind
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

__all__ = [
    "BUCKET",
    "FEW",
    "PAIRS",
    "REFERENCE",
    "SHIPPED",
    "SINGLE",
    "TASK_NAMES",
    "Batch",
    "Pair",
    "PairSet",
    "PairText",
    "Prompt",
    "PromptKind",
    "PromptSet",
    "PromptText",
    "batches",
    "bucket_length",
    "continuation",
    "encode",
    "one_prompt",
    "read_pairs",
    "read_prompts",
    "tokenize",
    "tokenize_pairs",
]
