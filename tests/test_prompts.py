"""Claims about prompt sets: what is read, what is refused and where, how prompts are batched."""

import json
import os
import re
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_run import PROMPTS, TOKENIZER, refusal, write_prompts
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from jaxalign import InputError
from jaxalign.calibration import calibration_texts, prepare, preparer
from jaxalign.checkpoints import Model, Source
from jaxalign.model import ModelConfig, init_params
from jaxalign.numerics import scheme_named
from jaxalign.prompts import (
    BUCKET,
    FEW,
    SHIPPED,
    PromptSet,
    PromptText,
    batches,
    bucket_length,
    one_prompt,
    read_prompts,
    tokenize,
)

CONFIG = ModelConfig(4096, 2, 2, 32, 64, max_positions=16, rotary_dims=4)
REFERENCE = {"reference": ["Some neutral text"]}
GOOD = {"prompt": "The capital of France is", "target": " Paris"}


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(str(TOKENIZER))


@pytest.fixture
def read(tmp_path):
    return lambda content: read_prompts(write_prompts(tmp_path / "prompts.json", content))


@pytest.fixture
def tokens_of(read, tokenizer):
    return lambda content: tokenize(read(content), tokenizer, CONFIG)


# What is read.


def test_prompts_are_read_as_they_are_written(read):
    prompts = read(PROMPTS)
    assert list(prompts.tasks) == ["factual", "rivers"]
    assert prompts.tasks["factual"][0] == PromptText("The capital of France is", " Paris", " Rome")
    assert prompts.tasks["factual"][1].distractor is None
    assert prompts.reference == tuple(PROMPTS["reference"])


def test_text_beyond_ascii_is_kept(read):
    entry = {"prompt": "Das schönste Café — “où”?", "target": " là"}
    [prompt] = read({"factual": [entry], **REFERENCE}).tasks["factual"]
    assert (prompt.prompt, prompt.target) == (entry["prompt"], entry["target"])


def test_empty_list_is_no_task(read):
    assert list(read({"factual": [GOOD], "ioi": [], **REFERENCE}).tasks) == ["factual"]


def test_shipped_file_is_valid_and_large_enough(tokenizer):
    prompts = read_prompts()
    assert prompts == read_prompts(SHIPPED)
    assert len(prompts.tasks["factual"]) >= 40
    assert len(prompts.tasks["ioi"]) >= 40
    assert len(prompts.reference) >= 30
    tokenized, reference, notes = tokenize(
        prompts, tokenizer, ModelConfig(4096, 1, 1, 8, 8, 256, 2)
    )
    assert len(tokenized) == sum(map(len, prompts.tasks.values()))
    assert len(reference) == len(prompts.reference)
    assert not notes


def test_original_tasks_have_their_published_names_and_others_their_own(tokens_of):
    content = {name: [GOOD] for name in ("factual", "ioi", "rivers")} | REFERENCE
    prompts, _, _ = tokens_of(content)
    assert [prompt.task for prompt in prompts] == ["FactualRecall", "IOI", "rivers"]


def test_prompts_are_tokenized_without_special_tokens(tokens_of, tokenizer):
    [prompt, *_], [reference, *_], _ = tokens_of(PROMPTS)
    assert tokenizer.decode(list(prompt.tokens)) == prompt.text.prompt
    assert tokenizer.decode([prompt.target]) == " Paris"
    assert tokenizer.decode([prompt.distractor]) == " Rome"
    assert tokenizer.decode(list(reference)) == PROMPTS["reference"][0]


def test_target_of_several_tokens_uses_its_first_and_says_so_once(tokens_of, tokenizer):
    long = {"prompt": GOOD["prompt"], "target": " Qxzqxz", "distractor": " Zyxzyx"}
    different = [long | {"prompt": " the" * (n + 1)} for n in range(5)]
    prompts, _, notes = tokens_of({"factual": [*different, GOOD], **REFERENCE})
    assert prompts[0].target == tokenizer.encode(" Qxzqxz").ids[0]
    assert prompts[0].distractor == tokenizer.encode(" Zyxzyx").ids[0]
    [note] = notes
    assert note.startswith("5 targets have several tokens; their first is used: ' Qxzqxz'")
    assert note.count("Qxzqxz") == 3
    assert note.endswith("…")


