"""Do a model's features survive quantization? A frozen dictionary, the same tokens, every floor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.checkpoints.files import sha256_of
from jaxalign.checkpoints.hub import BUNDLED_NAME
from jaxalign.errors import InputError
from jaxalign.measures import stats
from jaxalign.model.size import mean_bits
from jaxalign.numerics.scheme import BF16, F32, Scheme
from jaxalign.prompts import Windows, bos_token, cut_windows, first_tokens
from jaxalign.shapes import Int
from jaxalign.studies.features.calls import (
    BATCHING,
    CHANCE,
    GROUP_NOISE,
    NOISE,
    PRUNING,
    SCHEME,
    Added,
    Work,
    calls,
    loss_calls,
    work_of,
)
from jaxalign.studies.features.floors import SHARES, late_group_noise, late_pruned, share_of
from jaxalign.studies.features.labelled import read_labels
from jaxalign.studies.features.look import look_closer
from jaxalign.studies.features.moments import Compared
from jaxalign.studies.features.options import FeaturesOptions
from jaxalign.studies.features.report import (
    Found,
    log_perplexity,
    predictions,
    report,
)
from jaxalign.studies.features.result import FeaturesResult, Texts
from jaxalign.studies.features.rows import CONTROLS
from jaxalign.studies.features.sources import Source, check_basis, open_sources
from jaxalign.studies.features.survival import THRESHOLDS
from jaxalign.studies.features.untrained import controls
from jaxalign.study.calls import Call
from jaxalign.study.session import Session
from jaxalign.study.weight_noise import late_noise, moves_matrices


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
    check_basis((source.place[0] for source in sources), options.schemes)
    for scheme in options.schemes:
        mean_bits(session.config, scheme)  # refuses groups that do not divide, before any work
    labels = _labels(options, sources)
    windows = _windows(session, options, sources)
    # A control takes as much memory as the dictionary that it stands beside.
    held = [*sources] * (1 + len(CONTROLS))
    work = work_of(session, held, windows, options.positions == "last")
    _check_tokens(options, work)
    session.notes += _notes(session, sources, work)
    beside = [*sources, *controls(sources, session, work, options.seed)]
    added = Added(work=work)
    every = [
        call
        for phase, scheme, low, how in _passes(session, options, work)
        for call in calls(session, work, beside, phase, scheme, low, **how)
    ]
    for call, values in session.run("features", every):
        added.add(call, values)
    seen = look_closer(session, options, work, sources, added)
    shares = _pruned(session, options, work, beside, added) if options.pruning else {}
    session.end_of_calls()
    rng = stats.generator(options.seed, "features", "documents")
    found = Found(
        session=session, options=options, added=added, shares=shares, seen=seen, labels=labels,
        weights=stats.bootstrap_weights(work.groups, rng),
    )  # fmt: skip
    numbered = list(enumerate(sources))
    reports = [report(found, source, place)
               for place, source in session.log.track(numbered, "statistics")]  # fmt: skip
    return FeaturesResult(
        dictionaries=tuple(reports),
        predictions=tuple(predictions(found)),
        thresholds=THRESHOLDS,
        labels_sha256=None if options.labels is None else sha256_of([Path(options.labels)]),
        survives=options.survives,
        destroyed=options.destroyed,
        least_firings=options.least_firings,
        texts=_texts(work),
        provenance=session.provenance(windows.documents),
    )


def _labels(
    options: FeaturesOptions, sources: Sequence[Source]
) -> dict[str, Int[np.ndarray, " group"]]:
    """Features by label, of the only dictionary; nothing without a file of labels."""
    if options.labels is None:
        return {}
    [only] = sources
    return read_labels(Path(options.labels), only.dictionary.features, only.place)


def _check_tokens(options: FeaturesOptions, work: Work) -> None:
    """Refuse, before any work, texts on which no feature can be judged."""
    read = int(work.counted.sum())
    if options.least_firings > read:
        raise InputError(
            f"--least-firings {options.least_firings} is more than the {read} tokens that are read",
            "give more --tokens or longer --texts, or a lower --least-firings",
        )


def _notes(session: Session, sources: Sequence[Source], work: Work) -> Iterator[str]:
    """What a reader has to know of dictionaries and texts."""
    windows = work.windows
    for source in sources:
        yield from source.notes
    yield from windows.notes
    for source in sources:
        if source.trained.facts.training.get("texts_sha256") == windows.texts_sha256:
            yield (
                f"{source.name} was trained on these texts, of which every tenth document was "
                "held out"
            )
    if session.inputs.prompts.file == "shipped" and session.model.source.model != BUNDLED_NAME:
        yield "the texts are documents of the bundled model's kinds; --texts gives others"
    if work.groups < 2:
        yield "the texts are one document, so no interval can be given"


def _texts(work: Work) -> Texts:
    windows = work.windows
    return Texts(
        windows=len(windows.tokens), documents=windows.documents, tokens=int(work.counted.sum()),
        window=windows.window, stride=windows.stride, bos=windows.bos is not None,
        sha256=windows.texts_sha256, groups=work.groups,
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


REFINED = 2  # times that shares of pruned weights are looked for between those measured
# Phase, scheme, parameters, and how they run.
Pass = tuple[str, Scheme, Any, dict[str, Any]]


def _passes(session: Session, options: FeaturesOptions, work: Work) -> Iterator[Pass]:
    """Everything that is read: each scheme and its floors, two batchings of f32, and chance."""
    high = session.model.params
    yield BATCHING, F32, high, {"alone": True, "predict": False}
    yield CHANCE, F32, high, {"chance": True, "predict": False}
    if BF16 not in options.schemes:
        yield SCHEME, BF16, session.late_low(BF16), {}
    for scheme in options.schemes:
        yield SCHEME, scheme, session.late_low(scheme), {}
        if not moves_matrices(high, scheme):
            continue
        for draw in range(options.noise_draws):
            yield f"{NOISE} {draw}", scheme, late_noise(session, scheme, draw), {"predict": False}
        for draw in range(options.noise_draws if options.group_noise else 0):
            late = late_group_noise(session, scheme, draw)
            yield f"{GROUP_NOISE} {draw}", scheme, late, {"predict": False}


def _pruned(
    session: Session,
    options: FeaturesOptions,
    work: Work,
    sources: Sequence[Source],
    added: Added,
) -> dict[str, float]:
    """Pruned weights that cost the perplexity of each scheme; the share that is removed."""
    clean = 0.0
    own = {scheme.name: 0.0 for scheme in options.schemes}  # an estimate computes nothing
    if not session.estimate:
        clean = log_perplexity(added.predictions[SCHEME, BF16.name], low=False)
        own = {name: log_perplexity(added.predictions[SCHEME, name]) for name in own}
    found = _log_perplexities(session, work, SHARES)
    for _ in range(REFINED):
        ahead = _shares(own, clean, found).values()
        found |= _log_perplexities(session, work, [share for share in ahead if share not in found])
    shares = _shares(own, clean, found)
    if session.estimate:
        shares = dict.fromkeys(own, SHARES[-1])  # each would have a pass
    session.observed(
        f"{name}: no share of removed weights costs its perplexity ({np.exp(own[name]):.4g}, f32 "
        f"{np.exp(clean):.4g}), so it stands beside no pruning"
        for name in own if name not in shares
    )  # fmt: skip
    passes: list[Call[Compared]] = []
    for name, share in shares.items():
        same = replace(F32, name=name)
        passes += calls(session, work, sources, PRUNING, same, late_pruned(session, share))
    for call, values in session.run("pruned weights", passes, needed=False):
        added.add(call, values)
    return shares


def _log_perplexities(session: Session, work: Work, shares: Sequence[float]) -> dict[float, float]:
    """The model's log perplexity without its smallest weights, by the share that is removed."""
    shares = sorted({*shares})
    names = [f"{share:.17g}" for share in shares]
    sums = np.zeros((len(shares), 2))
    every = [call for share in shares for call in loss_calls(session, work, share)]
    for one, loss in session.run("perplexity of pruned weights", every):
        sums[names.index(str(one.key[1]))] += np.asarray(loss, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return dict(zip(shares, sums[:, 0] / sums[:, 1], strict=True))


def _shares(
    own: Mapping[str, float], clean: float, found: Mapping[float, float]
) -> dict[str, float]:
    """The share of removed weights that costs each scheme's perplexity, where one does."""
    known = np.array(sorted(found))
    losses = np.array([found[share] for share in known])
    each = {name: share_of(loss, clean, known, losses) for name, loss in own.items()}
    return {name: float(share) for name, share in each.items() if share is not None}
