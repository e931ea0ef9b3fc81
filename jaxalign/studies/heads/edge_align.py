"""The field names of the original program, "Edge Align", for its readers and for older files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxalign.errors import InputError
from jaxalign.studies.heads.result import RANKINGS, HeadsResult
from jaxalign.study import codec

FORMAT_1 = "jaxalign.heads/1"
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
    """
    content = codec.encode(result)
    known = {name: KNOWN[name] for name in result.precisions if name in KNOWN}
    metadata = content["metadata"]
    original = ("timestamp", "device", "int8_mode", "total_forward_passes", "total_runtime_seconds")
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
        "model": content["model"],
        "num_layers": content["num_layers"],
        "num_heads": content["num_heads"],
        "mean_activation_reference_count": content["reference_count"],
        "prompts": prompts,
        "repair": [],
        "metadata": {name: metadata[name] for name in original},
    }
    for name, field in known.items():
        rows = [_edge_align_repair(r) for r in content["repairs"] if r["precision"] == name]
        out |= {_repairs(field): rows} if rows else {}
    return out


def _edge_align_repair(repair: dict[str, Any]) -> dict[str, Any]:
    kept = ("prompt", "task", "logit_diff_f32", "logit_diff_quantized")
    theirs = {ours: name for name, ours in REPAIR.items()}
    return {theirs.get(name, name): repair[name] for name in kept} | {
        "repair_curve": repair["curves"][RANKINGS[0]],
        "repaired_heads": repair["heads"][RANKINGS[0]],
    }


def read_1(content: dict[str, Any], where: Path | str) -> HeadsResult:
    """Read a result of the format "jaxalign.heads/1", which had these names beside its own.

    Args:
        content: of the file, without its format.
        where: the file, for the error.

    Raises:
        InputError: it does not fit, or has two precisions under the same names.
    """
    try:
        names = content["metadata"]["precisions"]
        fields = {name: KNOWN.get(name, name) for name in names}
        if len({*fields.values()}) < len(names):
            raise InputError(
                f"{where} has the values of {' and '.join(names)} under the same names",
                "run the study again",
            )
        today = _renamed(content, {"mean_activation_reference_count": "reference_count"})
        today["prompts"] = [_prompt(entry, fields) for entry in content["prompts"]]
        repairs = [today.pop(name, []) for name in map(_repairs, fields.values())]
        today["repairs"] = [_repair(entry) for entries in repairs for entry in entries]
        today.pop("repair", None)  # empty where f16 was not repaired
    except (KeyError, TypeError, AttributeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else error
        raise InputError(
            f"{where} is not a result of the heads study ({what})", codec.REMEDY
        ) from error
    return codec.decode(HeadsResult, today, where)


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
