"""The field names of the original program, "Edge Align", for its readers and for older files."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypedDict

from jaxalign.errors import InputError
from jaxalign.studies.heads.analysis import summarize
from jaxalign.studies.heads.findings import RANKINGS, REPLACEMENTS, Statistics
from jaxalign.studies.heads.result import HeadsResult
from jaxalign.study import codec
from jaxalign.study.call_log import CallCount
from jaxalign.study.provenance import Environment, ModelOrigin, PromptsOrigin, Provenance

FORMAT_1, FORMAT_2, FORMAT_3 = (f"jaxalign.heads/{version}" for version in (1, 2, 3))
# The precisions that it knew, and what its fields call them.
KNOWN = {"f16": "f16", "int8-sim": "int8"}

# Our names by its names, part by part.
PROMPT = {
    "target_token": "target",
    "distractor_token": "distractor",
    "task_type": "task",
    "clean_logit_diff_f32": "logit_diff",
    "clean_logit_diff_f32_rounded_to_f16": "logit_diff_rounded",
    "clean_distractor_diff_f32": "distractor_diff",
}
PRECISION = {
    "drift_all_positions": "drift_all",
    "cosine_sim_all_positions": "cosine_all",
    "clean_logit_diff_rounded_to_f16": "logit_diff_rounded",
    "clean_distractor_diff": "distractor_diff",
}
REPAIR = {
    "task_type": "task",
    "baseline_logit_diff_f32": "logit_diff_f32",
    "baseline_logit_diff_quantized": "logit_diff_quantized",
    "random_curves": "random",
}


def precision_fields(name: str) -> dict[str, str]:
    """Return the fields of a prompt that a low precision fills: ours by the original's."""
    return {
        f"drift_f32_{name}": "drift",
        f"cosine_sim_f32_{name}": "cosine",
        f"clean_logit_diff_{name}": "logit_diff",
    }


def _repairs(name: str) -> str:
    return "repair" if name == "f16" else f"repair_{name}"


def edge_align(result: HeadsResult) -> dict[str, Any]:
    """Return the JSON object that the original program would have written.

    It has what that program had: clean f32, f16 and the simulated int8, heads ranked by
    importance. Other precisions have no names there and are left out.

    Raises:
        InputError: the study was screened, and the original program knows no estimates.
    """
    content = codec.encode(result)
    known = {name: KNOWN[name] for name in result.precisions if name in KNOWN}
    origin = result.provenance
    kept = ("prompt", "target", "task", "zero_importance", "mean_importance", "logit_diff")
    theirs = {ours: name for name, ours in PROMPT.items()}
    prompts = []
    for prompt in content["prompts"]:
        entry = {theirs.get(name, name): prompt[name] for name in kept}
        for name, field in known.items():
            low = prompt["precisions"][name]
            entry |= {its: low[ours] for its, ours in precision_fields(field).items()}
        prompts.append(entry)
    out = {
        "model": origin.model.name,
        "num_layers": content["num_layers"],
        "num_heads": content["num_heads"],
        "mean_activation_reference_count": content["reference_count"],
        "prompts": prompts,
        "repair": [],
        "metadata": {
            "timestamp": origin.timestamp,
            "device": origin.environment.device,
            "int8_mode": "simulated" if "int8-sim" in known else "disabled",
            "total_forward_passes": forward_passes(result),
            "total_runtime_seconds": round(origin.total_seconds, 3),
        },
    }
    for name, field in known.items():
        rows = [_edge_align_repair(r) for r in content["repairs"] if r["precision"] == name]
        out |= {_repairs(field): rows} if rows else {}
    return out