def test_a_prompt_that_its_task_has_already_is_left_out_and_noted(tokens_of):
    """Intervals over prompts would take it for new evidence."""
    other = GOOD | {"target": " Rome"}
    given = {"factual": [GOOD, other, GOOD, GOOD], "rivers": [GOOD], **REFERENCE}
    prompts, _, notes = tokens_of(given)
    assert [p.task for p in prompts] == ["FactualRecall", "FactualRecall", "rivers"]
    assert prompts[0].target != prompts[1].target
    [note] = notes
    assert note.startswith("2 prompts are left out, since their task has them already")
    assert "factual[2]" in note


def test_some_tasks_and_the_first_prompts_of_each_can_be_taken():
    every = read_prompts()
    few = every.only(["IOI"], 3)
    assert few.tasks == {"ioi": every.tasks["ioi"][:3]}
    assert few.reference == every.reference
    assert every.only(limit=2).tasks == {name: own[:2] for name, own in every.tasks.items()}
    with pytest.raises(InputError, match=r"no task 'nouns'\. name some of factual, ioi"):
        every.only(["ioi", "nouns"])
    for wrong in ([], ["ioi", "IOI"]):
        with pytest.raises(InputError, match="each once"):
            every.only(wrong)
    with pytest.raises(InputError, match="--limit is 0"):
        every.only(limit=0)


def test_one_prompt_is_a_set_with_the_shipped_reference_texts():
    given = one_prompt("The capital of France is", " Paris", " Rome")
    assert given.reference == read_prompts().reference
    assert [*given.tasks.values()] == [(PromptText("The capital of France is", " Paris", " Rome"),)]


def test_prompt_that_just_fits_the_context_is_kept(tokens_of):
    prompt = {"prompt": " the" * 16, "target": " a"}
    [kept], _, _ = tokens_of({"factual": [prompt], **REFERENCE})
    assert len(kept.tokens) == CONFIG.max_positions


def test_null_distractor_is_none_and_a_byte_order_mark_is_no_text(tmp_path):
    path = tmp_path / "prompts.json"
    entry = GOOD | {"distractor": None}
    content = json.dumps({"factual": [entry], **REFERENCE})
    path.write_text("\ufeff" + content, encoding="utf-8")
    assert read_prompts(path).tasks["factual"] == (PromptText(**GOOD),)


def test_distractor_that_begins_like_its_target_is_none_and_noted(tokens_of, tokenizer):
    alike = GOOD | {"target": " Qxzqxz", "distractor": " Qxzqxy"}
    first = tokenizer.encode(" Qxzqxz").ids[0]
    assert first == tokenizer.encode(" Qxzqxy").ids[0]
    [same, other], _, notes = tokens_of(
        {"factual": [alike, GOOD | {"distractor": " Rome"}], **REFERENCE}
    )
    assert (same.target, same.distractor) == (first, None)
    assert other.distractor is not None
    assert any(
        re.match(r"1 distractors begin with the same token.*' Qxzqxz' and ' Qxzqxy'", note)
        for note in notes
    )


# What is refused.

