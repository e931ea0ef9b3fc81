"""Pairs of prompts: the layouts that are read, what is refused, how single prompts make pairs."""

import json

import pytest

import jaxalign
from jaxalign.errors import InputError
from jaxalign.prompts import (
    Pair,
    PairSet,
    PromptSet,
    PromptText,
    read_pairs,
    tokenize,
    tokenize_pairs,
)

PAIR = {
    "clean": "The capital of France is",
    "corrupted": "The capital of Japan is",
    "answers": [" Paris"],
    "wrong_answers": [" Tokyo"],
}
HEAD = "clean,corrupted,answers,wrong_answers"


@pytest.fixture(scope="module")
def model():
    return jaxalign.load("demo")


def written(tmp_path, content, name="pairs.json"):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def tokenized(model, prompts):
    return tokenize_pairs(prompts, model.tokenizer, model.config)


@pytest.mark.parametrize(
    "content",
    [
        {"prompts": [PAIR]},
        [PAIR],
        [{("corrupt" if k == "corrupted" else k): v for k, v in PAIR.items()}],
        {"prompts": [PAIR | {"task": "pairs"}]},
    ],
    ids=["published", "a list", "corrupt", "with its task"],
)
def test_published_layouts_are_read_alike(tmp_path, content):
    [pair] = read_pairs(written(tmp_path, content)).tasks["pairs"]
    assert (pair.clean, pair.corrupted) == (PAIR["clean"], PAIR["corrupted"])
    assert (pair.answers, pair.wrong_answers) == ((" Paris",), (" Tokyo",))


def test_csv_is_read_as_json_is(tmp_path):
    lines = 'clean, corrupt,answers ,wrong_answers,task\n"To be, or", To do, a| b, c,x\nA,B,c,d,\n'
    found = read_pairs(written(tmp_path, lines, "pairs.csv")).tasks
    assert found["x"][0].clean == "To be, or"
    assert found["x"][0].corrupted == " To do"
    assert found["x"][0].answers == (" a", " b")
    assert found["pairs"][0].wrong_answers == ("d",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"prompts": []}, "has no pairs"),
        ({"prompts": [PAIR], "more": 1}, "'more' stands beside the pairs"),
        ([1], r"prompts\[0\] is 1, expected an object with texts"),
        ([PAIR, {**PAIR, "colour": "red"}], r"prompts\[1\] has 'colour', and nothing reads it"),
        ([{k: v for k, v in PAIR.items() if k != "answers"}], "has no 'answers', expected an obj"),
        ({"pairs": [PAIR]}, r"has pairs under \"pairs\", expected them under \"prompts\""),
        ("clean,corrupted,answers,wrong_answers\nA,B,c,d\n", "give it a name that ends in .csv"),
        ([PAIR | {"clean": 7}], r"prompts\[0\].clean is 7, expected a text"),
        ([PAIR | {"answers": " Paris"}], r"answers is \" Paris\", expected a list of one text"),
        ([PAIR | {"answers": []}], r"answers is \[\], expected a list of one text or more"),
        ([PAIR | {"wrong_answers": [" Rome", ""]}], "wrong_answers has an answer that is empty"),
        ([PAIR | {"answers": [None]}], "expected a list of one text"),
        ({"prompts": 3}, "the top level is"),
        ("{", "pairs.json"),
    ],
)
def test_files_that_hold_no_pairs_are_refused_by_place(tmp_path, content, said):
    with pytest.raises(InputError, match=said):
        read_pairs(written(tmp_path, content))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            "clean,corrupted,answers\nA,B,c\n",
            "no column 'wrong_answers'; found 'clean', 'corrupted', 'answers'",
        ),
        ("", "is empty"),
        ("clean;corrupted\nA;B\n", "no column 'clean'; found 'clean;corrupted'.* with commas bet"),
        (f"{HEAD},answers\nA,B,c,d,e\n", "has two columns 'answers'"),
        (f"{HEAD},corrupt\nA,B,c,d,e\n", "has two columns 'corrupted'"),
        (f"{HEAD},colour\nA,B,c,d,e\n", "has a column 'colour', and nothing reads it"),
        (f'{HEAD}\n"A"x,B,c,d\n', "line 2, is not CSV"),
        (f'{HEAD}\n"A,B,c,d\n', "is not CSV .*unexpected end of data"),
        (f"{HEAD}\nA,B,c,d\nA,B,,d\n", "row 3.answers has an answer that is empty"),
        ("clean,corrupted,answers,wrong_answers\nA,B,c\n", "row 2 has not as many cells"),
        ("clean,corrupted,answers,wrong_answers\nA,B,c,d,e\n", "row 2 has not as many cells"),
        ("clean,corrupted,answers,wrong_answers\n", "has no pairs"),
        ("clean,corrupted,answers,wrong_answers\nA,B,c|,d\n", "an answer that is empty"),
    ],
)
def test_csv_that_holds_no_pairs_is_refused_by_row(tmp_path, content, said):
    with pytest.raises(InputError, match=said):
        read_pairs(written(tmp_path, content, "pairs.csv"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"answers": [" Paris", " Tokyo"]}, "begin with the same token, ' Tokyo'"),
        ({"corrupted": PAIR["clean"]}, "the corrupted prompt is the clean one"),
        ({"clean": ""}, "clean prompt of"),
    ],
)
def test_pairs_that_decide_nothing_are_refused(model, tmp_path, change, said):
    with pytest.raises(InputError, match=said):
        tokenized(model, read_pairs(written(tmp_path, [PAIR | change])))


