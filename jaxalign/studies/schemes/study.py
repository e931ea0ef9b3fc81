"""What each scheme costs and changes, beside what noise alone would change.

Every measure stands beside noise floors. Batching noise: the same precision, the prompts run one by
one instead of in a batch. Weight noise: f32 with normal noise in every matrix, as large (Frobenius
norm, matrix by matrix and head by head) as the scheme's error there; a scheme far below it keeps
what matters, one far above it hits it. The lottery, of methods that solve: the method repeated on
weights that are moved by a millionth.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from jaxalign.measures import stats
from jaxalign.measures.estimates import Estimate, estimate, number
from jaxalign.model.size import deployed_bytes, mean_bits, memory_bytes
from jaxalign.numerics.scheme import F32, Scheme
from jaxalign.studies.schemes.calls import Comparison, batches, calls
from jaxalign.studies.schemes.options import SchemesOptions
from jaxalign.studies.schemes.result import Lottery, NoiseFloor, SchemeRow, SchemesResult
from jaxalign.studies.schemes.rivals import with_rivals
from jaxalign.study.calls import places
from jaxalign.study.session import Session
from jaxalign.study.weight_noise import moves_matrices

LEVEL = 0.05
Found = dict[tuple[str, str], Comparison]


def run(session: Session, options: SchemesOptions) -> SchemesResult:
    """Compare schemes with f32 on the same prompts.

    Args:
        session: model, prompts, devices.
        options: which schemes, how many draws.

    Raises:
        InputError: a scheme whose groups do not divide the model's matrices, or too little memory.
    """
    schemes = {scheme.name: scheme for scheme in (F32, *options.schemes)}
    for scheme in schemes.values():
        mean_bits(session.config, scheme)  # refuses groups that do not divide, before any work
    work, draws = batches(session), (options.noise_draws, options.lottery_draws)
    if options.lottery_draws and not any(scheme.solves for scheme in options.schemes):
        session.notes.append("no scheme is solved for, as by AWQ or GPTQ, so none has a lottery")
    if not any(moves_matrices(session.model.params, scheme) for scheme in options.schemes):
        session.notes.append("no scheme moves a weight, so none stands beside weight noise")
    every = [call for scheme in schemes.values() for call in calls(session, scheme, work, *draws)]
    found: Found = {}
    memory: dict[str, int] = {}
    for call, values in session.run("schemes against f32", every, needed=False):
        phase, name = map(str, call.key[:2])
        if (phase, name) not in found:
            found[phase, name] = places(len(session.prompts), values, axis=0)
        call.scatter(found[phase, name], values, axis=0)
        if name not in memory and not session.shard:
            memory[name] = memory_bytes(session.low(schemes[name]))
    session.end_of_calls()
    rows = [_row(session, scheme, found, memory[name]) for name, scheme in schemes.items()]
    rows = with_rivals(
        _corrected(rows),
        {name: found["compare", name].kl for name in schemes},
        session.options.seed,
    )
    return SchemesResult(
        rows=tuple(rows), noise_draws=options.noise_draws, provenance=session.provenance()
    )


def _row(session: Session, scheme: Scheme, found: Found, memory: int) -> SchemeRow:
    measured, again = found["compare", scheme.name], found["batching", scheme.name]
    noises = _noises(found, scheme)

    def mean(values: np.ndarray, *names: str, test: bool = False) -> Estimate:
        rng = stats.generator(session.options.seed, "schemes", scheme.name, *names)
        return estimate(values, rng, test=test)

    def floor(name: str) -> NoiseFloor:
        measure, batching = getattr(measured, name), getattr(again, name)
        above = mean(measure - batching, name, "plan", test=True)
        random = [getattr(noise, name) for noise in noises]
        means = tuple(float(values.mean()) for values in random)
        own = np.array([measure.mean()])
        return NoiseFloor(
            batching=float(batching.mean()),
            weights=float(np.mean(means)) if means else None,
            above_batching=above,
            above_weights=mean(measure - np.mean(random, axis=0), name, "weights", test=True)
            if random
            else None,
            below=not (above.low is not None and above.low > 0 and (above.p or 0) < LEVEL),
            draws=means,
            p=number(stats.one_more_draw_p(own, np.array([means]))[0]) if means else None,
        )

    change = measured.margin - measured.reference_margin
    return SchemeRow(
        scheme=scheme.name,
        bits=mean_bits(session.config, scheme),
        megabytes=deployed_bytes(session.config, scheme) / 1e6,
        memory_megabytes=memory / 1e6,
        kl=mean(measured.kl, "kl"),
        agreement=mean(measured.agreement, "agreement"),
        margin=mean(measured.margin, "margin"),
        margin_change=None if scheme == F32 else mean(change, "change", test=True),
        drift=mean(measured.drift, "drift"),
        kl_floor=floor("kl"),
        drift_floor=floor("drift"),
        lottery=_lottery(found, scheme),
    )


def _noises(found: Found, scheme: Scheme) -> list[Comparison]:
    """Every draw of weight noise; none where the scheme moves no weight."""
    draws = _draws(found, scheme, "noise")
    return draws if any(draw.drift.any() for draw in draws) else []


def _draws(found: Found, scheme: Scheme, phase: str) -> list[Comparison]:
    return [v for (of, name), v in found.items() if of.startswith(phase) and name == scheme.name]


def _lottery(found: Found, scheme: Scheme) -> Lottery | None:
    """The spread of a method that solves, its own KL among the draws; None for others."""
    draws = [float(draw.kl.mean()) for draw in _draws(found, scheme, "lottery")]
    if not draws:
        return None
    every = [*draws, float(found["compare", scheme.name].kl.mean())]
    sd = float(np.std(every, ddof=1))
    return Lottery(kl=tuple(draws), sd=sd, low=min(every), high=max(every))


def _corrected(rows: list[SchemeRow]) -> list[SchemeRow]:
    """The rows with the p-values of each question corrected for the number of schemes."""

    def family(values: list[Any]) -> list[float | None]:
        raw = np.array([np.nan if p is None else p for p in values], float)
        return [number(p) for p in stats.corrected(raw)]

    changes = family([row.margin_change and row.margin_change.p for row in rows])
    kls, drifts = (
        family([getattr(row, name).p for row in rows]) for name in ("kl_floor", "drift_floor")
    )
    return [
        replace(
            row,
            change_corrected=changes[i],
            kl_floor=replace(row.kl_floor, corrected=kls[i]),
            drift_floor=replace(row.drift_floor, corrected=drifts[i]),
        )
        for i, row in enumerate(rows)
    ]
