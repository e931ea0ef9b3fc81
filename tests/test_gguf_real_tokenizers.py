"""Claim: on real text a GGUF file's tokenizer has the ids of the tokenizer that it was made from.

Held against transformers' and sentencepiece's own, and against GPT-NeoX's published one.
"""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from family_checkpoints import torch_and_transformers
from llama_gguf import add
from shared_texts import DATA, require
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import jaxalign
from jaxalign.checkpoints.families.settings import Settings
from jaxalign.checkpoints.gguf_file import open_gguf
from jaxalign.checkpoints.gguf_tokenizer import read_gguf_tokenizer
from jaxalign.errors import InputError

ROOT = Path(__file__).parent.parent
LEARNED = (ROOT / "README.md").read_text(encoding="utf-8")
READ = "".join(
    path.read_text(encoding="utf-8")
    for path in (ROOT / "docs" / "families.md", Path(jaxalign.__file__).parent / "errors.py")
)
ODD = "naïve  e\u0301 日本語 🧮\n\n\tx = 12345.678\r\n  don't WE'LL  ①②  \u00a0end "
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6


def of_file(path, tokenizer, name="tiny"):
    """The tokenizer that is read from a file with these settings of one."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    for key, value in tokenizer.items():
        add(writer, f"tokenizer.ggml.{key}", value)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file,
                 writer.write_tensors_to_file, writer.close):  # fmt: skip
        step()
    file = open_gguf(path)
    return read_gguf_tokenizer(file, Settings(file.settings, str(path), (), "GGUF file"))


def byte_level(tokens, merges, pre, kinds=None, **more):
    return {
        "model": "gpt2", "pre": pre, "tokens": tokens, "merges": merges,
        "token_type": kinds or [NORMAL] * len(tokens), "add_bos_token": False,
    } | more  # fmt: skip


@pytest.fixture(scope="module")
def learned():
    """Tokens and merges of byte-level BPE learned from a page of the project."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1500, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([LEARNED], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].get), [" ".join(m) for m in model["merges"]]


@pytest.mark.parametrize("pre", ["gpt-2", "qwen2", "llama-bpe"])
def test_byte_level_ids_are_those_of_transformers(tmp_path, learned, pre):
    torch_and_transformers()
    from transformers.convert_slow_tokenizer import TikTokenConverter
    from transformers.models.gpt2.tokenization_gpt2 import GPT2Tokenizer
    from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer

    tokens, merges = learned
    vocabulary = {token: number for number, token in enumerate(tokens)}
    pairs = [tuple(merge.split(" ")) for merge in merges]
    if pre == "llama-bpe":  # Llama 3's tokenizer is TikToken's
        theirs = Tokenizer(models.BPE(vocabulary, pairs, ignore_merges=True))
        from tokenizers import Regex

        theirs.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(TikTokenConverter().pattern), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        theirs.decoder = decoders.ByteLevel()
    else:
        kind = {"gpt-2": GPT2Tokenizer, "qwen2": Qwen2Tokenizer}[pre]
        theirs = kind(vocab=vocabulary, merges=pairs).backend_tokenizer
    ours = of_file(tmp_path / "m.gguf", byte_level(tokens, merges, pre))
    for text in (READ, LEARNED, ODD):
        found = ours.encode(text, add_special_tokens=False).ids
        assert found == theirs.encode(text, add_special_tokens=False).ids


def test_gpt_neox_ids_are_those_of_its_published_tokenizer(tmp_path):
    path = require(DATA / "neox-tokenizer" / "20B_tokenizer.json")
    published = Tokenizer.from_file(str(path))
    content = json.loads(path.read_text(encoding="utf-8"))
    added = {token["id"]: token for token in content["added_tokens"]}
    tokens = [published.id_to_token(i) for i in range(published.get_vocab_size())]
    kinds = [
        NORMAL if i not in added else CONTROL if added[i]["special"] else USER_DEFINED
        for i in range(len(tokens))
    ]
    merges = [m if isinstance(m, str) else " ".join(m) for m in content["model"]["merges"]]
    ours = of_file(tmp_path / "m.gguf", byte_level(tokens, merges, "olmo", kinds))
    texts = [READ, ODD, "<|endoftext|>x     y<|padding|>"]
    for name in ("wiki.test.raw", "gsm8k_test.jsonl"):
        texts.append(require(DATA / "text" / name).read_text(encoding="utf-8")[:200_000])
    for text in texts:
        assert ours.encode(text).ids == published.encode(text).ids


