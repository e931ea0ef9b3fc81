"""A damage map and a plan, and their files of an older format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

from jaxalign.measures.estimates import Estimate
from jaxalign.study import codec
from jaxalign.study.provenance import Environment, ModelOrigin, PromptsOrigin, Provenance
from jaxalign.study.records import Result

Kind = Literal["matrix", "site", "head", "layer", "whole"]
Metric = Literal["kl", "change"]
Summed = Literal["matrices and sites", "layers"]
AgainstNoise = Literal["more than noise", "less than noise", "like noise", ""]
ChoiceName = Literal["plan", "greedy", "layers", "all low", "all high"]
UniformVerdict = Literal[
    "beats the best uniform format",
    "no better than the best uniform format",
    "worse than the best uniform format",
]
Verdict = Literal["beats random", "no better than random", "worse than random"]


@dataclass(frozen=True, kw_only=True)
class ComponentDamage:
    """What quantizing one component alone does, averaged over prompts.

    Attributes:
        kind: "matrix", "site", "head", "layer" or "whole"; layer, name: which.
        kl: ``KL(f32 ‖ quantized)`` at the last position, nats.
        change: of the metric ``m = logit(target) − max(other logits)``, logits.
        moved: the mean of its size, ``|Δm|``.
        noise_kl, noise_moved: the same of random noise with the norm of the component's error,
            a number a draw; empty for sites, which have no matrix.
        ratio: ``kl`` over the mean of ``noise_kl``.
        p: of "``kl`` is one more draw of the noise" (``measures.stats.one_more_draw_p``).
        corrected: the same for the number of components tested (Benjamini and Hochberg); both
            None without a test.
        verdict: "more than noise" or "less than noise" where ``corrected`` is at most 0.05, "like
            noise" where not, "" without a test. Of files up to ``plan/2``: whether the ratio's
            interval leaves out 1 and ``kl`` lies outside of all draws.
    """

    kind: Kind
    layer: int | None
    name: str
    kl: Estimate
    change: Estimate
    moved: Estimate
    noise_kl: tuple[float, ...]
    noise_moved: tuple[float, ...]
    ratio: Estimate
    verdict: AgainstNoise
    p: float | None = None
    corrected: float | None = None


@dataclass(frozen=True, kw_only=True)
class SumAgainstWhole:
    """The sum of single effects against that of quantizing everything.

    Attributes:
        parts: what is summed, "matrices and sites" or "layers".
        metric: "kl" or "change".
        difference: sum less whole; 0 where effects add up.
        ratio: sum over whole; None where the whole's interval holds 0.
        noise_ratios: the same for every draw of noise.
    """

    parts: Summed
    metric: Metric
    sum: Estimate
    whole: Estimate
    difference: Estimate
    ratio: Estimate
    noise_ratios: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class DamageMap:
    """Every component's damage."""

    components: tuple[ComponentDamage, ...]
    sums: tuple[SumAgainstWhole, ...]
    clean: Estimate
    prompts: int

    def of(self, kind: Kind) -> list[ComponentDamage]:
        """The components of one kind."""
        return [each for each in self.components if each.kind == kind]


