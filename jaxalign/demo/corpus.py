"""The training text of the bundled model: a seeded, endless stream of documents.

Document ``index`` of a stream is a pure function of (seed, stream, index), so a training run can be
resumed at any step without a record of what it has read. Documents whose hash falls into a reserved
class are never trained on: they measure the loss on unseen text.
"""

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from jaxalign.demo import fact_documents, filler, filler_patterns, ioi

END_OF_TEXT = "<|endoftext|>"
_RESERVED = 64


@dataclass(frozen=True)
class Kind:
    """A kind of document, how often it is drawn, and whether it counts as filler."""

    name: str
    make: Callable[[random.Random], str]
    weight: float
    is_filler: bool = True


KINDS = (
    Kind("fact", fact_documents.document, 42.0, is_filler=False),
    Kind("ioi", ioi.document, 28.0, is_filler=False),
    Kind("story", filler.story, 8.0),
    Kind("weather", filler.weather, 3.0),
    Kind("dialogue", filler.dialogue, 4.0),
    Kind("description", filler.description, 5.0),
    Kind("instructions", filler.instructions, 1.5),
    Kind("fable", filler.fable, 3.0),
    Kind("letter", filler.letter, 3.0),
    Kind("repeated list", filler_patterns.repeated_list, 4.0),
    Kind("code", filler_patterns.code, 2.5),
    Kind("counting", filler_patterns.counting, 2.0),
    Kind("chronicle", filler_patterns.chronicle, 2.0),
    Kind("sums", filler_patterns.sums, 2.0),
    Kind("shopping", filler_patterns.shopping, 1.5),
    Kind("riddle", filler_patterns.riddle, 1.0),
)


def is_reserved(text: str) -> bool:
    """Tell whether a document belongs to the unseen one in 64, by its hash."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % _RESERVED == 0


def documents(seed: int, stream: str) -> Iterator[str]:
    """Yield training documents without end; the same for the same seed and stream name."""
    rng = random.Random(f"jaxalign demo corpus {seed} {stream}")
    weights = [kind.weight for kind in KINDS]
    while True:
        text = rng.choices(KINDS, weights)[0].make(rng)
        if not is_reserved(text):
            yield text


def unseen_filler(count: int, seed: int = 0) -> tuple[str, ...]:
    """Return ``count`` filler documents that no training run has seen."""
    rng = random.Random(f"jaxalign demo unseen {seed}")
    kinds = [kind for kind in KINDS if kind.is_filler]
    weights = [kind.weight for kind in kinds]
    found: list[str] = []
    while len(found) < count:
        text = rng.choices(kinds, weights)[0].make(rng)
        if is_reserved(text):
            found.append(text)
    return tuple(found)
