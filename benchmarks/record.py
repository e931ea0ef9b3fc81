"""What every benchmark takes, and what it says about where it ran."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.errors import InputError
from jaxalign.runtime.environment import select_device
from jaxalign.runtime.files import replace_file

PACKAGES = ("jax", "jaxlib", "torch", "transformers", "transformer-lens", "numpy")
ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results" / "benchmarks"
# What decides a number: a result that was kept a minute ago does not.
CODE = ("jaxalign", "benchmarks", "tests", "cli.py", "pyproject.toml")


def grammar(name: str, docstring: str | None) -> argparse.ArgumentParser:
    """A benchmark's command line with the options that all of them have."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks {name}",
        description=docstring,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", default="auto", metavar="auto|cpu|gpu", help="where to compute")
    parser.add_argument("--quick", action="store_true", help="a tiny size: seconds, no result")
    parser.add_argument(
        "--save", action="store_true", help=f"keep the JSON in results/benchmarks/{name}.json"
    )
    return parser


def answer(
    options: argparse.Namespace,
    name: str,
    measure: Callable[[argparse.Namespace], dict[str, Any]],
    table: Callable[[dict[str, Any]], str],
    folder: Path = RESULTS,
) -> int:
    """Measure, print the table and, as the last line, the JSON record; keep it where asked to.

    Returns:
        The exit code: 2, after one line on stderr, for input that cannot be used.
    """
    try:
        if options.quick and options.save:
            raise InputError("--quick measures nothing worth keeping", "leave out --save")
        select_device(options.device)
        ran_on = machine()
        record = {"benchmark": name, "quick": options.quick, **measure(options), **ran_on}
        print(table(record))
        if options.save:
            text = json.dumps(record, indent=1, allow_nan=False) + "\n"
            replace_file(folder / f"{name}.json", text.encode())
        print(json.dumps(record, allow_nan=False), flush=True)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def device() -> jax.Device:
    """The device that computes where nothing else is said."""
    [chosen] = jnp.zeros(()).devices()
    return chosen


def machine() -> dict[str, Any]:
    """Machine, device, versions and commit (with "+" where the tree has changes).

    Ask before the work: the code that runs is the code that was imported.
    """
    where = device()
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "platform": where.platform,
        "device": where.device_kind,
        "versions": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [
        line.split(":", 1)[1].strip()
        for line in (info.read_text().splitlines() if info.exists() else [])
        if line.startswith("model name")
    ]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    try:
        commit = _git("rev-parse", "--short=10", "HEAD")
        return commit + ("+" if _git("status", "--porcelain", "--", *CODE) else "")
    except (OSError, subprocess.CalledProcessError):
        return "not a checkout"


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()
