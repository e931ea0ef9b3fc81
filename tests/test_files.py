"""Claims about files: read within bounds, written whole, and nothing else replaced."""

import json

import pytest

from jaxalign import InputError
from jaxalign.prompts import read_prompts
from jaxalign.runtime.files import read_json, replace_file


def test_an_object_with_a_key_twice_is_refused_by_the_key(tmp_path):
    path = tmp_path / "prompts.json"
    path.write_text('{"factual": [1], "other": {"factual": 2}, "factual": [3]}')
    with pytest.raises(InputError, match="'factual' twice"):
        read_json(path)


def test_a_link_stays_and_leads_to_the_new_content(tmp_path):
    kept, link = tmp_path / "kept.json", tmp_path / "link.json"
    kept.write_text("old")
    link.symlink_to(kept)
    replace_file(link, b"new")
    assert link.is_symlink()
    assert kept.read_text() == "new"


def test_two_lists_that_results_would_call_alike_are_refused(tmp_path):
    one = [{"prompt": "The capital of France is", "target": " Paris"}]
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps({"ioi": one, "IOI": one, "reference": ["A day"]}))
    with pytest.raises(InputError, match="would become one task"):
        read_prompts(path)
