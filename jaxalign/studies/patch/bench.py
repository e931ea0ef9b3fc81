"""What every sweep of a patching study works on: the pairs that count, and maps of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxalign.measures.estimates import ALL_TASKS
from jaxalign.prompts import Pair
from jaxalign.shapes import Float
from jaxalign.studies.patch.calls import Work, calls, gathered
from jaxalign.studies.patch.findings import mapped
from jaxalign.studies.patch.groups import Groups
from jaxalign.studies.patch.options import PatchOptions
from jaxalign.studies.patch.result import ROLES, PatchMap
from jaxalign.study.session import Session

Labels = tuple[tuple[str, ...], tuple[str, ...]]
# Of the exchange and of its control, of each pair and place.
Pairwise = tuple[Float[np.ndarray, "P M"], Float[np.ndarray, "P M"]]


@dataclass(frozen=True)
class Bench:
    """What every sweep of a study works on.

    Attributes:
        session: of the study.
        options: of the study.
        pairs: that count.
        gap: ``[P]``, ``m_clean − m_corrupted`` of each.
        groups: of the pairs' positions.
    """

    session: Session
    options: PatchOptions
    pairs: tuple[Pair, ...]
    gap: Float[np.ndarray, " P"]
    groups: Groups

    def effects(self, work: Work, *, needed: bool = False) -> Float[np.ndarray, "P kinds M"]:
        """Effects of the rows of some work.

        Args:
            work: whose calls are made.
            needed: whether later calls depend on them.
        """
        made = list(calls(self.session, self.pairs, self.groups.of, work))
        rows = {id(call): chosen for call, chosen in made}
        every = [call for call, _ in made]
        found = self.session.run(work.name, every, needed=needed)
        parts = ((call, rows[id(call)], values) for call, values in found)
        moved = gathered(len(self.pairs), work, parts)
        return (1 if work.changed == "corrupted" else -1) * moved / self.gap[:, None, None]

    def mapped(
        self, names: tuple[str, str], labels: Labels, effects: Pairwise, task: str = ALL_TASKS
    ) -> PatchMap:
        """One map.

        Args:
            names: sweep and direction.
            labels: of rows and columns.
            effects: of the exchange and of its control, of the task's pairs.
            task: of the pairs.
        """
        return mapped((*names, task), labels, *effects, self.options.seed)

    def by_task(
        self, names: tuple[str, str], labels: Labels, effects: Pairwise
    ) -> Iterator[PatchMap]:
        """The map of all pairs, and one of each task where there are several.

        Args:
            names, labels, effects: as for ``mapped``.
        """
        yield self.mapped(names, labels, effects)
        own = np.array([pair.task for pair in self.pairs])
        tasks = dict.fromkeys(own.tolist())
        for task in tasks if len(tasks) > 1 else ():
            here = effects[0][own == task], effects[1][own == task]
            yield self.mapped(names, labels, here, task)

    def by_position(
        self, names: tuple[str, str], rows: tuple[str, ...], effects: Pairwise, first: int = 0
    ) -> Iterator[PatchMap]:
        """The map of all pairs by role, and one of each template by its words.

        Args:
            names: sweep and direction.
            rows: names of the map's rows, ``R`` of them.
            effects: of the exchange and of its control, ``[P, R · groups]``.
            first: the role that the groups begin with.
        """
        apart = [each.reshape(len(each), len(rows), -1) for each in effects]
        there = self.groups.has()[:, None, first:]
        whole = [np.where(there[..., : each.shape[2]], each, np.nan) for each in apart]
        after = len(ROLES) - first

        def part(pairs: Any, columns: Any) -> Pairwise:
            one, two = (each[pairs][:, :, columns] for each in whole)
            return one.reshape(len(one), -1), two.reshape(len(two), -1)

        # A role that no pair has is no column.
        seen = [i for i in range(after) if there[..., i].any()]
        labels = rows, tuple(ROLES[first + i] for i in seen)
        yield self.mapped(names, labels, part(slice(None), seen))
        for each in self.groups.templates if apart[0].shape[2] > after else ():
            columns = slice(after, after + len(each.words))
            effects = part(list(each.pairs), columns)
            yield self.mapped(names, (rows, each.words), effects, each.task)
