"""Does the whole study run on a checkpoint of Pythia-70M's shape with real prompts, and how long?

    python -m benchmarks pythia_shape_run --data DATA --work FOLDER [--limit N]

DATA holds others' published files, which this project does not ship: the GPT-NeoX tokenizer
(``neox-tokenizer/20B_tokenizer.json``), IOI and capital-city prompts (``ioi/*.json``, lists under
"prompts" with "clean", "answers", "wrong_answers") and ROME's known facts
(``rome/known_1000.json``, "prompt" and "attribute"). The weights are random, so the numbers mean
nothing but time and memory; what is exercised is everything else. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.record import answer, grammar
from benchmarks.timing import peak_bytes
from jaxalign.commands.main import main as jaxalign_command
from jaxalign.errors import InputError
from jaxalign.prompts import SHIPPED
from jaxalign.studies.heads import HEADS
from jaxalign.studies.heads.edge_align import forward_passes
from jaxalign.study.tables import text_table
from tests.pythia_shape import write_checkpoint

NAME = "pythia_shape_run"
TOKENIZER = "neox-tokenizer/20B_tokenizer.json"


def real_prompts(data: Path, limit: int | None) -> dict[str, Any]:
    """Published prompts in our format: IOI, capital cities and facts, and our reference texts."""

    def pairs(name: str) -> list[dict[str, str]]:
        entries = json.loads((data / "ioi" / name).read_text())["prompts"][:limit]
        return [
            {
                "prompt": entry["clean"],
                "target": entry["answers"][0],
                "distractor": entry["wrong_answers"][0],
            }
            for entry in entries
        ]

    known = json.loads((data / "rome" / "known_1000.json").read_text())[:limit]
    return {
        "factual": [{"prompt": k["prompt"], "target": f" {k['attribute']}"} for k in known],
        "ioi": pairs("ioi_prompts.json"),
        "capitals": pairs("capital_cities_pythia-70m-deduped_prompts.json"),
        "reference": json.loads(SHIPPED.read_text())["reference"],
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Write checkpoint and prompts, run the study through the command line, read its result."""
    options.work.mkdir(parents=True, exist_ok=True)
    missing = [
        n for n in (TOKENIZER, "ioi", "rome/known_1000.json") if not (options.data / n).exists()
    ]
    if missing:
        raise InputError(f"{options.data} lacks {missing[0]}", "give the folder with these files")
    model = options.work / "pythia-70m-shape"
    if not (model / "model.safetensors").exists():
        write_checkpoint(model, size="70m", tokenizer=options.data / TOKENIZER)
    prompts = options.work / "prompts.json"
    prompts.write_text(json.dumps(real_prompts(options.data, options.limit)))
    output = options.work / "experiment.json"
    start = time.perf_counter()
    code = jaxalign_command(
        [
            *("--model", str(model), "--prompts", str(prompts), "--output", str(output)),
            *("--use-all-prompts", "--repair", "all"),
        ]
    )
    seconds = time.perf_counter() - start
    if code:
        raise InputError(f"the study left with exit code {code}", "see its message above")
    result = HEADS.read(output)
    lengths = [prompt.num_tokens for prompt in result.prompts]
    return {
        "prompts": dict(Counter(prompt.task for prompt in result.prompts)),
        "tokens": [min(lengths), max(lengths)],
        "seconds": round(seconds, 1),
        "phases": result.provenance.seconds,
        "forward_passes": forward_passes(result),
        "computed": result.provenance.layer_rows,
        "without_wave": forward_passes(result) * result.num_layers,
        "peak_gb": round(peak_bytes() / 1e9, 2),
    }


def table(record: dict[str, Any]) -> str:
    """The record for people."""
    rows = [(phase, f"{seconds:.1f}") for phase, seconds in record["phases"].items()]
    rows.append(("whole command", f"{record['seconds']:.1f}"))
    return "\n".join(
        (
            f"{sum(record['prompts'].values())} prompts of {record['tokens'][0]} to "
            f"{record['tokens'][1]} tokens, peak memory {record['peak_gb']:.2f} GB",
            text_table(("", "seconds"), rows),
        )
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    parser = grammar(NAME, __doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="DATA")
    parser.add_argument("--work", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--limit", type=int, metavar="N", help="at most N prompts of each file")
    options = parser.parse_args(arguments)
    if options.quick:
        options.limit = 2
    return answer(options, NAME, measure, table)


if __name__ == "__main__":
    raise SystemExit(main())