def test_an_answer_of_several_tokens_is_judged_by_its_first_and_a_pair_counts_once(model, tmp_path):
    long = PAIR | {"answers": [" Parisian"], "clean": "The language of France is"}
    pairs, _, notes = tokenized(model, read_pairs(written(tmp_path, [PAIR, PAIR, long])))
    assert len(pairs) == 2
    assert any("answers have several tokens and are judged by their first" in n for n in notes)
    assert any("1 pairs are left out, since the file has them twice" in n for n in notes)


def test_a_pair_of_two_tasks_counts_once_and_answers_without_a_space_are_noted(model, tmp_path):
    bare = PAIR | {"answers": ["Paris"], "wrong_answers": ["Tokyo"]}
    entries = [PAIR, PAIR | {"task": "other"}, bare]
    pairs, _, notes = tokenized(model, read_pairs(written(tmp_path, entries)))
    assert [pair.pair.answers for pair in pairs] == [(" Paris",), ("Paris",)]
    assert any("1 pairs are left out, since the file has them twice (1 under" in n for n in notes)
    assert any("2 answers begin without a space after a word" in n for n in notes)


def test_the_shipped_pairs_are_forty_of_equal_length_with_answers_of_one_token(model):
    pairs, _, notes = tokenized(model, read_pairs())
    assert len(pairs) == 40
    assert not notes
    assert all(pair.aligned for pair in pairs)
    assert {pair.task for pair in pairs} == {"capital", "opposite", "ioi", "agreement"}


def test_single_prompts_of_one_task_and_length_are_each_others_corruption(model):
    texts = [
        PromptText("The capital of France is", " Paris"),
        PromptText("The language of Japan is", " Japanese"),
        PromptText("The capital of Japan is", " Tokyo"),
        PromptText("Two plus two is", " four"),
    ]
    prompts = PromptSet({"facts": tuple(texts)}, ())
    pairs, _, [note] = tokenized(model, prompts)
    asked = {pair.pair.clean: pair for pair in pairs}
    assert asked[texts[0].prompt].pair.corrupted == texts[2].prompt
    assert asked[texts[0].prompt].pair.wrong_answers == (" Tokyo",)
    assert texts[3].prompt not in asked, "no other prompt has its length"
    assert "3 pairs are made of single prompts" in note
    assert "1 have none and are left out" in note
    with pytest.raises(InputError, match="none makes a pair"):
        tokenized(model, PromptSet({"facts": tuple(texts[:1])}, ()))


def test_the_same_prompt_with_another_target_is_passed_over_for_the_next(model):
    texts = [
        PromptText("The capital of France is", " Paris"),
        PromptText("The capital of France is", " a"),
        PromptText("The capital of Japan is", " Tokyo"),
    ]
    pairs, _, [note] = tokenized(model, PromptSet({"facts": tuple(texts)}, ()))
    assert [pair.pair.corrupted for pair in pairs[:2]] == [texts[2].prompt] * 2
    assert len(pairs) == 3
    assert "left out" not in note


def test_a_prompts_file_is_read_as_prompts_even_where_a_task_is_called_prompts(tmp_path):
    items = [{"prompt": "The capital of France is", "target": " Paris"}]
    found = read_pairs(written(tmp_path, {"prompts": items}))
    assert not isinstance(found, PairSet)
    assert found.tasks["prompts"][0].target == " Paris"


def test_a_study_of_single_prompts_refuses_pairs(model):
    with pytest.raises(InputError, match="this study reads single prompts"):
        tokenize(read_pairs(), model.tokenizer, model.config)


def test_what_decides_a_pairs_numbers_is_in_its_facts(model):
    [pair, *_], _, _ = tokenized(model, read_pairs())
    assert isinstance(pair, Pair)
    for part in (pair.tokens, pair.corrupted, pair.answers, pair.wrong_answers, pair.task):
        assert part in pair.facts
