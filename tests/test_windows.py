"""Claims about documents and windows: what is one, what counts, and that nothing counts twice."""

import hashlib
import json
import re

import numpy as np
import pytest
from shared_texts import DATA, require
from tiny_run import TOKENIZER
from tokenizers import Tokenizer, processors

from jaxalign import InputError
from jaxalign.model import ModelConfig
from jaxalign.prompts import bos_token, cut_windows, read_documents

CONFIG = ModelConfig(4096, 2, 2, 32, 64, max_positions=16, rotary_dims=4)
BOS = 7
TEXTS = ("The capital of France is Paris, and it was a good day.", "x", "It was a long day", "")


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(str(TOKENIZER))


@pytest.fixture
def read(tmp_path):
    def read(content, name="texts.txt", **named):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_documents(path, **named)

    return read


def ids_of(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


def written(texts):
    """All that is no white space: what no cutting may lose."""
    return "".join("".join(texts).split())


# Documents.


def test_a_line_of_json_lines_is_a_document(read):
    lines = [{"text": "One\u2028two\n\nthree", "n": 1}, {"text": " "}, {"text": "four"}]
    content = "\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    assert read(content, "a.jsonl") == ("One\u2028two\n\nthree", "four")
    assert read('{"story": "five"}\n', "a.JSONL", field="story") == ("five",)


WIKI = """
 = Lakes =

 A lake is water .
 = 1 henry and capacitance C =
 1 farad .

 = = Depth = =

 Some are deep .
 
 = Rivers ( long ) = 

 A river flows .
"""


def test_an_article_of_wikitext_is_a_document_with_its_title(read):
    lakes, rivers = read(WIKI)
    assert lakes.startswith(" = Lakes =\n")
    assert lakes.endswith(" Some are deep .")
    assert rivers == " = Rivers ( long ) = \n\n A river flows ."
    before, *rest = read(f"Read me first\n{WIKI}")
    assert (before, rest) == ("Read me first", [lakes, rivers])


def test_another_text_is_cut_at_blank_lines_into_documents_of_2000_characters(read):
    paragraphs = [f"{i} " + "word " * 150 for i in range(11)]
    documents = read("\n\n".join(paragraphs))
    assert min(map(len, documents)) >= 2000
    assert written(documents) == written(paragraphs)
    assert [document.count("\n\n") for document in documents] == [2, 2, 4]  # the rest is no other
    assert read("A short text.\n\nIts end.\n") == ("A short text.\n\nIts end.",)


@pytest.mark.parametrize(
    ("content", "name", "said"),
    [
        (b"", "a.txt", "has no text"),
        (b" \n\n", "a.txt", "has no text"),
        (b"", "a.jsonl", "has no text"),
        (b"\xff\xfe", "a.txt", "is not UTF-8 text"),
        (b'{"text": "a"}\n{"txt": "b"}\n', "a.jsonl", 'line 2 is {"txt": "b"}, expected an object'),
        (b'{"text": 7}\n', "a.jsonl", 'with a string "text"'),
        (b'["text"]\n', "a.jsonl", "line 1 is"),
        (b'\n{"text": \n', "a.jsonl", "line 2 is not JSON"),
        (b'{"text": "a", "text": "b"}\n', "a.jsonl", "twice"),
        (b'{"text": "a"}\n{"text": "b"}\n', "a.txt", "looks like JSON lines"),
    ],
)
def test_a_file_without_documents_is_refused(read, content, name, said):
    with pytest.raises(InputError, match=re.escape(said)):
        read(content, name)


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="is missing"):
        read_documents(tmp_path / "none.txt")
    with pytest.raises(InputError, match="Is a directory"):
        read_documents(tmp_path)
    with pytest.raises(InputError, match="path is 7"):
        read_documents(7)


# Windows.


SIZES = [(8, None, None), (8, 8, None), (8, 3, None), (8, 3, BOS), (8, 7, BOS), (2, 1, BOS)]
SIZES += [(64, None, BOS), (2, None, None)]


@pytest.mark.parametrize(("window", "stride", "bos"), SIZES)
def test_every_token_of_a_document_counts_once_and_nothing_else_does(
    tokenizer, window, stride, bos
):
    cut = cut_windows(TEXTS, tokenizer, window=window, stride=stride, bos=bos)
    kept = [TEXTS[0], TEXTS[2]]
    assert cut.documents == 2
    found = [[] for _ in kept]
    rows = zip(cut.tokens, cut.counted, cut.first, cut.document, strict=True)
    for tokens, counts, first, document in rows:
        for place in np.flatnonzero(counts):
            found[document].append((first + place - (bos is not None), tokens[place]))
    assert found == [list(enumerate(ids_of(tokenizer, text))) for text in kept]
    assert cut.counted_tokens == sum(map(len, found))


@pytest.mark.parametrize(("window", "stride", "bos"), SIZES)
def test_a_window_has_the_tokens_behind_its_place_in_one_document(tokenizer, window, stride, bos):
    cut = cut_windows(TEXTS, tokenizer, window=window, stride=stride, bos=bos)
    front = [] if bos is None else [bos]
    held = window - len(front)
    assert cut.stride == (stride or held)
    assert cut.tokens.shape == cut.counted.shape == (len(cut.first), window)
    assert {a.dtype for a in (cut.tokens, cut.lengths, cut.first, cut.document)} == {
        np.dtype(np.int32)
    }
    for i, (first, length, document) in enumerate(
        zip(cut.first, cut.lengths, cut.document, strict=True)
    ):
        ids = ids_of(tokenizer, TEXTS[[0, 2][document]])
        row = front + ids[first : first + held]
        assert length == len(row)
        assert cut.tokens[i].tolist() == row + [0] * (window - len(row))
        again = i and cut.document[i - 1] == document
        assert first == (cut.first[i - 1] + cut.stride if again else 0)
        # A later window counts what is new to it, behind all of its context.
        assert np.flatnonzero(cut.counted[i])[0] == (window - cut.stride if again else len(front))


