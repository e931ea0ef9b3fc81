"""The tokenizer that a GGUF file carries, as the ``tokenizers`` library runs it.

A file has the tokens in the order of their numbers and the kind of each; it has no
``tokenizer.json``. There are two kinds of tokenizers: "gpt2", byte-level BPE with merges in the
order of their ranks and the name of how texts are split before (``gguf_splits``); and "llama",
SentencePiece's BPE, whose tokens have scores, and whose bytes are tokens of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tokenizers import Tokenizer

from jaxalign.checkpoints.families.settings import NEEDED, Settings
from jaxalign.checkpoints.gguf_file import GGUFFile
from jaxalign.checkpoints.gguf_splits import DEFAULT, SPLITS, Split
from jaxalign.checkpoints.tokenizer import tokenizer_of
from jaxalign.errors import InputError, shown

PREFIX = "tokenizer.ggml."
KNOWN = ("gpt2", "llama")
# llama.cpp's kinds of tokens.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
# A byte or unknown token is none of a byte-level vocabulary.
KINDS = {"gpt2": (NORMAL, CONTROL, USER_DEFINED, UNUSED),
         "llama": (NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE)}  # fmt: skip
SPACE = "▁"  # SentencePiece's
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
              "use_regex": True}  # fmt: skip
FOLDER = "use the model's folder with tokenizer.json and safetensors"
TEMPLATES = "tokenizer.chat_template"
# Models whose special tokens take the white space behind them along, by their name in the file, and
# those of their tokens that do not; llama.cpp knows them by this name, too, for no key says so.
STRIPPING, KEEPING = ("phi-3", "phi3"), ("<unk>", "<s>", "<|endoftext|>")


def read_gguf_tokenizer(file: GGUFFile, settings: Settings) -> Tokenizer:
    """The tokenizer of a file.

    Args:
        file: its head.
        settings: the file's, from which the tokenizer's are taken away.

    Raises:
        InputError: no tokenizer, one of another kind, or one that is damaged; says what was found.
    """
    kind = settings.word(f"{PREFIX}model", "none")
    if kind not in KNOWN:
        raise InputError(
            f"{file.path}: {PREFIX}model is {shown(kind)}, expected 'gpt2' (byte-level BPE) or "
            "'llama' (SentencePiece)",
            FOLDER,
        )
    tokens, kinds = _vocabulary(file, settings, kind)
    for name in [name for name in settings.left if name.startswith(TEMPLATES)]:
        settings.take(name, None)
    if kind == "gpt2":
        split = _split(settings)
        parts, begins = _byte_level(file, settings, tokens, split), split.begins
    else:
        parts, begins = _sentence_piece(settings, tokens, kinds), True
    strips = any(name in str(file.settings.get("general.name")).lower() for name in STRIPPING)
    added = [
        _added(number, token, kind != USER_DEFINED, strips and token not in KEEPING)
        for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (UNKNOWN, CONTROL, USER_DEFINED)
    ]
    around = _around(file, settings, tokens, begins)
    whole = {"version": "1.0", "added_tokens": added, "post_processor": around} | parts
    return tokenizer_of(whole, str(file.path), settings.as_published)


def _vocabulary(file: GGUFFile, settings: Settings, kind: str) -> tuple[list[str], list[int]]:
    """The tokens and the kind of each."""
    tokens = _texts(settings, "tokens")
    kinds = settings.take(f"{PREFIX}token_type", NEEDED)
    known = KINDS[kind]
    if not isinstance(kinds, list) or len(kinds) != len(tokens) or not set(kinds) <= {*known}:
        raise settings.wrong(
            f"{PREFIX}token_type", kinds, f"one of {known} for each of {len(tokens)} tokens"
        )
    numbers = {token: number for number, token in enumerate(tokens)}
    if len(numbers) != len(tokens):
        twice = next(t for number, t in enumerate(tokens) if numbers[t] != number)
        raise InputError(f"{file.path} has the token {twice!r} twice", settings.as_published)
    return tokens, kinds


def _byte_level(
    file: GGUFFile, settings: Settings, tokens: list[str], split: Split
) -> dict[str, Any]:
    """What is byte-level BPE's own in a ``tokenizer.json``."""
    for name in ("scores", "add_space_prefix"):  # it has no use for them
        settings.take(PREFIX + name, None)
    return {
        "normalizer": split.normalizer(),
        "pre_tokenizer": split.pre_tokenizer(),
        "decoder": BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [_pair(file, merge) for merge in _texts(settings, "merges")],
            "ignore_merges": split.whole_first,
        },
    }


