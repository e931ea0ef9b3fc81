"""How much fits into a memory budget."""

from __future__ import annotations

from jaxalign.errors import InputError
from jaxalign.model.config import ModelConfig


def bytes_per_row(config: ModelConfig, length: int) -> int:
    """Memory that one row of one prompt needs while it passes through a block, in bytes.

    Counts what XLA keeps alive at the widest point: the stream before and after, the projections,
    scores and probabilities, and the MLP's two activations; in f32 (16-bit products are summed in
    f32, so they save little here).
    """
    streams = 6 * config.hidden_size + 2 * config.intermediate_size
    return 4 * length * (streams + 2 * config.num_heads * length)


def plan_chunks(
    config: ModelConfig,
    rows: int,
    length: int,
    budget: float,
    values: int = 0,
    least_rows: int = 2,
    most_prompts: int = 8,
) -> tuple[int, int]:
    """How many prompts and how many rows go into one call; the clean row counts as a row.

    Args:
        rows: rows wanted for each prompt.
        length: padded length of the prompts.
        budget: bytes left for activations.
        values: bytes a prompt that the rows share (their replacement values).
        least_rows: the fewest rows that make a call; the clean one and an edited one by default.
        most_prompts: more than a few prompts at once only leave the cache.

    Returns:
        ``(prompts, rows)``; fewer rows than asked for only where one prompt alone is too much.

    Raises:
        InputError: the budget does not hold ``least_rows`` rows of one prompt.
    """
    row = bytes_per_row(config, length)
    least = values + min(rows, least_rows) * row
    if budget < least:
        raise InputError(
            f"one prompt of {length} positions needs {least / 1e9:.3g} GB beside the weights, but "
            f"the memory budget leaves {max(budget, 0) / 1e9:.3g} GB",
            "raise --memory-gb or shorten the prompts",
        )
    prompts = min(most_prompts, int(budget // (values + rows * row)))
    if prompts:
        return prompts, rows
    return 1, int((budget - values) // row)
