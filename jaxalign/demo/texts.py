"""Documents of the bundled model's kinds that it was never trained on, and many to train on.

    python -m jaxalign.demo.texts --write

writes those that come with the package (``demo/model/texts.jsonl``). Training dictionaries wants
more of them:

    python -m jaxalign.demo.texts --count 8000 --output documents.jsonl
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path

from jaxalign.demo.corpus import KINDS, documents, is_reserved
from jaxalign.prompts.named_texts import DEMO_TEXTS
from jaxalign.runtime.files import replace_file

SHIPPED = 1200  # documents


def unseen_documents(count: int, seed: int = 0) -> tuple[str, ...]:
    """Documents of all kinds that no training run of the model has seen, each once.

    Args:
        count: how many.
        seed: of what is drawn.
    """
    rng = random.Random(f"jaxalign demo unseen documents {seed}")
    weights = [kind.weight for kind in KINDS]
    found: dict[str, None] = {}
    while len(found) < count:
        text = rng.choices(KINDS, weights)[0].make(rng)
        if is_reserved(text):
            found.setdefault(text)
    return tuple(found)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m jaxalign.demo.texts", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--write", action="store_true", help="the documents of the package")
    kind.add_argument("--output", type=Path, metavar="F", help="other ones, JSON lines")
    parser.add_argument("--count", type=int, default=8000, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    options = parser.parse_args(arguments)
    if options.write:
        texts, path = unseen_documents(SHIPPED), DEMO_TEXTS
    else:
        stream = documents(options.seed, "dictionaries")
        texts, path = tuple(itertools.islice(stream, options.count)), options.output
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    replace_file(path, "\n".join(lines).encode() + b"\n")
    print(f"{len(texts)} documents in {path}")


if __name__ == "__main__":
    main()
