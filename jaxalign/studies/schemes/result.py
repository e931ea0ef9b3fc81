"""The result of a comparison of schemes, and its files of an older format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jaxalign.measures.estimates import Estimate
from jaxalign.study import codec
from jaxalign.study.provenance import Environment, ModelOrigin, PromptsOrigin, Provenance
from jaxalign.study.records import Result


@dataclass(frozen=True, kw_only=True)
class NoiseFloor:
    """What is no effect of a scheme.

    Attributes:
        batching: the measure between two ways of batching the same prompts in the same precision.
        weights: the measure under random noise in the f32 weights, of the same Frobenius norm as
            the scheme's error in every matrix and head; None where the scheme moves no weight.
        above_batching: mean over prompts of measure − batching noise, with interval and p-value.
        above_weights: mean over prompts of measure − weight noise; None without weight noise.
        below: whether the measure cannot be told from batching noise.
        draws: the measure under each draw of weight noise; none in files up to ``schemes/2``.
        p: of "the measure is one more draw of the weight noise"
            (``measures.stats.one_more_draw_p``); corrected: for the number of schemes.
    """

    batching: float
    weights: float | None
    above_batching: Estimate
    above_weights: Estimate | None
    below: bool
    draws: tuple[float, ...] = ()
    p: float | None = None
    corrected: float | None = None


@dataclass(frozen=True, kw_only=True)
class Lottery:
    """How far chance moves a method that solves: its KL when the weights move by a millionth.

    Attributes:
        kl: of each repetition, mean over prompts, nats.
        sd: their standard deviation, the scheme's own KL among them.
        low, high: the least and the largest of them all.
    """

    kl: tuple[float, ...]
    sd: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Rival:
    """The scheme of at most the same bits that has the least KL.

    Attributes:
        scheme: its name.
        difference: KL of the row's scheme less its own, nats, paired over prompts, with p.
        corrected: the same p corrected for the number of schemes.
        within_lottery: whether the lottery of either of them reaches the other's KL.
        verdict: "less" or "more" where ``corrected`` is at most 0.05 and the lottery does not
            reach, else "not told apart".
    """

    scheme: str
    difference: Estimate
    corrected: float | None
    within_lottery: bool
    verdict: Literal["less", "more", "not told apart"]


@dataclass(frozen=True, kw_only=True)
class SchemeRow:
    """One scheme on all prompts; means over prompts with 95 % bootstrap intervals.

    Attributes:
        scheme: its name.
        bits: of a weight of the blocks' matrices as deployed, scales and zero points included.
        megabytes: of the whole model as deployed, 1e6 bytes.
        memory_megabytes: of the whole model in memory here.
        kl: ``KL(f32 ‖ scheme)`` of the next token, nats, over all positions.
        agreement: share of positions with f32's top-1 token.
        margin: answer margin ``m`` in logits; margin_change: against f32, paired, with p-value.
        drift: mean drift of heads' contributions at the last position.
        kl_floor, drift_floor: what is noise in them.
        change_corrected: the p of ``margin_change`` corrected for the number of schemes.
        lottery: of a method that solves; None for others.
        rival: what does least damage with at most as many bits; None for f32, or without one.
    """

    scheme: str
    bits: float
    megabytes: float
    memory_megabytes: float
    kl: Estimate
    agreement: Estimate
    margin: Estimate
    margin_change: Estimate | None
    drift: Estimate
    kl_floor: NoiseFloor
    drift_floor: NoiseFloor
    change_corrected: float | None = None
    lottery: Lottery | None = None
    rival: Rival | None = None


@dataclass(frozen=True, kw_only=True)
class SchemesResult(Result, rows="rows"):
    """All schemes, f32 first.

    Attributes:
        rows: one a scheme.
        noise_draws: draws of weight noise beside each.
        provenance: what ran, on what, with which options.
    """

    rows: tuple[SchemeRow, ...]
    noise_draws: int
    provenance: Provenance


def read_2(content: Any, path: Path) -> SchemesResult:
    """A file of format ``jaxalign.schemes/2``: no tests against noise, no lottery, no rivals.

    Args:
        content: its JSON without the format.
        path: the file, for errors.

    Raises:
        InputError: it does not fit.
    """
    return codec.decode(SchemesResult, content, path)


@dataclass(frozen=True, kw_only=True)
class _Metadata1:
    timestamp: str
    model: ModelOrigin
    prompts: int
    positions: int
    noise_draws: int
    bootstrap_samples: int
    seed: int
    notes: tuple[str, ...]
    environment: Environment


@dataclass(frozen=True, kw_only=True)
class _Schemes1:
    schemes: tuple[dict[str, Any], ...]
    metadata: _Metadata1


def read_1(content: Any, path: Path) -> SchemesResult:
    """A file of format ``jaxalign.schemes/1``.

    Args:
        content: its JSON without the format.
        path: the file, for errors.

    Raises:
        InputError: it does not fit.
    """
    old = codec.decode(_Schemes1, content, path)
    was = old.metadata
    provenance = Provenance(
        model=was.model,
        prompts=PromptsOrigin(given=was.prompts, kept=was.prompts, positions=was.positions),
        environment=was.environment,
        options={"seed": was.seed},
        notes=was.notes,
        timestamp=was.timestamp,
        bootstrap_samples=was.bootstrap_samples,
    )
    rows = tuple(codec.decode(SchemeRow, _row_2(row), path) for row in old.schemes)
    return SchemesResult(rows=rows, noise_draws=was.noise_draws, provenance=provenance)


def _row_2(row: dict[str, Any]) -> dict[str, Any]:
    """A row with batching noise under its name of today."""
    names = {"plan": "batching", "above_plan": "above_batching"}

    def renamed(floor: Any) -> Any:
        if not isinstance(floor, dict):
            return floor
        return {names.get(name, name): value for name, value in floor.items()}

    return {name: renamed(v) if name.endswith("_floor") else v for name, v in row.items()}