def forward_passes(result: HeadsResult) -> int:
    """Return how many model evaluations a result stands for, counted as the original did.

    Each would make ``num_layers`` passes through a block; ``provenance.layer_rows`` counts those
    that were made.

    Args:
        result: of the study.

    Raises:
        InputError: the study was screened: ``screen.layer_rows`` counts its passes.
    """
    if result.screen is not None:
        raise InputError(
            "the study was screened, so most of its heads are estimates, which Edge Align's "
            "format has no place for",
            "run the study without --screen",
        )
    heads, draws = result.num_heads * result.num_layers, result.resample_draws
    passes = result.provenance.prompts.given + result.reference_count
    for prompt in result.prompts:
        found = {kind for kind in REPLACEMENTS if prompt.importance(kind) is not None}
        passes += 1 + heads * _runs(found, draws)
        for low in prompt.precisions.values():
            # The clean run, each head restored alone, each head ablated.
            passes += 1 + heads * (1 + _runs(low.importance, draws))
            passes += 0 if low.reordered is None else heads
            if low.noise is not None:
                noisy = sum(values.size for values in low.noise.importance.values())
                passes += low.noise.logit_diff.size + noisy
    for repair in result.repairs:
        curves = (repair.curves, repair.same_layers, repair.vectors)
        passes += repair.random.size + sum(c.size for each in curves for c in each.values())
    return passes


def _runs(kinds: Collection[str], draws: int) -> int:
    return sum(draws if kind == "resample" else 1 for kind in kinds)


def _edge_align_repair(repair: dict[str, Any]) -> dict[str, Any]:
    kept = ("prompt", "task", "logit_diff_f32", "logit_diff_quantized")
    theirs = {ours: name for name, ours in REPAIR.items()}
    return {theirs.get(name, name): repair[name] for name in kept} | {
        "repair_curve": repair["curves"][RANKINGS[0]],
        "repaired_heads": repair["heads"][RANKINGS[0]],
    }


class _Prompts1(TypedDict):
    file: str
    sha256: str
    given: int
    kept: int


class _Calls1(TypedDict):
    engine: str
    memory_gb: float
    calls: list[dict[str, Any]]


class _Plan1(_Calls1, total=False):
    processes: int
    mesh: dict[str, int] | None


@dataclass(frozen=True, kw_only=True)
class _Metadata1:
    timestamp: str
    device: str
    int8_mode: Literal["simulated", "disabled"]
    total_forward_passes: int
    total_runtime_seconds: float
    seconds: dict[str, float]
    precisions: list[str]
    mean_positions: Literal["last", "all"]
    resample_draws: int
    max_repair_k: int
    random_orders: int
    bootstrap_samples: int
    permutations: int
    use_all_prompts: bool
    seed: int
    notes: tuple[str, ...]
    prompts: _Prompts1
    model: ModelOrigin
    computed: dict[str, Any]
    plan: _Plan1
    environment: dict[str, Any]

    def provenance(self) -> Provenance:
        """The same as results of today have it."""
        names = ("mean_positions", "max_repair_k", "use_all_prompts", "seed")
        calls = [{"engine": call.pop("plan"), **call} for call in map(dict, self.plan["calls"])]
        return Provenance(
            model=self.model,
            prompts=PromptsOrigin(**self.prompts),
            environment=Environment(device=self.device, **self.environment),
            options={
                "schemes": self.precisions,
                **{name: getattr(self, name) for name in names},
                **{name: self.plan[name] for name in ("engine", "memory_gb")},
            },
            devices=self.plan.get("mesh"),
            processes=self.plan.get("processes", 1),
            notes=self.notes,
            timestamp=self.timestamp,
            total_seconds=self.total_runtime_seconds,
            seconds=self.seconds,
            calls=tuple(CallCount(**call) for call in calls),
            layer_rows=self.computed["layer_rows"],
            bootstrap_samples=self.bootstrap_samples,
            permutations=self.permutations,
        )


@dataclass(frozen=True, kw_only=True)
class _Origin1:
    metadata: _Metadata1


