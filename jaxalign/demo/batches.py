"""Training batches: documents packed into rows of tokens, as a pure function of seed and step."""

import random
from collections.abc import Iterator

import numpy as np
from tokenizers import Tokenizer

from jaxalign.demo import corpus
from jaxalign.demo.tokenizer import separator_of


def _tokens(tokenizer: Tokenizer, documents: Iterator[str], group: int = 64) -> Iterator[list[int]]:
    """Yield the documents' tokens; encoding in groups is faster than one at a time."""
    while True:
        for encoding in tokenizer.encode_batch([next(documents) for _ in range(group)]):
            yield encoding.ids


def training_batch(
    tokenizer: Tokenizer, seed: int, step: int, rows: int, length: int
) -> np.ndarray:
    """Return the tokens of one training step.

    Documents follow each other, separated by ``<|endoftext|>``. Every row begins where a document
    begins, three rows in four without a separator in front: a prompt is given bare at position 0,
    and a model that always saw a separator there would not know what to do with it. The document
    that a row's end cuts off is not continued.

    Args:
      tokenizer: of the model.
      seed: of the corpus.
      step: of the training run.
      rows: number of rows.
      length: tokens in a row; one more than the model predicts.

    Returns:
      Tokens, int32 ``[rows, length]``.
    """
    stream = f"training step {step}"
    rng = random.Random(f"{seed} {stream}")
    separator = separator_of(tokenizer)
    documents = _tokens(tokenizer, corpus.documents(seed, stream))
    batch = np.empty((rows, length), np.int32)
    for row in batch:
        tokens = [separator] if rng.random() < 0.25 else []
        while len(tokens) < length:
            tokens += [*next(documents), separator]
        row[:] = tokens[:length]
    return batch


def padded(token_lists: list[list[int]], pad: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Pad sequences on the right.

    Returns:
      Tokens, int32 ``[B, S]``, and lengths, int32 ``[B]``.
    """
    lengths = np.array([len(tokens) for tokens in token_lists], np.int32)
    tokens = np.full((len(token_lists), int(lengths.max())), pad, np.int32)
    for row, items in zip(tokens, token_lists, strict=True):
        row[: len(items)] = items
    return tokens, lengths
