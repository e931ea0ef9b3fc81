"""Which positions of different pairs correspond: roles of any pair, words of a template's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from jaxalign.errors import InputError
from jaxalign.measures.estimates import ALL_TASKS
from jaxalign.prompts import Pair
from jaxalign.shapes import Int

ROLES = ("before", "first change", "other changes", "between", "last")
BEFORE = ROLES.index("before")
NOWHERE = -1  # of padding
MOST_WORDS = 40  # columns of a map; a longer template has roles alone


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """Positions of some pairs in groups that correspond; one group is exchanged at a time.

    Attributes:
        task: of the pairs, or "all".
        names: of the groups.
        pairs: places in the study's list.
        groups: of each of these pairs, the group of each position.
    """

    task: str
    names: tuple[str, ...]
    pairs: tuple[int, ...]
    groups: tuple[Int[np.ndarray, " S"], ...]

    def has(self) -> np.ndarray:
        """Which pairs have which groups at all, bool ``[pairs, groups]``."""
        return np.array([np.isin(np.arange(len(self.names)), own) for own in self.groups])


def roles(pair: Pair) -> Int[np.ndarray, " S"]:
    """The role of each position of the clean prompt, a place in ``ROLES``.

    Positions *before* the first change are equal in both prompts, and so is all that the model
    computes there. The *last* position is where the answer is read; where the prompts differ there,
    it is a change.

    Args:
        pair: of equal length; of others every position but the last is a change.
    """
    size = len(pair.tokens)
    found = np.full(size, ROLES.index("between"))
    if pair.aligned:
        changes = np.flatnonzero(np.array(pair.tokens) != np.array(pair.corrupted))
    else:
        changes = np.arange(size - 1)
    found[-1] = ROLES.index("last")
    found[changes] = ROLES.index("other changes")
    if changes.size:
        found[changes[0]] = ROLES.index("first change")
        found[: changes[0]] = BEFORE
    return found


def by_role(pairs: Sequence[Pair]) -> Grouping:
    """All pairs, positions by role.

    Args:
        pairs: of the study.
    """
    own = tuple(map(roles, pairs))
    return Grouping(task=ALL_TASKS, names=ROLES, pairs=tuple(range(len(pairs))), groups=own)


def by_word(pairs: Sequence[Pair], tokenizer: Tokenizer) -> list[Grouping]:
    """The tasks whose pairs have one template, each position by itself, named by a pair's words.

    A template: equally many tokens, and changes at the same positions.

    Args:
        pairs: of the study.
        tokenizer: of the model.
    """
    found = []
    for task in dict.fromkeys(pair.task for pair in pairs):
        places = tuple(i for i, pair in enumerate(pairs) if pair.task == task)
        own = [roles(pairs[i]) for i in places]
        size = len(own[0])
        one = all(
            pairs[i].aligned and np.array_equal(r, own[0]) for i, r in zip(places, own, strict=True)
        )
        if one and 1 < size <= MOST_WORDS:
            found.append(
                Grouping(
                    task=task,
                    names=_words([pairs[i] for i in places], tokenizer),
                    pairs=places,
                    groups=tuple(np.arange(size) for _ in places),
                )
            )
    return found


def _words(pairs: Sequence[Pair], tokenizer: Tokenizer) -> tuple[str, ...]:
    """A name for each position: its word, in brackets where pairs have other words there."""
    every = np.array([pair.tokens for pair in pairs])
    names = []
    for place, ids in enumerate(every.T):
        word = tokenizer.decode([int(ids[0])], skip_special_tokens=False).strip() or "␣"
        names.append(f"{place} {word if (ids == ids[0]).all() else f'[{word}]'}")
    return tuple(names)


def require_aligned(pairs: Sequence[Pair], sweep: str) -> None:
    """Refuse pairs of unequal length where positions are exchanged one by one.

    Args:
        pairs: of the study.
        sweep: what exchanges them.

    Raises:
        InputError: names the first such pair and its lengths.
    """
    if unequal := [pair for pair in pairs if not pair.aligned]:
        [first, *_] = unequal
        clean, corrupted = len(first.tokens), len(first.corrupted)
        raise InputError(
            f"{len(unequal)} of {len(pairs)} pairs have prompts of unequal length, and {sweep} "
            f"exchanges positions one by one: {first.pair.clean[:60]!r} has {clean} tokens, "
            f"{first.pair.corrupted[:60]!r} has {corrupted}",
            "make them equally long, or give --sweep knockout, which needs no such pairs",
        )


def require_sources(pairs: Sequence[Pair]) -> None:
    """Refuse prompts whose last position would have every source knocked out.

    Args:
        pairs: of the study.

    Raises:
        InputError: names the first such prompt.
    """
    for pair in pairs:
        if len(pair.tokens) < 2:
            raise InputError(
                f"{pair.pair.clean[:60]!r} is one token, so that a knock-out takes every source "
                "that its last position has",
                "make it longer, or leave knockout out of --sweep",
            )