MALFORMED = {
    "cut short": ('{"factual": [', r"is not JSON .Expecting value: line 1 column \d+"),
    "no JSON": ("factual: yes", r"is not JSON .*line 1 column 1"),
    "too deep": ("[" * 100_000, r"is not JSON"),
    "top level": ("[1, 2]", r"the top level is \[1, 2\], expected an object like"),
    "empty": ("{}", r"has no prompts. add a list such as"),
    "only empty lists": ({"factual": [], **REFERENCE}, r"has no prompts"),
    "only reference": (REFERENCE, r"has no prompts"),
    "no name": ({" ": [GOOD], **REFERENCE}, r"a task has no name"),
    "reference texts": ({"factual": [GOOD], "reference": ["a", 5]}, r"reference is \[\"a\", 5\]"),
    "reference list": ({"factual": [GOOD], "reference": "a"}, r"reference is \"a\", expected a li"),
    "task list": ({"factual": GOOD, **REFERENCE}, r"factual is .*, expected a list of prompts"),
    "entry": ({"factual": [GOOD, "x"], **REFERENCE}, r"factual\[1\] is \"x\", expected an object"),
    "no target": ({"ioi": [{"prompt": "a"}], **REFERENCE}, r"ioi\[0\] is {\"prompt\": \"a\"}, exp"),
    "unknown key": ({"ioi": [GOOD] * 2 + [GOOD | {"tgt": "b"}], **REFERENCE}, r"ioi\[2\] is "),
    "not text": ({"ioi": [GOOD | {"target": 7}], **REFERENCE}, r"ioi\[0\] is .*\"target\": 7"),
    "null target": ({"ioi": [GOOD | {"target": None}], **REFERENCE}, r"ioi\[0\] is .*, expected"),
    "task of half a character": ({"a\ud800": [GOOD], **REFERENCE}, r"a.*d800.* is not Unicode"),
    "name of all": ({"all": [GOOD], **REFERENCE}, r"'all' is what results call .*another name"),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_file_is_refused_with_its_place(kind, tmp_path):
    content, words = MALFORMED[kind]
    path = write_prompts(tmp_path / "prompts.json", content)
    line = refusal("--model", "demo", "--prompts", path, "--output", tmp_path / "r.json")
    assert str(path) in line
    assert re.search(words, line), line


def test_long_entry_is_shown_shortened(read):
    with pytest.raises(InputError) as refused:
        read({"factual": [{"prompt": "word " * 500}], **REFERENCE})
    assert len(str(refused.value)) < 400


def test_missing_prompts_file_is_refused(tmp_path):
    path = tmp_path / "none.json"
    line = refusal("--model", "demo", "--prompts", path, "--output", tmp_path / "r.json")
    assert f"{path} is missing. check --prompts." in line


def test_prompts_file_that_cannot_be_read_is_refused(tmp_path):
    binary, pipe = tmp_path / "binary.json", tmp_path / "pipe"
    binary.write_bytes(b"\xff\xfe\x00")
    os.mkfifo(pipe)
    for path, words in (
        (binary, "is not UTF-8"),
        (tmp_path, "cannot be read"),
        (pipe, "is no regular file"),
        (Path("/dev/zero"), "is no regular file"),
    ):
        with pytest.raises(InputError, match=f"{path} {words}"):
            read_prompts(path)


UNUSABLE = {
    "empty prompt": ({"prompt": "", "target": " a"}, r"prompt of factual\[1\] is empty"),
    "empty target": (GOOD | {"target": ""}, r"target of factual\[1\] is empty: '' has no tokens"),
    "empty distractor": (GOOD | {"distractor": ""}, r"distractor of factual\[1\] is empty"),
    "half a character": (GOOD | {"prompt": "a \ud800"}, r"prompt of factual\[1\] is not Unicode"),
    "too long": (
        {"prompt": " the" * 257, "target": " a"},
        r"prompt of factual\[1\] has 257 tokens, more than the model's context of 256. shorten it",
    ),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_entry_that_cannot_be_tokenized_is_refused_with_its_place(kind, tmp_path):
    entry, words = UNUSABLE[kind]
    path = write_prompts(tmp_path / "prompts.json", {"factual": [GOOD, entry], **REFERENCE})
    line = refusal("--model", "demo", "--prompts", path, "--output", tmp_path / "r.json")
    assert re.search(words, line), line
    assert not (tmp_path / "r.json").exists()


@pytest.mark.parametrize("text", ["", " the" * 17])
def test_reference_text_that_cannot_be_used_is_refused_with_its_place(text, tokens_of):
    with pytest.raises(InputError, match=r"reference\[1\]"):
        tokens_of({"factual": [GOOD], "reference": ["good", text]})


# Batches.


def drawn(seed, count=60, longest=40):
    rng = np.random.default_rng(seed)
    return [tuple(rng.integers(1, 4096, n).tolist()) for n in rng.integers(1, longest + 1, count)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("most", [1, 3, 8, 1000])
def test_every_prompt_is_in_exactly_one_batch_and_whole(seed, most):
    texts = drawn(seed)
    seen = Counter()
    for batch in batches(texts, most, 40):
        seen.update(batch.index)
        for row, i in enumerate(batch.index):
            assert batch.lengths[row] == len(texts[i])
            assert tuple(batch.tokens[row, : len(texts[i])].tolist()) == texts[i]
            assert not batch.tokens[row, len(texts[i]) :].any()
    assert seen == Counter(range(len(texts)))


@pytest.mark.parametrize("most", [1, 3, 8])
def test_batches_of_a_bucket_have_one_shape_and_at_most_the_rows_asked_for(most):
    shapes: dict[int, set[int]] = {}
    for batch in batches(drawn(0), most, 40):
        assert batch.tokens.dtype == batch.lengths.dtype == np.int32
        assert batch.shape[0] <= most
        assert bucket_length(int(batch.lengths.max()), 40) <= batch.shape[1]
        shapes.setdefault(batch.shape[1], set()).add(batch.shape[0])
    assert list(shapes) == sorted(shapes)
    assert all(len(widths) == 1 for widths in shapes.values())


def test_most_rows_may_differ_between_buckets():
    texts = [(1,)] * FEW + [(1,) * 9] * 6
    sizes = {batch.shape for batch in batches(texts, {8: 16, 16: 2}, 40)}
    assert sizes == {(16, 8), (2, 16)}


def test_few_prompts_join_the_next_length_and_many_do_not():
    def shapes(few, length):
        texts = [(1,) * 5] * few + [(1,) * length] * 100
        return {batch.shape[1]: len(batch.index) for batch in batches(texts, 1000, 400)}

    assert shapes(FEW - 1, 12) == {16: FEW + 99}
    assert shapes(FEW, 12) == {8: FEW, 16: 100}
    assert shapes(FEW - 1, 20) == {8: FEW - 1, 24: 100}, "more than twice as long"


def test_batches_are_even_and_filler_repeats_the_first_prompt():
    texts = [(i + 1,) * (1 + i % 8) for i in range(17)]
    first, second = batches(texts, 16, 40)
    assert (first.shape, second.shape) == ((9, 8), (9, 8))
    assert (len(first.index), len(second.index)) == (9, 8)
    np.testing.assert_array_equal(second.tokens[8], second.tokens[0])
    assert second.lengths[8] == second.lengths[0]
    values = second.fill([np.float32(i) for i in range(17)])
    assert values.tolist() == [*second.index, second.index[0]]


def test_bucket_is_a_multiple_within_the_context():
    assert BUCKET == 8
    assert [bucket_length(n, 20) for n in (1, 8, 9, 16, 17, 20)] == [8, 8, 16, 16, 20, 20]
    assert bucket_length(21, 20) == 21


def sentence_tokenizer():
    """A word tokenizer with Llama 2's habits: a start token, and a space before every text."""
    words = ["<s>", "▁", "▁The", "▁cat", "▁sat", "▁Paris", "<unk>"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return tokenizer


def test_prompts_begin_with_the_tokenizers_start_token_and_answers_follow_them():
    prompts = PromptSet({"cats": (PromptText("The cat", " sat", " Paris"),)}, ("The cat sat",))
    config = ModelConfig(7, 1, 1, 8, 8, rotary_dims=2)
    [prompt], [reference], notes = tokenize(prompts, sentence_tokenizer(), config)
    assert prompt.tokens == (0, 2, 3)
    assert reference == (0, 2, 3, 4)
    # By themselves both answers begin with the token of the space that is put before a text.
    assert sentence_tokenizer().encode(" sat", add_special_tokens=False).ids == [1, 4]
    assert (prompt.target, prompt.distractor) == (4, 5)
    assert notes == []


def test_calibration_texts_begin_like_the_texts_of_a_study(monkeypatch):
    text = "The cat sat"
    config = ModelConfig(7, 1, 1, 8, 8, rotary_dims=2)
    params = init_params(jax.random.key(0), config)
    model = Model(params, config, sentence_tokenizer(), Source(Path(), "cats"), "")
    prompts = PromptSet({"cats": (PromptText("The cat", " sat"),)}, (text,))
    _, [of_study], _ = tokenize(prompts, model.tokenizer, config)
    tokens, lengths = calibration_texts(prompts, model)
    assert tokens.tolist() == [list(of_study)] == [[0, 2, 3, 4]]
    given = []

    def calibrate(params, config, scheme, tokens, lengths, **_):
        given.extend((tokens, lengths))
        return params

    monkeypatch.setattr(prepare, "calibrate", calibrate)
    preparer(model, [text])(params, scheme_named("gptq-g32"))
    assert [x.tolist() for x in given] == [tokens.tolist(), lengths.tolist()]
