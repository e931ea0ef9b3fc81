"""Everything that a heads study found, as tables on a terminal."""

from __future__ import annotations

import numpy as np

from jaxalign.errors import counted, printable
from jaxalign.measures.estimates import Estimate
from jaxalign.studies.heads.average import mean_maps
from jaxalign.studies.heads.findings import Likeness
from jaxalign.studies.heads.result import HeadsResult
from jaxalign.study.measure import DRIFT
from jaxalign.study.tables import estimate_text, head_label, p_text, text_table

TOP_HEADS = 8


def details(result: HeadsResult) -> str:
    """Every table of the study."""
    return "\n\n".join(
        part
        for part in (
            _top_heads(result),
            _task_means(result),
            _agreements(result),
            _correlations(result),
            _repairs(result),
            _first_order(result),
            "\n".join(f"note: {printable(note)}" for note in result.provenance.notes),
        )
        if part
    )


def _estimate(estimate: Estimate, places: int = 2) -> str:
    missing = "not defined (too few heads, or nothing varies)"
    text = estimate_text(estimate, f"{{:+.{places}f}}".format, missing=missing)
    return text if estimate.p_adjusted is None else f"{text} ({max(estimate.p_adjusted, 1e-3):.3f})"


def _top_heads(result: HeadsResult) -> str:
    [zero] = mean_maps([p.zero_importance for p in result.prompts])
    mean, resample = (
        mean_maps(maps)[0] if maps else np.full_like(zero, np.nan)
        for maps in (
            [p.mean_importance for p in result.prompts if p.mean_importance is not None],
            [p.resample_importance for p in result.prompts if p.resample_importance is not None],
        )
    )
    resampled = [p for p in result.prompts if p.resample_importance is not None]
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
        f"heads that matter most (mean over {counted(len(result.prompts), 'prompt')}, logits lost "
        "when replaced), and how far precision moves them"
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
            f"{np.mean(row.noise):+.4f}" if row.noise else "",
        ]
        for row in result.statistics.task_means
    ]
    title = "answer margin m = logit(target) − best other, its change against f32, and what weight"
    head = ["task", "precision", "prompts", "m", "change", "noise's change"]
    more = "noise of the precision's size changes (mean of its draws)"
    return f"{title}\n{more}\n{text_table(head, rows)}"


def _agreements(result: HeadsResult) -> str:
    rows = [
        [
            row.task,
            row.precision,
            row.replacement,
            *(_likeness(one) for one in (row.pearson, row.spearman)),
            *(_likeness(one) for one in (row.prompt_pearson, row.prompt_spearman)),
            _likeness(row.relative_error),
            *(_likeness(one, "{:.0f}") for one in (row.top5, row.top10)),
            "–" if row.largest is None else head_label(*row.largest),
            _estimate(row.largest_change, 3),
        ]
        for row in result.statistics.agreement
    ]
    if not rows:
        return ""
    header = ["task", "precision", "ablation", "Pearson", "Spearman", "Pearson, a prompt"]
    header += ["Spearman, a prompt", "relative error", "top 5", "top 10", "largest", "change"]
    title = (
        "do the same heads matter? importance in f32 against importance inside the precision;\n"
        "n: f32 with weight noise of its size, from … to; p: of being one more draw of it,\n"
        "corrected in brackets; o: the precision against itself, its roundings in another order"
    )
    return f"{title}\n{text_table(header, rows)}"


def _likeness(one: Likeness, form: str = "{:.3f}") -> str:
    if one.value is None:
        return "–"
    text = form.format(one.value)
    interval = one.over_heads or one.over_prompts
    if interval and form != "{:.0f}":
        text += f" [{form.format(interval[0])}, {form.format(interval[1])}]"
    if one.noise:
        text += f" n {form.format(min(one.noise))}…{form.format(max(one.noise))}"
    if one.p is not None:
        text += f", {p_text(one.p)}"
        text += "" if one.p_adjusted is None else f" ({max(one.p_adjusted, 1e-3):.3f})"
    return text if one.reordered is None else f"{text} o {form.format(one.reordered)}"


def _correlations(result: HeadsResult) -> str:
    rows = [
        [
            row.task,
            row.precision,
            row.importance,
            row.drift,
            *(_estimate(one.estimate) for one in (row.pearson, row.spearman)),
            "" if row.given_size is None else _estimate(row.given_size.estimate),
            _estimate(row.all_spearman.estimate),
        ]
        for row in result.statistics.correlations
    ]
    if not rows:
        return ""
    header = ["task", "precision", "importance", "drift", "Pearson", "Spearman"]
    header += ["Spearman, size fixed", "Spearman, all heads"]
    title = (
        "do important heads drift more? inside layers, heads exchanged inside their layer;\n"
        "intervals over heads and prompts; corrected p in brackets. The last column mixes layers:\n"
        "depth moves both sides, in random weights, too"
    )
    return f"{title}\n{text_table(header, rows)}"


def _repairs(result: HeadsResult) -> str:
    rows = [
        [
            row.task,
            row.precision,
            row.ranking,
            row.control,
            f"{row.gap:.2e}",
            f"{row.noise:.1e}",
            f"{row.closed:+.1e}",
            f"{row.control_closed:+.1e}",
            "–" if row.difference.p is None else p_text(row.difference.p),
            "–" if row.difference.p_adjusted is None else f"{row.difference.p_adjusted:.3f}",
            row.verdict,
        ]
        for row in result.statistics.repair
        if None not in (row.gap, row.closed, row.control_closed)
    ]
    if not rows:
        return ""
    steps = ", ".join(map(str, result.repairs[0].steps)) if result.repairs else ""
    header = ["task", "precision", "ranking", "control", "gap", "noise", "closed", "control's"]
    header += ["p", "corrected", "verdict"]
    title = f"does restoring the top heads ({steps}) close the gap to f32? logits, mean over k"
    return f"{title}\n{text_table(header, rows)}"


def _first_order(result: HeadsResult) -> str:
    rows = [
        [
            row.task,
            row.precision,
            f"{row.bound_held}/{row.prompts}",
            _estimate(row.spearman.estimate),
        ]
        for row in result.statistics.first_order
    ]
    title = "first-order account: predicted against true gain of restoring each head"
    return f"{title}\n{text_table(['task', 'precision', 'bound held', 'Spearman'], rows)}"
