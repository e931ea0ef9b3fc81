"""What a study would take, from its calls alone: they are made, and only the clean ones run."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import jax
import numpy as np

from jaxalign.engine.budget import bytes_per_call, bytes_per_row
from jaxalign.model.config import ModelConfig
from jaxalign.model.params import Params, cast
from jaxalign.numerics.scheme import F32, Scheme
from jaxalign.runtime.progress import span
from jaxalign.study.call_log import COMPILE_SECONDS, CallLog, machine_rate, operations, program_key
from jaxalign.study.calls import Call

T = TypeVar("T")

# What the engines reach of the rate of one large product: the bundled model's small matrices the
# least, a real model's on two CPU cores about 0.7 (results/benchmarks).
REACHED = 0.5


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What a study would take.

    Attributes:
        calls: of compiled programs.
        programs: that are compiled for them.
        operations: in floating point, two for a weight that a position meets. Where precisions are
            calibrated and how results are summarized does not count.
        bytes: the most memory that weights and activations take at one time.
        rate: operations a second of all devices, of f32 matrix products as measured here.
        phases: ``(phase, precision, calls, operations)``.
    """

    calls: int
    programs: int
    operations: float
    bytes: float
    rate: float
    phases: tuple[tuple[str, str, int, float], ...]

    @property
    def compiling(self) -> float:
        """Seconds of compilation, unless programs are found in the cache."""
        return COMPILE_SECONDS * self.programs

    @property
    def computing(self) -> float:
        """Seconds of computation."""
        return self.operations / (REACHED * self.rate)

    def text(self) -> str:
        """For people, a line for each phase and precision."""
        lines = [
            f"{phase:<14} {precision:<18} {calls:>6} calls  {flops / 1e9:>14,.1f} GFLOP"
            for phase, precision, calls, flops in self.phases
        ]
        return "\n".join(
            [
                *lines,
                f"calls     {self.calls}, of {self.programs} programs",
                f"memory    {self.bytes / 1e9:.2g} GB for weights and activations",
                f"compute   {self.operations / 1e9:,.0f} GFLOP",
                f"rate      {self.rate / 1e9:,.0f} GFLOP/s of f32 products here, of which about "
                "half is reached",
                f"time      about {span(self.compiling + self.computing)}: "
                f"{span(self.computing)} of computing and {span(self.compiling)} of compiling",
                "          what the cache does not have; calibration and statistics come on top",
            ]
        )

    def content(self) -> dict[str, Any]:
        """For programs: what JSON can hold."""
        return {
            "calls": self.calls,
            "programs": self.programs,
            "flop": self.operations,
            "bytes": self.bytes,
            "flop_per_second": self.rate,
            "seconds": self.compiling + self.computing,
            "seconds_compiling": self.compiling,
            "phases": [
                dict(zip(("phase", "precision", "calls", "flop"), one, strict=True))
                for one in self.phases
            ],
        }


class Estimated(Exception):
    """A study made all of its calls without computing them; ``taken`` is what they would take."""

    def __init__(self, taken: Taken) -> None:
        super().__init__("the study was estimated, not computed")
        self.taken = taken


@dataclass
class Estimate:
    """The calls of a study that is not computed.

    Attributes:
        config: the architecture.
        devices: that share the work.
        calls: those that were made; done: operations of each.
    """

    config: ModelConfig
    devices: int = 1
    calls: list[Call[Any]] = field(default_factory=list)
    done: list[float] = field(default_factory=list)

    def pretend(self, calls: Sequence[Call[T]], log: CallLog) -> Iterator[tuple[Call[T], T]]:
        """Every call with a result of the right shape.

        Clean f32 passes are computed, since which prompts a study keeps hangs on them and they
        cost next to nothing; anything else yields zeros.

        Args:
            calls: of one phase.
            log: shows how far it is.
        """
        real = [call for call in calls if _is_clean(call)]
        values = {id(call): call.compute() for call in log.track(real, "clean passes")}
        for call in calls:
            self.calls.append(call)
            found: Any = values.get(id(call))
            yield call, jax.tree.map(_zeros, call.like()) if found is None else found
            self.done.append(operations(call, self.config, known=True))

    def taken(self, params: Params) -> Taken:
        """What the calls that were made take.

        Args:
            params: in f32; what a call reads, such as a copy in another precision, is beside them.
        """
        phases: dict[tuple[str, str], list[float]] = {}
        for call, flops in zip(self.calls, self.done, strict=True):
            phase = re.sub(r" \d+$", "", str(call.key[0]))  # "noise 2" is one of several
            phases.setdefault((phase, str(call.key[1])), []).append(flops)
        most = max((_bytes(call, self.config, params) for call in self.calls), default=0)
        return Taken(
            calls=len(self.calls),
            programs=len(set(map(program_key, self.calls))),
            operations=sum(self.done),
            bytes=float(_size(params) + most),
            rate=self.devices * machine_rate(),
            phases=tuple((*key, len(own), sum(own)) for key, own in phases.items()),
        )


def nearest(params: Params, scheme: Scheme) -> Params:
    """The parameters rounded to the nearest, whatever chooses the codes of the scheme.

    An estimate asks for shapes only, and calibration would take as long as the study.

    Args:
        params: in f32.
        scheme: any.
    """
    inputs = "int8-token" if scheme.inputs == "int8-static" else scheme.inputs
    return cast(params, replace(scheme, method="", from_file=False, inputs=inputs))


def _is_clean(call: Call[Any]) -> bool:
    return call.rows == 1 and call.key[:2] == ("clean", F32.name)


def _zeros(spec: Any) -> np.ndarray:
    return np.zeros(spec.shape, spec.dtype)


@functools.cache
def _row(config: ModelConfig, length: int, engine: str) -> float:
    return bytes_per_row(config, length, "wave" if engine == "wave" else "vmap")


def _size(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _bytes(call: Call[Any], config: ModelConfig, params: Params) -> float:
    """What a call takes: its arguments, and its activations as the memory budget counts them."""
    prompts, length = call.batch.shape
    rows = prompts * call.rows * _row(config, length, call.engine)
    return _size(call.specs if call.known else params) + bytes_per_call(config, length) + rows