def read_1(content: dict[str, Any], where: Path | str) -> HeadsResult:
    """Read a result of the format "jaxalign.heads/1", which had these names beside its own.

    Args:
        content: of the file, without its format.
        where: the file, for the error.

    Raises:
        InputError: it does not fit, or has two precisions under the same names.
    """
    try:
        was = codec.decode(_Origin1, {"metadata": content["metadata"]}, where).metadata
        named = {name: KNOWN.get(name, name) for name in was.precisions}
        if len({*named.values()}) < len(was.precisions):
            raise InputError(
                f"{where} has the values of {' and '.join(was.precisions)} under the same names",
                "run the study again",
            )
        today = _renamed(content, {"mean_activation_reference_count": "reference_count"})
        del today["metadata"], today["model"]
        today["provenance"] = codec.encode(was.provenance())
        today["resample_draws"] = was.resample_draws
        today["prompts"] = [_prompt(entry, named) for entry in content["prompts"]]
        repairs = [today.pop(name, []) for name in map(_repairs, named.values())]
        today["repairs"] = [_repair(entry) for entries in repairs for entry in entries]
        today.pop("repair", None)  # empty where f16 was not repaired
    except (KeyError, TypeError, AttributeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else error
        raise InputError(
            f"{where} is not a result of the heads study ({what})", codec.REMEDY
        ) from error
    return read_2(today, where)


def read_2(content: dict[str, Any], where: Path | str) -> HeadsResult:
    """Read a result of the format "jaxalign.heads/2", whose statistics were other ones.

    They are computed again from its prompts and repairs, by today's definitions.

    Args:
        content: of the file, without its format.
        where: the file, for the error.

    Raises:
        InputError: it does not fit.
    """
    if "statistics" not in content:
        raise InputError(f"{where} lacks statistics", codec.REMEDY)
    nothing: dict[str, Any] = {field.name: [] for field in fields(Statistics)}
    repairs = content.get("repairs")
    if isinstance(repairs, list):
        repairs = [_with_steps(entry) for entry in repairs]
    old = codec.decode(HeadsResult, content | {"statistics": nothing, "repairs": repairs}, where)
    seed = old.provenance.options.get("seed", 0)
    seed = seed if isinstance(seed, int) else 0
    note = "the statistics of this older file were computed again, as jaxalign does today"
    return replace(
        old,
        statistics=summarize(old.prompts, old.repairs, old.precisions, seed),
        provenance=replace(old.provenance, notes=(*old.provenance.notes, note)),
    )


def read_3(content: dict[str, Any], where: Path | str) -> HeadsResult:
    """Read a result of the format "jaxalign.heads/3", whose heads were all exact.

    Args:
        content: of the file, without its format.
        where: the file, for the error.

    Raises:
        InputError: it does not fit.
    """
    return codec.decode(HeadsResult, content | {"screen": None}, where)


def _with_steps(entry: Any) -> Any:
    """A repair whose random orders were run at every k."""
    if not isinstance(entry, dict) or not isinstance(entry.get("random"), list):
        return entry
    longest = max((len(row) for row in entry["random"] if isinstance(row, list)), default=0)
    return entry | {"steps": list(range(1, longest + 1))}


def _renamed(entry: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in entry.items()}


def _prompt(entry: dict[str, Any], fields: Mapping[str, str]) -> dict[str, Any]:
    prompt = _renamed(entry, PROMPT)
    lows = {}
    for name, field in fields.items():
        low = _renamed(entry["precisions"][name], PRECISION)
        lows[name] = low | {ours: prompt.pop(its) for its, ours in precision_fields(field).items()}
    return prompt | {"precisions": lows | _left(entry["precisions"], lows)}


def _left(entries: Mapping[str, Any], read: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entries.items() if name not in read}


def _repair(entry: dict[str, Any]) -> dict[str, Any]:
    repair = _renamed(entry, REPAIR)
    rankings = repair.pop("rankings")
    del repair["repair_curve"], repair["repaired_heads"]  # those of the first ranking, again
    return repair | {
        "curves": {name: each["curve"] for name, each in rankings.items()},
        "heads": {name: each["heads"] for name, each in rankings.items()},
    }
