"""What calibration keeps of the inputs of linear layers: sums over tokens, never the tokens.

The output error of a linear layer whose matrix changes by ``D`` is a function of second moments
alone, ``E|Dᵀx|² = tr(Dᵀ E[xxᵀ] D)``, so every search over scales, clips or codes runs on these.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import struct
from jax import lax

from jaxalign.shapes import Array, ArrayLeaf, Bool, Float


@struct.dataclass
class Moments:
    """Sums over tokens of the inputs ``x`` ``[A]`` of a linear layer, f32.

    Attributes:
        count: ``[]``, how many tokens.
        absolute: ``[A]``, ``Σ|x|``.
        largest: ``[A]``, ``max|x|``.
        second: ``[A, A]``, ``Σ x xᵀ``; None where it was not asked for.
    """

    count: ArrayLeaf
    absolute: ArrayLeaf
    largest: ArrayLeaf
    second: ArrayLeaf | None = None

    @property
    def mean_absolute(self) -> Array:
        """``E|x|``, ``[A]``."""
        return self.absolute / self.count

    @property
    def mean_second(self) -> Array:
        """``E[x xᵀ]``, ``[A, A]``."""
        assert self.second is not None
        return self.second / self.count

    def __add__(self, other: Moments) -> Moments:
        """The moments of both sets of tokens together."""
        mine, others = self.second, other.second
        second = None if mine is None or others is None else mine + others
        return Moments(
            self.count + other.count,
            self.absolute + other.absolute,
            jnp.maximum(self.largest, other.largest),
            second,
        )

    def divided(self, scale: Float[Array, " A"]) -> Moments:
        """The moments of ``x / scale``, for positive scales."""
        second = self.second
        if second is not None:
            second = second / scale[:, None] / scale[None]
        return Moments(self.count, self.absolute / scale, self.largest / scale, second)


def moments(x: Float[Array, "*rows A"], real: Bool[Array, "*rows"], second: bool = True) -> Moments:
    """The moments of ``x`` where ``real``; what stands elsewhere does not matter.

    Args:
        x: inputs of a linear layer.
        real: which of them are tokens, not padding.
        second: whether to sum the second moments, ``A²`` numbers.

    Example:
        >>> moments(jnp.array([[1.0, -2.0], [3.0, 4.0]]), jnp.array([True, True])).absolute
        Array([4., 6.], dtype=float32)
    """
    x = jnp.where(real[..., None], x.astype(jnp.float32), 0).reshape(-1, x.shape[-1])
    size = jnp.abs(x)
    products = jnp.matmul(x.T, x, precision=lax.Precision.HIGHEST) if second else None
    count = real.sum().astype(jnp.float32)
    return Moments(count, size.sum(axis=0), size.max(axis=0), products)


def output_error(change: Float[Array, "A O"], second: Float[Array, "A A"]) -> Float[Array, ""]:
    """``E|Dᵀx|²`` of a change ``D`` of the matrix, summed over the outputs."""
    return jnp.sum(change * jnp.matmul(second, change, precision=lax.Precision.HIGHEST))
