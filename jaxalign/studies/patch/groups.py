"""Which positions of different pairs correspond: roles of any pair, words of a template's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from jaxalign.errors import InputError
from jaxalign.prompts import Pair
from jaxalign.shapes import Bool, Int
from jaxalign.studies.patch.result import ROLES

BEFORE = ROLES.index("before")
NOWHERE = -1  # of padding
MOST_WORDS = 40  # columns of a map; a longer template has roles alone


@dataclass(frozen=True, kw_only=True)
class Template:
    """A task whose pairs have equally many tokens and change at the same positions.

    Attributes:
        task: its name.
        pairs: their places in the study's list.
        words: a name for each position.
    """

    task: str
    pairs: tuple[int, ...]
    words: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Groups of positions that correspond across pairs; one group is exchanged at a time.

    Group ``g`` below ``len(ROLES)`` is a role, and group ``len(ROLES) + s`` is position ``s`` of a
    pair of a template. A position is of one group of either kind.

    Attributes:
        of: for each pair its positions' groups, ``[2, S]``: roles, then words or ``NOWHERE``.
        templates: whose positions are told by their words.
    """

    of: tuple[Int[np.ndarray, "2 S"], ...]
    templates: tuple[Template, ...]

    @property
    def count(self) -> int:
        """How many there are."""
        return len(ROLES) + max((len(each.words) for each in self.templates), default=0)

    def has(self) -> Bool[np.ndarray, "P groups"]:
        """Which pairs have a position of which groups."""
        return np.array([np.isin(np.arange(self.count), own) for own in self.of])


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


def group(pairs: Sequence[Pair], tokenizer: Tokenizer) -> Groups:
    """The groups of the positions of pairs.

    Args:
        pairs: of the study.
        tokenizer: of the model.
    """
    own = [roles(pair) for pair in pairs]
    templates = []
    for task in dict.fromkeys(pair.task for pair in pairs):
        places = tuple(i for i, pair in enumerate(pairs) if pair.task == task)
        like = own[places[0]]
        alike = all(pairs[i].aligned and np.array_equal(own[i], like) for i in places)
        if alike and 1 < len(like) <= MOST_WORDS:
            words = _words([pairs[i] for i in places], tokenizer)
            templates.append(Template(task=task, pairs=places, words=words))
    told = {i for template in templates for i in template.pairs}
    words_of = (
        len(ROLES) + np.arange(len(role)) if i in told else np.full(len(role), NOWHERE)
        for i, role in enumerate(own)
    )
    both = tuple(np.stack(each) for each in zip(own, words_of, strict=True))
    return Groups(of=both, templates=tuple(templates))


def _words(pairs: Sequence[Pair], tokenizer: Tokenizer) -> tuple[str, ...]:
    """A name for each position: its word, in brackets where pairs have other words there, and with
    a star where the corrupted prompts do."""
    names = []
    both = np.array([(pair.tokens, pair.corrupted) for pair in pairs])
    changed = (both[:, 0] != both[:, 1]).any(axis=0)
    for ids, star in zip(both[:, 0].T.tolist(), changed.tolist(), strict=True):
        word = tokenizer.decode(ids[:1], skip_special_tokens=False).strip() or "␣"
        names.append((word if len({*ids}) == 1 else f"[{word}]") + "*" * star)
    return tuple(f"{place} {word}" for place, word in enumerate(names))


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
