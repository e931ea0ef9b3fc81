"""What an edit site is, and what follows from its declaration: written once, for every site.

A *site* is what a run changes at one point of the model. It is a ``flax.struct`` dataclass that
declares its arrays with ``acts``, ``per_row`` or ``shared`` (``declare``), and whose ``apply``
changes the value of one run in one layer. An ``Edit`` is all that one run changes: a tuple of
sites, and one argument of the model. A *batch of edits* is an ``Edit`` whose arrays by row have a
leading axis ``M``, one edit a row; shared arrays are the same for all rows (``batch``).

To add a site: write its class in a file of ``jaxalign/edits`` (or in your own), like this one.

    @struct.dataclass
    class ScaleMLP(Site):
        point: ClassVar[str] = "mlp_out"
        kind: ClassVar[Kind] = "scale"
        mask: Leaf = acts("L B|1 S|1")
        factor: Leaf = per_row("L")

        def apply(self, x, inputs=None, weights=None):
            scaled = (x.astype(jnp.float32) * self.factor).astype(x.dtype)
            return jnp.where(lead(self.mask[..., None], x), scaled, x)

``forward``, ``vmap``, the wave, sharding and generation then apply it, because all of them reach
sites by ``apply_at(point, …)`` alone. A point that the model does not have yet is one such call in
``jaxalign.model.decoder``, ``attention`` or ``layers`` and its name in ``edits.points``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, Protocol, get_args, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxalign.edits.declare import Declared
from jaxalign.edits.runs import Pick
from jaxalign.shapes import Array

# Sites of one edit at one point apply in this order.
Kind = Literal["weight", "replace", "splice", "scale", "add"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class Site:
    """What a run changes at one point of the model; the base of all sites.

    Attributes:
        point: a name of ``edits.points.POINTS``.
        kind: decides the order among the sites of one edit at one point (``KINDS``).
        reads: a point of the same block (``edits.points.READABLE``) whose value ``apply`` is given
            as ``inputs``; None for what the matrix product has read.
        reads_inputs: whether ``apply`` reads ``inputs``: the wave then has to have them.
    """

    point: ClassVar[str]
    kind: ClassVar[Kind]
    reads: ClassVar[str | None] = None
    reads_inputs: ClassVar[bool] = True

    def apply(self, x: Array, inputs: Array | None = None, weights: Any = None) -> Array:
        """The value ``x`` at this site's point after the edit.

        Where the row does not act, ``x`` has to come back with its own bits: choose with
        ``jnp.where``, so that a value that is not finite does not leak out of the mask either.

        The fields of ``self`` are those of one layer and one row: without the axes ``M`` and ``L``.

        Args:
            x: the value, ``[B, S, …]``.
            inputs: what the matrix product that made ``x`` has read, ``[B, S, …]``, where the
                point has one (``attn_out``: each head's ``z``; ``mlp_out``: the neurons); of a site
                that ``reads`` another point, the value there.
            weights: the matrix of that product, ``[A, *out]``, packed or not.
        """
        raise NotImplementedError(f"{type(self).__name__} has no apply")

    def apply_runs(self, x: Array, pick: Pick, inputs: Array | None, weights: Any) -> Array:
        """The values of the wave's runs after the edit; ``vmap`` of ``apply`` for any site.

        Args:
            x: the value of each run, ``[N, S, …]``, one prompt a run.
            pick: gathers a run's own part of this site's arrays.
            inputs, weights: as in ``apply``, inputs by run.
        """

        def one(site: Site, x: Array, inputs: Array | None) -> Array:
            alone = None if inputs is None else inputs[None]
            return site.apply(x[None], alone, weights)[0]

        def changed(x: Array) -> Array:
            axes = self.map_arrays(lambda declared, _: None if declared.common else 0)
            return jax.vmap(one, in_axes=(axes, 0, 0))(pick.site(), x, inputs)

        return lax.cond(pick.acting(), changed, lambda x: x, x)

    def fork_runs(
        self, x: Array, pick: Pick, inputs: Array, weights: Any, contributions: Array | None
    ) -> Array:
        """As ``apply_runs``, of runs that start here and share the clean run's ``attn_out``.

        Args:
            x, pick, inputs, weights: as in ``apply_runs``; ``x`` is the clean run's.
            contributions: what each head of the clean runs adds, f32 ``[H, B, S, D]``, where some
                site asks for it (``reads_contributions``).
        """
        return self.apply_runs(x, pick, inputs, weights)

    @property
    def reads_contributions(self) -> bool:
        """Whether ``fork_runs`` reads what each head of the clean run adds."""
        return False

    def declared(self) -> Iterator[Declared]:
        """The declarations of the arrays that are given."""
        for field in fields(self):  # type: ignore[arg-type]  # every site is a dataclass
            if "site" in field.metadata and getattr(self, field.name) is not None:
                yield Declared(name=field.name, **field.metadata["site"])

    def map_arrays(self, change: Callable[[Declared, Any], Any]) -> Site:
        """This site with each of its arrays changed."""
        new = {d.name: _each(change, d, getattr(self, d.name)) for d in self.declared()}
        return replace(self, **new)  # type: ignore[type-var]

    def letters(self) -> dict[str, int]:
        """Sizes of axes that the site itself has: ``E``, how many places one row edits."""
        return {}

    def problem(self, sizes: dict[str, int], windows: Sequence[int | None] = ()) -> str | None:
        """Why the site cannot be applied to a run of these sizes, beyond its arrays' shapes.

        Args:
            sizes: of the run, by axis letter.
            windows: of each layer, how many positions up to its own a query sees; empty for all.
        """
        return None

    def given(self, inputs: Array | None, others: Mapping[str, Array] | None) -> Array | None:
        """What ``apply`` is given as ``inputs``.

        Args:
            inputs: what the matrix product has read.
            others: values of other points of the block.
        """
        return inputs if self.reads is None or others is None else others[self.reads]


def outside(numbers: Any, size: int) -> int | None:
    """The first of some numbers that is none of ``0 … size − 1``; None where they are traced.

    JAX would take the last element for it.

    Args:
        numbers: integers.
        size: of the axis that they index.
    """
    if isinstance(numbers, jax.core.Tracer):
        return None
    values = np.asarray(numbers).reshape(-1)
    strange = values[(values < 0) | (values >= size)]
    return int(strange[0]) if len(strange) else None


def _each(change: Callable[[Declared, Any], Any], declared: Declared, value: Any) -> Any:
    """A field with its array changed; of a tree, each of its arrays."""
    if not declared.common:
        return change(declared, value)
    return jax.tree.map(lambda a: change(declared, a), value)


@runtime_checkable
class Edits(Protocol):
    """What the model asks of edits: those of one run, or of many runs of a wave."""

    def apply_at(
        self,
        point: str,
        x: Array,
        inputs: Array | None = None,
        weights: Any = None,
        others: Mapping[str, Array] | None = None,
    ) -> Array:
        """The value at a point after the edits there (``Site.apply``).

        Args:
            point: a name of ``edits.points.POINTS``.
            x: the value.
            inputs: what the matrix product that made ``x`` has read.
            weights: the matrix of that product.
            others: by name, the values at other points of the block that sites here may read.
        """


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True, init=False)
class Edit:
    """Everything that one run changes: ``Edit(site, …)``. ``Edit()`` changes nothing.

    A site that is masked out everywhere changes no bit.

    Attributes:
        sites: by ``kind``, in the order of ``KINDS``.
    """

    sites: tuple[Site, ...]

    def __init__(self, *sites: Any) -> None:
        """Keep the sites in the order in which those at one point apply.

        Raises:
            ValueError: what is given is no site.
        """
        if wrong := [type(site).__name__ for site in sites if not isinstance(site, Site)]:
            raise ValueError(
                f"Edit takes sites, such as HeadEdit(mask, value), not {', '.join(wrong)}"
            )
        ordered = sorted(sites, key=lambda site: KINDS.index(site.kind))
        object.__setattr__(self, "sites", tuple(ordered))

    def tree_flatten(self) -> tuple[tuple[Site, ...], None]:
        """The sites as children."""
        return self.sites, None

    @classmethod
    def tree_unflatten(cls, _: None, children: Any) -> Edit:
        """An edit of any children: JAX also puts other things than sites into trees."""
        edit = object.__new__(cls)
        object.__setattr__(edit, "sites", tuple(children))
        return edit

    def apply_at(
        self,
        point: str,
        x: Array,
        inputs: Array | None = None,
        weights: Any = None,
        others: Mapping[str, Array] | None = None,
    ) -> Array:
        """The value at a point after this edit's sites there (``Site.apply``).

        Args:
            point, x, inputs, weights, others: as in ``Edits.apply_at``.
        """
        for site in self.sites:
            if site.point == point:
                x = site.apply(x, site.given(inputs, others), weights)
        return x

    def map_arrays(self, change: Callable[[Declared, Any], Any]) -> Edit:
        """This edit with the arrays of its sites changed."""
        return Edit(*(site.map_arrays(change) for site in self.sites))

    def arrays(self) -> Iterator[tuple[Site, Declared, Any]]:
        """Every array with its site and its declaration."""
        for site in self.sites:
            for declared in site.declared():
                value = getattr(site, declared.name)
                for array in jax.tree.leaves(value) if declared.common else (value,):
                    yield site, declared, array

    # What the embedding and each layer are given.

    def at_embedding(self) -> Edit:
        """The sites that may act on the embedding, with their first step's arrays."""

        def first(declared: Declared, a: Any) -> Any:
            return a[0] if declared.layered else a

        early = [s for s in self.sites if any(d.axes[:1] == ("L+1",) for d in s.declared())]
        return Edit(*early).map_arrays(first)

    def at_end(self) -> Edit:
        """The sites that act behind the last layer."""
        late = [s for s in self.sites if any(d.acts and not d.layered for d in s.declared())]
        return Edit(*late)

    def at_logits(self) -> Edit:
        """The sites that act on logits."""
        return Edit(*(site for site in self.sites if site.point == "logits"))

    def layered(self) -> list[dict[str, Any]]:
        """For each site its arrays with an axis of layers, blocks only: to scan or index."""

        def blocks(declared: Declared, a: Any) -> Any:
            return a[1:] if declared.axes[:1] == ("L+1",) else a

        return [
            {d.name: _each(blocks, d, getattr(site, d.name)) for d in site.declared() if d.layered}
            for site in self.sites
        ]

    def layer(self, arrays: list[dict[str, Any]]) -> Edit:
        """The edit of one layer, from that layer's part of ``layered()``."""
        pairs = zip(self.sites, arrays, strict=True)
        return Edit(*(replace(site, **own) for site, own in pairs))  # type: ignore[type-var]

    def at_positions(self, positions: Array) -> Edit:
        """One layer's edit with the arrays of some positions, int ``[B, Q]``, of each prompt."""
        prompt = jnp.arange(len(positions))[:, None]

        def chosen(declared: Declared, a: Any) -> Any:
            axis = 1 if declared.by_position else declared.query
            if axis is None or a.shape[axis] == 1:
                return a
            if not declared.has("B"):
                a, axis = jnp.asarray(a)[None], axis + 1
            first = jnp.moveaxis(jnp.asarray(a), axis, 1)
            taken = first[prompt if len(a) > 1 else 0, positions]
            return jnp.moveaxis(taken, 1, axis)

        return self.map_arrays(chosen)


NOTHING = Edit()
