"""Batches of edits: everything that depends on which of a site's arrays have rows.

Each function reads the declarations of the sites (``site.Declared``) and knows no site by name.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxalign.edits.declare import Declared
from jaxalign.edits.points import LACKING, POINTS, READABLE
from jaxalign.edits.site import Edit, Site
from jaxalign.shapes import Array, Bool, Int


def rows(edit: Edit) -> int:
    """``M``, how many edits a batch has.

    Raises:
        ValueError: no array of the edit has rows.
    """
    for _, declared, array in edit.arrays():
        if declared.per_row:
            return array.shape[0]
    raise ValueError("a batch of edits needs a site with an array by row, such as a mask [M, …]")


def _map_rows(edit: Edit, change: Any) -> Edit:
    return edit.map_arrays(lambda declared, a: change(a) if declared.per_row else a)


def with_clean(edit: Edit) -> Edit:
    """A batch of edits with a row before it that edits nothing."""
    return _map_rows(edit, lambda a: jnp.concatenate([jnp.zeros_like(a[:1]), a]))


def take_rows(edit: Edit, index: Int[Array, " taken"]) -> Edit:
    """The rows ``index`` of a batch of edits; past the last row, one that edits nothing."""

    def taken(a: Any) -> Array:
        a = jnp.asarray(a)
        return a.at[index].get(mode="fill", fill_value=a.dtype.type(0))

    return _map_rows(edit, taken)


def hold_rows(edit: Edit) -> Edit:
    """The same arrays, which the compiler may not compute with ahead of the run.

    Masks that are constants would have it sort and sum them, which takes it seconds.
    """
    return _map_rows(edit, lax.optimization_barrier)


def by_row(edit: Edit, own: Any, common: Any) -> Any:
    """``own`` in the place of each array by row, ``common`` in the place of each shared one.

    ``in_axes`` of ``vmap`` over rows are ``by_row(edit, 0, None)``.
    """
    return edit.map_arrays(lambda declared, _: own if declared.per_row else common)


def touched(
    edit: Edit, batch: int, by: Any = jnp
) -> Bool[Array, "M B steps"] | Bool[np.ndarray, "M B steps"]:
    """Which steps of the model each row of a batch of edits touches on each prompt.

    Step 0 is the embedding, step ``l + 1`` is block ``l``. What acts behind the last block touches
    none of them: ``touched_at_end``.

    Args:
        edit: a batch of edits.
        batch: ``B``, how many prompts there are.
        by: the module that computes it, ``jax.numpy`` or, of arrays that are there, ``numpy``.

    Raises:
        ValueError: a site says nowhere which rows choose it.
    """
    parts = []
    for site in edit.sites:
        places = [d for d in site.declared() if d.acts]
        if not places:
            raise ValueError(
                f"{type(site).__name__} has no array by row that says where it acts, so the rows "
                "of a batch cannot choose it: give it to forward"
            )
        for declared in filter(lambda declared: declared.layered, places):
            where = by.asarray(getattr(site, declared.name))
            some = where.any(axis=tuple(range(3, where.ndim)))  # [M, L, B|1]
            before = 1 if declared.axes[:1] == ("L",) else 0
            some = by.pad(some, ((0, 0), (before, 0), (0, 0)))
            parts.append(by.broadcast_to(some, (*some.shape[:2], batch)).swapaxes(1, 2))
    if not edit.sites:
        raise ValueError("a batch of edits needs a site, such as HeadEdit(mask, value)")
    return functools.reduce(by.logical_or, parts, by.zeros((rows(edit), batch, 1), bool))


def touched_at_end(
    edit: Edit, batch: int, by: Any = jnp
) -> Bool[Array, "M B"] | Bool[np.ndarray, "M B"]:
    """Which rows of a batch of edits act behind the last block on which prompts.

    Not those that edit logits alone: what stands before these is the clean run's.

    Args:
        edit: a batch of edits.
        batch: ``B``, how many prompts there are.
        by: the module that computes it, as for ``touched``.
    """
    late = [a for s, d, a in edit.arrays() if d.acts and s.point == "final_norm"]
    some = (by.asarray(a).any(axis=tuple(range(2, by.ndim(a)))) for a in late)
    return functools.reduce(by.logical_or, some, by.zeros((rows(edit), batch), bool))


def first_positions(edit: Edit, batch: int, length: int) -> Int[np.ndarray, "M B"]:
    """The first position at which each row of a batch of edits acts on each prompt.

    Nothing before it changes, since a position of a causal model never sees those after it; a score
    or a pattern acts where its query stands. ``length`` where a row acts nowhere.

    Args:
        edit: a batch of edits, its arrays known.
        batch: ``B``, how many prompts there are.
        length: ``S``, positions.
    """
    first = np.full((rows(edit), batch), length)
    for _, declared, array in edit.arrays():
        if not declared.acts:
            continue
        some = np.asarray(array) != 0
        if declared.layered:
            some = some.any(axis=1)
        axis = declared.query or (1 if declared.by_position else None)  # behind M: [M, B|1, …]
        if axis is not None:
            some = np.moveaxis(some, axis + 1, 2)
            some = some.any(axis=tuple(range(3, some.ndim)))  # [M, B|1, S|1]
        else:
            some = some.any(axis=tuple(range(2, some.ndim)))[..., None]
        at = np.where(some.any(axis=-1), some.argmax(axis=-1), length)
        first = np.minimum(first, at)
    return first


def touches_one_step(edits: Sequence[Edit], batch: int, *, together: bool = False) -> bool:
    """Whether no row touches a second step of the model; False where its arrays are traced.

    Args:
        edits: batches of edits.
        batch: ``B``, how many prompts there are.
        together: on all prompts together, so that rows which touch one step of each prompt, but not
            the same, do not count.
    """
    places = (array for edit in edits for _, declared, array in edit.arrays() if declared.acts)
    if any(isinstance(array, jax.core.Tracer) for array in places):
        return False
    # By NumPy: by JAX each operation would be a compiled program.
    found = [np.asarray(touched(edit, batch, np)) for edit in edits]
    counts = [(steps.any(axis=1) if together else steps).sum(axis=-1) for steps in found]
    return all(bool((count <= 1).all()) for count in counts)


def stack(edits: Sequence[Edit]) -> tuple[list[Edit], list[tuple[int, int, int]]]:
    """Batches of edits of one shape as one, with the axis of layers first.

    Args:
        edits: batches of edits.

    Returns:
        The stacks, arrays by row ``[L, ΣM, …]`` and shared ones ``[L, G, …]`` (without the axis
        ``L`` where the site declares none); and for each batch its stack, its first row there and
        the place of its shared arrays.
    """
    stacks: dict[Any, list[Edit]] = {}
    places = []
    for edit in edits:
        shapes = [
            # One copy of what is common: batches that have another are another stack.
            id(a) if d.common else (a.shape[1:] if d.per_row else a.shape, a.dtype)
            for _, d, a in edit.arrays()
        ]
        shape = jax.tree.structure(edit), str(shapes)
        alike = stacks.setdefault(shape, [])
        places.append((list(stacks).index(shape), sum(map(rows, alike)), len(alike)))
        alike.append(edit)
    return [_stacked(alike) for alike in stacks.values()], places


def _stacked(alike: Sequence[Edit]) -> Edit:
    columns = zip(*(edit.arrays() for edit in alike), strict=True)
    joined = iter([_joined(column[0][1], [array for *_, array in column]) for column in columns])
    return alike[0].map_arrays(lambda declared, _: next(joined))


def _joined(declared: Declared, arrays: Sequence[Any]) -> Array:
    if declared.common:
        return arrays[0]
    if not declared.per_row:
        return jnp.stack(arrays, axis=1 if declared.layered else 0)
    joined = jnp.concatenate(arrays)
    return jnp.moveaxis(joined, 1, 0) if declared.layered else joined


def check(
    edit: Edit,
    sizes: Mapping[str, int],
    points: Collection[str],
    *,
    batch: bool = False,
    windows: Sequence[int | None] = (),
) -> None:
    """Check an edit against a run, before broadcasting or indexing hides a misfit.

    Args:
        edit: what a run changes.
        sizes: of the run, by axis letter.
        points: where the model applies sites.
        batch: whether arrays by row carry the axis ``M`` of a batch of edits.
        windows: of each layer, how many positions up to its own a query sees; empty for all.

    Raises:
        ValueError: a site acts at a point that the model does not have, so that it would be
            dropped; or an array holds no numbers, or has another shape than the run's. Names it
            and what was expected.
    """
    problems = itertools.chain(
        (_of_site(site, sizes, points, batch, windows) for site in edit.sites),
        _of_pairs(edit),
        (_of_array(*each, sizes, batch) for each in edit.arrays()),
    )
    if problem := next(filter(None, problems), None):
        raise ValueError(problem)


def _of_site(
    site: Site,
    sizes: Mapping[str, int],
    points: Collection[str],
    batch: bool,
    windows: Sequence[int | None],
) -> str | None:
    """Why a site cannot act, or could not say where."""
    name = type(site).__name__
    if site.point not in points:
        why = f": {LACKING[site.point]}" if site.point in LACKING else ""
        return (
            f"{name} acts at the point {site.point!r}, which the model does not have{why}; it "
            f"applies edits only at {', '.join(points)}"
        )
    if problem := _other_kind(site, batch):
        return problem
    if site.reads not in (None, *READABLE.get(site.point, ())):
        pairs = (f"{read} at {at}" for at, reads in READABLE.items() for read in reads)
        return (
            f"{name} at {site.point} reads {site.reads!r}; beside its own point a site reads only "
            f"{', '.join(pairs)}"
        )
    return site.problem(dict(sizes), windows)


def _of_pairs(edit: Edit) -> Iterator[str]:
    """Why two sites of one edit exclude each other."""
    weighed = [site for site in edit.sites if site.kind == "weight"]
    for site, late in itertools.product(weighed, edit.sites):
        if late.point == site.point and late.reads_contributions:
            name = type(late).__name__
            yield (
                f"{type(site).__name__} and {name} of one edit act at {site.point}, and {name} "
                "takes away what the stored weights write: scale or replace z instead, or give "
                "each a batch of its own"
            )


def _of_array(
    site: Site, declared: Declared, array: Any, sizes: Mapping[str, int], batch: bool
) -> str | None:
    """Why an array of a site does not fit."""
    name, layers = f"{type(site).__name__}.{declared.name}", POINTS[site.point].layers
    if declared.acts and declared.layered != bool(layers):
        if layers:
            problem = f"where the site acts, but {site.point} is in every layer"
        else:
            problem = f"by layer where the site acts, but {site.point} is behind them"
        return f"{name} says {problem}: begin its axes with {layers[0] if layers else 'B|1'}"
    expected = (["M"] if batch and declared.per_row else []) + [
        _size(axis, {**sizes, **site.letters()}) for axis in declared.axes if axis != "*"
    ]
    shape = jnp.shape(array)
    if declared.common:  # any axes behind these
        shape = shape[: len(expected)]
    fits = len(shape) == len(expected) and all(
        wanted == "M" or str(size) in wanted.split("|")
        for size, wanted in zip(shape, expected, strict=True)
    )
    if fits:
        return None
    axes = (["M"] if batch and declared.per_row else []) + [a for a in declared.axes if a != "*"]
    more = declared.per_row and not batch and len(shape) == len(expected) + 1
    rows = "; an axis more is one of rows, which are for edits= and sweep" if more else ""
    return f"{name} has shape {shape}, expected [{', '.join(expected)}] ([{', '.join(axes)}]){rows}"


def _other_kind(site: Site, batch: bool) -> str | None:
    """Which array of a site holds no real numbers, no integers where it counts something, or no
    choice where it chooses."""
    for _, declared, array in Edit(site).arrays():
        name = f"{type(site).__name__}.{declared.name}"
        dtype = array.dtype if hasattr(array, "dtype") else np.asarray(array).dtype
        if declared.index:
            axes = ["M"] * (batch and declared.per_row) + [*declared.axes]
            if not jnp.issubdtype(dtype, jnp.integer) or np.ndim(array) != len(axes):
                shape = list(np.shape(array))
                return f"{name} is {dtype}{shape}, expected integers [{', '.join(axes)}]"
        elif not any(jnp.issubdtype(dtype, kind) for kind in (bool, jnp.integer, jnp.floating)):
            return f"{name} holds {dtype}, expected real numbers: bool, int or float"
        elif declared.chooses and (between := _between(array)) is not None:
            return f"{name} holds {between:g}, expected 0 or 1: it chooses, and mixes nothing"
    return None


def _between(array: Any) -> float | None:
    """The first number that is neither 0 nor 1; None where there is none, or they are traced."""
    if isinstance(array, jax.core.Tracer) or jnp.result_type(array) == jnp.bool_:
        return None
    values = np.asarray(array, np.float64).reshape(-1)
    strange = values[(values != 0) & (values != 1)]
    return float(strange[0]) if len(strange) else None


def _size(axis: str, sizes: Mapping[str, int]) -> str:
    """An axis as a message names it: its size, ``size|1`` where it may broadcast."""
    letter, _, one = axis.partition("|")
    size = sizes["L"] + 1 if letter == "L+1" else sizes[letter]
    return f"{size}|1" if one and size != 1 else str(size)
