"""The result of a comparison of schemes: typed rows, and the JSON file that keeps them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jaxalign.errors import InputError
from jaxalign.results.types import Estimate
from jaxalign.runtime.files import replace_file

SCHEMES_FORMAT = "jaxalign.schemes/1"


@dataclass(frozen=True)
class NoiseFloor:
    """What is no effect of a scheme.

    Attributes:
        plan: the measure between two ways of batching the same prompts in the same precision.
        weights: the measure under random noise in the f32 weights, of the same Frobenius norm as
            the scheme's error in every matrix and head; None where the scheme moves no weight.
        above_plan: mean over prompts of measure − plan noise, with interval and p-value.
        above_weights: mean over prompts of measure − weight noise; None without weight noise.
        below: whether the measure cannot be told from plan noise.
    """

    plan: float
    weights: float | None
    above_plan: Estimate
    above_weights: Estimate | None
    below: bool


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class SchemesResult:
    """All schemes, f32 first. ``metadata`` says what ran, on what, with which options."""

    rows: tuple[SchemeRow, ...]
    metadata: dict[str, Any]


def write_schemes(result: SchemesResult, path: Path) -> None:
    """Write the result as JSON, whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    content = {
        "format": SCHEMES_FORMAT,
        "schemes": [asdict(row) for row in result.rows],
        "metadata": result.metadata,
    }
    replace_file(path, f"{json.dumps(content, indent=1, ensure_ascii=False)}\n".encode())


def read_schemes(path: Path | str) -> SchemesResult:
    """Read a result that ``write_schemes`` wrote.

    Raises:
        InputError: no such file, or not one of these results.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if content["format"] != SCHEMES_FORMAT:
            raise ValueError(f"its format is {content['format']!r}")
        rows = tuple(_row(entry) for entry in content["schemes"])
        return SchemesResult(rows, content["metadata"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is not a comparison of schemes ({error})", "run: python cli.py schemes"
        ) from error


def _row(entry: dict[str, Any]) -> SchemeRow:
    estimates = ("kl", "agreement", "margin", "margin_change", "drift")
    floors = ("kl_floor", "drift_floor")
    read = {name: entry[name] and Estimate(**entry[name]) for name in estimates}
    return SchemeRow(**entry | read | {name: _floor(entry[name]) for name in floors})


def _floor(entry: dict[str, Any]) -> NoiseFloor:
    estimates = ("above_plan", "above_weights")
    return NoiseFloor(
        **entry | {name: entry[name] and Estimate(**entry[name]) for name in estimates}
    )
