"""How much memory there is, and whether a model's parameters fit."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from jaxalign.errors import InputError

MEMINFO = Path("/proc/meminfo")

# Of a GPU, this share of what JAX may take; of a CPU's machine, this share of what it has, and at
# most so much: more gains nothing there.
GPU_SHARE, CPU_SHARE, CPU_MOST_GB = 0.9, 0.5, 4.0


def default_memory_gb(device: Any = None) -> float:
    """The memory budget where none is given, in 1e9 bytes: the same in every run on a machine.

    How many prompts and rows make a call depends on it, and with that bits of 16-bit precisions and
    which finished calls fit. So it is a share of what the device *has*, not of what is free now; it
    is rounded down to few digits, and results record it. On a CPU it is 4 unless the machine has
    less than 8, so that machines of all sizes make the same calls.

    Args:
        device: JAX's default one where it is None.
    """
    try:
        if device is None:
            [device] = jnp.zeros(()).devices()
        if device.platform != "cpu":
            limit = (device.memory_stats() or {}).get("bytes_limit")
            return CPU_MOST_GB if limit is None else max(1.0, GPU_SHARE * limit // 1e9)
        has = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (RuntimeError, AssertionError, OSError, ValueError, AttributeError):
        return CPU_MOST_GB  # what is wrong with the device is said where it is used
    return min(CPU_MOST_GB, max(0.5, CPU_SHARE * has // 5e8 / 2))


def available_bytes() -> float | None:
    """Memory that new arrays may take where JAX puts them; None where nobody says.

    An accelerator's own count, or what the system has free for new programs (all that the machine
    has, on systems that do not say).
    """
    [device] = jnp.zeros(()).devices()
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        limit = stats.get("bytes_limit")
        return None if limit is None else float(limit - stats["bytes_in_use"])
    try:
        said = MEMINFO.read_text(encoding="utf-8") if MEMINFO.exists() else ""
        if found := re.search(r"MemAvailable:\s+(\d+) kB", said):
            return 1024.0 * int(found[1])
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (OSError, ValueError):
        return None


def require_room(parameters: int, dtype: Any, memory_gb: float | None = None) -> None:
    """Refuse a model whose parameters do not fit, before any of them is read.

    Args:
        parameters: how many numbers they are.
        dtype: of the parameters in memory.
        memory_gb: the budget, in 1e9 bytes; what is available by default.

    Raises:
        InputError: they need more; gives the arithmetic.
    """
    budget = available_bytes() if memory_gb is None else memory_gb * 1e9
    each = jnp.dtype(dtype).itemsize
    if budget is None or parameters * each <= budget:
        return
    has = "is available" if memory_gb is None else "is the budget (--memory-gb)"
    raise InputError(
        f"the model has {parameters:,} parameters, which take {parameters:,} × {each} bytes = "
        f"{parameters * each / 1e9:.3g} GB in {jnp.dtype(dtype).name}, but {budget / 1e9:.3g} GB "
        f"{has}",
        "use a smaller model or more memory"
        + ("" if memory_gb is None else ", or raise --memory-gb"),
    )
