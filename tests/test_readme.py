"""The README says what is so: its code runs, its table is the kept result's, its commands exist."""

import re
from pathlib import Path

import jax
import pytest

import jaxalign
from jaxalign.commands.arguments import COMMANDS, flags, parse

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language):
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [text for name, text in fenced if name == language]


def test_the_python_example_runs_and_finds_what_it_names():
    [code] = blocks("python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    names = {}
    # The example is users' code: it runs under users' settings, not under the tests' strict ones.
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        exec(compile(code, "README.md", "exec"), names)
    assert names["importance"].shape == (6, 8)
    assert float(abs(names["importance"]).max()) > 0.1


SHOWN = ["smollm2/experiment", "demo/experiment", "demo/schemes", "demo/plan"]


@pytest.mark.parametrize("name", SHOWN)
def test_the_screens_shown_are_those_of_the_kept_results(name):
    screen = jaxalign.read(ROOT / "results" / f"{name}.json").summary()
    assert screen + "\n" in blocks("")


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands_shown(page):
    """The words behind each ``python cli.py`` of a page, in its text and in blocks of code."""
    text = page.read_text().replace("\\\n", " ")
    inline = re.findall(r"`python cli\.py([^`'\"]*)`", text)
    lines = re.findall(r"^[^`\n]*python cli\.py([^`'\"\n]*)", text, re.MULTILINE)
    return [words.split() for words in (*inline, *lines)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_shown_is_understood(page):
    for words in commands_shown(page):
        if "--help" not in words:
            parse(words)


def test_every_option_shown_exists():
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", " ".join(blocks(""))))
    assert options <= set().union(*map(flags, COMMANDS))


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", README))
def test_every_link_leads_somewhere(link):
    assert (ROOT / link).exists()


def test_the_quick_start_is_two_lines_that_set_themselves_up():
    lines = [line for block in blocks("") for line in block.splitlines() if "pip install" in line]
    assert len(lines) == 2
    assert lines[0].endswith("python cli.py --model demo")
    assert lines[1].endswith('python -m pytest -m "not slow"')
    assert all(line.startswith("python -m venv") for line in lines)
