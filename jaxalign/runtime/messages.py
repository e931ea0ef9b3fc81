"""Lines for the user beside the results: what costs time or room, never a result."""

from __future__ import annotations

import sys

from tqdm import tqdm

from jaxalign.errors import printable


def note(text: str) -> None:
    """One line on stderr that does not break a progress bar."""
    tqdm.write(f"jaxalign: note: {printable(text)}", file=sys.stderr)
