"""How long does the whole command take, from a cold process and when it is repeated?

``python cli.py --model demo``: imports, compilation, study, figures and files, in processes of
their own. Cold: with an empty folder for compiled programs, which the run fills; repeated: with
what the cold run left there. Every pair has a new folder. Files are in the page cache, since the
first pair only warms up.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.record import ROOT, answer, grammar
from jaxalign.errors import InputError
from jaxalign.study.tables import text_table
from tests.pythia_shape import tiny_checkpoint

NAME = "command"
KINDS = {
    "cold": "cold: nothing compiled yet",
    "repeated": "repeated: programs kept by the cold run",
}
TOKENIZER = ROOT / "jaxalign" / "demo" / "model" / "tokenizer.json"


def run(folder: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """Wall time and phases of one process."""
    output = folder / "experiment.json"
    where = "--output", str(output), "--compilation-cache", str(folder / "programs")
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), *arguments, *where],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"the command left with exit code {done.returncode}: {last}", "see above")
    origin = json.loads(output.read_text())["provenance"]
    phases = origin["seconds"]
    outside = seconds - origin["total_seconds"]
    return {"seconds": seconds, "phases": {**phases, "imports, loading, figures, files": outside}}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """``--runs`` pairs of a cold and a repeated run, after one that warms up."""
    runs: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    with TemporaryDirectory() as temporary:
        arguments = (
            [*tiny(Path(temporary)), *options.arguments] if options.quick else options.arguments
        )
        for n in range(options.runs + (not options.quick)):
            folder = Path(temporary) / str(n)
            folder.mkdir()
            for kind in KINDS:
                runs[kind].append(run(folder, arguments))
    kept = {kind: every[-options.runs :] for kind, every in runs.items()}
    return {
        "arguments": "a tiny model" if options.quick else " ".join(options.arguments),
        "runs": options.runs,
        **{kind: summarized(every) for kind, every in kept.items()},
    }


def tiny(folder: Path) -> list[str]:
    """Arguments for a model and prompts so small that only compilation takes time."""
    model = tiny_checkpoint(
        folder / "model",
        tokenizer=TOKENIZER,
        vocab_size=4096,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    prompts = {
        "factual": [{"prompt": "The capital of France is", "target": " Paris"}],
        "reference": ["The day was long"],
    }
    (folder / "prompts.json").write_text(json.dumps(prompts))
    small = "--max-repair-k", "1", "--no-figures", "--schemes", "f16"
    return ["--model", str(model), "--prompts", str(folder / "prompts.json"), *small]


def summarized(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """All times, their median, and the median of every phase."""
    seconds = [round(one["seconds"], 3) for one in runs]
    phases = {
        name: round(statistics.median(one["phases"][name] for one in runs), 3)
        for name in runs[0]["phases"]
    }
    return {"seconds": seconds, "median": statistics.median(seconds), "phases": phases}


def table(record: dict[str, Any]) -> str:
    """The record for people."""
    rows = [
        (name, f"{record[kind]['median']:.2f}", ", ".join(map(str, record[kind]["seconds"])))
        for kind, name in KINDS.items()
    ]
    phases = [
        (name, f"{seconds:.2f}", f"{record['repeated']['phases'][name]:.2f}")
        for name, seconds in record["cold"]["phases"].items()
    ]
    return "\n\n".join(
        (
            f"python cli.py {record['arguments']}: {record['processor']}, {record['cores']} cores, "
            f"{record['device']}",
            text_table(("wall time", "median s", "every run"), rows),
            text_table(("phase", "cold", "repeated"), phases),
        )
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = grammar(NAME, __doc__)
    add = parser.add_argument
    add("--runs", type=int, default=3, metavar="N", help="pairs of a cold and a repeated run")
    options, rest = parser.parse_known_args(arguments)
    options.arguments = [*(rest or ["--model", "demo"]), "--device", options.device]
    if options.quick:
        options.runs, options.arguments = 1, ["--device", options.device]
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    return answer(parse(arguments), NAME, measure, table)


if __name__ == "__main__":
    raise SystemExit(main())
