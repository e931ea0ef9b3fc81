"""A comparison of schemes as a table of text."""

from __future__ import annotations

from jaxalign.report import estimate, text_table
from jaxalign.results import Estimate
from jaxalign.studies.schemes.result import NoiseFloor, SchemesResult


def table(result: SchemesResult) -> str:
    """Schemes one a line; ``*`` marks a measure that cannot be told from batching noise."""
    rows = []
    for row in result.rows:
        change = "" if row.margin_change is None else estimate(row.margin_change, 4)
        rows.append(
            [
                row.scheme,
                f"{row.bits:.2f}",
                f"{row.megabytes:.2f}",
                _measured(row.kl, row.kl_floor),
                *_floors(row.kl_floor),
                f"{100 * (row.agreement.value or 0):.2f}",
                change,
                _measured(row.drift, row.drift_floor),
                *_floors(row.drift_floor),
            ]
        )
    header = ["scheme", "bits", "MB", "KL, nats", "batching", "noise", "top-1 %"]
    header += ["change of m, logits", "head drift", "batching", "noise"]
    prompts = result.provenance.prompts
    return (
        f"precision schemes against f32 ({prompts.kept} prompts, {prompts.positions} positions)\n"
        f"{text_table(header, rows)}\n"
        "bits: of a weight in the blocks, scales included; MB: the model as deployed. batching: the"
        "\nsame precision, prompt by prompt instead of in batches. noise: random noise in the f32"
        "\nweights, as large as the scheme's error in each matrix. *: not above batching."
    )


def _measured(value: Estimate, floor: NoiseFloor) -> str:
    mark = "*" if floor.below else ""
    if value.value is None:
        return "not finite"
    shown = f"{value.value:.2e}"
    if value.low is not None and value.high is not None:
        shown += f" [{value.low:.1e}, {value.high:.1e}]"
    return shown + mark


def _floors(floor: NoiseFloor) -> tuple[str, str]:
    return f"{floor.batching:.1e}", "" if floor.weights is None else f"{floor.weights:.1e}"
