"""List the benchmarks, run one or all of them, or rewrite the README's table.

python -m benchmarks                    what there is
python -m benchmarks heads [OPTIONS]    one of them; --help says its options
python -m benchmarks all [--quick]      every one that needs no files of others
python -m benchmarks table              the README's table, from results/benchmarks/*.json
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
NEEDS_FILES = ("pythia_shape_run",)  # others' published prompts, which are not shipped


def questions() -> dict[str, str]:
    """The benchmarks: every file here whose first line asks a question, and that question."""
    found = {}
    for path in sorted(HERE.glob("*.py")):
        first = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0]
        if first.endswith("?"):
            found[path.stem] = first
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, the first that is not 0 for ``all``."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or [""]
    known = questions()
    if name == "all":
        chosen = [known_name for known_name in known if known_name not in NEEDS_FILES]
        print(f"not run, since others' files are needed: {', '.join(NEEDS_FILES)}")
        codes = []
        for one in chosen:
            print(f"\n{one}: {known[one]}", flush=True)
            codes.append(_run(one, rest))
        return next((code for code in codes if code), 0)
    if name in known or name == "table":
        return _run(name, rest)
    print(__doc__)
    width = max(map(len, known))
    for one, question in known.items():
        print(f"  {one:<{width}}  {question}")
    return 0 if name in ("", "-h", "--help") else 2


def _run(name: str, arguments: Sequence[str]) -> int:
    code: int = importlib.import_module(f"benchmarks.{name}").main(arguments)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
