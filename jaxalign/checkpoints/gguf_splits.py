"""How byte-level BPE splits a text before it merges, by llama.cpp's name ("pre") for it.

A GGUF file has the name alone; the rules are those of the ``tokenizer.json`` that the name stands
for, in the syntax of the ``tokenizers`` library. Source: llama.cpp, ``llama-vocab.cpp``, whose
regular expressions are these written for its own engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_REST_WITH_SLASHES = _REST.replace(r"[\r\n]*", r"[\r\n/]*", 1)
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+",
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*",
)


@dataclass(frozen=True, kw_only=True)
class Split:
    """How a text becomes pieces within which tokens are merged.

    Attributes:
        rules: regular expressions; each cuts its matches out of the pieces that the one before
            has left.
        composed: whether the text is first brought to Unicode's composed form (NFC).
        whole_first: whether a piece that is a token as it stands is that token, whatever the
            merges say.
        begins: whether a text begins with the beginning-of-text token where the file does not say.
    """

    rules: tuple[str, ...]
    composed: bool = False
    whole_first: bool = False
    begins: bool = False

    def normalizer(self) -> dict[str, Any] | None:
        """The ``normalizer`` of a ``tokenizer.json``."""
        return {"type": "NFC"} if self.composed else None

    def pre_tokenizer(self) -> dict[str, Any]:
        """The ``pre_tokenizer`` of a ``tokenizer.json``."""
        splits = [
            {"type": "Split", "pattern": {"Regex": rule}, "behavior": "Isolated", "invert": False}
            for rule in self.rules
        ]
        return {"type": "Sequence", "pretokenizers": [*splits, BYTES]}


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}

_THREE_DIGITS = rf"{_ENDINGS}|{_WORD}|\p{{N}}{{1,3}}|{_REST}"
_ONE_DIGIT = rf"{_ENDINGS}|{_WORD}|\p{{N}}|{_REST}"
_LLAMA3 = Split(rules=(_THREE_DIGITS,), whole_first=True, begins=True)
_GPT2 = Split(rules=(GPT2,))
_DIGITS_APART = Split(rules=(r"\p{N}", GPT2))
# What llama.cpp does where a file names no split, as files from before its names do not.
DEFAULT = "default"

SPLITS: Mapping[str, Split] = {
    DEFAULT: Split(rules=(r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    "gpt-2": _GPT2,
    "phi-2": _GPT2,
    "olmo": Split(rules=(GPT2,), composed=True),  # GPT-NeoX's tokenizer, too
    "smollm": _DIGITS_APART,
    "starcoder": _DIGITS_APART,
    "refact": _DIGITS_APART,
    "codeshell": _DIGITS_APART,
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"), _LLAMA3),
    "dbrx": Split(rules=(_THREE_DIGITS,)),
    "smaug-bpe": Split(rules=(_THREE_DIGITS,)),
    "qwen2": Split(rules=(_ONE_DIGIT,), composed=True),
    "deepseek-r1-qwen": Split(rules=(_ONE_DIGIT,)),
    "stablelm2": Split(rules=(_ONE_DIGIT,)),
    "tekken": Split(
        rules=("|".join((*_CASED, r"\p{N}", _REST_WITH_SLASHES)),), whole_first=True, begins=True
    ),
    "gpt-4o": Split(
        rules=(
            "|".join(
                (*(f"{cased}{_ENDINGS}?" for cased in _CASED), r"\p{N}{1,3}", _REST_WITH_SLASHES)
            ),
        )
    ),
}
