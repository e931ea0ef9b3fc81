"""Splices: a point's value through a dictionary or transcoder, with features of it changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from jaxalign.edits.anywhere import Anywhere
from jaxalign.edits.declare import Declared, acts, common, per_row
from jaxalign.edits.points import POINTS
from jaxalign.edits.runs import Pick
from jaxalign.edits.site import Kind, outside
from jaxalign.shapes import Array, Float, Leaf, lead

# Features of the wave's runs that are computed at once: they outgrow every activation.
FEATURE_BYTES = 1 << 26

Encode = Callable[[Any, Array], Array]
Decode = Callable[[Any, Array, Array], Array]


@struct.dataclass
class Splice(Anywhere):
    """Send a point's value through a dictionary: ``decode(f′)``, where ``f = encode(x)`` and ``f′``
    are its features, some of them changed (a sparse autoencoder spliced in, Bricken et al. 2023;
    Marks et al. 2024, arXiv 2403.19647, keep the error).

    With the error kept what stands there is ``x + decode(f′) − decode(f)``, so that a row that
    changes no feature keeps its bits; without it ``decode(f′)``. In f32, rounded once.

    A transcoder reads another point than the one that it stands in for: ``Splice("mlp_out", …,
    reads="mlp_in")`` (Dunefsky et al. 2024, arXiv 2406.11944).

    Attributes:
        point: a name of ``edits.points.POINTS`` where positions have vectors; those of heads are
            taken together, ``H·h``.
        mask: bool ``[L, B|1, S|1]``, where the dictionary stands in (at ``resid`` ``L + 1``, at the
            model's end without ``L``). A batch of M edits has ``M`` in front.
        dictionary: any tree of arrays, one copy for all rows; where ``stacked``, each begins with
            the axis of layers.
        encode: ``(dictionary, x [..., D]) → features``, f32, of one layer; a pure function, and the
            same object in every call, or programs are compiled again (static).
        decode: ``(dictionary, features, x) → [..., D]``; likewise. ``x`` is what ``encode`` has
            read, of which a dictionary of scaled inputs, or one with a skip, needs to know.
        feature: int ``[E]``, which features each row changes; none by default. ``M`` in front.
        by: ``[E]``: ``f′ = (1 + by) · f``, −1 removes.
        to: ``[E]``, in place of that ``f′ = f + by · (to − f)``; ``by`` is then 1 by default, which
            sets the feature to ``to``.
        reads: the point that ``encode`` reads; the same point by default (static).
        keep_error: whether what the dictionary misses is kept (static).
        stacked: whether every layer has arrays of its own (static).

    Example:
        >>> rows, mask = np.arange(1000), np.zeros((1000, 7, 1, 1), bool)
        >>> mask[:, 3] = True  # after block 2
        >>> sae = Splice("resid", mask, arrays, encode, decode, rows[:, None], -np.ones((1000, 1)))
    """

    kind: ClassVar[Kind] = "splice"

    point: str = struct.field(pytree_node=False)  # type: ignore[misc]
    mask: Leaf = acts("L B|1 S|1", chooses=True)
    dictionary: Any = common("L *")
    encode: Encode = struct.field(pytree_node=False)  # type: ignore[misc]
    decode: Decode = struct.field(pytree_node=False)  # type: ignore[misc]
    feature: Leaf = per_row("E", default=None, index=True)
    by: Leaf = per_row("E", default=None)
    to: Leaf = per_row("E", default=None)
    reads: str | None = struct.field(pytree_node=False, default=None)  # type: ignore[misc]
    keep_error: bool = struct.field(pytree_node=False, default=True)
    stacked: bool = struct.field(pytree_node=False, default=False)

    def __post_init__(self) -> None:
        """Set features where it is only said to what."""
        if self.by is None and self.to is not None:
            object.__setattr__(self, "by", np.ones(np.shape(self.to), np.float32))

    @property
    def reads_inputs(self) -> bool:  # type: ignore[override]
        """A transcoder reads another point."""
        return self.reads is not None

    def declared(self) -> Iterator[Declared]:
        """As declared, but that a dictionary of all layers has no axis of them."""
        for each in super().declared():
            yield replace(each, axes=("*",)) if each.common and not self.stacked else each

    def letters(self) -> dict[str, int]:
        """``E``: how many features one row changes."""
        return {} if self.feature is None else {"E": jnp.shape(self.feature)[-1]}

    def problem(self, sizes: dict[str, int], windows: Sequence[int | None] = ()) -> str | None:
        """A dictionary of another width, or features that it does not have (``Site.problem``).

        Args:
            sizes: of the run, by axis letter.
            windows: not read.
        """
        unit = POINTS[self.point].unit
        if not POINTS[self.point].position:
            return f"Splice at {self.point}: there positions have no vectors to encode"
        missing = [name for name in ("feature", "by") if getattr(self, name) is None]
        if len(missing) == 1:
            return f"Splice changes features by feature and by, and {missing[0]} is not given"
        width = math.prod(sizes[axis] for axis in unit)
        read = math.prod(sizes[axis] for axis in POINTS[self.reads or self.point].unit)
        features, problem = self._widths(read, width)
        if problem or self.feature is None:
            return problem
        if (strange := outside(self.feature, features)) is not None:
            return f"Splice.feature is {strange}, but the dictionary has 0 … {features - 1}"
        return None

    def _widths(self, read: int, width: int) -> tuple[int, str | None]:
        """How many features there are, and what is wrong where widths do not fit."""

        def one(a: Any) -> jax.ShapeDtypeStruct:
            shape = jnp.shape(a)[int(self.stacked) :]
            return jax.ShapeDtypeStruct(shape, jnp.result_type(a))

        arrays = jax.tree.map(one, self.dictionary)
        x = jax.ShapeDtypeStruct((1, 1, read), jnp.float32)
        at = f"Splice at {self.point}"
        try:
            f = jax.eval_shape(self.encode, arrays, x)
        except (TypeError, ValueError, IndexError) as error:
            return 0, f"{at}: encode does not take width {read} of the model: {_first(error)}"
        if f.shape[:-1] != (1, 1):
            return 0, f"{at}: encode makes {f.shape} of (1, 1, {read}), expected features last"
        try:
            y = jax.eval_shape(self.decode, arrays, f, x)
        except (TypeError, ValueError, IndexError) as error:
            return 0, f"{at}: decode does not take {f.shape[-1]} features: {_first(error)}"
        if y.shape != (1, 1, width):
            return 0, f"{at}: decode makes width {y.shape[-1]}, but the model has {width} there"
        return f.shape[-1], None

    def apply(self, x: Array, inputs: Array | None = None, weights: Any = None) -> Array:
        """The value after the edit (``Site.apply``).

        Args:
            x: the value.
            inputs: the value at ``reads``.
            weights: not read.
        """
        read = x if self.reads is None else inputs
        assert read is not None
        flat = self._vectors(x, self.point).astype(jnp.float32)
        vectors = self._vectors(read, self.reads or self.point)
        features = self.encode(self.dictionary, vectors)
        where = jnp.asarray(self.mask)[..., None]
        y = self.decode(self.dictionary, self._changed(features), vectors)
        if self.keep_error:
            y = flat + (y - self.decode(self.dictionary, features, vectors))
            where = where & (False if self.by is None else (jnp.asarray(self.by) != 0).any())
        value = y.astype(x.dtype).reshape(x.shape)
        return jnp.where(_spread(where, x, flat), value, x)

    def apply_runs(self, x: Array, pick: Pick, inputs: Array | None, weights: Any) -> Array:
        """As ``Site.apply_runs``, a few runs at a time: features are wider than any activation.

        Args:
            x: the value of each run.
            pick: gathers a run's own part of the arrays.
            inputs: each run's value at ``reads``.
            weights: not read.
        """
        read = x if self.reads is None else inputs
        assert read is not None
        vectors = self._vectors(read, self.reads or self.point)

        def changed(x: Array) -> Array:
            site = pick.site()
            wide = jax.eval_shape(self.encode, site.dictionary, vectors[:1]).size
            size = max(1, FEATURE_BYTES // (4 * wide))
            own = replace(site, dictionary=None)

            def one(given: tuple[Splice, Array, Array]) -> Array:
                site, x, read = given
                whole = replace(site, dictionary=pick.of.dictionary)
                return whole.apply(x[None], read[None])[0]

            return lax.map(one, (own, x, read), batch_size=min(size, len(x)))

        return lax.cond(pick.acting(), changed, lambda x: x, x)

    def features(self, activations: Mapping[str, Array]) -> Float[Array, "*steps B S features"]:
        """The features of what a run has captured.

        Args:
            activations: of ``forward`` or ``model.run``, with the point that ``encode`` reads (of
                ``resid`` the stream behind each block).

        Example:
            >>> found = sae.features(model.run(text, capture=("resid",)).activations)
        """
        name = self.reads or self.point
        x = self._vectors(jnp.asarray(activations[name]), name)
        if not self.stacked:
            return self.encode(self.dictionary, x)
        blocks = jax.tree.map(lambda a: jnp.asarray(a)[-len(x) :], self.dictionary)
        return jax.vmap(self.encode)(blocks, x)

    def _vectors(self, x: Array, point: str) -> Array:
        """A value with one f32 vector a position."""
        before = x.ndim - len(POINTS[point].unit)
        return x.reshape(*x.shape[:before], -1).astype(jnp.float32)

    def _changed(self, features: Array) -> Array:
        """``f′``."""
        if self.feature is None:
            return features
        chosen = features[..., self.feature]
        by = lead(jnp.asarray(self.by, features.dtype), chosen)
        if self.to is None:
            change = by * chosen
        else:
            change = by * (lead(jnp.asarray(self.to, features.dtype), chosen) - chosen)
        return features.at[..., self.feature].add(jnp.where(by != 0, change, 0))


def _spread(where: Array, x: Array, flat: Array) -> Array:
    """A mask ``[B|1, S|1, 1]`` with the axes of ``x``."""
    return lead(where.reshape(*where.shape, *[1] * (x.ndim - flat.ndim)), x)


def _first(error: Exception) -> str:
    """The first line of what an error says."""
    return str(error).strip().split("\n")[0]
