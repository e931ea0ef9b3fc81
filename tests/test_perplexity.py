"""Claims about perplexity: it is that of a loop over the tokens, whatever the windows overlap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import TOKENIZER
from tokenizers import Tokenizer

from jaxalign import InputError
from jaxalign.measures.perplexity import document_loss, next_token_loss, perplexity
from jaxalign.prompts import cut_windows

VOCAB = 4096
TEXTS = (
    "The capital of France is Paris, and the capital of Japan is Tokyo. It was a long day.",
    "It was a good day",
    "The day was long, and the river was long, and nobody came to the city in the evening.",
)
TABLE = np.random.default_rng(0).normal(size=(VOCAB, 8))


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(str(TOKENIZER))


def toy(context):
    """Logits of the token after a context: every token of it matters, the last ones most."""
    weights = 0.8 ** np.arange(len(context))[::-1]
    return TABLE @ (weights @ TABLE[np.asarray(context)])


def toy_logits(tokens):
    """The toy at every position of windows ``[B, S]``."""
    return np.stack([[toy(row[: s + 1]) for s in range(len(row))] for row in tokens])


def loss_by_loop(tokenizer, window, stride, bos):
    """Sum of losses and number of predicted tokens of each document, one token at a time."""
    front = [] if bos is None else [bos]
    sums, counts = [], []
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        total, number, end = 0.0, 0, 0
        for begin in range(0, len(ids), stride):
            last, end = end, min(begin + window - len(front), len(ids))
            for place in range(last, end):
                if context := front + ids[begin:place]:
                    logits = toy(context)
                    top = logits.max()
                    total += top + np.log(np.exp(logits - top).sum()) - logits[ids[place]]
                    number += 1
            if end == len(ids):
                break
        sums.append(total)
        counts.append(number)
    return np.array(sums), np.array(counts)


def in_batches(cut, logits, rows):
    """Sums over batches of ``rows`` windows, the last one filled up with rows that do not count."""
    program = jax.jit(document_loss, static_argnames="documents")
    loss, number = np.zeros(cut.documents), np.zeros(cut.documents, np.int64)
    for start in range(0, len(cut.tokens), rows):
        index = np.arange(start, start + rows)
        real = index < len(cut.tokens)
        index = np.where(real, index, 0)
        part = program(
            jnp.asarray(logits[index], jnp.float32),
            jnp.asarray(cut.tokens[index]),
            jnp.asarray(cut.counted[index] & real[:, None]),
            jnp.asarray(cut.document[index]),
            documents=cut.documents,
        )
        loss += np.asarray(part.loss)
        number += np.asarray(part.tokens)
    return loss, number


@pytest.mark.parametrize(
    ("window", "stride", "bos"),
    [(8, 3, None), (8, 3, 7), (8, 8, None), (8, 7, 7), (8, 1, None), (64, 16, 7)],
)
def test_windows_give_what_a_loop_over_tokens_gives(tokenizer, window, stride, bos):
    cut = cut_windows(TEXTS, tokenizer, window=window, stride=stride, bos=bos)
    loss, number = in_batches(cut, toy_logits(cut.tokens), rows=4)
    expected, predicted = loss_by_loop(tokenizer, window, stride, bos)
    assert number.tolist() == predicted.tolist()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    found = perplexity(loss, number)
    np.testing.assert_allclose(found, np.exp(expected.sum() / predicted.sum()), rtol=1e-4)
    # Without a token in front the first of a document, and of windows side by side, is not told.
    if stride < window - (bos is not None) or bos is not None:
        assert cut.counted_tokens - number.sum() == (0 if bos is not None else len(TEXTS))


def test_rows_in_front_are_models_of_their_own(tokenizer):
    cut = cut_windows(TEXTS, tokenizer, window=8, stride=4)
    given = [jnp.asarray(a) for a in (cut.tokens, cut.counted, cut.document)]
    one = jnp.asarray(toy_logits(cut.tokens), jnp.float32)
    both = document_loss(jnp.stack([one, one / 2]), *given, cut.documents)
    for row, logits in zip(both.loss, (one, one / 2), strict=True):
        alone = document_loss(logits, *given, cut.documents)
        np.testing.assert_allclose(row, alone.loss, rtol=1e-6)
        np.testing.assert_array_equal(both.tokens, alone.tokens)
    tokens = np.asarray(both.tokens)
    assert perplexity(np.asarray(both.loss), tokens).shape == (2,)
    resampled = [[0, 0, 1], [2, 1, 1]]  # documents drawn again: of each draw its own tokens
    drawn = perplexity(np.asarray(both.loss)[0][resampled], tokens[resampled])
    assert drawn.shape == (2,)


def test_the_loss_is_computed_in_f32_and_what_lies_behind_a_window_leaves_no_trace():
    logits = jnp.full((1, 4, 5), 1000.0, jnp.bfloat16).at[0, 2:].set(jnp.nan)
    tokens = jnp.zeros((1, 4), jnp.int32)
    assert next_token_loss(logits, tokens).dtype == jnp.float32
    counted = jnp.asarray([[True, True, True, False]])
    found = document_loss(logits, tokens, counted, jnp.asarray([0]), 1)
    np.testing.assert_allclose(found.loss, [2 * np.log(5)], rtol=1e-4)
    assert found.tokens.tolist() == [2]


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary_and_no_tokens_have_none():
    np.testing.assert_allclose(perplexity(np.log([7.0, 49.0]), np.array([1, 2])), 7)
    with pytest.raises(InputError, match="no token is predicted"):
        perplexity(np.zeros(2), np.zeros(2, int))