def test_a_limit_takes_the_first_windows(tokenizer):
    every = cut_windows(TEXTS, tokenizer, window=6, stride=2)
    for limit in (1, 3, len(every.tokens), 99):
        some = cut_windows(TEXTS, tokenizer, window=6, stride=2, limit=limit)
        for name in ("tokens", "lengths", "first", "counted", "document"):
            assert np.array_equal(getattr(some, name), getattr(every, name)[:limit]), name
        assert some.documents == some.document[-1] + 1
    assert cut_windows(TEXTS, tokenizer, window=6, limit=1).notes == (
        "1 of 4 documents read: limit is 1 windows",
    )


def test_documents_of_fewer_than_two_tokens_are_left_out_and_noted(tokenizer):
    assert cut_windows(TEXTS, tokenizer, window=8).notes == (
        "2 documents of fewer than 2 tokens left out",
    )
    with pytest.raises(InputError, match="none of 2 texts has 2 tokens"):
        cut_windows(["x", ""], tokenizer, window=8)
    with pytest.raises(InputError, match="none of 0 texts"):
        cut_windows([], tokenizer, window=8)


def test_the_hash_is_of_the_texts_and_of_where_each_ends(tokenizer):
    def sha256(*texts, **named):
        return cut_windows(texts, tokenizer, **{"window": 8, **named}).texts_sha256

    given = sha256("one two", "three four")
    assert given == sha256("one two", "three four", window=4, limit=1)
    assert given != sha256("one twoth", "ree four")
    assert given != sha256("three four", "one two")
    content = b"".join(len(t).to_bytes(8, "big") + t for t in (b"one two", b"three four"))
    assert given == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({"window": 1}, "window is 1, expected at least 2"),
        ({"window": 8.0}, "window is 8.0"),
        ({"window": 8, "stride": 9}, "stride is 9, expected from 1 to 8"),
        ({"window": 8, "stride": 8, "bos": 0}, "stride is 8, expected from 1 to 7"),
        ({"window": 8, "stride": 0}, "stride is 0"),
        ({"window": 8, "bos": -1}, "bos is -1"),
        ({"window": 8, "limit": 0}, "limit is 0"),
        ({"window": 17, "config": CONFIG}, "window is 17, expected from 2 to 16"),
        ({"window": 8, "bos": 4096, "config": CONFIG}, "bos is 4096"),
    ],
)
def test_sizes_that_cannot_be_are_refused(tokenizer, named, said):
    with pytest.raises(InputError, match=re.escape(said)):
        cut_windows(TEXTS, tokenizer, **named)


def test_texts_that_are_none_and_tokens_without_a_row_are_refused(tokenizer):
    with pytest.raises(InputError, match="texts is"):
        cut_windows("one text", tokenizer, window=8)
    with pytest.raises(InputError, match=re.escape("texts[1] is 7")):
        cut_windows(["a", 7], tokenizer, window=8)
    small = ModelConfig(100, 2, 2, 32, 64, max_positions=16, rotary_dims=4)
    with pytest.raises(InputError, match="outside the model's vocabulary"):
        cut_windows(TEXTS, tokenizer, window=8, config=small)


def test_the_token_in_front_is_the_one_that_the_tokenizer_puts_there(tokenizer):
    assert bos_token(tokenizer) is None
    [token, *_] = ids_of(tokenizer, " day")
    name = tokenizer.id_to_token(token)
    for template, expected in ((f"{name} $A", token), (f"$A {name}", None)):
        other = Tokenizer.from_file(str(TOKENIZER))
        other.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[(name, token)]
        )
        assert bos_token(other) == expected


# Published texts, where they are at hand.


def test_wikitext_2_has_its_60_articles():
    documents = read_documents(require(DATA / "text" / "wiki.test.raw"))
    assert len(documents) == 60
    assert documents[0].startswith(" = Robert Boulter = ")
    whole = (DATA / "text" / "wiki.test.raw").read_text(encoding="utf-8")
    assert written(documents) == written([whole])


def test_lambada_has_a_document_a_line():
    documents = read_documents(require(DATA / "text" / "lambada_test.jsonl"))
    assert len(documents) == 5153
    assert documents[0].startswith("In my palm is a clear stone")


def test_a_play_is_cut_into_many_documents():
    path = require(DATA / "text" / "tinyshakespeare.txt")
    documents = read_documents(path)
    assert len(documents) == 497
    assert min(map(len, documents)) >= 2000
    assert written(documents) == written([path.read_text(encoding="utf-8")])


def test_articles_of_wikitext_2_in_windows_count_every_token():
    path = require(DATA / "neox-tokenizer" / "20B_tokenizer.json")
    tokenizer = Tokenizer.from_file(str(path))
    texts = read_documents(require(DATA / "text" / "wiki.test.raw"))
    texts = texts[:20]
    sizes = [len(ids_of(tokenizer, text)) for text in texts]
    cut = cut_windows(texts, tokenizer, window=1024, stride=512)
    assert cut.facts["tokens"] == sum(sizes)
    assert np.bincount(cut.document, cut.counted.sum(axis=1)).tolist() == sizes
