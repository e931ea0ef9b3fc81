"""Claims about the prompts of code: how many, all distinct, the same everywhere, and code."""

import ast
import re
from collections import Counter

import pytest
from shared_texts import DATA, require
from tokenizers import Tokenizer

from jaxalign import InputError
from jaxalign.prompts import CODE_COUNTS, CodePrompt, code_prompts

PROMPTS = code_prompts()
OPENING, CLOSING = "([{", ")]}"
PYTHON = ("python_functions", "type_annotations", "class_definitions")
# What the rest of a prompt may be for Python to parse it: of the statement, then its body.
STATEMENTS = ("", " x", " x]", " x)", " x:", "x)}", " x) -> x: ...")
BODIES = ("", ":\n    pass", "\n        pass", "\n            pass")
LOOKS = {
    "python_functions": r"^(async )?def \w+\(",
    "type_annotations": r"(: |-> ?|\[)(str|int|float|\w+\[|[A-Z]\w+|$)|NewType|TypeVar|Callable",
    "class_definitions": r"^(@dataclass.*\n)?class [A-Z]\w*",
    "javascript_typescript": r"\b(const|function|class|interface|type|enum|app|document|module|"
    r"describe|setInterval)\b|function\*",
    "rust": r"\b(fn|let|impl|struct|enum|trait|match|mod)\b",
    "go": r"\b(func|type|make|switch|sort)\b",
    "error_handling": r"(?i)try|except|error|catch|throw|raise|Result|recover|Err\b|err\b",
}
BY_CATEGORY = [
    pytest.param([p.text for p in PROMPTS if p.category == name], id=name) for name in CODE_COUNTS
]


def test_every_category_has_the_prompts_that_the_method_has():
    assert Counter(prompt.category for prompt in PROMPTS) == CODE_COUNTS
    assert list(CODE_COUNTS.values()) == [230, 100, 50, 320, 150, 120, 96]
    assert len(PROMPTS) == 1066


def test_every_prompt_is_another_one():
    assert len({prompt.text for prompt in PROMPTS}) == len(PROMPTS)


def test_they_are_the_same_every_time_and_others_for_another_seed():
    assert code_prompts() == PROMPTS
    other = code_prompts(seed=1)
    assert len({p.text for p in other} & {p.text for p in PROMPTS}) < len(PROMPTS) / 2
    # Of this machine, this Python and this NumPy nothing is in them.
    assert PROMPTS[2] == CodePrompt(
        category="python_functions",
        text="def urgent_players(players):\n    return [player for player in players if",
    )


def test_fewer_are_the_first_of_more_whatever_else_is_asked_for():
    few = code_prompts({"go": 3, "rust": 2})
    assert [p.category for p in few] == ["go"] * 3 + ["rust"] * 2
    assert few[:3] == tuple(p for p in PROMPTS if p.category == "go")[:3]


def test_a_category_gives_all_that_it_has_and_no_prompt_twice():
    with pytest.raises(InputError, match=r"is 1000000, expected 0 to (\d+)") as error:
        code_prompts({"go": 10**6})
    most = int(re.search(r"0 to (\d+)", str(error.value))[1])
    everything = {prompt.text for prompt in code_prompts({"go": most})}
    assert len(everything) == most


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({"cobol": 1}, "the category 'cobol'"),
        ({"go": -1}, "is -1, expected 0 to"),
        ({"go": 1.5}, "expected a whole number"),
        ({"go": True}, "expected a whole number"),
        ([("go", 1)], "expected a dict"),
    ],
)
def test_counts_that_cannot_be_are_refused(counts, said):
    with pytest.raises(InputError, match=re.escape(said)):
        code_prompts(counts)


# They are code.


@pytest.mark.parametrize("texts", BY_CATEGORY)
def test_a_prompt_is_short_and_ends_where_the_next_token_begins(texts):
    for text in texts:
        assert text == text.strip()
        assert "«" not in text
        assert 8 <= len(re.findall(r"\w+|[^\w\s]", text)) <= 60, text


@pytest.mark.parametrize("name", CODE_COUNTS)
def test_a_category_looks_like_what_it_says(name):
    texts = [prompt.text for prompt in PROMPTS if prompt.category == name]
    assert [text for text in texts if not re.search(LOOKS[name], text, re.MULTILINE)] == []


@pytest.mark.parametrize("texts", BY_CATEGORY)
def test_what_is_closed_was_opened(texts):
    for text in texts:
        still_open = []
        for sign in text:
            if sign in OPENING:
                still_open.append(sign)
            elif sign in CLOSING:
                assert OPENING[CLOSING.index(sign)] == still_open.pop(), text


def parses(text):
    for statement in STATEMENTS:
        for body in BODIES:
            try:
                ast.parse(text + statement + body)
            except SyntaxError:
                continue
            return True
    return False


@pytest.mark.parametrize("name", PYTHON)
def test_python_parses_once_it_is_continued(name):
    texts = [prompt.text for prompt in PROMPTS if prompt.category == name]
    assert [text for text in texts if not parses(text)] == []


def test_a_tokenizer_trained_on_code_takes_8_to_60_tokens():
    tokenizer = Tokenizer.from_file(str(require(DATA / "neox-tokenizer" / "20B_tokenizer.json")))
    sizes = [len(tokenizer.encode(prompt.text).ids) for prompt in PROMPTS]
    assert 8 <= min(sizes) <= max(sizes) <= 60
