"""A closer look at a dictionary, as the result says it: effects, deficits, predictors, groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from jaxalign.measures import stats
from jaxalign.measures.estimates import adjusted
from jaxalign.numerics.scheme import BF16, F32
from jaxalign.shapes import Int
from jaxalign.studies.features.calls import NOISE, SCHEME
from jaxalign.studies.features.closer import Seen
from jaxalign.studies.features.closer_sums import cards, deficit_rows, effect_rows
from jaxalign.studies.features.effects import KINDS
from jaxalign.studies.features.findings import Closer, DeficitRow, GroupRow, PredictorRow, Single
from jaxalign.studies.features.labelled import Group, groups_of
from jaxalign.studies.features.moments import Moments
from jaxalign.studies.features.options import FeaturesOptions
from jaxalign.studies.features.predictors import predict, statistics
from jaxalign.studies.features.rows import FeatureRow
from jaxalign.studies.features.sources import Source
from jaxalign.studies.features.survival import sums_of, survival
from jaxalign.study.session import Session

EXTREME = 0.05  # share of the features, of which fewer that survive, or do not, are no question


def closer_report(
    session: Session,
    options: FeaturesOptions,
    seen: Seen,
    labels: Mapping[str, Int[np.ndarray, " group"]],
    source: Source,
    own: dict[tuple[str, str], Moments],
    rows: Sequence[FeatureRow],
) -> Closer:
    """What the closer look at a dictionary found.

    Args:
        session: of the study. options: its.
        seen: what its calls returned.
        labels: features by label.
        source: the dictionary.
        own: its moments by phase and scheme.
        rows: of its schemes.
    """
    known = statistics(
        session.model.params,
        session.config,
        source.dictionary,
        source.place,
        own[SCHEME, BF16.name],
    )
    rho, slopes = ({row.scheme: getattr(row, name) for row in rows} for name in ("rho", "slopes"))
    clean = F32.name in seen.kl
    tokens, predicted = seen.counts[F32.name] if clean else (0.0, 0.0)
    none = np.zeros((len(KINDS), 0))
    return Closer(
        features=seen.look.features,
        tokens=round(tokens),
        kl=seen.kl[F32.name] / tokens if clean else none,
        loss=seen.loss[F32.name] / predicted if clean else none,
        effects=tuple(effect_rows(seen, options.seed)),
        deficits=tuple(_corrected_deficits([*deficit_rows(seen, options.seed)])),
        cards=tuple(cards(seen, session.model.tokenizer, rho, slopes)) if seen.cards else (),
        predictors=tuple(_predictors(options, own, rows, known)),
        groups=tuple(_groups(options, labels, rows, known["rate"])),
    )


def _corrected_deficits(rows: list[DeficitRow]) -> list[DeficitRow]:
    for name in ("beyond_others", "beyond_random"):
        family = adjusted([getattr(row, name) for row in rows])
        rows = [replace(row, **{name: one}) for row, one in zip(rows, family, strict=True)]
    return rows


def _predictors(
    options: FeaturesOptions,
    own: dict[tuple[str, str], Moments],
    rows: Sequence[FeatureRow],
    known: dict[str, np.ndarray],
) -> Iterator[PredictorRow]:
    """Of each scheme, and of noise as far away beside it."""
    for row in rows:
        kept = np.isfinite(row.rho)
        statistics_ = {name: value[kept] for name, value in known.items()}
        above = float(options.survives)
        if not EXTREME <= (row.rho[kept] >= above).mean() <= 1 - EXTREME:
            above = float(np.median(row.rho[kept]))
        survives = row.rho[kept] >= above
        rng = stats.generator(options.seed, "predictors", row.scheme)
        told = predict(statistics_, survives, rng)
        if told is None:
            continue
        noise, draw = None, own.get((f"{NOISE} 0", row.scheme))
        if draw is not None:
            each = 1 - survival({n: v.sum(axis=0) for n, v in sums_of(draw).items()}).lost[kept]
            # As many survive noise as survive the scheme, so that both are one question.
            end = np.quantile(each, 1 - survives.mean())
            beside = predict(statistics_, each >= end, rng)
            noise = None if beside is None else beside.auc
        yield PredictorRow(
            scheme=row.scheme, above=above, share=float(survives.mean()), auc=told.auc,
            exchanged=told.exchanged, noise=noise,
            single=tuple(Single(name=name, auc=auc) for name, auc in told.single.items()),
        )  # fmt: skip


def _groups(
    options: FeaturesOptions,
    labels: Mapping[str, np.ndarray],
    rows: Sequence[FeatureRow],
    rate: np.ndarray,
) -> Iterator[GroupRow]:
    """Of each label in each scheme, corrected for how many there are."""
    every: list[tuple[str, str, Group]] = []
    for row in rows if labels else ():
        rng = stats.generator(options.seed, "labels", row.scheme)
        lost = 1 - row.rho * np.abs(row.rho)
        every += [(label, row.scheme, group)
                  for label, group in groups_of(labels, lost, rate, rng).items()]  # fmt: skip
    family = adjusted([group.ratio for _, _, group in every])
    for (label, scheme, group), ratio in zip(every, family, strict=True):
        yield GroupRow(label=label, scheme=scheme, count=group.count, lost=group.lost, ratio=ratio)
