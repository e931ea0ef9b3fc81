"""Compiled calls: one call is one run of one compiled program on one batch of prompts."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jaxalign.devices.mesh import EDITS
from jaxalign.processes.distributed import fetch
from jaxalign.prompts import Batch
from jaxalign.runtime.compile import Program

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Late:
    """An argument of a call that is made when the call runs.

    Attributes:
        make: returns a pytree of arrays.
        spec: their shapes, dtypes and shardings, a pytree of ``jax.ShapeDtypeStruct``, so that a
            program can be compiled for them before they are there; None where only ``make`` tells.
    """

    make: Callable[[], Any]
    spec: Any = None


@dataclass(frozen=True, kw_only=True)
class Call(Generic[T]):
    """One call of a compiled program.

    Attributes:
        key: phase, precision, number …: the same in every run; it names the call's result in the
            resume folder, so two calls of a study have different keys.
        program: from ``runtime.compile.jit``.
        arguments: arrays, pytrees of arrays, or ``Late`` ones.
        static: the program's static arguments, by name.
        batch: the prompts of the call.
        rows: runs of each prompt in the call, the clean one included.
        layer_rows: passes of one run of one prompt through one block, filler included; a function
            where only the arguments tell.
        engine: of the sweep, as the log of calls records it.
    """

    key: tuple[str | int, ...]
    program: Program
    arguments: tuple[Any, ...]
    batch: Batch
    static: Mapping[str, Hashable] = field(default_factory=dict)
    rows: int = 1
    layer_rows: int | Callable[[], int] = 0
    engine: str = "scan"

    @property
    def specs(self) -> tuple[Any, ...]:
        """The arguments, late ones as shapes."""
        return tuple(map(shapes_of, self.arguments))

    @property
    def known(self) -> bool:
        """Whether the program can be compiled before the arguments are there."""
        return all(a.spec is not None for a in self.arguments if isinstance(a, Late))

    def like(self) -> T:
        """The result's shapes and dtypes, traced from the call's own program."""
        return self.program.shape_of(*self.specs, **self.static)

    def ahead(self, pool: Executor) -> None:
        """Compile in ``pool``, where the arguments' shapes are known."""
        if self.known:
            self.program.ahead(pool, *self.specs, **self.static)

    def compute(self) -> T:
        """Run the program; the result as numpy arrays, in every process."""
        made = (a.make() if isinstance(a, Late) else a for a in self.arguments)
        return fetch(self.program(*made, **self.static))

    def scatter(self, out: Any, values: Any, axis: int = -1) -> None:
        """Write a value a prompt to the prompts' places in ``out``.

        Args:
            out: array, or a pytree of arrays, whose ``axis`` counts the study's prompts.
            values: the same with the call's prompts along ``axis``; filler is left out.
            axis: from the front or, negative, from the end.
        """
        jax.tree.map(lambda a, v: self.batch.scatter(a, v, axis), out, values)


def shapes_of(argument: Any) -> Any:
    """An argument as it is, or the shapes of a late one."""
    if not isinstance(argument, Late):
        return argument
    return spec_of(argument.make()) if argument.spec is None else argument.spec


def spec_of(tree: Any) -> Any:
    """The shapes, dtypes and shardings of a pytree of arrays."""

    def spec(leaf: Any) -> jax.ShapeDtypeStruct:
        sharding = leaf.sharding if isinstance(leaf, jax.Array) else None
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(spec, tree)


def deal_prompts(
    mesh: Mesh | None, run: Callable[..., Any], shared: tuple[Any, ...], split: tuple[Any, ...],
    axis: int = 0,
) -> Any:  # fmt: skip
    """``run(*shared, *split)`` with the prompts dealt to the devices of a mesh.

    For a program whose rows differ in their weights: there is no edit that could be dealt.

    Args:
        mesh: static; None for one device.
        run: a function of arrays, prompt by prompt independent.
        shared: pytrees that every device needs whole, but for what ``model`` spreads.
        split: arrays ``[B, …]``; the devices divide ``B``, see ``Session.batches``.
        axis: where the results have the prompts.

    Returns:
        What ``run`` returns, whole on every device.
    """
    if mesh is None:
        return run(*shared, *split)
    whole, dealt = PartitionSpec(), PartitionSpec(EDITS)
    out = jax.shard_map(
        run,
        mesh=mesh,
        in_specs=(*[whole] * len(shared), *[dealt] * len(split)),
        out_specs=PartitionSpec(*[None] * axis, EDITS),
        axis_names={EDITS},  # ``model`` stays with the compiler
        check_vma=False,  # loops begin with values that are equal on all devices
    )(*shared, *split)
    everywhere = jax.sharding.NamedSharding(mesh, whole)
    return jax.tree.map(lambda a: jax.lax.with_sharding_constraint(a, everywhere), out)


def places(count: int, like: Any, axis: int = -1) -> Any:
    """Zeros for the results of all prompts, where ``like`` has those of a call's.

    Args:
        count: prompts of the study.
        like: a pytree of arrays or their shapes.
        axis: where they have the prompts.
    """

    def zeros(leaf: Any) -> np.ndarray:
        shape = list(leaf.shape)
        shape[axis] = count
        # Statistics are of float64 numbers, whatever a program computes in.
        return np.zeros(shape, np.float64 if leaf.dtype.kind == "f" else leaf.dtype)

    return jax.tree.map(zeros, like)


# Runs calls and yields each with its result: ``Session.run``, or ``compute_all``.
Run = Callable[..., Iterator[tuple[Call[Any], Any]]]


def compute_all(
    name: str, calls: Sequence[Call[Any]], *, needed: bool = True
) -> Iterator[tuple[Call[Any], Any]]:
    """Every call with its result, computed here and now: a session that keeps nothing.

    Args:
        name, calls, needed: as for ``Session.run``.
    """
    for call in calls:
        yield call, call.compute()
