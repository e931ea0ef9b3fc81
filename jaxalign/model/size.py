"""What a model costs in a scheme: as deployed, and in memory here."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from jaxalign.model.config import ModelConfig
from jaxalign.model.matrices import MATRICES, shape_of
from jaxalign.model.params import Params, param_shapes
from jaxalign.numerics.scheme import Scheme, WeightFormat, as_scheme
from jaxalign.numerics.storage import packed_bits

DEPLOYED_REST = 16  # bits of embeddings, norms and biases beside packed matrices


def matrix_sizes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Inputs ``A`` and outputs ``O`` of each matrix that a block of the model has, by name."""
    return {
        name: (shape_of([matrix.inputs], config)[0], math.prod(shape_of(matrix.outputs, config)))
        for name, matrix in MATRICES.items()
        if matrix.present is None or getattr(config, matrix.present)
    }


def matrix_bits(config: ModelConfig, scheme: Scheme | str) -> int:
    """Bits of the matrices of all blocks as deployed.

    Raises:
        InputError: the scheme's groups do not divide a matrix's inputs.
    """
    sizes, scheme = matrix_sizes(config), as_scheme(scheme)
    if scheme.matrix_bits is not None:
        return scheme.matrix_bits
    if scheme.weights is None:
        return _dtype_bits(scheme) * _count(config)
    form = scheme.weights
    return config.num_layers * sum(bits_of_matrix(name, config, form) for name in sizes)


def bits_of_matrix(name: str, config: ModelConfig, form: WeightFormat) -> int:
    """Bits of one packed matrix of one layer as deployed.

    Keys and values, which lie in one array, are two matrices with blocks of their own.

    Args:
        name: the matrix's, of ``model.matrices``.
        config: the architecture.
        form: how it is packed.

    Raises:
        InputError: the format's groups do not divide the matrix's inputs.
    """
    inputs, *several, outputs = shape_of(MATRICES[name].axes, config)
    return math.prod(several) * packed_bits(inputs, outputs, form)


def mean_bits(config: ModelConfig, scheme: Scheme | str) -> float:
    """Bits of a weight of the blocks' matrices as deployed, on average.

    Raises:
        InputError: the scheme's groups do not divide a matrix's inputs.
    """
    return matrix_bits(config, scheme) / _count(config)


def deployed_bytes(config: ModelConfig, scheme: Scheme | str) -> float:
    """Bytes of the whole model as deployed: packed matrices with their scales and the rest in 16
    bits, or all of it in the scheme's dtype.

    Raises:
        InputError: the scheme's groups do not divide a matrix's inputs.
    """
    numbers = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(param_shapes(config)))
    scheme = as_scheme(scheme)
    packed = scheme.weights is not None or scheme.matrix_bits is not None
    rest = DEPLOYED_REST if packed else _dtype_bits(scheme)
    return (matrix_bits(config, scheme) + (numbers - _count(config)) * rest) / 8


def memory_bytes(params: Params) -> int:
    """Bytes that the parameters take in memory."""
    return sum(leaf.size * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(params))


def _count(config: ModelConfig) -> int:
    """How many numbers the matrices of all blocks hold."""
    sizes = matrix_sizes(config).values()
    return config.num_layers * sum(inputs * outputs for inputs, outputs in sizes)


def _dtype_bits(scheme: Scheme) -> int:
    return 8 * jnp.dtype(scheme.compute_dtype).itemsize
