"""A published tokenizer: read within bounds, and asked for the one encoding of a text."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from tokenizers import Tokenizer

from jaxalign.errors import InputError
from jaxalign.model.config import ModelConfig
from jaxalign.runtime.files import read_text

# Vocabularies are padded up to a multiple of this for tensor parallelism (Pythia-12b: 50277
# tokens, 50688 rows), and tokens are added to a tokenizer without rows for them; a larger
# difference means that tokenizer and weights do not belong together.
PADDED_TO = 1024
STDERR = 2  # its number as a file of the process
# Random choices between encodings of one text, which training may want: BPE's dropout (Provilkov
# et al. 2020, arXiv 1910.13267) and Unigram's sampling (Kudo 2018, arXiv 1804.10959).
RANDOM = ("dropout", "alpha", "nbest_size")
AS_PUBLISHED = "use the tokenizer.json that was published with these weights"


def read_tokenizer(path: Path) -> Tokenizer:
    """A ``tokenizer.json`` that gives a text one encoding: all of its tokens, and no others.

    A file may keep how its owner last used it: padding to a length, truncation, and encodings
    drawn at random. None of these is used.

    Args:
        path: the file.

    Raises:
        InputError: the file is missing, or is not a tokenizer.
    """
    remedy = "point --model at a complete checkpoint, or download it again"
    text = read_text(path, remedy)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a tokenizer ({error})", remedy) from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object", remedy)
    return tokenizer_of(content, str(path), remedy, text)


def tokenizer_of(
    content: dict[str, Any], where: str, remedy: str, text: str | None = None
) -> Tokenizer:
    """The tokenizer that the content of a ``tokenizer.json`` describes, without random choices.

    Args:
        content: of the file.
        where: what it comes from, for messages.
        remedy: for what is not a tokenizer.
        text: the content as it was written, where it is at hand.

    Raises:
        InputError: it is not a tokenizer.
    """
    if _without_random(content) or text is None:
        text = json.dumps(content)
    with _refusing(lambda why: InputError(f"{where} is not a tokenizer ({why})", remedy)):
        return Tokenizer.from_str(text)


def _without_random(content: dict[str, Any]) -> bool:
    """Set what is not to be used to null; whether there was any of it."""
    model = content.get("model")
    used = [(content, "padding"), (content, "truncation")]
    used += [(model, name) for name in RANDOM] if isinstance(model, dict) else []
    found = [(place, name) for place, name in used if place.get(name) is not None]
    for place, name in found:
        place[name] = None
    return bool(found)


def check_vocabulary(tokenizer: Tokenizer, config: ModelConfig) -> None:
    """Refuse a tokenizer that cannot belong to a model of this vocabulary.

    A tokenizer may have some tokens that the model has no row for: ``encode`` refuses the texts
    that use them.

    Args:
        tokenizer: from ``read_tokenizer``.
        config: of the model.

    Raises:
        InputError: the vocabularies differ by more than padding and added tokens.
    """
    ids = tokenizer.get_vocab(with_added_tokens=True).values()
    inside = [i for i in ids if i < config.vocab_size]
    known = 1 + max(inside, default=-1)
    if config.vocab_size > -(-known // PADDED_TO) * PADDED_TO or len(ids) - len(inside) > PADDED_TO:
        raise InputError(
            f"the tokenizer knows {len(ids)} tokens, but the model has a vocabulary of "
            f"{config.vocab_size}",
            AS_PUBLISHED,
        )


def token_ids(
    tokenizer: Tokenizer, text: str, where: str = "a text", special: bool = False
) -> tuple[int, ...]:
    """Token ids of a text as the tokenizer gives them; none for a text that has none.

    Args:
        tokenizer: of the model.
        text: to encode.
        where: what the text is, for messages.
        special: with the special tokens that the tokenizer puts around a text.

    Raises:
        InputError: the text is not Unicode (JSON can spell half of a surrogate pair), or the
            tokenizer fails on it.
    """
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise InputError(f"{where} is not Unicode text: {_cut(text)}", "correct it")
    said = f"{where}: the tokenizer cannot encode {_cut(text)}"
    with _refusing(lambda why: InputError(f"{said} ({why})", AS_PUBLISHED)):
        return tuple(tokenizer.encode(text, add_special_tokens=special).ids)


def encode(
    text: str, where: str, tokenizer: Tokenizer, config: ModelConfig, special: bool = False
) -> tuple[int, ...]:
    """Token ids of a text that a model can read.

    Args:
        text: to encode.
        where: what the text is, for messages.
        tokenizer: of the model.
        config: of the model.
        special: with the special tokens that the tokenizer puts around a text (Llama's and
            Gemma's begin with one; GPT-NeoX's and Qwen's have none).

    Raises:
        InputError: no tokens, more than the model's context, or one that the model has no row
            for, saying where.
    """
    tokens = check_known(token_ids(tokenizer, text, where, special), text, where, config)
    if not tokens:
        raise InputError(f"{where} is empty: {_cut(text)} has no tokens", "give it a text")
    if len(tokens) > config.max_positions:
        raise InputError(
            f"{where} has {len(tokens)} tokens, more than the model's context of "
            f"{config.max_positions}",
            "shorten it",
        )
    return tokens


def check_known(
    tokens: tuple[int, ...], text: str, where: str, config: ModelConfig
) -> tuple[int, ...]:
    """The tokens, each of which is a row of the model's embedding.

    JAX reads the last row for every number beyond it, without an error.

    Args:
        tokens: of the text.
        text: for messages.
        where: what the text is, for messages.
        config: of the model.

    Raises:
        InputError: one is not.
    """
    if max(tokens, default=0) >= config.vocab_size:
        raise InputError(
            f"{where} has token {max(tokens)} in {_cut(text)}, outside the model's vocabulary of "
            f"{config.vocab_size}",
            f"leave that token out, or {AS_PUBLISHED}",
        )
    return tokens


def _cut(text: str, most: int = 80) -> str:
    return repr(text if len(text) <= most else f"{text[:most]}...")


@contextmanager
def _refusing(refusal: Callable[[object], InputError]) -> Iterator[None]:
    """Turn whatever the tokenizers library raises into ``refusal``, its panics too.

    A panic of the library's Rust code arrives as a ``BaseException`` of a class that cannot be
    imported, and Rust prints lines of its own about the panic to stderr: these are not shown.
    """
    with _stderr_kept() as kept:
        try:
            yield
        except InputError:
            raise
        except BaseException as error:
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            kept.truncate(0)
            raise refusal(error) from error


@contextmanager
def _stderr_kept() -> Iterator[BinaryIO]:
    """Keep in a file what the process prints to stderr, and print the file's content at the end."""
    with tempfile.TemporaryFile() as kept:
        try:
            stderr = os.dup(STDERR)
        except OSError:  # the process has none
            yield kept
            return
        os.dup2(kept.fileno(), STDERR)
        try:
            yield kept
        finally:
            os.dup2(stderr, STDERR)
            kept.seek(0)
            os.write(stderr, kept.read())
            os.close(stderr)
