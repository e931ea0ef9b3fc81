"""Claim: the tokenizer of a GGUF file splits and merges as the file's settings say.

Held against the rules written out by hand, not against a library that reads such files.
"""

import functools
import itertools

import numpy as np
import pytest
import regex
from llama_gguf import ALPHABET, MERGES, SPECIAL, TOKENS, random_tensors, write_llama

import jaxalign

# llama.cpp's rules, applied one after the other (``llama-vocab.cpp``, SMOLLM and GPT2).
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
RULES = {
    "smollm": (r"\p{N}", GPT2),
    "gpt-2": (GPT2,),
}


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


def by_hand(text, rules):
    """Token numbers, special tokens cut out first."""
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
        assert ids == by_hand(text, RULES[pre]), repr(text)
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_the_two_rules_differ_where_the_test_would_see_it():
    assert by_hand("1919", RULES["smollm"]) != by_hand("1919", RULES["gpt-2"])
    assert by_hand("in  1", RULES["smollm"]) != by_hand("in  1", RULES["gpt-2"])


def test_special_tokens_stand_around_a_text_where_the_file_says_so(tmp_path):
    changes = {f"tokenizer.ggml.{name}": value for name, value in {
        "add_bos_token": True, "add_eos_token": True, "bos_token_id": 1, "eos_token_id": 0,
    }.items()}  # fmt: skip
    write_llama(tmp_path / "m.gguf", random_tensors(), **changes)
    model = jaxalign.load(tmp_path / "m.gguf")
    [ids], _ = model.encode(["in"], special=True)
    assert ids.tolist() == [1, TOKENS.index("in"), 0]
    assert model.encode(["in"])[0].tolist() == [[TOKENS.index("in")]]
