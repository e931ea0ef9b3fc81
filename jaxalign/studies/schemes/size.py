"""What a model costs in a scheme: as deployed, and in memory here."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.model.config import ModelConfig
from jaxalign.model.params import MATRICES, Params, param_shapes
from jaxalign.numerics.scheme import Scheme

DEPLOYED_REST = 16.0  # bits of embeddings, norms and biases beside packed matrices


def deployed_bytes(config: ModelConfig, scheme: Scheme) -> float:
    """Bytes of the whole model: packed matrices with their scales, the rest in 16 bits, or all of
    it in the scheme's dtype."""
    return sum(bits * size for bits, size, _ in _leaves(config, scheme)) / 8


def mean_bits(config: ModelConfig, scheme: Scheme) -> float:
    """Bits of a weight of the blocks' matrices, on average."""
    matrices = [(bits, size) for bits, size, is_matrix in _leaves(config, scheme) if is_matrix]
    return sum(bits * size for bits, size in matrices) / sum(size for _, size in matrices)


def memory_bytes(params: Params) -> int:
    """Bytes that the parameters take in memory."""
    return sum(leaf.size * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(params))


def _leaves(config: ModelConfig, scheme: Scheme) -> list[tuple[float, int, bool]]:
    """Bits a number, numbers, and whether it is a matrix of a block, leaf by leaf."""
    paths, _ = jax.tree_util.tree_flatten_with_path(param_shapes(config))
    width = 8.0 * jnp.dtype(scheme.compute_dtype).itemsize

    def bits(path: Any, leaf: jax.ShapeDtypeStruct) -> float:
        if scheme.weights is None:
            return width
        if path[-1].name in MATRICES:
            return scheme.weights.bits_per_weight(leaf.shape[1])
        return DEPLOYED_REST

    return [
        (bits(path, leaf), math.prod(leaf.shape), path[-1].name in MATRICES) for path, leaf in paths
    ]
