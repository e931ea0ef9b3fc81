"""What was added up, as the result says it: dictionaries, their schemes, every floor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxalign.dictionaries.dead import CAUSES, dead_causes
from jaxalign.engine.activations import place_name
from jaxalign.measures import stats
from jaxalign.measures.estimates import Estimate, adjusted, number
from jaxalign.measures.perplexity import perplexity
from jaxalign.model.size import mean_bits
from jaxalign.numerics.scheme import BF16, F32, Scheme
from jaxalign.studies.features.against import against, alike
from jaxalign.studies.features.calls import (
    BATCHING,
    CHANCE,
    GROUP_NOISE,
    NOISE,
    PRUNING,
    SCHEME,
    Added,
)
from jaxalign.studies.features.closer import Seen
from jaxalign.studies.features.closer_report import closer_report
from jaxalign.studies.features.moments import Moments, Predictions
from jaxalign.studies.features.options import FeaturesOptions
from jaxalign.studies.features.quality import DEAD, explained, measure_quality, rates
from jaxalign.studies.features.result import DictionaryReport, SchemePredictions
from jaxalign.studies.features.rows import CONTROLS, FeatureRow, Floor, Untrained
from jaxalign.studies.features.sources import Source
from jaxalign.studies.features.survival import (
    THRESHOLDS,
    judged,
    kendalls_w,
    lost_over_documents,
    summaries,
    sums_of,
    survival,
    unexplained,
    unlike_over_documents,
)
from jaxalign.study.session import Session


@dataclass(frozen=True, kw_only=True)
class Found:
    """Everything that a report is made of.

    Attributes:
        session: of the study. options: its.
        added: all passes.
        weights: ``[samples, groups]``, how often each group of documents is drawn.
        shares: of the weights removed that cost each scheme's perplexity.
        seen: the closer look at each dictionary.
        labels: features by label, of the only dictionary.
    """

    session: Session
    options: FeaturesOptions
    added: Added
    weights: np.ndarray
    shares: dict[str, float]
    seen: list[Seen]
    labels: dict[str, np.ndarray]


def log_perplexity(found: Predictions, low: bool = True) -> float:
    """Of f32, or of the other precision.

    Args:
        found: sums of groups of documents.
        low: whether the other precision's is asked for.
    """
    loss = found.low_loss if low else found.loss
    return float(np.log(perplexity(loss, np.rint(found.predicted).astype(np.int64))))


def report(found: Found, source: Source, place: int) -> DictionaryReport:
    """One dictionary: what it is worth, and a row for each scheme.

    Args:
        found: of the study.
        source: the dictionary.
        place: its number among the study's.
    """
    session, options, added = found.session, found.options, found.added
    own = {key: features[place] for key, features in added.features.items()}
    high = own[SCHEME, BF16.name]
    sums, total = sums_of(high), _whole(high)
    kept = judged(sums, options.least_firings)
    rows = _corrected([_row(found, scheme, own, kept) for scheme in options.schemes])
    dictionary, facts = source.dictionary, source.trained.facts
    quality = measure_quality(
        session.model.params, session.config, added.work.windows, dictionary, source.place,
        rows=added.work.rows,
    )  # fmt: skip
    explains = _explained(high, low=False)
    if explains < options.valid:
        session.notes.append(
            f"{source.name} explains {explains:.2f} of the variance, less than {options.valid:g}: "
            "its features say little"
        )
    curves = np.array([row.curve for row in rows], float).T

    def beside(phase: str, scheme: Scheme) -> tuple[float | None, ...]:
        return _numbers(summaries(sums_of(own[phase, scheme.name]), kept))

    return DictionaryReport(
        name=source.name,
        place=place_name(source.place),
        model=facts.model,
        sha256=facts.sha256,
        kind=dictionary.kind,
        features=dictionary.features,
        width=dictionary.width,
        explained=number(explains),
        active=number(total["fired"].sum() / total["tokens"]),
        recovered=number(quality.recovered),
        valid=explains >= options.valid,
        judged=int(kept.sum()),
        **rates(high.top.max(axis=0), total["fired"], total["tokens"]),
        dead_causes=_dead_causes(high.top.max(axis=0) < DEAD, source),
        batching=beside(BATCHING, F32),
        bf16=beside(SCHEME, BF16),
        chance=beside(CHANCE, F32),
        rankings=number(kendalls_w(curves)) if len(rows) > 1 else None,
        rows=tuple(rows),
        untrained=tuple(
            _untrained(found, name, len(found.seen) + len(CONTROLS) * place + i)
            for i, name in enumerate(CONTROLS)
        ),
        peak=high.top.max(axis=0),
        rate=total["fired"] / total["tokens"],
        mean=total["a"] / total["tokens"],
        closer=closer_report(session, options, found.seen[place], found.labels, source, own, rows),
    )


def _untrained(found: Found, name: str, place: int) -> Untrained:
    """The same of directions that stand beside a dictionary."""
    own = {key: features[place] for key, features in found.added.features.items()}
    high = own[SCHEME, BF16.name]
    kept = judged(sums_of(high), found.options.least_firings)
    schemes = found.options.schemes if kept.any() else ()
    rows = _corrected([_row(found, scheme, own, kept) for scheme in schemes])
    return Untrained(
        name=name, explained=number(_explained(high, low=False)), judged=int(kept.sum()),
        rows=tuple(rows),
    )  # fmt: skip


def _dead_causes(dead: np.ndarray, source: Source) -> dict[str, int]:
    """How many features are dead of each likely cause."""
    since = source.trained.facts.training.get("silent_since", {})
    found = dead_causes(dead, since if isinstance(since, dict) else {}, source.dictionary)
    return {cause: list(found.values()).count(cause) for cause in CAUSES}


def _whole(moments: Moments) -> dict[str, np.ndarray]:
    return {name: v.sum(axis=0) for name, v in sums_of(moments).items()}


def _numbers(values: np.ndarray) -> tuple[float | None, ...]:
    return tuple(number(v) for v in values)


def _explained(moments: Moments, low: bool = True) -> float:
    names = ("low_x", "low_xx", "low_missed") if low else ("x", "xx", "missed")
    x, xx, missed = (getattr(moments, name).sum(axis=0) for name in names)
    return explained(x, xx, missed, moments.tokens.sum())


def _row(
    found: Found, scheme: Scheme, own: dict[tuple[str, str], Moments], kept: np.ndarray
) -> FeatureRow:
    """What one scheme does to the features of one dictionary."""
    options, moments = found.options, own[SCHEME, scheme.name]
    sums, total = sums_of(moments), _whole(moments)
    each = survival(total)
    rho = np.where(kept, 1 - each.lost, np.nan)
    floors = {kind: _floor(found, scheme, own, kept, kind)
              for kind in (NOISE, GROUP_NOISE, PRUNING)}  # fmt: skip
    pruning = floors[PRUNING]
    if pruning is not None:
        ppl = np.exp(log_perplexity(found.added.predictions[PRUNING, scheme.name]))
        read = found.added.predictions[PRUNING, scheme.name]
        floors[PRUNING] = replace(
            pruning, perplexity=number(ppl), share=found.shares[scheme.name],
            kl=number(read.kl.sum() / read.read.sum()),
        )  # fmt: skip
    survives, destroyed = (rho[kept] >= end for end in (options.survives, options.destroyed))
    return FeatureRow(
        scheme=scheme.name,
        bits=mean_bits(found.session.config, scheme),
        lost=lost_over_documents(sums, kept, found.weights),
        median=number(np.nanmedian(1 - rho)),
        worst=number(summaries(sums, kept)[1]),
        unlike=unlike_over_documents(sums, kept, found.weights),
        survives=number(np.mean(survives)),
        blurred=number(np.mean(destroyed & ~survives)),
        destroyed=number(np.mean(~destroyed)),
        curve=tuple(number(np.mean(rho[kept] >= t)) for t in THRESHOLDS),
        slope=number(np.nanmedian(each.slope[kept])),
        moved=number(_moved(moments)),
        explained=number(_explained(moments)),
        **rates(moments.low_top.max(axis=0), total["low_fired"], total["tokens"]),
        tensor=floors[NOISE],
        group=floors[GROUP_NOISE],
        pruning=floors[PRUNING],
        rho=rho,
        overlap=np.where(kept, each.overlap, np.nan),
        slopes=np.where(kept, each.slope, np.nan),
    )


def _moved(moments: Moments) -> float:
    """The change of the reconstruction over the variance of what is read in f32."""
    x, tokens = moments.x.sum(axis=0), moments.tokens.sum()
    return float(moments.moved.sum() / (moments.xx.sum() - (x**2).sum() / tokens))


def _floor(
    found: Found,
    scheme: Scheme,
    own: dict[tuple[str, str], Moments],
    kept: np.ndarray,
    kind: str,
) -> Floor | None:
    """A scheme over all draws of one kind of floor; None where there are none."""
    draws = [moments for (phase, name), moments in own.items()
             if name == scheme.name and phase.rstrip(" 0123456789") == kind]  # fmt: skip
    parts = [sums_of(moments) for moments in draws]
    if not parts:
        return None
    rng = stats.generator(found.options.seed, "features", scheme.name, kind)
    mine, *others = (
        unexplained(sums)[:, kept] for sums in (sums_of(own[SCHEME, scheme.name]), *parts)
    )
    compared = against(mine, others, found.weights, rng)
    values = np.array([summaries(sums, kept) for sums in parts])
    own_lost = summaries(sums_of(own[SCHEME, scheme.name]), kept)[0]
    with np.errstate(divide="ignore"):
        one_more = float(stats.beyond_draws(np.log(own_lost), np.log(values[:, 0])))
    lost, worst, unlike = _numbers(values.mean(axis=0))
    both = alike(mine.sum(axis=0), np.mean(others, axis=0).sum(axis=0), found.options.survives, rng)
    rhos = np.array([1 - survival(_whole(moments)).lost[kept] for moments in draws])
    return Floor(
        lost=lost, worst=worst, unlike=unlike, ratio=compared.ratio, worst_ratio=compared.worst,
        curve=tuple(number((rhos >= t).mean()) for t in THRESHOLDS),
        order=both.order, order_draws=_order_of_draws(others), shared=number(both.shared),
        draws=_numbers(values[:, 0]), one_more=number(one_more),
    )  # fmt: skip


def _order_of_draws(draws: list[np.ndarray]) -> float | None:
    """How far one draw of a floor and the others together damage the same features."""
    each = np.array([draw.sum(axis=0) for draw in draws])
    if len(each) < 2:
        return None
    others = (each.sum(axis=0) - each) / (len(each) - 1)
    found = stats.pearson(stats.ranks(each), stats.ranks(others))
    return number(np.nanmean(found)) if np.isfinite(found).any() else None


def _corrected(rows: list[FeatureRow]) -> list[FeatureRow]:
    """The rows with the p-values of each kind of floor corrected for the number of schemes."""
    for kind in ("tensor", "group", "pruning"):
        there = [i for i, row in enumerate(rows) if getattr(row, kind) is not None]
        family = adjusted([getattr(rows[i], kind).ratio for i in there])
        raw = [getattr(rows[i], kind).one_more for i in there]
        one_more = stats.corrected(np.array([np.nan if p is None else p for p in raw]))
        for i, ratio, p in zip(there, family, one_more, strict=True):
            floor = replace(getattr(rows[i], kind), ratio=ratio, one_more=number(p))
            rows[i] = replace(rows[i], **{kind: floor})
    return rows


def predictions(found: Found) -> Iterator[SchemePredictions]:
    """What each precision does to the model's predictions, f32 first.

    Args:
        found: of the study.
    """
    options, added, weights = found.options, found.added, found.weights

    def over(values: np.ndarray, counts: np.ndarray, function: Any = lambda v: v) -> Estimate:
        low, high = stats.interval(function((weights @ values) / (weights @ counts)))
        return Estimate(number(function(values.sum() / counts.sum())), number(low), number(high))

    clean = added.predictions[SCHEME, BF16.name]
    nothing = np.zeros_like(clean.kl)
    yield SchemePredictions(
        scheme=F32.name,
        perplexity=over(clean.loss, clean.predicted, np.exp),
        kl=over(nothing, clean.read),
        same=over(clean.read, clean.read),
    )
    for scheme in options.schemes:
        own = added.predictions[SCHEME, scheme.name]
        yield SchemePredictions(
            scheme=scheme.name,
            perplexity=over(own.low_loss, own.predicted, np.exp),
            kl=over(own.kl, own.read),
            same=over(own.same, own.read),
        )
