"""Claim: the tokenizer of a GGUF file splits and merges as the file's settings say.

Held against the rules written out by hand, not against a library that reads such files.
"""

import functools
import itertools
import unicodedata

import numpy as np
import pytest
import regex
from llama_gguf import ALPHABET, KINDS, MERGES, SPECIAL, TOKENS, random_tensors, write_llama

import jaxalign
from jaxalign.checkpoints.gguf_model import open_gguf_model

# llama.cpp's rules, applied one after the other (``llama-vocab.cpp``, SMOLLM and GPT2).
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
ENDINGS = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{REST}"
QWEN2 = LLAMA3.replace("{1,3}", "")
# llama.cpp writes these two for an engine without classes of upper and lower letters; here they
# are as the models' own tokenizer.json has them.
LETTER = r"[^\r\n\p{L}\p{N}]?"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
SLASHES = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = rf"{LETTER}{UPPER}*{LOWER}+|{LETTER}{UPPER}+{LOWER}*|\p{{N}}|{SLASHES}"
CASED = (rf"{LETTER}{UPPER}*{LOWER}+{ENDINGS}?", rf"{LETTER}{UPPER}+{LOWER}*{ENDINGS}?")
GPT4O = "|".join((*CASED, r"\p{N}{1,3}", SLASHES))
RULES = {
    "smollm": (r"\p{N}", GPT2),
    "starcoder": (r"\p{N}", GPT2),
    "gpt-2": (GPT2,),
    "olmo": (GPT2,),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
    "llama-bpe": (LLAMA3,),
    "dbrx": (LLAMA3,),
    "qwen2": (QWEN2,),
    "deepseek-r1-qwen": (QWEN2,),
    "tekken": (TEKKEN,),
    "gpt-4o": (GPT4O,),
}
# Whose texts are first brought to Unicode's composed form.
COMPOSED = ("olmo", "qwen2")


@functools.cache
def byte_characters():
    """Each byte as GPT-2 writes it: printable ones as they are, the others from 256 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    return {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(others)}


def split(text, rules):
    """Pieces of a text: each rule cuts its matches out of the pieces of the one before."""
    pieces = [text]
    for rule in rules:
        pieces = [p for piece in pieces for p in regex.split(f"({rule})", piece) if p]
    return pieces


def merged(piece):
    """The tokens of a piece: the pair of the lowest rank is merged until none is left."""
    parts = [byte_characters()[b] for b in piece.encode()]
    ranks = {tuple(merge.split()): rank for rank, merge in enumerate(MERGES)}
    while pairs := [(ranks[p], i) for i, p in enumerate(itertools.pairwise(parts))
                    if p in ranks]:  # fmt: skip
        _, i = min(pairs)
        parts[i : i + 2] = ["".join(parts[i : i + 2])]
    return parts


def by_hand(text, rules, composed=False):
    """Token numbers, special tokens cut out first."""
    text = unicodedata.normalize("NFC", text) if composed else text
    found = regex.split(f"({'|'.join(map(regex.escape, SPECIAL))})", text)
    tokens = [
        token
        for part in found
        for token in ([part] if part in SPECIAL
                      else [t for piece in split(part, rules) for t in merged(piece)])
    ]  # fmt: skip
    return [TOKENS.index(token) for token in tokens]


ODD = (
    *("the", "in", " ", "  ", "   ", "\n", "\n\n", "\t", "\r\n", "\u00a0", "\u200d"),
    *("1", "19", "²", "½", "٣", "é", "日本", "🧮", "'s", "'re", "re", "!", "…", "Ġ"),
    *("'S", "'LL", "/", "//\n", "e\u0301", "HeLLo", "ǅ", "ʰ", "नि", "!\r\n", "123456", "$+<=|"),
    *(*SPECIAL, "<|im_"),
)


@pytest.mark.parametrize("pre", RULES)
def test_token_ids_are_those_of_the_rules_that_the_file_names(tmp_path, pre):
    write_llama(tmp_path / "m.gguf", random_tensors(), **{"tokenizer.ggml.pre": pre})
    tokenizer = jaxalign.load(tmp_path / "m.gguf").tokenizer
    assert sorted(byte_characters().values()) == ALPHABET
    rng = np.random.default_rng(0)
    for _ in range(300):
        text = "".join(ODD[i] for i in rng.integers(len(ODD), size=rng.integers(1, 12)))
        ids = tokenizer.encode(text).ids
        assert ids == by_hand(text, RULES[pre], pre in COMPOSED), repr(text)
        composed = unicodedata.normalize("NFC", text) if pre in COMPOSED else text
        assert tokenizer.decode(ids, skip_special_tokens=False) == composed


def test_the_two_rules_differ_where_the_test_would_see_it():
    assert by_hand("1919", RULES["smollm"]) != by_hand("1919", RULES["gpt-2"])
    assert by_hand("in  1", RULES["smollm"]) != by_hand("in  1", RULES["gpt-2"])


def test_a_piece_that_is_a_token_is_that_token_where_the_name_says_so(tmp_path):
    """Llama 3's vocabulary has tokens that no merge leads to."""
    more = {"tokens": [*TOKENS, "zq"], "token_type": [*KINDS, 1]}
    found = {}
    for pre in ("llama-bpe", "dbrx"):
        changes = {f"tokenizer.ggml.{name}": value for name, value in (more | {"pre": pre}).items()}
        write_llama(tmp_path / "m.gguf", random_tensors(), **changes)
        tokenizer = open_gguf_model(tmp_path / "m.gguf").tokenizer
        found[pre] = tokenizer.encode("zq").ids
    assert found["llama-bpe"] == [len(TOKENS)]
    assert len(found["dbrx"]) == 2


@pytest.mark.parametrize(("pre", "begins"), [("llama-bpe", True), ("qwen2", False)])
def test_a_text_begins_as_the_name_says_where_the_file_does_not(tmp_path, pre, begins):
    changes = {"tokenizer.ggml.pre": pre, "tokenizer.ggml.add_bos_token": None}
    write_llama(tmp_path / "m.gguf", random_tensors(), **changes)
    tokenizer = open_gguf_model(tmp_path / "m.gguf").tokenizer
    assert tokenizer.encode("in").ids == [1] * begins + [TOKENS.index("in")]


def test_a_file_without_a_name_is_split_as_llama_cpp_does_and_says_so(tmp_path):
    write_llama(tmp_path / "m.gguf", random_tensors(), **{"tokenizer.ggml.pre": None})
    model = open_gguf_model(tmp_path / "m.gguf")
    text = "19194<=>the"
    assert model.tokenizer.encode(text).ids == by_hand(text, RULES["default"])
    assert any("does not say how texts are split" in note for note in model.notes)


def test_special_tokens_stand_around_a_text_where_the_file_says_so(tmp_path):
    changes = {f"tokenizer.ggml.{name}": value for name, value in {
        "add_bos_token": True, "add_eos_token": True, "bos_token_id": 1, "eos_token_id": 0,
    }.items()}  # fmt: skip
    write_llama(tmp_path / "m.gguf", random_tensors(), **changes)
    model = jaxalign.load(tmp_path / "m.gguf")
    [ids], _ = model.encode(["in"], special=True)
    assert ids.tolist() == [1, TOKENS.index("in"), 0]
    assert model.encode(["in"])[0].tolist() == [[TOKENS.index("in")]]
