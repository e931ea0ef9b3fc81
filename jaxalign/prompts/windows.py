"""Texts cut into windows of tokens, for passes that stream over them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from jaxalign.checkpoints.tokenizer import check_known, token_ids
from jaxalign.errors import InputError, counted, require_type
from jaxalign.model.config import ModelConfig

FEWEST_TOKENS = 2  # of a document: one that predicts, one that is predicted


@dataclass(frozen=True, kw_only=True, eq=False)
class Windows:
    """Windows of tokens, in the order of their documents, padded on the right.

    ``N`` windows of ``W`` tokens. Of every document each token counts in exactly one window.

    Attributes:
        tokens: int32 ``[N, W]``, padding as 0.
        lengths: int32 ``[N]``, real tokens of each, a beginning-of-sequence token included.
        first: int32 ``[N]``, the place in its document of the window's first token of it.
        counted: bool ``[N, W]``, which positions count in statistics: no padding, no
            beginning-of-sequence token, and nothing that an earlier window has counted.
        document: int32 ``[N]``, which document a window is of, from 0 without gaps: those that are
            left out have no number.
        documents: how many there are.
        window: ``W``.
        stride: tokens from the beginning of a window to that of the next.
        bos: the beginning-of-sequence token in front of every window, or None.
        texts_sha256: of all texts that were given, in hexadecimal digits.
        notes: for the user, about texts that are left out.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    first: np.ndarray
    counted: np.ndarray
    document: np.ndarray
    documents: int
    window: int
    stride: int
    bos: int | None
    texts_sha256: str
    notes: tuple[str, ...] = ()

    @property
    def counted_tokens(self) -> int:
        """How many positions count: the tokens of the documents, each once."""
        return int(self.counted.sum())

    @property
    def facts(self) -> dict[str, Any]:
        """What decides the numbers of a pass over these windows, for a record of it."""
        return {
            "texts_sha256": self.texts_sha256,
            "window": self.window,
            "stride": self.stride,
            "bos": self.bos,
            "windows": len(self.tokens),
            "documents": self.documents,
            "tokens": self.counted_tokens,
        }


def first_tokens(windows: Windows, tokens: int) -> Windows:
    """The first windows that have about so many tokens that count, one at least.

    Args:
        windows: of the texts.
        tokens: at most so many, but for those of the first window.
    """
    sums = windows.counted.sum(axis=1).cumsum()
    kept = max(1, int((sums <= tokens).sum()))
    if kept == len(sums):
        return windows
    part = {
        name: getattr(windows, name)[:kept]
        for name in ("tokens", "lengths", "first", "counted", "document")
    }
    documents = int(part["document"][-1]) + 1
    note = f"the first {documents} of {counted(windows.documents, 'document')} are read"
    return replace(windows, **part, documents=documents, notes=(*windows.notes, note))


def bos_token(tokenizer: Tokenizer) -> int | None:
    """The beginning-of-sequence token that a tokenizer puts in front of a text, or None.

    Llama's and Gemma's put one; GPT-NeoX's and Qwen's do not.
    """
    alone, whole = (token_ids(tokenizer, "a", special=special) for special in (False, True))
    return whole[0] if alone and whole[1 : 1 + len(alone)] == alone else None


def cut_windows(
    texts: Sequence[str],
    tokenizer: Tokenizer,
    *,
    window: int,
    stride: int | None = None,
    bos: int | None = None,
    limit: int | None = None,
    config: ModelConfig | None = None,
) -> Windows:
    """Cut documents into windows that begin ``stride`` tokens after one another.

    The first window of a document counts all of its tokens, a later one those that are new to it:
    all but the first ``window - stride``, which are context. The last one may be shorter. No window
    has tokens of two documents.

    Args:
        texts: each one a document (``read_documents``).
        tokenizer: of the model; its special tokens are not used.
        window: tokens of a window, ``bos`` included.
        stride: from 1 to as many tokens of a document as a window holds, which is the default: no
            overlap.
        bos: a token to put in front of every window (``bos_token``); it never counts.
        limit: the first so many windows at most; all by default.
        config: of the model, to refuse what it cannot read: windows longer than its context, tokens
            outside its vocabulary.

    Raises:
        InputError: no document of at least two tokens; a size out of its range; or what ``config``
            says that the model cannot read.

    Example:
        >>> cut_windows(["one two three four five"], tokenizer, window=4, stride=2).first
        array([0, 2], dtype=int32)
    """
    texts = _checked(texts)
    stride = _check_sizes(window, stride, bos, limit, config)
    held = window - (bos is not None)
    parts: list[_Part] = []
    short = used = made = 0
    for number, text in enumerate(texts):
        if limit is not None and made >= limit:
            break
        ids = token_ids(tokenizer, text, f"texts[{number}]")
        if config is not None:
            check_known(ids, text, f"texts[{number}]", config)
        used += 1
        if len(ids) < FEWEST_TOKENS:
            short += 1
            continue
        parts.append(_cut(ids, held, stride, None if limit is None else limit - made))
        made += len(parts[-1].first)
    if not parts:
        raise InputError(
            f"none of {counted(len(texts), 'text')} has {FEWEST_TOKENS} tokens, expected a "
            "document to cut into windows",
            "give longer texts",
        )
    return Windows(
        **_joined(parts, bos),
        documents=len(parts),
        window=window,
        stride=stride,
        bos=bos,
        texts_sha256=_sha256(texts),
        notes=_notes(short, used, len(texts), limit),
    )


