"""``doctor``: the lines that a report of a fault needs."""

from __future__ import annotations

import argparse
import os
import platform
import textwrap

import jax

from jaxalign.errors import InputError
from jaxalign.runtime.canary import check_canary
from jaxalign.runtime.compilation_cache import VARIABLE, default_folder
from jaxalign.runtime.environment import describe, select_device
from jaxalign.runtime.memory import available_bytes, default_memory_gb

WIDTH, INDENT = 100, 19


def run(arguments: argparse.Namespace) -> int:
    """Print; returns the exit code.

    Args:
        arguments: from ``parse``: device.

    Raises:
        InputError: there is no such device.
    """
    device = select_device(arguments.device)
    for name, value in findings(device).items():
        print(_wrapped(f"{name:<{INDENT}}{value}"), flush=True)
    return 0


def _wrapped(line: str) -> str:
    return textwrap.fill(
        line, WIDTH, subsequent_indent=" " * INDENT, break_long_words=False, break_on_hyphens=False
    )


def findings(device: jax.Device) -> dict[str, str]:
    """What is installed and found, in words.

    Args:
        device: the one that is selected.
    """
    known = describe(device)
    room = available_bytes()
    free = "unknown" if room is None else f"{room / 1e9:.1f} GB free"
    options = ", ".join(f"{name}={value}" for name, value in known["compiler_options"].items())
    return {
        "versions": ", ".join(f"{name} {number}" for name, number in known["versions"].items()),
        "python": f"{known['python']} ({platform.python_implementation()})",
        "platform": known["platform"],
        "device": f"{device.platform}, {device.device_kind}, {known['device_count']} of them",
        "memory": f"{free}; --memory-gb is {default_memory_gb(device):g} by default",
        "compiled programs": _folder(),
        "compiler options": options or "none that this jaxlib knows",
        "environment": ", ".join(_variables()) or "nothing that matters is set",
        "arithmetic": _canary(),
    }


def _folder() -> str:
    folder = default_folder()
    if folder is None:
        return f"not kept ({VARIABLE} is empty)"
    entries = list(folder.glob("jit_*-cache"))
    size = sum(entry.stat().st_size for entry in entries) / 1e6
    return f"{folder}, {len(entries)} of {size:.0f} MB"


def _variables() -> list[str]:
    names = sorted(name for name in os.environ if name.startswith(("JAX", "XLA_")))
    return [f"{name}={os.environ[name]!r}" for name in (*names, "CUDA_VISIBLE_DEVICES")
            if name in os.environ]  # fmt: skip


def _canary() -> str:
    try:
        check_canary()
    except InputError as error:  # a PrecisionError, too
        return f"WRONG: {error}"
    return "16-bit roundings are kept, f32 products are f32"
