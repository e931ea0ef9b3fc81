"""What a heads study found, as tables on a terminal."""

from __future__ import annotations

import numpy as np

from jaxalign.errors import printable
from jaxalign.measures.estimates import Estimate
from jaxalign.studies.heads.average import mean_maps
from jaxalign.studies.heads.result import HeadsResult
from jaxalign.study.measure import DRIFT
from jaxalign.study.tables import estimate_text, head_label, text_table

TOP_HEADS = 8


def table(result: HeadsResult) -> str:
    """The study in one screen: top heads, correlations, what repair bought."""
    return "\n\n".join(
        part
        for part in (
            _top_heads(result),
            _task_means(result),
            _correlations(result),
            _repairs(result),
            _first_order(result),
            "\n".join(f"note: {printable(note)}" for note in result.provenance.notes),
        )
        if part
    )


def _estimate(estimate: Estimate, places: int = 2) -> str:
    missing = "not defined (too few heads, or nothing varies)"
    return estimate_text(estimate, f"{{:+.{places}f}}".format, missing=missing)


def _top_heads(result: HeadsResult) -> str:
    [zero] = mean_maps([p.zero_importance for p in result.prompts])
    [mean] = mean_maps([p.mean_importance for p in result.prompts])
    resampled = [p.resample_importance for p in result.prompts if p.resample_importance is not None]
    resample = mean_maps(resampled)[0] if resampled else np.full_like(zero, np.nan)
    # A prompt that no other of its task has the length of has nobody to resample from.
    count = "" if len(resampled) == len(result.prompts) else f" (of {len(resampled)})"
    drifts = {
        name: mean_maps([p.precisions[name].drift for p in result.prompts])[0]
        for name in result.precisions
    }
    order = np.argsort(-np.abs(zero), axis=None, kind="stable")[:TOP_HEADS]
    rows = []
    for layer, head in zip(*np.unravel_index(order, zero.shape), strict=True):
        at = (layer, head)
        cells = [head_label(layer, head), *(_lost(m[at]) for m in (zero, mean, resample))]
        rows.append([*cells, *(f"{drift[at]:.2e}" for drift in drifts.values())])
    title = (
        f"heads that matter most (mean over {len(result.prompts)} prompts, logits lost when "
        "replaced), and how far precision moves them"
    )
    names = [f"{DRIFT.name} {name}" for name in drifts]
    return f"{title}\n{text_table(['head', 'zero', 'mean', f'resample{count}', *names], rows)}"


def _lost(logits: float) -> str:
    return f"{logits:+.3f}" if np.isfinite(logits) else "–"


def _task_means(result: HeadsResult) -> str:
    rows = [
        [
            row.task,
            row.precision,
            str(row.prompts),
            _estimate(row.logit_diff, 3),
            "" if row.change is None else _estimate(row.change, 4),
        ]
        for row in result.statistics.task_means
    ]
    title = "answer margin m = logit(target) − best other, and its change against f32"
    return f"{title}\n{text_table(['task', 'precision', 'prompts', 'm', 'change'], rows)}"


def _correlations(result: HeadsResult) -> str:
    rows = [
        [row.task, row.precision, _estimate(row.pearson), _estimate(row.spearman)]
        for row in result.statistics.correlations
        if row.importance == "zero"
    ]
    title = "do important heads drift more? zero-importance against drift, over heads"
    return f"{title}\n{text_table(['task', 'precision', 'Pearson', 'Spearman'], rows)}"


def _repairs(result: HeadsResult) -> str:
    rows = [
        [
            row.task,
            row.precision,
            row.ranking,
            f"{row.gap:.2e}",
            f"{row.closed:+.1e}",
            f"{row.random_closed:+.1e}",
            row.verdict,
        ]
        for row in result.statistics.repair
        if None not in (row.gap, row.closed, row.random_closed)
    ]
    if not rows:
        return ""
    steps = max((repair.random.shape[-1] for repair in result.repairs), default=0)
    header = ["task", "precision", "ranking", "gap", "closed", "random", "verdict"]
    title = f"does restoring the top heads (1 … {steps}) close the gap to f32? logits, mean over k"
    return f"{title}\n{text_table(header, rows)}"


def _first_order(result: HeadsResult) -> str:
    rows = [
        [row.task, row.precision, f"{row.bound_held}/{row.prompts}", _estimate(row.spearman)]
        for row in result.statistics.first_order
    ]
    title = "first-order account: predicted against true gain of restoring each head"
    return f"{title}\n{text_table(['task', 'precision', 'bound held', 'Spearman'], rows)}"
