"""What a damage study found and planned, as typed objects, and its JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jaxalign.results.types import Estimate
from jaxalign.runtime.files import replace_file
from jaxalign.study import codec

DAMAGE_FORMAT = "jaxalign.plan/1"


@dataclass(frozen=True)
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
        verdict: whether the ratio's interval leaves out 1 and ``kl`` lies outside of all draws:
            "more than noise", "less than noise", "like noise", or "" without noise.
    """

    kind: str
    layer: int | None
    name: str
    kl: Estimate
    change: Estimate
    moved: Estimate
    noise_kl: tuple[float, ...]
    noise_moved: tuple[float, ...]
    ratio: Estimate
    verdict: str


@dataclass(frozen=True)
class SumAgainstWhole:
    """The sum of single effects against that of quantizing everything.

    Attributes:
        parts: what is summed, "matrices and sites" or "layers".
        metric: "kl" or "change".
        difference: sum less whole; 0 where effects add up.
        ratio: sum over whole; None where the whole's interval holds 0.
        noise_ratios: the same for every draw of noise.
    """

    parts: str
    metric: str
    sum: Estimate
    whole: Estimate
    difference: Estimate
    ratio: Estimate
    noise_ratios: tuple[float, ...]


@dataclass(frozen=True)
class DamageMap:
    """Every component's damage."""

    components: tuple[ComponentDamage, ...]
    sums: tuple[SumAgainstWhole, ...]
    clean: Estimate
    prompts: int

    def of(self, kind: str) -> list[ComponentDamage]:
        """The components of one kind."""
        return [each for each in self.components if each.kind == kind]


@dataclass(frozen=True)
class KeptUnit:
    """Matrices that a plan keeps in 16 bit, and what tools call their modules."""

    layer: int
    matrices: tuple[str, ...]
    modules: tuple[str, ...]
    weights: int
    extra_bytes: int


@dataclass(frozen=True)
class Choice:
    """A choice of what to keep, measured on the prompts that did not choose it.

    Attributes:
        name: "plan", "greedy", "layers", "all low" or "all high".
        bits: a weight of the block matrices, on average.
        answered: share of prompts whose target is the top-1 token.
    """

    name: str
    bytes: int
    bits: float
    kl: Estimate
    change: Estimate
    moved: Estimate
    answered: float


@dataclass(frozen=True)
class RandomChoices:
    """Random choices within the same budget; ``kl`` and ``moved`` have a number a draw.

    ``p_kl`` and ``p_moved``: ``(1 + draws no worse than the plan) / (1 + draws)``.
    """

    bits: float
    kl: tuple[float, ...]
    moved: tuple[float, ...]
    p_kl: float
    p_moved: float


@dataclass(frozen=True)
class CurvePoint:
    """Validated KL of one budget: of the greedy choice, of whole layers, of random choices.

    ``p``: of the greedy choice against the random ones, as ``RandomChoices`` has it.
    """

    bits: float
    greedy: float
    layers: float
    random: tuple[float, ...]
    p: float


@dataclass(frozen=True)
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
    verdict: str

    def choice(self, name: str) -> Choice:
        """The choice of that name."""
        return next(each for each in self.choices if each.name == name)


@dataclass(frozen=True)
class PlanResult:
    """A damage map and a plan. ``metadata``: model, scheme, split, seed, versions, notes."""

    damage: DamageMap
    plan: Plan
    curve: tuple[CurvePoint, ...]
    metadata: dict[str, Any] = field(default_factory=dict)

    def caption(self) -> str:
        """What the numbers are of, for the foot of a figure."""
        model, prompts = self.metadata["model"], self.metadata["prompts"]
        revision = model["revision"] or f"none (weights sha256 {model['weights_sha256'][:12]})"
        return (
            f"Model {model['name']}; revision {revision}; scheme {self.metadata['scheme']}; "
            f"{prompts['count']} prompts, {len(prompts['choosing'])} to choose and "
            f"{len(prompts['validating'])} to validate; seed {self.metadata['seed']}."
        )


def write_plan(result: PlanResult, path: Path) -> None:
    """Write the whole result as JSON, whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    content = {"format": DAMAGE_FORMAT, **_plain(asdict(result))}
    replace_file(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def _plain(value: Any) -> Any:
    """Numbers with the digits they have; None where they are not finite."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return codec.encode(value)
    return value
