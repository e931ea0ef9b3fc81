"""Published texts and tokenizers that are not part of the repository, for tests that need them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# A folder that has text/wiki.test.raw, neox-tokenizer/20B_tokenizer.json and so on.
DATA = Path(os.environ.get("JAXALIGN_TEST_DATA", ROOT / "shared" / "data"))


def require(path: Path) -> Path:
    """The path of a file of ``DATA``, or skip."""
    if not path.is_file():
        pytest.skip(f"{path.name} is not there: JAXALIGN_TEST_DATA names the folder that has it")
    return path