@dataclass(frozen=True, kw_only=True)
class _Part:
    """The windows of one document, without a beginning-of-sequence token."""

    tokens: np.ndarray
    real: np.ndarray
    counted: np.ndarray
    first: np.ndarray


def _cut(ids: tuple[int, ...], held: int, stride: int, most: int | None) -> _Part:
    """The first ``most`` windows of a document, ``held`` tokens each."""
    number = 1 + -(-max(len(ids) - held, 0) // stride)
    first = stride * np.arange(number)[:most]
    place = first[:, None] + np.arange(held)
    real = place < len(ids)
    seen = np.where(first > 0, first + held - stride, 0)  # by the windows before
    tokens = np.where(real, np.asarray(ids)[np.minimum(place, len(ids) - 1)], 0)
    return _Part(tokens=tokens, real=real, counted=real & (place >= seen[:, None]), first=first)


def _joined(parts: list[_Part], bos: int | None) -> dict[str, np.ndarray]:
    """The arrays of ``Windows``."""
    tokens, real, fresh = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("tokens", "real", "counted")
    )
    lengths = real.sum(axis=1)
    if bos is not None:
        front = ((0, 0), (1, 0))
        tokens = np.pad(tokens, front, constant_values=bos)
        fresh, lengths = np.pad(fresh, front), lengths + 1
    sizes = [len(part.first) for part in parts]
    return {
        "tokens": tokens.astype(np.int32),
        "lengths": lengths.astype(np.int32),
        "first": np.concatenate([part.first for part in parts]).astype(np.int32),
        "counted": fresh,
        "document": np.repeat(np.arange(len(parts), dtype=np.int32), sizes),
    }


def _checked(texts: Sequence[str]) -> tuple[str, ...]:
    require_type("texts", texts, (list, tuple), "a list of texts, each one a document")
    for number, text in enumerate(texts):
        require_type(f"texts[{number}]", text, str, "a text")
    return tuple(texts)


def _check_sizes(
    window: int, stride: int | None, bos: int | None, limit: int | None, config: ModelConfig | None
) -> int:
    """The stride, of sizes that are possible."""
    _check_size("window", window, 2, None if config is None else config.max_positions)
    if bos is not None:
        _check_size("bos", bos, 0, None if config is None else config.vocab_size - 1)
    if limit is not None:
        _check_size("limit", limit, 1, None)
    held = window - (bos is not None)
    stride = held if stride is None else stride
    _check_size("stride", stride, 1, held)
    return stride


def _check_size(name: str, value: int, least: int, most: int | None) -> None:
    expected = f"at least {least}" if most is None else f"from {least} to {most}"
    require_type(name, value, (int,), f"a whole number, {expected}")
    if value < least or (most is not None and value > most):
        raise InputError(f"{name} is {value}, expected {expected}", f"give {name} {expected}")


def _notes(short: int, used: int, given: int, limit: int | None) -> tuple[str, ...]:
    notes = []
    if short:
        notes.append(f"{counted(short, 'document')} of fewer than {FEWEST_TOKENS} tokens left out")
    if used < given:
        notes.append(f"{used} of {counted(given, 'document')} read: limit is {limit} windows")
    return tuple(notes)


def _sha256(texts: tuple[str, ...]) -> str:
    """Of the texts in UTF-8, each behind its length in bytes, so that their bounds count too."""
    digest = hashlib.sha256()
    for text in texts:
        content = text.encode("utf-8", "surrogatepass")
        digest.update(len(content).to_bytes(8, "big") + content)
    return digest.hexdigest()