# SentencePiece.


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """A tokenizer that sentencepiece has learned from a page of the project."""
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("pieces")
    (folder / "text.txt").write_text(LEARNED, encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"), model_prefix=str(folder / "m"), model_type="bpe",
        vocab_size=1200, byte_fallback=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, character_coverage=0.99, minloglevel=2,
        user_defined_symbols=["<|user|>"], split_digits=True, num_threads=1,
        allow_whitespace_only_pieces=True, max_sentence_length=100_000,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "m.model"))


def sentence_piece(pieces, **more):
    count = pieces.get_piece_size()
    kinds = [
        UNKNOWN if pieces.is_unknown(i) else CONTROL if pieces.is_control(i)
        else BYTE if pieces.is_byte(i) else USER_DEFINED if pieces.id_to_piece(i) == "<|user|>"
        else NORMAL for i in range(count)
    ]  # fmt: skip
    return {
        "model": "llama", "pre": "default", "token_type": kinds,
        "tokens": [pieces.id_to_piece(i) for i in range(count)],
        "scores": [float(pieces.get_score(i)) for i in range(count)],
        "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0,
    } | more  # fmt: skip


def test_sentencepiece_ids_are_its_own_bytes_and_all(tmp_path, pieces):
    ours = of_file(tmp_path / "m.gguf", sentence_piece(pieces))
    read = READ.replace("<s>", "s")  # which would be the special token
    for text in (*read.split("\n"), read, ODD, "日本", "", "   ", "the"):
        found = ours.encode(text, add_special_tokens=False)
        assert found.ids == pieces.encode(text), repr(text)
        assert ours.decode(found.ids) == text
    assert ours.encode("the").ids == [1, *pieces.encode("the")]


def test_the_space_before_a_text_and_the_ends_are_as_the_file_says(tmp_path, pieces):
    changes = {"add_space_prefix": False, "add_bos_token": False, "add_eos_token": True}
    ours = of_file(tmp_path / "m.gguf", sentence_piece(pieces, **changes))
    plain = of_file(tmp_path / "n.gguf", sentence_piece(pieces))
    assert ours.encode(" the page").ids == [*pieces.encode("the page"), 2]
    assert ours.encode("the page").ids != plain.encode("the page").ids
    assert ours.decode(ours.encode("the page").ids) == "the page"


def test_special_tokens_are_cut_out_and_texts_between_them_begin_anew(tmp_path, pieces):
    ours = of_file(tmp_path / "m.gguf", sentence_piece(pieces))
    user = pieces.piece_to_id("<|user|>")
    expected = [1, *pieces.encode("one"), 2, *pieces.encode("two"), user, *pieces.encode(" x")]
    assert ours.encode("one</s>two<|user|> x").ids == expected


def test_special_tokens_of_phi3_take_white_space_along(tmp_path, pieces):
    ours = of_file(tmp_path / "m.gguf", sentence_piece(pieces), name="Phi-3 Mini 4k")
    user = pieces.piece_to_id("<|user|>")
    assert ours.encode("<|user|>  \n x").ids == [1, user, *pieces.encode("x")]
    assert ours.encode("<s> x").ids == [1, 1, *pieces.encode(" x")]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"scores": [1.0]}, "expected a number for each of 1200 tokens"),
        ({"bos_token_id": 5000}, "bos_token_id is 5000, expected the number of a token"),
        ({"remove_extra_whitespaces": True}, "remove_extra_whitespaces true, expected False"),
        ({"token_type": [9] * 1200}, r"expected one of \(1, 2, 3, 4, 5, 6\) for each"),
    ],
)
def test_what_no_sentencepiece_file_says_is_refused(tmp_path, pieces, changes, expected):
    with pytest.raises(InputError, match=expected):
        of_file(tmp_path / "m.gguf", sentence_piece(pieces, **changes))


def test_llama_of_transformers_has_the_same_ids(tmp_path, pieces):
    torch_and_transformers()
    from transformers.models.llama.tokenization_llama import LlamaTokenizer

    settings = sentence_piece(pieces)
    ours = of_file(tmp_path / "m.gguf", settings)
    merges = json.loads(ours.to_str())["model"]["merges"]
    vocabulary = {token: number for number, token in enumerate(settings["tokens"])}
    theirs = LlamaTokenizer(
        vocab=vocabulary, merges=[tuple(pair) for pair in merges], legacy=True,
        additional_special_tokens=["<|user|>"],
    ).backend_tokenizer  # fmt: skip
    for text in (READ, ODD):
        found = np.array(ours.encode(text, add_special_tokens=False).ids)
        np.testing.assert_array_equal(found, theirs.encode(text, add_special_tokens=False).ids)
