"""One record of what ``benchmarks/gpu.sh`` has measured.

python -m benchmarks.gpu_json FOLDER FILE
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.record import machine
from jaxalign.runtime.files import replace_file

NAME = "gpu"
TAIL = 400  # characters of what a step that failed has said last
# Said once for all steps, where they agree.
SHARED = ("processor", "cores", "platform", "device", "versions", "commit", "quick")


def gathered(folder: Path) -> dict[str, Any]:
    """The steps of a run, each with its record or with what it said last.

    Args:
        folder: of ``gpu.sh``: ``steps.jsonl``, and ``NAME.out``, ``NAME.err`` of every step.
    """
    steps: dict[str, Any] = {}
    shared: dict[str, Any] = {}
    for line in (folder / "steps.jsonl").read_text(encoding="utf-8").splitlines():
        step = json.loads(line)
        name = step.pop("step")
        said = (folder / f"{name}.out").read_text(encoding="utf-8", errors="replace").strip()
        found = _record(said)
        if found is not None:
            for key in SHARED:
                shared.setdefault(key, found.get(key))
                if found.get(key) == shared[key]:
                    found.pop(key, None)
            step["record"] = found
        elif step["exit"]:
            errors = (folder / f"{name}.err").read_text(encoding="utf-8", errors="replace")
            step["said"] = (said + "\n" + errors).strip()[-TAIL:]
        else:
            step["said"] = said[-TAIL:]
        steps[name] = step
    return {"benchmark": NAME, **(shared or machine()), "steps": steps}


def _record(said: str) -> dict[str, Any] | None:
    """The JSON record that a benchmark ends with."""
    try:
        found = json.loads(said.splitlines()[-1]) if said else None
    except ValueError:
        return None
    return found if isinstance(found, dict) and "benchmark" in found else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Gather a run into a file; the exit code is 0 where every step has ended well."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_json", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("file", type=Path)
    options = parser.parse_args(arguments)
    record = gathered(options.folder)
    replace_file(options.file, (json.dumps(record, indent=1) + "\n").encode())
    return int(any(step["exit"] for step in record["steps"].values()))


if __name__ == "__main__":
    raise SystemExit(main())
