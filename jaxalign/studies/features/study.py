"""Do a model's features survive quantization? A frozen dictionary, the same tokens, every floor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from jaxalign.engine.activations import place_name
from jaxalign.errors import InputError
from jaxalign.measures import stats
from jaxalign.measures.estimates import Estimate, number
from jaxalign.measures.perplexity import perplexity
from jaxalign.model.size import mean_bits
from jaxalign.numerics.scheme import BF16, F32, Scheme
from jaxalign.prompts import Windows, bos_token, cut_windows, first_tokens
from jaxalign.studies.features.calls import Added, Work, calls, work_of
from jaxalign.studies.features.floors import SHARES, late_group_noise, late_pruned, share_of
from jaxalign.studies.features.moments import Compared, Moments, Predictions, losses
from jaxalign.studies.features.options import FeaturesOptions
from jaxalign.studies.features.quality import DEAD, FREQUENT, RARE, measure_quality, padded
from jaxalign.studies.features.result import (
    DictionaryReport,
    FeatureRow,
    FeaturesResult,
    Floor,
    SchemePredictions,
    Texts,
)
from jaxalign.studies.features.sources import Source, check_basis, open_sources
from jaxalign.studies.features.survival import (
    SUMMARIES,
    THRESHOLDS,
    Drawn,
    change_by_group,
    drawn,
    estimate_of,
    judged,
    kendalls_w,
    ratio,
    summaries,
    sums_of,
    survival,
)
from jaxalign.study.calls import Call
from jaxalign.study.session import Session
from jaxalign.study.weight_noise import late_noise, moves_matrices

CHANCE, BATCHING = "chance", "batching"


def run(session: Session, options: FeaturesOptions) -> FeaturesResult:
    """Read dictionaries in every precision and hold what changes against its floors.

    Args:
        session: model, texts, devices.
        options: which dictionaries and schemes.

    Raises:
        InputError: a dictionary or a scheme that does not fit the model, texts that are too short,
            or too little memory.
    """
    sources = open_sources(session.model, options.sae, options.sae_model_mismatch)
    check_basis(sources, options.schemes)
    for scheme in options.schemes:
        mean_bits(session.config, scheme)  # refuses groups that do not divide, before any work
    windows = _windows(session, options, sources)
    work = work_of(session, sources, windows, options.positions == "last")
    session.notes += [note for source in sources for note in source.notes]
    session.notes += windows.notes
    added = Added(work=work)
    every = [
        call for own in _passes(session, options) for call in _calls(session, work, sources, own)
    ]
    for call, values in session.run("features", every, needed=options.pruning):
        added.add(call, values)
    shares = _pruned(session, options, work, sources, added) if options.pruning else {}
    session.end_of_calls()
    rng = stats.generator(options.seed, "features", "documents")
    weights = stats.bootstrap_weights(work.groups, rng)
    if work.groups < 2:
        session.notes.append("the texts are one document, so no interval can be given")
    reports = [
        _report(session, options, source, number_, added, weights, shares)
        for number_, source in enumerate(sources)
    ]
    predictions = _predictions(options, added, weights)
    return FeaturesResult(
        dictionaries=tuple(reports),
        predictions=tuple(predictions),
        thresholds=THRESHOLDS,
        survives=options.survives,
        destroyed=options.destroyed,
        least_firings=options.least_firings,
        texts=Texts(
            windows=len(windows.tokens), documents=windows.documents,
            tokens=windows.counted_tokens, window=windows.window, stride=windows.stride,
            bos=windows.bos is not None, sha256=windows.texts_sha256, groups=work.groups,
        ),
        provenance=session.provenance(),
    )  # fmt: skip


def _windows(session: Session, options: FeaturesOptions, sources: Sequence[Source]) -> Windows:
    """The study's texts in windows, with a beginning-of-sequence token where dictionaries want it.

    Raises:
        InputError: dictionaries that disagree about it, or a model that has none.
    """
    wanted = {source.trained.facts.prepend_bos for source in sources} - {None}
    if len(wanted) > 1:
        raise InputError(
            "some dictionaries were trained on texts that begin with a beginning-of-sequence "
            "token, others were not",
            "study them apart",
        )
    bos = None
    if wanted == {True}:
        bos = bos_token(session.model.tokenizer)
        if bos is None:
            raise InputError(
                "the dictionary was trained on texts that begin with a beginning-of-sequence "
                "token, and the model's tokenizer puts none there",
                "give a dictionary of this model",
            )
    windows = cut_windows(
        [prompt.text.prompt for prompt in session.prompts], session.model.tokenizer,
        window=options.window, stride=options.stride, bos=bos, config=session.config,
    )  # fmt: skip
    return first_tokens(windows, options.tokens)


# Phase, scheme, parameters, and how they run.
Pass = tuple[str, Scheme, Any, dict[str, Any]]


def _passes(session: Session, options: FeaturesOptions) -> Iterator[Pass]:
    """Everything that is read: each scheme and its floors, two batchings of f32, and chance."""
    high = session.model.params
    yield BATCHING, F32, high, {"alone": True}
    yield CHANCE, F32, high, {"shift": 1}
    schemes = {scheme.name: scheme for scheme in (BF16, *options.schemes)}
    for scheme in schemes.values():
        yield "scheme", scheme, session.late_low(scheme), {}
        if scheme.name not in {s.name for s in options.schemes} or not moves_matrices(high, scheme):
            continue
        for draw in range(options.noise_draws):
            yield f"noise {draw}", scheme, late_noise(session, scheme, draw), {}
        for draw in range(options.noise_draws if options.group_noise else 0):
            yield f"group noise {draw}", scheme, late_group_noise(session, scheme, draw), {}


def _calls(
    session: Session, work: Work, sources: Sequence[Source], own: Pass
) -> Iterator[Call[Compared]]:
    phase, scheme, low, how = own
    if phase == CHANCE:
        how = {"shift": max(1, min(work.rows, len(work.group)) // 2)}
    yield from calls(session, work, sources, phase, scheme, low, **how)


def _pruned(
    session: Session,
    options: FeaturesOptions,
    work: Work,
    sources: Sequence[Source],
    added: Added,
) -> dict[str, float]:
    """Pruned weights that cost the perplexity of each scheme; the share that is removed."""
    clean = _perplexity(added.found["scheme", BF16.name][1], low=False)
    found = np.array([_pruned_perplexity(session, work, share) for share in SHARES])
    shares: dict[str, float] = {}
    every: list[Call[Compared]] = []
    for scheme in options.schemes:
        own = _perplexity(added.found["scheme", scheme.name][1])
        share = share_of(own, clean, np.array(SHARES), found)
        if share is None:
            session.observed([
                f"{scheme.name}: no share of removed weights costs its perplexity ({own:.4g}, f32 "
                f"{clean:.4g}), so it stands beside no pruning"
            ])  # fmt: skip
            continue
        shares[scheme.name] = share
        every += calls(
            session, work, sources, "pruning", replace(F32, name=scheme.name),
            late_pruned(session, share),
        )  # fmt: skip
    for call, values in session.run("pruned weights", every):
        added.add(call, values)
    return shares


def _pruned_perplexity(session: Session, work: Work, share: float) -> float:
    """Perplexity without the smallest weights."""
    params, windows = late_pruned(session, share).make(), work.windows
    total = np.zeros(2)
    for start in work.starts:
        part = slice(start, start + work.rows)
        total += [
            float(value)
            for value in losses(
                params, padded(windows.tokens[part], work.rows),
                padded(windows.lengths[part], work.rows, 1),
                padded(windows.counted[part], work.rows), config=session.config,
            )
        ]  # fmt: skip
    return float(np.exp(total[0] / total[1]))


def _perplexity(found: Predictions, low: bool = True) -> float:
    loss = found.low_loss if low else found.loss
    return float(perplexity(loss, np.rint(found.predicted).astype(np.int64)))


def _report(
    session: Session,
    options: FeaturesOptions,
    source: Source,
    place: int,
    added: Added,
    weights: np.ndarray,
    shares: dict[str, float],
) -> DictionaryReport:
    """One dictionary: what it is worth, and a row for each scheme."""
    own = {key: features[place] for key, (features, _) in added.found.items()}
    high = own["scheme", BF16.name]
    sums = sums_of(high)
    kept = judged(sums, options.least_firings)
    dictionary, facts = source.dictionary, source.trained.facts
    if not kept.any():
        raise InputError(
            f"no feature of {source.name} is active on {options.least_firings} tokens of these "
            "texts",
            "give more or other --texts, more --tokens, or a lower --least-firings",
        )
    rows = [_row(session, options, scheme, own, kept, weights, shares, added)
            for scheme in options.schemes]  # fmt: skip
    rows = _corrected(rows)
    quality = measure_quality(
        session.model.params, session.config, added.work.windows, dictionary, source.place,
        rows=added.work.rows,
    )  # fmt: skip
    explained = _explained(high, low=False)
    if explained < options.valid:
        session.notes.append(
            f"{source.name} explains {explained:.2f} of the variance, less than {options.valid:g}: "
            "its features say little"
        )
    total = {name: v.sum(axis=0) for name, v in sums.items()}
    curves = np.array([row.curve for row in rows], float).T if rows else np.zeros((0, 0))
    return DictionaryReport(
        name=source.name,
        place=place_name(source.place),
        model=facts.model,
        sha256=facts.sha256,
        kind=dictionary.kind,
        features=dictionary.features,
        width=dictionary.width,
        explained=number(explained),
        active=number(total["fired"].sum() / total["tokens"]),
        recovered=number(quality.recovered),
        valid=explained >= options.valid,
        judged=int(kept.sum()),
        **_rates(high.top, total["fired"], total["tokens"]),
        batching=_numbers(summaries(_whole(own[BATCHING, F32.name]), kept)),
        chance=_numbers(summaries(_whole(own[CHANCE, F32.name]), kept)),
        rankings=number(kendalls_w(curves)) if len(rows) > 1 else None,
        rows=tuple(rows),
        peak=high.top.max(axis=0),
        rate=total["fired"] / total["tokens"],
        mean=total["a"] / total["tokens"],
    )


def _whole(moments: Moments) -> dict[str, np.ndarray]:
    return {name: v.sum(axis=0) for name, v in sums_of(moments).items()}


def _numbers(values: np.ndarray) -> tuple[float | None, ...]:
    return tuple(number(v) for v in values)


def _rates(top: np.ndarray, fired: np.ndarray, tokens: Any) -> dict[str, float]:
    """Shares of the features by how often they are active."""
    dead, rate = top.max(axis=0) < DEAD, fired / tokens
    return {
        "dead": float(dead.mean()),
        "rare": float((~dead & (rate < RARE)).mean()),
        "common": float(((rate >= RARE) & (rate < FREQUENT)).mean()),
        "frequent": float((rate >= FREQUENT).mean()),
    }


def _explained(moments: Moments, low: bool = True) -> float:
    """Share of the variance that the dictionary stands for."""
    names = ("low_x", "low_xx", "low_missed") if low else ("x", "xx", "missed")
    x, xx, missed = (getattr(moments, name).sum(axis=0) for name in names)
    return float(1 - missed / (xx - (x**2).sum() / moments.tokens.sum()))


def _row(
    session: Session,
    options: FeaturesOptions,
    scheme: Scheme,
    own: dict[tuple[str, str], Moments],
    kept: np.ndarray,
    weights: np.ndarray,
    shares: dict[str, float],
    added: Added,
) -> FeatureRow:
    """What one scheme does to the features of one dictionary."""
    moments = own["scheme", scheme.name]
    sums, total = sums_of(moments), _whole(moments)
    found, each = drawn(sums, kept, weights), survival(total)
    rho = np.where(kept, 1 - each.lost, np.nan)
    judged_rho = rho[kept]
    change = change_by_group(sums, kept)

    def floor(*phases: str) -> Floor | None:
        names = [phase for phase, name in own if name == scheme.name and phase.startswith(phases)]
        if not names:
            return None
        parts = [sums_of(own[name, scheme.name]) for name in names]
        floors = [drawn(part, kept, weights) for part in parts]
        mean = np.mean([change_by_group(part, kept) for part in parts], axis=0)
        return _floor(options, scheme, found, floors, change - mean, names[0])

    pruning = floor("pruning")
    if pruning is not None:
        ppl = _perplexity(added.found["pruning", scheme.name][1])
        pruning = replace(pruning, perplexity=number(ppl), share=shares[scheme.name])
    return FeatureRow(
        scheme=scheme.name,
        bits=mean_bits(session.config, scheme),
        lost=estimate_of(found, "median"),
        worst=estimate_of(found, "worst"),
        unlike=estimate_of(found, "unlike"),
        survives=_share(judged_rho >= options.survives),
        blurred=_share((judged_rho >= options.destroyed) & (judged_rho < options.survives)),
        destroyed=_share(judged_rho < options.destroyed),
        curve=tuple(_share(judged_rho >= t) for t in THRESHOLDS),
        slope=number(np.nanmedian(each.slope[kept])),
        moved=number(_moved(moments)),
        explained=number(_explained(moments)),
        **_rates(moments.low_top, total["low_fired"], total["tokens"]),
        tensor=floor("noise "),
        group=floor("group noise "),
        pruning=pruning,
        rho=rho,
        overlap=np.where(kept, each.overlap, np.nan),
        slopes=np.where(kept, each.slope, np.nan),
    )


def _share(found: np.ndarray) -> float | None:
    return number(np.mean(found))


def _moved(moments: Moments) -> float:
    """The change of the reconstruction over the variance of what is read in f32."""
    x, tokens = moments.x.sum(axis=0), moments.tokens.sum()
    return float(moments.moved.sum() / (moments.xx.sum() - (x**2).sum() / tokens))


def _floor(
    options: FeaturesOptions,
    scheme: Scheme,
    found: Drawn,
    floors: Sequence[Drawn],
    difference: np.ndarray,
    phase: str,
) -> Floor:
    """A scheme over a floor: three summaries, and the test of what changes by document."""
    rng = stats.generator(options.seed, "features", scheme.name, phase)
    p = stats.sign_flip_p(difference, rng) if len(difference) > 1 else None
    ratios = {
        which: ratio(found, floors, which, p if which == "median" else None, rng)
        for which in SUMMARIES
    }
    values = np.array([floor.value for floor in floors])
    lost, worst, unlike = _numbers(values.mean(axis=0))
    return Floor(
        lost=lost, worst=worst, unlike=unlike,
        lost_ratio=ratios["median"], worst_ratio=ratios["worst"], unlike_ratio=ratios["unlike"],
        draws=_numbers(values[:, 0]),
    )  # fmt: skip


def _corrected(rows: list[FeatureRow]) -> list[FeatureRow]:
    """The rows with the p-values of each kind of floor corrected for the number of schemes."""
    for kind in ("tensor", "group", "pruning"):
        floors = [getattr(row, kind) for row in rows]
        raw = [f.lost_ratio.p if f and f.lost_ratio.p is not None else np.nan for f in floors]
        corrected = stats.corrected(np.array(raw, float))
        rows = [
            row if floor is None else replace(row, **{kind: replace(
                floor, lost_ratio=replace(floor.lost_ratio, p_adjusted=number(p)))})
            for row, floor, p in zip(rows, floors, corrected, strict=True)
        ]  # fmt: skip
    return rows


def _predictions(
    options: FeaturesOptions, added: Added, weights: np.ndarray
) -> Iterator[SchemePredictions]:
    """What each precision does to the model's predictions, f32 first."""

    def over(values: np.ndarray, counts: np.ndarray, function: Any = lambda v: v) -> Estimate:
        low, high = stats.interval(function((weights @ values) / (weights @ counts)))
        return Estimate(number(function(values.sum() / counts.sum())), number(low), number(high))

    clean = added.found["scheme", BF16.name][1]
    nothing = np.zeros_like(clean.kl)
    yield SchemePredictions(
        scheme=F32.name,
        perplexity=over(clean.loss, clean.predicted, np.exp),
        kl=over(nothing, clean.read),
        same=over(clean.read, clean.read),
    )
    for scheme in options.schemes:
        own = added.found["scheme", scheme.name][1]
        yield SchemePredictions(
            scheme=scheme.name,
            perplexity=over(own.low_loss, own.predicted, np.exp),
            kl=over(own.kl, own.read),
            same=over(own.same, own.read),
        )
