"""The result of a heads study as typed objects."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np

from jaxalign.edits import HeadMode
from jaxalign.shapes import Float
from jaxalign.studies.heads.findings import (
    RANKINGS,
    Control,
    Head,
    Ranking,
    Replacement,
    Screen,
    Statistics,
)
from jaxalign.study.provenance import Provenance
from jaxalign.study.records import Result


@dataclass(frozen=True, kw_only=True)
class FirstOrder:
    """First-order account of one prompt's degradation under one precision (logits).

    Attributes:
        predicted: ``[L, H]`` ``∇m · (c_f32 − c_q)``, the predicted gain of restoring each head.
        restored: ``[L, H]`` the true gain of restoring that head alone.
        signed_sum, absolute_sum: of ``predicted``; the absolute sum is the bound.
        degradation: ``m_f32 − m_q``.
        bound_held: whether ``|degradation| ≤ absolute_sum``; None where not finite.
    """

    predicted: Float[np.ndarray, "L H"]
    restored: Float[np.ndarray, "L H"]
    signed_sum: float | None
    absolute_sum: float | None
    degradation: float | None
    bound_held: bool | None


@dataclass(frozen=True, kw_only=True)
class NoiseDraws:
    """One prompt in f32 with random noise in the weights, as large as a scheme's error, each draw.

    Attributes:
        importance: ``[draws, L, H]`` by replacement, of the same ablations inside each noisy model.
        logit_diff: ``[draws]`` clean ``m``.
    """

    importance: dict[Replacement, Float[np.ndarray, "draws L H"]]
    logit_diff: Float[np.ndarray, " draws"]


@dataclass(frozen=True, kw_only=True)
class Reordered:
    """One prompt in a 16-bit precision, computed by the other engine: the same roundings in another
    order, so what differs is no property of the precision.

    Attributes:
        importance: ``[L, H]`` of zero ablation.
        logit_diff: clean ``m``.
    """

    importance: Float[np.ndarray, "L H"]
    logit_diff: float | None


@dataclass(frozen=True, kw_only=True)
class PrecisionResult:
    """One prompt under one low precision. Arrays ``[L, H]``, NaN where not finite.

    Attributes:
        drift, cosine: of each head's last-position contribution against f32.
        drift_all, cosine_all: the same over all real positions.
        logit_diff: ``m`` of the clean run; ``logit_diff_rounded`` of f16-rounded logits.
        distractor_diff: ``logit(target) − logit(distractor)``, None without a distractor.
        nonfinite_heads: heads whose contribution overflowed, ``(layer, head)``.
        first_order: the first-order account.
        kl: ``KL(f32 ‖ precision)`` of the next token, nats; None where not finite or not known.
        importance: of the same ablations inside the low-precision model, by replacement: with its
            own clean run, means and donors. Empty in files before jaxalign.heads/3.
        noise: None where the scheme moves no weight.
        reordered: None where activations are f32.
    """

    drift: Float[np.ndarray, "L H"]
    cosine: Float[np.ndarray, "L H"]
    drift_all: Float[np.ndarray, "L H"]
    cosine_all: Float[np.ndarray, "L H"]
    logit_diff: float | None
    logit_diff_rounded: float | None
    distractor_diff: float | None
    nonfinite_heads: tuple[Head, ...]
    first_order: FirstOrder
    kl: float | None = None
    importance: dict[Replacement, Float[np.ndarray, "L H"]] = field(default_factory=dict)
    noise: NoiseDraws | None = None
    reordered: Reordered | None = None


@dataclass(frozen=True, kw_only=True)
class PromptResult:
    """One prompt. Importances ``[L, H]`` in logits, ``m(clean) − m(head replaced)``, f32.

    Attributes:
        zero_importance, mean_importance, resample_importance: by what stands in for the head; None
            where that ablation was not run (zero always is).
        resample_partners: how many prompts of the task have the same length; without any, there is
            no ``resample_importance``.
        validated: whether the target is the f32 model's top-1 next token.
        logit_diff: clean ``m`` in f32; ``logit_diff_rounded`` of f16-rounded logits.
        precisions: by name of the scheme ("f16", "nf4").
        distractor_importance: the same importances of ``logit(target) − logit(distractor)``, by
            "zero", "mean" and, where there are partners, "resample"; None without a distractor.
        size: ``‖c‖`` of each head's contribution at the last position, f32.
    """

    prompt: str
    target: str
    distractor: str | None
    task: str
    num_tokens: int
    validated: bool
    logit_diff: float
    logit_diff_rounded: float | None
    distractor_diff: float | None
    zero_importance: Float[np.ndarray, "L H"]
    mean_importance: Float[np.ndarray, "L H"] | None
    resample_importance: Float[np.ndarray, "L H"] | None
    resample_partners: int
    precisions: dict[str, PrecisionResult]
    distractor_importance: dict[Replacement, Float[np.ndarray, "L H"]] | None = None
    size: Float[np.ndarray, "L H"] | None = None

    def importance(self, replacement: Replacement) -> Float[np.ndarray, "L H"] | None:
        """The f32 importance by what stands in for the head."""
        found: np.ndarray | None = getattr(self, f"{replacement}_importance")
        return found


@dataclass(frozen=True, kw_only=True)
class RepairResult:
    """Repair curves of one prompt: ``m`` with the top-k heads' f32 contributions, k = 1 … K.

    Attributes:
        precision: name of the scheme.
        curves: by ranking (``RANKINGS``), ``[K]``.
        heads: by ranking, the heads in the order they are restored, ``(layer, head)``.
        steps: the values of k at which controls were run.
        random: ``[orders, steps]`` of seeded random orders.
        same_layers: by ranking, ``[exchanged, steps]``: random heads of the ranking's layers.
        vectors: by ranking, ``[draws, steps]``: the ranking's heads get their own contribution plus
            a random vector as long as its distance from f32's.
    """

    prompt: str
    task: str
    precision: str
    logit_diff_f32: float
    logit_diff_quantized: float | None
    curves: dict[Ranking, Float[np.ndarray, " K"]]
    heads: dict[Ranking, tuple[Head, ...]]
    steps: tuple[int, ...]
    random: Float[np.ndarray, "orders steps"]
    same_layers: dict[Ranking, Float[np.ndarray, "exchanged steps"]] = field(default_factory=dict)
    vectors: dict[Ranking, Float[np.ndarray, "vectors steps"]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("curves", "heads"):
            if {*getattr(self, name)} != {*RANKINGS}:
                raise ValueError(f"{name} are not of each of {', '.join(RANKINGS)}")
        longest = len(self.curves[RANKINGS[0]])
        if any(len(heads) != longest for heads in self.heads.values()):
            raise ValueError("there are not as many heads as steps of a curve")
        if len(self.steps) != self.random.shape[-1] or not {*self.steps} <= {
            *range(1, longest + 1)
        }:
            raise ValueError("the steps of the controls are not steps of the curves")

    def control(self, control: Control, ranking: Ranking) -> Float[np.ndarray, "N steps"] | None:
        """``m`` of a ranking's control at ``steps``; None where it was not run."""
        if control == "random heads":
            return self.random
        kept = self.vectors if control == "random vectors" else self.same_layers
        return kept.get(ranking)


