"""How alike are independent random dictionaries and activations of the original method's sizes?

    python -m benchmarks alignment_chance [--widths 2048,4096] [--draws N]

The method compares encoders of 8192 features, feature i with i (Procrustes, mutual nearest
neighbours), and activations of 1000 tokens (CKA). Here both are independent Gaussian numbers, so
all that is found is chance. Beside it stand the values that the method reports of two precisions.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.record import answer, grammar
from jaxalign.measures import cosines, stats
from jaxalign.measures.cka import ACTIVATION_MEASURES, centred, cka_of_orders
from jaxalign.study.option import listed
from jaxalign.study.tables import text_table

NAME = "alignment_chance"
FEATURES, TOKENS = 8192, 1000
QUICK_WIDTH, QUICK_FEATURES = 64, 256
# Draws of a width: they hardly vary, and a large one takes minutes.
DRAWS, LARGE, DRAWS_OF_LARGE = 3, 4096, 1
# What the original method reports of two precisions.
OBSERVED = {cosines.PROCRUSTES: 0.43, "cka": 0.89}


def dictionaries(width: int, features: int, seed: int) -> dict[str, float]:
    """Measures of two independent Gaussian dictionaries.

    Args:
        width, features: of both.
        seed: of the draw.
    """
    rng = stats.generator(seed, NAME, str(width))
    first, second = (
        cosines.directions(rng.standard_normal((features, width), np.float32), "a draw")
        for _ in range(2)
    )
    raw = cosines.neighbours(first, second)
    turned = cosines.neighbours(cosines.rotated(first, second, first), second)
    return {
        cosines.RAW: float(raw.cosine.mean()),
        cosines.MUTUAL: cosines.mutual_share(raw, features),
        cosines.PROCRUSTES: float(turned.cosine.mean()),
        cosines.MUTUAL_PROCRUSTES: cosines.mutual_share(turned, features),
    }


def activations(width: int, seed: int) -> dict[str, float]:
    """CKA of two independent Gaussian sets of activations, biased and debiased.

    Args:
        width: of both.
        seed: of the draw.
    """
    rng = stats.generator(seed, NAME, "tokens", str(width))
    first, second = (centred(rng.standard_normal((TOKENS, width)), "a draw") for _ in range(2))
    [found] = cka_of_orders(first, second, np.arange(TOKENS)[None])
    return dict(zip(ACTIVATION_MEASURES, map(float, found), strict=True))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Mean and spread of every measure over draws, by width."""
    widths, features = options.widths, FEATURES
    if options.quick:
        widths, features = (QUICK_WIDTH,), QUICK_FEATURES
    rows = []
    for width in widths:
        draws = options.draws or (DRAWS if width < LARGE else DRAWS_OF_LARGE)
        start = time.perf_counter()
        found = [dictionaries(width, features, n) | activations(width, n) for n in range(draws)]
        seconds = (time.perf_counter() - start) / draws
        for name in found[0]:
            values = [one[name] for one in found]
            rows.append(
                {
                    "width": width,
                    "draws": draws,
                    "measure": name,
                    "mean": float(np.mean(values)),
                    "sd": float(np.std(values, ddof=1)) if draws > 1 else None,
                    "observed": OBSERVED.get(name),
                    "seconds_a_draw": seconds,
                }
            )
    return {"features": features, "tokens": TOKENS, "rows": rows}


def table(record: dict[str, Any]) -> str:
    """The record for people."""
    rows = [
        [
            f"width {row['width']}: {row['measure'].replace('_', ' ')}",
            str(row["draws"]),
            f"{row['mean']:.4f}",
            "" if row["sd"] is None else f"{row['sd']:.4f}",
            "" if row["observed"] is None else f"{row['observed']:.2f}",
        ]
        for row in record["rows"]
    ]
    head = ["independent Gaussian numbers", "draws", "chance", "sd", "the method's"]
    return f"{record['features']} features, {record['tokens']} tokens\n{text_table(head, rows)}"


def _widths(text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(word) for word in listed(text))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} names no widths")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    parser = grammar(NAME, __doc__)
    parser.add_argument("--widths", type=_widths, default=(2048, 4096), metavar="LIST")
    parser.add_argument(
        "--draws", type=int, metavar="N", help="of each width (default: 3, and 1 from 4096)"
    )
    options = parser.parse_args(arguments)
    return answer(options, NAME, measure, table)


if __name__ == "__main__":
    raise SystemExit(main())