def _split(settings: Settings) -> Split:
    """How texts are split, by the name in the file."""
    name = settings.word(f"{PREFIX}pre", "")
    if not name:
        settings.notes.append(
            f"{settings.where} does not say how texts are split before merges: as llama.cpp does "
            "then, which may not be as in training"
        )
        return SPLITS[DEFAULT]
    if name not in SPLITS:
        raise InputError(
            f"{settings.where}: {PREFIX}pre is {shown(name)}, expected one of {', '.join(SPLITS)}",
            FOLDER,
        )
    return SPLITS[name]


def _sentence_piece(settings: Settings, tokens: list[str], kinds: Sequence[int]) -> dict[str, Any]:
    """What is SentencePiece's own in a ``tokenizer.json``."""
    scores = settings.take(f"{PREFIX}scores", NEEDED)
    numbers = isinstance(scores, list) and all(isinstance(x, int | float) for x in scores)
    if not numbers or len(scores) != len(tokens):
        raise settings.wrong(
            f"{PREFIX}scores", scores, f"a number for each of {len(tokens)} tokens"
        )
    settings.take(f"{PREFIX}pre", None)  # there is one way alone
    settings.take(f"{PREFIX}merges", None)
    settings.only(f"{PREFIX}remove_extra_whitespaces", False)
    before = settings.flag(f"{PREFIX}add_space_prefix", True)
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prefix = [{"type": "Prepend", "prepend": SPACE}] if before else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if before else []
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*prefix, spaces]},
        "pre_tokenizer": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *strip,
            ],
        },
        "model": {
            "type": "BPE",
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": _merges(tokens, kinds, scores),
            "unk_token": next(
                (t for t, k in zip(tokens, kinds, strict=True) if k == UNKNOWN), None
            ),
            "fuse_unk": True,
            "byte_fallback": BYTE in kinds,
        },
    }


def _merges(
    tokens: Sequence[str], kinds: Sequence[int], scores: Sequence[float]
) -> list[list[str]]:
    """Every way to make a token of two others, the token of the highest score first.

    SentencePiece merges the two neighbours whose token has the highest score, so the ranks that
    BPE goes by follow from scores.
    """
    usable = {
        token: number
        for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (NORMAL, USER_DEFINED)
    }

    def halves(token: str) -> Iterator[tuple[int, int]]:
        for cut in range(1, len(token)):
            left, right = usable.get(token[:cut]), usable.get(token[cut:])
            if left is not None and right is not None:
                yield left, right

    found = [
        (-scores[number], left, right)
        for token, number in usable.items()
        for left, right in halves(token)
    ]
    return [[tokens[left], tokens[right]] for _, left, right in sorted(found)]


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


def _added(number: int, token: str, special: bool, strips: bool) -> dict[str, Any]:
    plain = dict.fromkeys(("single_word", "lstrip", "normalized"), False)
    return {"id": number, "content": token, **plain, "rstrip": strips, "special": special}


def _around(
    file: GGUFFile, settings: Settings, tokens: list[str], begins: bool
) -> dict[str, Any] | None:
    """The special tokens that the file wants before and behind every text."""
    texts, special = [{"Sequence": {"id": "A", "type_id": 0}}], {}
    for name, place, default in (("bos", 0, begins), ("eos", 2, False)):
        if not settings.flag(f"{PREFIX}add_{name}_token", default):
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