@dataclass(frozen=True, kw_only=True)
class HeadsResult(Result, rows="prompts", headline=("statistics",)):
    """A whole study.

    Attributes:
        num_layers, num_heads: ``L`` and ``H``.
        reference_count: texts behind the means of mean ablation.
        resample_draws: donors drawn for each prompt.
        head_mode: what a head is.
        prompts: those that were kept.
        repairs: none of a precision, or one a prompt, in the prompts' order.
        statistics: of groups of prompts.
        bits: of a weight of the blocks' matrices as deployed, by precision.
        megabytes: of the whole model as deployed, 1e6 bytes, by precision.
        screen: of a study whose heads are not all exact: which are, and estimates of the others,
            whose importance is null everywhere else; None where all are exact.
        provenance: what ran, on what, with which options; notes on dropped prompts, on targets of
            several tokens, on overflows.
    """

    num_layers: int
    num_heads: int
    reference_count: int
    resample_draws: int
    head_mode: HeadMode
    prompts: tuple[PromptResult, ...]
    repairs: tuple[RepairResult, ...]
    statistics: Statistics
    provenance: Provenance
    screen: Screen | None = None
    bits: dict[str, float] = field(default_factory=dict)
    megabytes: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check what no type can say: every part is of the same prompts, precisions and heads."""
        if not self.prompts:
            raise ValueError("there are no prompts")
        shape = (self.num_layers, self.num_heads)
        if self.prompts[0].zero_importance.shape != shape:
            raise ValueError(f"maps are not of {shape[0]} layers of {shape[1]} heads")
        names, own = self.precisions, [(prompt.prompt, prompt.task) for prompt in self.prompts]
        for i, prompt in enumerate(self.prompts):
            if {*prompt.precisions} != {*names}:
                raise ValueError(f"prompts/{i} is not of every precision of {', '.join(names)}")
            for low in prompt.precisions.values():
                self._check_heads(low.nonfinite_heads, f"prompts/{i}")
        for name in dict.fromkeys(repair.precision for repair in self.repairs):
            found = [(r.prompt, r.task) for r in self.repairs if r.precision == name]
            if found != own or name not in names:
                raise ValueError(f"repairs of {name} are not of each prompt once")
        for i, repair in enumerate(self.repairs):
            for heads in repair.heads.values():
                self._check_heads(heads, f"repairs/{i}")
        for kind, rows in vars(self.statistics).items():
            for i, row in enumerate(rows):
                if row.precision not in ("f32", *names):
                    raise ValueError(f"statistics/{kind}/{i} is of {row.precision}, which is none")

    def _check_heads(self, heads: Collection[Head], place: str) -> None:
        for layer, head in heads:
            if not (0 <= layer < self.num_layers and 0 <= head < self.num_heads):
                raise ValueError(f"{place} names head ({layer}, {head}), which is none")

    @property
    def precisions(self) -> tuple[str, ...]:
        """The low precisions of this study, in the order they ran."""
        return tuple(self.prompts[0].precisions)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks in order of appearance."""
        return tuple(dict.fromkeys(prompt.task for prompt in self.prompts))
