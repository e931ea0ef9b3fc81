"""What each scheme costs and changes, beside what noise alone would change.

Every measure stands beside two noise floors. Batching noise: the same precision, the prompts run
one by one instead of in a batch. Weight noise: f32 with normal noise in every matrix, as large
(Frobenius norm, matrix by matrix and head by head) as the scheme's error there; a scheme far below
it keeps what matters, one far above it hits it.
"""

from __future__ import annotations

import jax
import numpy as np

from jaxalign.measures import stats
from jaxalign.measures.estimates import Estimate, estimate
from jaxalign.model.size import deployed_bytes, mean_bits, memory_bytes
from jaxalign.numerics.scheme import F32, Scheme
from jaxalign.studies.schemes.calls import NOISE_DRAWS, Comparison, batches, calls
from jaxalign.studies.schemes.options import SchemesOptions
from jaxalign.studies.schemes.result import NoiseFloor, SchemeRow, SchemesResult
from jaxalign.study.calls import places
from jaxalign.study.session import Session

LEVEL = 0.05
Found = dict[tuple[str, str], Comparison]


def run(session: Session, options: SchemesOptions) -> SchemesResult:
    """Compare schemes with f32 on the same prompts.

    Args:
        session: model, prompts, devices.
        options: which schemes.

    Raises:
        InputError: a scheme whose groups do not divide the model's matrices, or too little memory.
    """
    schemes = {scheme.name: scheme for scheme in (F32, *options.schemes)}
    for scheme in schemes.values():
        mean_bits(session.config, scheme)  # refuses groups that do not divide, before any work
    work = batches(session)
    every = [call for scheme in schemes.values() for call in calls(session, scheme, work)]
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
    return SchemesResult(rows=tuple(rows), noise_draws=NOISE_DRAWS, provenance=session.provenance())


def _row(session: Session, scheme: Scheme, found: Found, memory: int) -> SchemeRow:
    measured, again = found["compare", scheme.name], found["batching", scheme.name]
    noise = _mean_noise(found, scheme)

    def mean(values: np.ndarray, *names: str, test: bool = False) -> Estimate:
        rng = stats.generator(session.options.seed, "schemes", scheme.name, *names)
        return estimate(values, rng, test=test)

    def floor(name: str) -> NoiseFloor:
        measure, batching = getattr(measured, name), getattr(again, name)
        above = mean(measure - batching, name, "plan", test=True)
        random = None if noise is None else getattr(noise, name)
        return NoiseFloor(
            batching=float(batching.mean()),
            weights=None if random is None else float(random.mean()),
            above_batching=above,
            above_weights=None
            if random is None
            else mean(measure - random, name, "weights", test=True),
            below=not (above.low is not None and above.low > 0 and (above.p or 0) < LEVEL),
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
    )


def _mean_noise(found: Found, scheme: Scheme) -> Comparison | None:
    """The mean over draws; None where the scheme moves no weight."""
    draws = [v for (phase, name), v in found.items() if "noise" in phase and name == scheme.name]
    if not any(draw.drift.any() for draw in draws):
        return None
    return jax.tree.map(lambda *values: np.mean(values, axis=0), *draws)
