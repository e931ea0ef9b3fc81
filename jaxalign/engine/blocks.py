"""How many runs a block of a wave holds: a batch whose activations stay in cache."""

from __future__ import annotations

from collections.abc import Sequence

from jaxalign.model.config import ModelConfig
from jaxalign.runtime.compile import default_platform

# On a CPU a block's widest activation, the MLP's, stays in cache beside a layer's weights; fewer
# positions than the least leave the matrix product short of work (measured in benchmarks/LOG.md).
BLOCK_BYTES = 1 << 23
LEAST_POSITIONS = 512
# A GPU has no such cache to win, only work to hand out: fewer positions leave it idle, and more are
# filler, since a layer is walked in whole blocks. Measured on an H200 (Pythia-70M's shape, 64 × 16
# tokens): 4096 positions 0.0315 s, 16 384 0.038 s, 65 536 0.073 s. Of 129 thousand positions that
# the six layers need, such blocks compute 147, 197 and 393 thousand (``walked_positions``).
GPU_POSITIONS = 4096


def block_positions(config: ModelConfig) -> int:
    """About how many positions a block holds, on the platform that programs run on."""
    if default_platform() == "gpu":
        return GPU_POSITIONS
    return max(LEAST_POSITIONS, BLOCK_BYTES // (4 * config.intermediate_size))


def block_size(batch: int, length: int, config: ModelConfig, *, whole_rows: bool = False) -> int:
    """Runs in a block: whole batches as far as they fit, or a part of one.

    Args:
        batch: ``B``, prompts.
        length: positions of a run.
        config: the architecture.
        whole_rows: a part of a batch divides it, so that no block has the end of one row and the
            beginning of another.
    """
    most = max(1, block_positions(config) // length)
    if most >= batch:
        return most // batch * batch
    if whole_rows:
        return max(size for size in range(1, most + 1) if batch % size == 0)
    return -(-batch // -(-batch // most))


def walked_positions(alive: Sequence[int], length: int, size: int) -> int:
    """Positions that a wave's layers compute, filler at the ends of their blocks included.

    Args:
        alive: how many runs are born before each layer.
        length: ``S``, positions of a run.
        size: runs in a block.
    """
    return length * sum(-(-count // size) * size for count in alive)
