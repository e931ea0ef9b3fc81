"""The closer look of the study: which features, in which models, on which windows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxalign.errors import InputError
from jaxalign.measures import stats
from jaxalign.numerics.scheme import BF16
from jaxalign.studies.features.calls import SCHEME, Added, Work
from jaxalign.studies.features.chosen import spread_over_survival
from jaxalign.studies.features.closer import (
    BLOCK,
    DRAWS,
    Look,
    Model,
    Seen,
    card_calls,
    deficit_calls,
    effect_calls,
    look_at,
    models_of,
    some_windows,
)
from jaxalign.studies.features.effects import KINDS
from jaxalign.studies.features.findings import NOISE_OF
from jaxalign.studies.features.options import FeaturesOptions
from jaxalign.studies.features.sources import Source
from jaxalign.studies.features.survival import judged, sums_of, unexplained
from jaxalign.study.calls import Call
from jaxalign.study.session import Session

TOKENS = 1000


def look_closer(
    session: Session,
    options: FeaturesOptions,
    work: Work,
    sources: Sequence[Source],
    added: Added,
) -> list[Seen]:
    """Look at some features of each dictionary in every precision.

    Args:
        session: of the study. options: its.
        work: all windows.
        sources: the dictionaries.
        added: the passes over all of them.

    Raises:
        InputError: no feature of a dictionary is active often enough, or too little memory.
    """
    looks = [_look(session, options, source, i, added) for i, source in enumerate(sources)]
    rows = 1 + max(len(KINDS) * min(BLOCK, max(1, options.effects)), 2 * (2 + 2 * DRAWS))
    some = work
    if options.effects:
        some = some_windows(session, work, options.effect_tokens or TOKENS, rows)
    seen = [Seen(look=look, some=some, work=work) for look in looks]
    every = [
        call
        for model in models_of(session, options.schemes, options.noise_draws > 0)
        for look in looks
        for call in _calls(session, options, some, work, look, model)
    ]
    for call, values in session.run("closer look", every, needed=False):
        seen[int(call.key[2])].add(call, values)
    return seen


def _look(
    session: Session, options: FeaturesOptions, source: Source, place: int, added: Added
) -> Look:
    """Which features of a dictionary are looked at."""
    own = {scheme.name: sums_of(added.features[SCHEME, scheme.name][place])
           for scheme in options.schemes}  # fmt: skip
    clean = sums_of(added.features[SCHEME, BF16.name][place])
    kept = judged(clean, options.least_firings)
    if session.estimate:  # nothing was computed, and as many would be looked at
        kept = np.ones_like(kept)
    if not kept.any():
        raise InputError(
            f"no feature of {source.name} is active on {options.least_firings} tokens of these "
            "texts",
            "give more or other --texts, more --tokens, or a lower --least-firings",
        )
    lost = {
        name: np.where(kept, np.nan_to_num(unexplained(sums).sum(axis=0), nan=0.0), np.nan)
        for name, sums in own.items()
    }
    every = np.stack([*lost.values()])
    with np.errstate(divide="ignore", invalid="ignore"):
        doses = clean["a"].sum(axis=0) / clean["fired"].sum(axis=0)
    rng = stats.generator(options.seed, "features", "closer", source.trained.facts.sha256[:8])
    return look_at(
        source, place,
        spread_over_survival(every, kept, options.effects),
        spread_over_survival(every, kept, options.cards),
        doses, lost, rng,
    )  # fmt: skip


def _calls(
    session: Session, options: FeaturesOptions, some: Work, work: Work, look: Look, model: Model
) -> Iterator[Call[Any]]:
    """Everything that is asked of one model."""
    if options.effects:
        yield from effect_calls(session, some, look, model)
    if options.effects and model.name in look.bases:
        yield from deficit_calls(session, some, look, model)
    if options.cards and not model.name.startswith(NOISE_OF):
        yield from card_calls(session, work, look, model)
