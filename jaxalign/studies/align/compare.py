"""Compares two dictionaries or two sets of activations, with what is there shown and kept."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import jax
import numpy as np

from jaxalign.measures.alignment import align
from jaxalign.runtime.environment import describe
from jaxalign.runtime.progress import SHORT, Progress, span
from jaxalign.runtime.resume import Resume
from jaxalign.studies.align.options import AlignOptions
from jaxalign.studies.align.result import AlignProvenance, AlignResult
from jaxalign.studies.align.sides import Sides
from jaxalign.study.provenance import Environment

# What the parts of each work are called while they are computed.
WORKS = {"value": "the two", "floor": "pairs of seeds", "null": "chance"}


@dataclass(frozen=True, kw_only=True)
class Shown:
    """Computes the parts of a work: shown, and kept for a run that goes on (``alignment.Each``).

    Attributes:
        resume: keeps each part.
        progress: shows how far it is.
        say: says how long what is left will take.
    """

    resume: Resume
    progress: Progress
    say: Callable[[str], None]

    def __call__(
        self, work: str, count: int, compute: Callable[[int], np.ndarray]
    ) -> list[np.ndarray]:
        """The parts of a work.

        Args:
            work: "value", "floor" or "null".
            count: how many parts it has.
            compute: a part by its number.
        """
        found: list[np.ndarray] = []
        for number in self.progress.track(range(count), WORKS[work], "part"):
            had = self.resume.has((work, number))
            start = time.perf_counter()
            part = functools.partial(compute, number)
            found.append(np.asarray(self.resume.keep((work, number), part)))
            left = (count - 1) * (time.perf_counter() - start)
            if work == "null" and number == 0 and not had and left > SHORT:
                self.say(f"what chance gives takes about {span(left)}; fewer --draws take less")
        return found


def environment_of(device: jax.Device) -> Environment:
    """Versions, flags and device, as results record them."""
    return Environment(**describe(device))


def facts_of(sides: Sides, options: AlignOptions, environment: Environment) -> dict[str, Any]:
    """What two runs must have in common to share their parts, by the names of an error.

    Args:
        sides: what is compared.
        options: draws and seed.
        environment: device and versions.
    """
    first, second, *floor = sides.described
    return {
        "study": "align",
        "first": [first.sha256, first.what],
        "second": [second.sha256, second.what],
        "floor": [side.sha256 for side in floor],
        "draws": options.draws,
        "seed": options.seed,
        "device": environment.device_kind,
        "versions": environment.versions,
    }


def compare(
    sides: Sides,
    options: AlignOptions,
    environment: Environment,
    *,
    resume: Resume | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] = print,
) -> AlignResult:
    """Hold every measure of two sides beside its null and the seed floor.

    Args:
        sides: from ``open_sides``.
        options: draws and seed.
        environment: what computes.
        resume: keeps the parts that are finished; by default nothing does.
        progress: shows how far it is; by default nothing does.
        say: says how long what is left will take.

    Raises:
        InputError: as ``measures.alignment.align``.
    """
    start = time.perf_counter()
    resume = Resume(None, {}) if resume is None else resume
    found = align(
        sides.first,
        sides.second,
        kind=sides.kind,
        draws=options.draws,
        seed=options.seed,
        floor=sides.floor,
        each=Shown(resume=resume, progress=progress or Progress(shown=False), say=say),
    )
    first, second, *floor = sides.described
    return AlignResult(
        kind=sides.kind,
        measures=found,
        provenance=AlignProvenance(
            first=first,
            second=second,
            floor=tuple(floor),
            texts=sides.texts,
            environment=environment,
            options={**vars(options), "floor": list(options.floor)},
            notes=sides.notes,
            timestamp=datetime.now(UTC).isoformat(timespec="seconds"),
            total_seconds=time.perf_counter() - start + resume.spent,
        ),
    )