@dataclass(frozen=True, kw_only=True)
class KeptUnit:
    """Matrices that a plan keeps in 16 bit, and what tools call their modules."""

    layer: int
    matrices: tuple[str, ...]
    modules: tuple[str, ...]
    weights: int
    extra_bytes: int


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A choice of what to keep, measured on the prompts that did not choose it.

    Attributes:
        name: "plan", "greedy", "layers", "all low" or "all high".
        bits: a weight of the block matrices, on average.
        answered: share of prompts whose target is the top-1 token.
    """

    name: ChoiceName
    bytes: int
    bits: float
    kl: Estimate
    change: Estimate
    moved: Estimate
    answered: float


@dataclass(frozen=True, kw_only=True)
class RandomChoices:
    """Random choices within the same budget; ``kl`` and ``moved`` have a number a draw.

    ``p_kl`` and ``p_moved``: ``(1 + draws no worse than the plan) / (1 + draws)``.
    """

    bits: float
    kl: tuple[float, ...]
    moved: tuple[float, ...]
    p_kl: float
    p_moved: float


@dataclass(frozen=True, kw_only=True)
class UniformFormat:
    """Every matrix in one format of at most the plan's size.

    Attributes:
        scheme: its name.
        bytes, bits: of the matrices of all blocks; of a weight.
        chosen_kl: on the prompts that chose the plan, nats.
        kl: on the other prompts.
        plan_less_it: KL of the plan less its own there, paired; its p only of the first.
    """

    scheme: str
    bytes: int
    bits: float
    chosen_kl: float
    kl: Estimate
    plan_less_it: Estimate


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """Validated KL of one budget: of the greedy choice, of whole layers, of random choices.

    ``p``: of the greedy choice against the random ones, as ``RandomChoices`` has it.
    """

    bits: float
    greedy: float
    layers: float
    random: tuple[float, ...]
    p: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to keep within a budget.

    Attributes:
        found_by: which ranking the choice began with, and how many exchanges improved it.
        predicted_kl: the sum of the single effects of what is left in the low scheme.
        chosen_kl: measured, on the prompts that chose it; ``predicted_kl`` is of these, too.
        choices: measured on the other prompts.
        against_layers, against_random: KL of the plan less that of whole layers, of the mean
            random choice; paired over prompts.
        verdict: "beats random", "no better than random" or "worse than random".
        uniform: formats of at most the plan's size, by their KL on the prompts that chose the
            plan, so the first is the best that was known before; none in files up to ``plan/2``.
        uniform_verdict: the plan against the first of them.
    """

    budget: str
    budget_bytes: int
    kept: tuple[KeptUnit, ...]
    found_by: str
    predicted_kl: float
    chosen_kl: float
    choices: tuple[Choice, ...]
    random: RandomChoices
    against_layers: Estimate
    against_random: Estimate
    verdict: Verdict
    uniform: tuple[UniformFormat, ...] = ()
    uniform_verdict: UniformVerdict | None = None

    def choice(self, name: ChoiceName) -> Choice:
        """The choice of that name."""
        return next(each for each in self.choices if each.name == name)


@dataclass(frozen=True, kw_only=True)
class PlanResult(Result, rows="damage.components", headline=("scheme", "plan", "curve")):
    """A damage map and a plan.

    Attributes:
        scheme: of what is not kept.
        damage: the map, on all prompts.
        plan: what to keep.
        curve: validated KL by budget.
        choosing, validating: which prompts chose the plan, and which it is judged on.
        bits_low, bits_high: a weight of the blocks' matrices, all in the scheme and all in 16 bit.
        provenance: what ran, on what, with which options.
    """

    scheme: str
    damage: DamageMap
    plan: Plan
    curve: tuple[CurvePoint, ...]
    choosing: tuple[int, ...]
    validating: tuple[int, ...]
    bits_low: float
    bits_high: float
    provenance: Provenance

    def caption(self) -> str:
        """What the numbers are of, for the foot of a figure."""
        return (
            f"Model {self.provenance.of_model}; scheme {self.scheme}; "
            f"{self.provenance.prompts.kept} prompts, {len(self.choosing)} to choose and "
            f"{len(self.validating)} to validate; seed {self.provenance.options.get('seed')}."
        )


def read_2(content: Any, path: Path) -> PlanResult:
    """A file of format ``jaxalign.plan/2``: no p-values of components and no uniform formats.

    Args:
        content: its JSON without the format.
        path: the file, for errors.

    Raises:
        InputError: it does not fit.
    """
    return codec.decode(PlanResult, content, path)


class _Prompts1(TypedDict):
    count: int
    choosing: tuple[int, ...]
    validating: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class _Metadata1:
    model: ModelOrigin
    scheme: str
    seed: int
    options: dict[str, Any]
    prompts: _Prompts1
    bits_low: float
    bits_high: float
    notes: tuple[str, ...]
    environment: Environment
    seconds: float


@dataclass(frozen=True, kw_only=True)
class _Plan1:
    damage: DamageMap
    plan: Plan
    curve: tuple[CurvePoint, ...]
    metadata: _Metadata1


def read_1(content: Any, path: Path) -> PlanResult:
    """A file of format ``jaxalign.plan/1``.

    Args:
        content: its JSON without the format.
        path: the file, for errors.

    Raises:
        InputError: it does not fit.
    """
    old = codec.decode(_Plan1, content, path)
    was = old.metadata
    count = was.prompts["count"]
    return PlanResult(
        scheme=was.scheme,
        damage=old.damage,
        plan=old.plan,
        curve=old.curve,
        choosing=tuple(was.prompts["choosing"]),
        validating=tuple(was.prompts["validating"]),
        bits_low=was.bits_low,
        bits_high=was.bits_high,
        provenance=Provenance(
            model=was.model,
            prompts=PromptsOrigin(given=count, kept=count),
            environment=was.environment,
            options=was.options,
            notes=was.notes,
            total_seconds=was.seconds,
        ),
    )
