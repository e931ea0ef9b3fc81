"""The documentation leads everywhere, and its examples run or say what they need."""

import re
from pathlib import Path

import jax
import pytest

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(DOCS.glob("*.md"))
ELSEWHERE = {
    "api.md",
    "from_transformerlens.md",
    "scaling_out.md",
}  # their examples have tests of their own
LONG = {"calibration.md"}
NEEDS = re.compile(r"\bneeds?\b")


def examples():
    """Python of every page, with the text just before it."""
    for page in PAGES:
        if page.name not in ELSEWHERE:
            parts = re.split(r"^```python\n(.*?)^```$", page.read_text(), flags=re.M | re.S)
            for number, (before, code) in enumerate(zip(parts[::2], parts[1::2], strict=False)):
                said = bool(NEEDS.search(before[-300:]))
                marks = [pytest.mark.slow] if page.name in LONG else []
                yield pytest.param(code, said, id=f"{page.stem}-{number}", marks=marks)


@pytest.mark.parametrize(("code", "needs_more"), [*examples()])
def test_examples_run_from_the_quick_start_or_say_what_they_need(code, needs_more, monkeypatch):
    if needs_more:
        compile(code, "docs", "exec")
        return
    monkeypatch.chdir(DOCS.parent)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        exec(compile(code, "docs", "exec"), {})


def test_the_index_has_every_page():
    index = (DOCS / "README.md").read_text()
    linked = set(re.findall(r"\]\((\w+\.md)", index))
    assert linked == {page.name for page in PAGES} - {"README.md"}


def anchors(text):
    """What links may point at behind ``#``, as the pages' host makes them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    words = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {word.replace(" ", "-") for word in words}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_of_a_page_leads_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text()), link
