"""Does a quantized checkpoint belong to an original? Settings, vocabulary, and the weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from jaxalign.checkpoints.gguf_tokenizer import SPACE
from jaxalign.checkpoints.load import Model, config_from, read_json, read_tokenizer
from jaxalign.checkpoints.quantized.compare import REMEDY, check_weights
from jaxalign.checkpoints.quantized.gguf import context_of, tokens_of
from jaxalign.checkpoints.quantized.read import Quantized, existing, load_quantized
from jaxalign.checkpoints.quantized.settings import shown
from jaxalign.errors import InputError
from jaxalign.model.config import ModelConfig


def load_beside(path: Path | str, original: Model, **options: Any) -> Quantized:
    """Load a quantized checkpoint that was made from ``original``, or say why it was not.

    Compared are the architecture, the tokenizer's vocabulary and every parameter
    (``check_weights``). What differs and changes no number is noted: the longest context, added
    tokens, a missing tokenizer. The original's are used.

    Args:
        path: see ``load_quantized``.
        original: the model that was quantized.
        options: ``load_quantized``'s.

    Raises:
        InputError: they do not belong together, or the checkpoint cannot be used.
    """
    path = existing(path)
    context = check_settings(path, original.config) if path.is_dir() else context_of(path)
    notes = [check_vocabularies(path, original)]
    if context not in (None, original.config.max_positions):
        notes.insert(
            0,
            f"the quantized checkpoint is for contexts of {shown(context)} tokens, the original "
            f"for {original.config.max_positions}: the original's is used",
        )
    quantized = load_quantized(path, original.config, **options)
    errors = check_weights(path, quantized, original)
    if errors:
        worst = max(errors, key=lambda name: errors[name].max())
        layer, largest = int(errors[worst].argmax()), errors[worst].max()
        notes.append(f"largest relative error of a matrix: {largest:.3g} ({worst}, layer {layer})")
    return dataclasses.replace(
        quantized, notes=(*quantized.notes, *(note for note in notes if note))
    )


def check_settings(folder: Path, config: ModelConfig) -> int:
    """The longest context of a folder whose architecture is the original's but for that.

    Raises:
        InputError: another field differs; named.
    """
    settings = read_json(folder / "config.json")
    settings.pop("quantization_config", None)
    found = config_from(settings, folder / "config.json")
    for field in dataclasses.fields(ModelConfig):
        said, expected = getattr(found, field.name), getattr(config, field.name)
        if field.name != "max_positions" and said != expected:
            raise InputError(
                f"{folder / 'config.json'} says {field.name} {shown(said)}, but the original has "
                f"{expected}",
                REMEDY,
            )
    return found.max_positions


def check_vocabularies(path: Path, original: Model) -> str:
    """Compare the tokenizers' vocabularies.

    A token that only one of them has changes no other token's number if it was added to the
    vocabulary (a pad token, say).

    Args:
        path: the checkpoint, a folder or a ``.gguf`` file.
        original: the model that was quantized.

    Returns:
        a note of what differs all the same, or "".

    Raises:
        InputError: a token has another number, or the vocabularies differ; a token is named.
    """
    expected = original.tokenizer.get_vocab(with_added_tokens=True)
    added = {token.content for token in original.tokenizer.get_added_tokens_decoder().values()}
    if not path.is_dir():
        tokens = tokens_of(path)
        found = None if tokens is None else {token: i for i, token in enumerate(tokens)}
        # llama.cpp writes the spaces of tokens that SentencePiece's users have added as spaces.
        spaced = {t.replace(" ", SPACE): i for t, i in (found or {}).items() if " " in t}
        found = None if found is None else spaced | found
    elif (path / "tokenizer.json").is_file():
        tokenizer = read_tokenizer(path / "tokenizer.json")
        found = tokenizer.get_vocab(with_added_tokens=True)
        added |= {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    else:
        found = None
    if found is None:
        return "the quantized checkpoint brings no tokenizer: the original's is used"
    # llama.cpp pads the vocabulary to the embedding's rows with tokens of its own.
    compared = found.keys() | expected.keys() if path.is_dir() else expected.keys()
    apart = sorted(token for token in compared if found.get(token) != expected.get(token))
    for token in apart:
        if token not in added or (token in found and token in expected):
            raise InputError(
                f"{path}: its tokenizer has {shown(token)} as {found.get(token, 'no token')}, the "
                f"original's as {expected.get(token, 'no token')}",
                REMEDY,
            )
    if not apart:
        return ""
    return (
        f"only one of the two tokenizers has {', '.join(map(shown, apart[:3]))}"
        f"{f' and {len(apart) - 3} more' if len(apart) > 3 else ''}: the original's is used"
    )
