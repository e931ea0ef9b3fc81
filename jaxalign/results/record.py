"""Between typed results and the JSON object that keeps them.

The object has every field of the original "Edge Align" format, so that its readers still work, and
our own beside them.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np

from jaxalign.results.types import (
    RANKINGS,
    Correlation,
    Estimate,
    FirstOrder,
    FirstOrderTest,
    HeadsResult,
    PrecisionResult,
    PromptResult,
    RepairResult,
    RepairTest,
    Statistics,
    TaskMean,
)

FORMAT = "jaxalign.heads/1"
# Precisions whose names in the original fields differ from ours.
FIELD_NAMES = {"int8-sim": "int8"}


def digits(x: Any) -> float:
    """A finite float for the file: seven digits, which is all that f32 holds."""
    return float(f"{float(x):.7g}")


def number(x: Any) -> float | None:
    """``digits``, or None where the number is not finite."""
    return digits(x) if math.isfinite(x) else None


def _numbers(a: Any) -> Any:
    array = np.asarray(a, np.float64)
    if array.ndim > 1:
        return [_numbers(row) for row in array]
    return [number(x) for x in array.tolist()]


def _array(rows: Any) -> np.ndarray:
    return np.array(rows, dtype=np.float64)  # None becomes NaN


def _field_name(precision: str) -> str:
    return FIELD_NAMES.get(precision, precision)


def precision_fields(precision: str) -> tuple[str, str, str]:
    """The original fields of a prompt that a low precision fills: drift, cosine, ``m``."""
    key = _field_name(precision)
    return f"drift_f32_{key}", f"cosine_sim_f32_{key}", f"clean_logit_diff_{key}"


def to_json(result: HeadsResult) -> dict[str, Any]:
    """The result as the JSON object that is written."""
    by_precision = {
        name: [_repair_json(r) for r in result.repairs if r.precision == name]
        for name in result.precisions
    }
    repairs = {
        "repair" if name == "f16" else f"repair_{_field_name(name)}": rows
        for name, rows in by_precision.items()
        if rows
    }
    return {
        "format": FORMAT,
        "model": result.model,
        "num_layers": result.num_layers,
        "num_heads": result.num_heads,
        "mean_activation_reference_count": result.reference_count,
        "head_mode": result.head_mode,
        "prompts": [_prompt_json(prompt) for prompt in result.prompts],
        **({"repair": []} | repairs),
        "statistics": {
            name: [asdict(row) for row in rows] for name, rows in vars(result.statistics).items()
        },
        "metadata": result.metadata,
    }


def _prompt_json(prompt: PromptResult) -> dict[str, Any]:
    resampled = prompt.resample_importance
    entry: dict[str, Any] = {
        "prompt": prompt.prompt,
        "target_token": prompt.target,
        "distractor_token": prompt.distractor,
        "task_type": prompt.task,
        "num_tokens": prompt.num_tokens,
        "validated": prompt.validated,
        "zero_importance": _numbers(prompt.zero_importance),
        "mean_importance": _numbers(prompt.mean_importance),
        "resample_importance": None if resampled is None else _numbers(resampled),
        "resample_partners": prompt.resample_partners,
        "clean_logit_diff_f32": prompt.logit_diff,
        "clean_logit_diff_f32_rounded_to_f16": prompt.logit_diff_rounded,
        "clean_distractor_diff_f32": prompt.distractor_diff,
        "distractor_importance": None
        if prompt.distractor_importance is None
        else {kind: _numbers(a) for kind, a in prompt.distractor_importance.items()},
        "precisions": {},
    }
    for name, low in prompt.precisions.items():
        values = (_numbers(low.drift), _numbers(low.cosine), low.logit_diff)
        entry |= dict(zip(precision_fields(name), values, strict=True))
        account = low.first_order
        entry["precisions"][name] = {
            "drift_all_positions": _numbers(low.drift_all),
            "cosine_sim_all_positions": _numbers(low.cosine_all),
            "clean_logit_diff_rounded_to_f16": low.logit_diff_rounded,
            "clean_distractor_diff": low.distractor_diff,
            "nonfinite_heads": [list(head) for head in low.nonfinite_heads],
            "first_order": asdict(account)
            | {"predicted": _numbers(account.predicted), "restored": _numbers(account.restored)},
        }
    return entry


def _repair_json(repair: RepairResult) -> dict[str, Any]:
    return {
        "prompt": repair.prompt,
        "task_type": repair.task,
        "precision": repair.precision,
        "baseline_logit_diff_f32": repair.logit_diff_f32,
        "baseline_logit_diff_quantized": repair.logit_diff_quantized,
        "repair_curve": _numbers(repair.curves[RANKINGS[0]]),
        "repaired_heads": [list(head) for head in repair.heads[RANKINGS[0]]],
        "rankings": {
            name: {
                "curve": _numbers(repair.curves[name]),
                "heads": [list(head) for head in repair.heads[name]],
            }
            for name in RANKINGS
        },
        "random_curves": _numbers(repair.random),
    }


def from_json(content: dict[str, Any]) -> HeadsResult:
    """The typed result of a JSON object that fits the schema."""
    repairs = [
        _repair_from(entry)
        for name in content["metadata"]["precisions"]
        for entry in content.get("repair" if name == "f16" else f"repair_{_field_name(name)}", [])
    ]
    stats = content["statistics"]
    return HeadsResult(
        model=content["model"],
        num_layers=content["num_layers"],
        num_heads=content["num_heads"],
        reference_count=content["mean_activation_reference_count"],
        head_mode=content["head_mode"],
        prompts=tuple(_prompt_from(entry) for entry in content["prompts"]),
        repairs=tuple(repairs),
        statistics=Statistics(
            correlations=_records(Correlation, stats["correlations"], "pearson", "spearman"),
            repair=_records(RepairTest, stats["repair"], "difference"),
            first_order=_records(FirstOrderTest, stats["first_order"], "spearman"),
            task_means=_records(TaskMean, stats["task_means"], "logit_diff", "change"),
        ),
        metadata=content["metadata"],
    )


def _records(kind: Any, entries: list[dict[str, Any]], *estimates: str) -> tuple[Any, ...]:
    def record(entry: dict[str, Any]) -> Any:
        read = {name: entry[name] and Estimate(**entry[name]) for name in estimates}
        return kind(**entry | read)

    return tuple(record(entry) for entry in entries)


def _prompt_from(entry: dict[str, Any]) -> PromptResult:
    resampled = entry["resample_importance"]
    precisions = {}
    for name, low in entry["precisions"].items():
        drift, cosine, logit_diff = (entry[field] for field in precision_fields(name))
        account = low["first_order"]
        precisions[name] = PrecisionResult(
            drift=_array(drift),
            cosine=_array(cosine),
            drift_all=_array(low["drift_all_positions"]),
            cosine_all=_array(low["cosine_sim_all_positions"]),
            logit_diff=logit_diff,
            logit_diff_rounded=low["clean_logit_diff_rounded_to_f16"],
            distractor_diff=low["clean_distractor_diff"],
            nonfinite_heads=tuple((layer, head) for layer, head in low["nonfinite_heads"]),
            first_order=FirstOrder(
                **account | {name: _array(account[name]) for name in ("predicted", "restored")}
            ),
        )
    return PromptResult(
        prompt=entry["prompt"],
        target=entry["target_token"],
        distractor=entry["distractor_token"],
        task=entry["task_type"],
        num_tokens=entry["num_tokens"],
        validated=entry["validated"],
        logit_diff=entry["clean_logit_diff_f32"],
        logit_diff_rounded=entry["clean_logit_diff_f32_rounded_to_f16"],
        distractor_diff=entry["clean_distractor_diff_f32"],
        zero_importance=_array(entry["zero_importance"]),
        mean_importance=_array(entry["mean_importance"]),
        resample_importance=None if resampled is None else _array(resampled),
        resample_partners=entry["resample_partners"],
        precisions=precisions,
        distractor_importance=entry["distractor_importance"]
        and {kind: _array(a) for kind, a in entry["distractor_importance"].items()},
    )


def _repair_from(entry: dict[str, Any]) -> RepairResult:
    rankings = entry["rankings"]
    return RepairResult(
        prompt=entry["prompt"],
        task=entry["task_type"],
        precision=entry["precision"],
        logit_diff_f32=entry["baseline_logit_diff_f32"],
        logit_diff_quantized=entry["baseline_logit_diff_quantized"],
        curves={name: _array(rankings[name]["curve"]) for name in RANKINGS},
        heads={
            name: tuple((layer, head) for layer, head in rankings[name]["heads"])
            for name in RANKINGS
        },
        random=_array(entry["random_curves"]),
    )
