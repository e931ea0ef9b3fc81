"""How much fits into a memory budget."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from jaxalign.errors import InputError
from jaxalign.model.config import ModelConfig
from jaxalign.model.params import count, param_shapes
from jaxalign.sweep import RUNS_READ, TOKENS_READ
from jaxalign.wave import block_positions

MEMINFO = Path("/proc/meminfo")


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
        if found := re.search(r"MemAvailable:\s+(\d+) kB", MEMINFO.read_text(encoding="utf-8")):
            return 1024.0 * int(found[1])
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (OSError, ValueError):
        return None


def require_room(config: ModelConfig, dtype: Any, memory_gb: float | None = None) -> None:
    """Refuse a model whose parameters do not fit, before any of them is read.

    Args:
        dtype: of the parameters in memory.
        memory_gb: the budget, in 1e9 bytes; what is available by default.

    Raises:
        InputError: they need more; gives the arithmetic.
    """
    budget = available_bytes() if memory_gb is None else memory_gb * 1e9
    parameters, each = count(param_shapes(config)), jnp.dtype(dtype).itemsize
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


def bytes_per_row(config: ModelConfig, length: int, plan: str = "wave") -> int:
    """Memory that one row of one prompt needs, in bytes (f32; 16-bit products are summed in f32).

    In the wave a run keeps its residual stream, and at its last position what the last block
    computes; the rest is computed a block of runs at a time. In the plain path every row is inside
    the same block of the model, at its widest.
    """
    if plan == "wave":
        wide = 12 * _widest(config) + _mlp_width(config)
        return 4 * (2 * length * config.hidden_size + wide)
    streams = 6 * _widest(config) + 2 * _mlp_width(config)
    return 4 * length * (streams + 2 * config.num_heads * length)


def bytes_per_call(config: ModelConfig, length: int) -> int:
    """Memory of a call whatever its rows: a block's activations, a layer's weights, logits."""
    positions = max(block_positions(config), length)
    block = positions * (12 * _widest(config) + 2 * _mlp_width(config))
    scores = 2 * config.num_heads * positions * length
    attention = 2 * config.attention_width + 2 * config.num_kv_heads * config.head_size
    products = 3 if config.gated else 2
    layer = config.hidden_size * (attention + products * config.intermediate_size)
    return 4 * (block + scores + layer + RUNS_READ * TOKENS_READ)


def _widest(config: ModelConfig) -> int:
    """Numbers a position of the stream or of all heads together, whichever are more."""
    return max(config.hidden_size, config.attention_width)


def _mlp_width(config: ModelConfig) -> int:
    """Numbers a position inside the MLP before its last product."""
    return (2 if config.gated else 1) * config.intermediate_size


def plan_chunks(
    config: ModelConfig,
    rows: int,
    length: int,
    budget: float,
    values: int = 0,
    least_rows: int = 2,
    most_prompts: int = 64,
    plan: str = "wave",
) -> tuple[int, int]:
    """How many prompts and how many rows go into one call; the clean row counts as a row.

    Args:
        rows: rows wanted for each prompt.
        length: padded length of the prompts.
        budget: bytes left for activations.
        values: bytes a prompt that the rows share (their replacement values).
        least_rows: the fewest rows that make a call; the clean one and an edited one by default.
        most_prompts: more prompts at once gain nothing, since the weights are read often enough.
        plan: of the sweep.

    Returns:
        ``(prompts, rows)``; fewer rows than asked for only where one prompt alone is too much.

    Raises:
        InputError: the budget does not hold ``least_rows`` rows of one prompt.
    """
    row, call = bytes_per_row(config, length, plan), bytes_per_call(config, length)
    least = call + values + min(rows, least_rows) * row
    if budget < least:
        raise InputError(
            f"one prompt of {length} positions needs {least / 1e9:.3g} GB beside the weights, but "
            f"the memory budget leaves {max(budget, 0) / 1e9:.3g} GB",
            "raise --memory-gb or shorten the prompts",
        )
    prompts = min(most_prompts, int((budget - call) // (values + rows * row)))
    if prompts:
        return prompts, rows
    return 1, int((budget - call - values) // row)
