"""The tokenizer that a GGUF file carries: byte-level BPE, as the ``tokenizers`` library runs it.

A file has the tokens in the order of their numbers, the kind of each, the merges in the order of
their ranks, and the name ("pre") of how texts are split before; it has no ``tokenizer.json``.
"""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer

from jaxalign.checkpoints.families.settings import NEEDED, Settings
from jaxalign.checkpoints.gguf_file import GGUFFile
from jaxalign.checkpoints.tokenizer import tokenizer_of
from jaxalign.errors import InputError

PREFIX = "tokenizer.ggml."
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
              "use_regex": True}  # fmt: skip
DIGITS = {"type": "Digits", "individual_digits": True}
# How a text is split before merges, by llama.cpp's name for it: GPT-2's rule, and SmolLM's, where
# each digit is a piece of its own first.
SPLITS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [BYTE_LEVEL],
    "smollm": [DIGITS, BYTE_LEVEL],
}
# llama.cpp's kinds of tokens. A byte or unknown token is none of a byte-level vocabulary.
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
KINDS = (NORMAL, CONTROL, USER_DEFINED, UNUSED)
# What byte-level BPE has no use for, and templates of chats.
PASSED_OVER = ("scores", "add_space_prefix")
TEMPLATES = "tokenizer.chat_template"


def read_gguf_tokenizer(file: GGUFFile, settings: Settings) -> Tokenizer:
    """The tokenizer of a file.

    Args:
        file: its head.
        settings: the file's, from which the tokenizer's are taken away.

    Raises:
        InputError: a tokenizer of another kind, or one that is damaged; says what was found.
    """
    _check_kind(settings)
    tokens = _texts(settings, "tokens")
    kinds = settings.take(f"{PREFIX}token_type", NEEDED)
    if not isinstance(kinds, list) or len(kinds) != len(tokens) or not set(kinds) <= {*KINDS}:
        raise settings.wrong(
            f"{PREFIX}token_type", kinds, f"one of {KINDS} for each of {len(tokens)} tokens"
        )
    for name in PASSED_OVER:
        settings.take(PREFIX + name, None)
    for name in [name for name in settings.left if name.startswith(TEMPLATES)]:
        settings.take(name, None)
    vocabulary = {token: number for number, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        twice = next(t for number, t in enumerate(tokens) if vocabulary[t] != number)
        raise InputError(f"{file.path} has the token {twice!r} twice", settings.as_published)
    return tokenizer_of(
        {
            "version": "1.0",
            "added_tokens": [
                _added(number, token, kind == CONTROL)
                for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
                if kind in (CONTROL, USER_DEFINED)
            ],
            "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": _split(settings)},
            "post_processor": _around(file, settings, tokens),
            "decoder": BYTE_LEVEL,
            "model": {
                "type": "BPE",
                "vocab": vocabulary,
                "merges": [_pair(file, merge) for merge in _texts(settings, "merges")],
            },
        },
        str(file.path),
        settings.as_published,
    )


def _check_kind(settings: Settings) -> None:
    kind = settings.word(f"{PREFIX}model", "none")
    if kind != "gpt2":
        raise settings.wrong(f"{PREFIX}model", kind, "'gpt2' (byte-level BPE)")


def _split(settings: Settings) -> list[dict[str, Any]]:
    name = settings.word(f"{PREFIX}pre", "default")
    if name not in SPLITS:
        raise settings.wrong(f"{PREFIX}pre", name, " or ".join(map(repr, SPLITS)))
    return SPLITS[name]


def _texts(settings: Settings, name: str) -> list[str]:
    found = settings.take(PREFIX + name, NEEDED)
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise settings.wrong(PREFIX + name, found, "a list of texts")
    return found


def _pair(file: GGUFFile, merge: str) -> list[str]:
    pair = merge.split(" ")
    if len(pair) != 2:
        raise InputError(f"{file.path} has a merge {merge!r}, expected two tokens",
                         "download it again")  # fmt: skip
    return pair


def _added(number: int, token: str, special: bool) -> dict[str, Any]:
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": token, **plain, "special": special}


def _around(file: GGUFFile, settings: Settings, tokens: list[str]) -> dict[str, Any] | None:
    """The special tokens that the file wants before and behind every text."""
    texts, special = [{"Sequence": {"id": "A", "type_id": 0}}], {}
    for name, place in (("bos", 0), ("eos", 2)):
        if not settings.flag(f"{PREFIX}add_{name}_token", False):
            continue
        number = file.settings.get(f"{PREFIX}{name}_token_id")
        if type(number) is not int or not 0 <= number < len(tokens):
            raise settings.wrong(f"{PREFIX}{name}_token_id", number, "the number of a token")
        token = tokens[number]
        special[token] = {"id": token, "ids": [number], "tokens": [token]}
        texts.insert(place, {"SpecialToken": {"id": token, "type_id": 0}})
    if not special:
        return None
    pair = [*texts, {"Sequence": {"id": "B", "type_id": 1}}]
    return {"type": "TemplateProcessing", "single": texts, "pair": pair,
            "special_tokens": special}  # fmt: skip
