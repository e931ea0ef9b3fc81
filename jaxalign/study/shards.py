"""A study shared by processes that know nothing of each other but a folder on a shared disk."""

from __future__ import annotations

import re
from dataclasses import dataclass

from jaxalign.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One worker of several: the calls whose number is ``index`` modulo ``count`` are its share.

    Attributes:
        index: from 0.
        count: of workers.
    """

    index: int
    count: int

    @staticmethod
    def parse(text: str) -> Shard:
        """The shard that ``I/N`` names.

        ``I`` runs from 1 to ``N``, as in a job array, or from 0 to ``N − 1``, as launchers count:
        0 and ``N`` are the same share.

        Args:
            text: "2/8".

        Raises:
            InputError: ``text`` is no such pair of numbers.
        """
        match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        index, count = map(int, match.groups()) if match else (0, 0)
        if not 0 <= index <= count or not count:
            raise InputError(
                f"--shard {text[:40]}: expected I/N, the I-th of N workers, I at most N and N at "
                "most 999999",
                "give for example --shard 1/4, --shard 2/4 and so on, each to one worker",
            )
        return Shard(index=index % count, count=count)

    def has(self, number: int) -> bool:
        """Whether the call of that number belongs to this worker's share."""
        return number % self.count == self.index

    def __str__(self) -> str:
        return f"{self.index or self.count}/{self.count}"


class ShardFinished(Exception):
    """Every call of a worker's share is in the resume folder; there is nothing to assemble yet."""
