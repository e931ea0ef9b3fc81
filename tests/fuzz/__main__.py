"""``python -m tests.fuzz TARGET FIRST COUNT``: damaged files by seed; exit code 1 on a fault."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from fuzz.run import sweep
from fuzz.targets import TARGETS


def main(arguments: list[str]) -> int:
    """Run cases of one target, or of "all"; print each fault with its seed."""
    if len(arguments) != 3 or arguments[0] not in (*TARGETS, "all"):
        print(f"usage: python -m tests.fuzz {'|'.join(TARGETS)}|all FIRST COUNT", file=sys.stderr)
        return 2
    first, count = int(arguments[1]), int(arguments[2])
    failed = False
    for target in TARGETS if arguments[0] == "all" else arguments[:1]:
        verdicts, faults = sweep(target, first, count)
        print(target, dict(sorted(verdicts.items())), flush=True)
        for seed, text in faults.items():
            failed = True
            print(f"--- {target} {seed}\n{text}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
