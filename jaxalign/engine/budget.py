"""How many prompts and rows of a sweep fit into a memory budget."""

from __future__ import annotations

import math

from jaxalign.engine.blocks import block_positions
from jaxalign.engine.readout import RUNS_READ, TOKENS_READ
from jaxalign.engine.sweep import Engine
from jaxalign.errors import InputError
from jaxalign.model.config import ModelConfig
from jaxalign.model.size import matrix_sizes

# Of one call of one device: about a minute of two CPU cores, a quarter of one of an H100, so that
# progress is seen and little is lost where a run is cut off.
MOST_OPERATIONS = {"cpu": 5e12, "gpu": 5e14}


def bytes_per_row(config: ModelConfig, length: int, engine: Engine = "wave") -> int:
    """Memory that one row of one prompt needs, in bytes (f32; 16-bit products are summed in f32).

    In the wave a run keeps its residual stream, and at its last position what the last block
    computes; the rest is computed a block of runs at a time. In the plain path every row is inside
    the same block of the model, at its widest.

    Args:
        config: the architecture.
        length: padded length of the prompts, in positions.
        engine: of the sweep.
    """
    if engine == "wave":
        wide = 12 * _widest(config) + _mlp_width(config)
        return 4 * (2 * length * config.hidden_size + wide)
    streams = 6 * _widest(config) + 2 * _mlp_width(config)
    return 4 * length * (streams + 2 * config.num_heads * length)


def bytes_per_call(config: ModelConfig, length: int) -> int:
    """Bytes of a call whatever its rows: a block's activations, a layer's weights, logits.

    Args:
        config: the architecture.
        length: padded length of the prompts, in positions.
    """
    positions = max(block_positions(config), length)
    block = positions * (12 * _widest(config) + 2 * _mlp_width(config))
    scores = 2 * config.num_heads * positions * length
    attention = 2 * config.attention_width + 2 * config.num_kv_heads * config.head_size
    products = 3 if config.gated else 2
    layer = config.hidden_size * (attention + products * config.intermediate_size)
    return 4 * (block + scores + layer + RUNS_READ * TOKENS_READ)


def operations_per_row(config: ModelConfig, length: int) -> float:
    """Floating-point operations of one edited row of one prompt, born half way up: two for a weight
    of a block that a position meets.

    Args:
        config: the architecture.
        length: padded length of the prompts, in positions.
    """
    weights = sum(inputs * outputs for inputs, outputs in matrix_sizes(config).values())
    return 2.0 * weights * length * config.num_layers / 2


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
    engine: Engine = "wave",
    most_operations: float = math.inf,
) -> tuple[int, int]:
    """The number of prompts and of rows that go into one call; the clean row counts as a row.

    Args:
        config: the architecture.
        rows: rows wanted for each prompt.
        length: padded length of the prompts.
        budget: bytes left for activations.
        values: bytes a prompt that the rows share (their replacement values).
        least_rows: the fewest rows that make a call; the clean one and an edited one by default.
        most_prompts: more prompts at once gain nothing, since the weights are read often enough.
        engine: of the sweep.
        most_operations: of one call.

    Returns:
        ``(prompts, rows)``; fewer rows than asked for only where one prompt alone is too much for
        the memory, or takes more than ``most_operations``.

    Raises:
        InputError: the budget does not hold ``least_rows`` rows of one prompt.
    """
    row, call = bytes_per_row(config, length, engine), bytes_per_call(config, length)
    least = call + values + min(rows, least_rows) * row
    if budget < least:
        raise InputError(
            f"one prompt of {length} positions needs {least / 1e9:.3g} GB beside the weights, but "
            f"the memory budget leaves {max(budget, 0) / 1e9:.3g} GB",
            "raise --memory-gb or shorten the prompts",
        )
    operations = operations_per_row(config, length)
    fit = (budget - call) / (values + rows * row)
    prompts = int(min(most_prompts, fit, most_operations / (rows * operations)))
    if prompts:
        return prompts, rows
    most = int(min((budget - call - values) / row, most_operations / operations))
    return 1, min(rows, max(most, least_rows))
