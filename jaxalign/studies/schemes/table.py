"""A comparison of schemes, as a table on a terminal."""

from __future__ import annotations

from jaxalign.measures.estimates import Estimate
from jaxalign.studies.schemes.result import NoiseFloor, SchemesResult
from jaxalign.study.tables import estimate_text, text_table


def table(result: SchemesResult) -> str:
    """Schemes one a line; ``*`` marks a measure that cannot be told from batching noise."""
    rows = []
    for row in result.rows:
        change = row.margin_change and estimate_text(row.margin_change, "{:+.4f}".format)
        rows.append(
            [
                row.scheme,
                f"{row.bits:.2f}",
                f"{row.megabytes:.2f}",
                _measured(row.kl, row.kl_floor),
                *_floors(row.kl_floor),
                f"{100 * (row.agreement.value or 0):.2f}",
                change or "",
                _measured(row.drift, row.drift_floor),
                *_floors(row.drift_floor),
            ]
        )
    header = ["scheme", "bits", "MB", "KL, nats", "batching", "noise", "top-1 %"]
    header += ["change of m, logits", "head drift", "batching", "noise"]
    prompts = result.provenance.prompts
    counts = f"{prompts.kept} prompts, {prompts.positions} positions"
    return (
        f"precision schemes against f32 ({counts})\n{text_table(header, rows)}\n"
        "bits: of a weight in the blocks, scales included; MB: the model as deployed. batching: the"
        "\nsame precision, prompt by prompt instead of in batches. noise: random noise in the f32"
        "\nweights, as large as the scheme's error in each matrix. *: not above batching."
    )


def _measured(value: Estimate, floor: NoiseFloor) -> str:
    if value.value is None:
        return "not finite"
    text = estimate_text(value, "{:.2e}".format, ends="{:.1e}".format, p=None)
    return text + ("*" if floor.below else "")


def _floors(floor: NoiseFloor) -> tuple[str, str]:
    return f"{floor.batching:.1e}", "" if floor.weights is None else f"{floor.weights:.1e}"
