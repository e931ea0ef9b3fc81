"""What a heads study found, as one screen: the answer, the numbers, where the heads are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from jaxalign.errors import counted, shortened
from jaxalign.measures.estimates import ALL_TASKS, LEVEL, Estimate
from jaxalign.shapes import Float
from jaxalign.studies.heads.average import mean_maps
from jaxalign.studies.heads.findings import (
    TOP,
    Agreement,
    Likeness,
    TaskMean,
    find,
)
from jaxalign.studies.heads.result import HeadsResult
from jaxalign.study.tables import estimate_text, head_label, header, one_line, text_table

WIDTH, COLUMNS = 100, 4  # of the screen; precisions that stand side by side
TOP_SHARED = 10  # heads of the largest importance, of which it is said how many are shared
HALF = 0.5  # a correlation below it is of other heads, whatever their sizes say
BARS, BAR = 6, 16  # heads drawn as bars, the longest bar
MAP_ROWS, MAP_WIDTH = 6, 48
SHADES = " ·░▒▓█"
NOTES = 3
# The ranking whose repair the screen tells: heads by what the gradient says of them.
RANKING = "first_order"


def screen(result: HeadsResult) -> str:
    """The study in one screen, at most 100 columns and 35 lines."""
    names, numbers = _numbers(result)
    parts = [
        "\n".join(
            [header("heads", result.provenance), *_screened(result), *_answers(result, names)]
        ),
        numbers,
        _heads(result),
        _closing(result, names),
    ]
    return "\n\n".join(part for part in parts if part)


def _numbers(result: HeadsResult) -> tuple[tuple[str, ...], str]:
    """The precisions that find room side by side, and their table."""
    for count in range(min(COLUMNS, len(result.precisions)), 0, -1):
        names = _most_changed(result, count)
        table = _table(result, names)
        if max(map(len, table.splitlines())) <= WIDTH or count == 1:
            return names, table
    return (), ""


def _most_changed(result: HeadsResult, count: int) -> tuple[str, ...]:
    """The precisions that change importance most, in the result's order."""
    found = {name: _agreement(result, name) for name in result.precisions}
    error = {name: one.relative_error.value or 0 for name, one in found.items() if one}
    most = sorted(result.precisions, key=lambda name: -error.get(name, 0))[:count]
    return tuple(name for name in result.precisions if name in most)


def _agreement(result: HeadsResult, precision: str) -> Agreement | None:
    rows = result.statistics.agreement
    return find(rows, task=ALL_TASKS, precision=precision, replacement="zero")


def _task_mean(result: HeadsResult, precision: str) -> TaskMean | None:
    return find(result.statistics.task_means, task=ALL_TASKS, precision=precision)


def _answers(result: HeadsResult, names: Sequence[str]) -> list[str]:
    """A sentence a precision: do the same heads matter, and is that more than noise leaves?"""
    lines = []
    for name in names:
        found = _agreement(result, name)
        if found is None or found.pearson.value is None:
            continue
        if found.prompts == 1:
            lines.append(f"{one_line(name, 30)}: one prompt is a picture, no finding")
            continue
        top = f"top {min(TOP_SHARED, found.heads)}: {found.top10.value:.0f}"
        alike = f"r {found.pearson.value:.3f}, {top}"
        line = f"{one_line(name, 30)}: {_kept(found)} heads matter ({alike})"
        lines.append(shortened(f"{line}{_beside(found.prompt_spearman)}", WIDTH))
    return lines


def _screened(result: HeadsResult) -> list[str]:
    """How many heads were exact, and how well the estimates of the others agree."""
    screen = result.screen
    if screen is None:
        return []
    heads, found = result.num_layers * result.num_heads, screen.agreement
    exact = f"{int(screen.exact.sum())} of {heads} heads exact"
    if len(screen.prompts) < len(result.prompts):
        exact += f" on {len(screen.prompts)} of {len(result.prompts)} prompts"
    lines = [
        f"screen: {exact}, {int((~screen.exact).sum())} estimated; "
        f"{screen.cost:.0%} of the exact sweep's operations"
    ]
    if found.spearman.value is None or found.worst_miss is None:
        sampled = counted(found.items, "dropped head")
        return [*lines, f"estimates: {sampled} in the random sample, too few to say how good"]
    rank = estimate_text(found.spearman, "{:+.2f}".format)
    slope = estimate_text(found.slope, "{:.2f}".format)
    agree = f"{counted(found.items, 'dropped head')}: ρ {rank}; slope {slope}"
    miss = f"worst miss {found.worst_miss:.2f} logits; "
    return [
        *lines,
        f"estimates, {agree}",
        f"  {miss}{screen.missed} of them belong to the top {min(TOP, len(screen.top))}, "
        f"so at most {screen.missed_at_most} of all dropped may (95 %)",
    ]


def _kept(found: Agreement) -> str:
    """How many of the heads that matter most are the same, and matter in the same way, in words."""
    share = (found.top10.value or 0) / min(TOP_SHARED, found.heads)
    share = min(share, 1 if (found.pearson.value or 0) > HALF else 0)
    return "the same" if share >= 0.9 else "mostly the same" if share >= 0.6 else "other"


def _beside(likeness: Likeness) -> str:
    """How it stands to what noise of the same size leaves, in words.

    Prompt by prompt, since a correlation of each prompt's ranks would notice the least more.
    """
    if not likeness.noise or likeness.value is None:
        return ""  # no weight moves, so there is no noise of its size
    mean = float(np.mean(likeness.noise))
    told = likeness.p_adjusted is not None and likeness.p_adjusted < LEVEL
    more = "more than" if likeness.value > mean else "less than"
    return f"; prompt by prompt {more if told else 'as'} with noise"


def _table(result: HeadsResult, names: Sequence[str]) -> str:
    """A precision a column."""
    rows = [
        ["bits a weight (model, MB)", *(_size(result, name) for name in names)],
        ["answers kept", *(_means(result, name, _answers_kept) for name in names)],
        [
            "change of the lead, logits",
            *(_means(result, name, _change) for name in names),
        ],
        ["KL of the next token, nats", *(_means(result, name, _kl) for name in names)],
        ["a head's output moves by", *(_drift(result, name) for name in names)],
    ]
    compared = [_agreement(result, name) for name in names]
    if any(compared):
        rows += [
            ["same heads matter? Pearson r", *(_like(a.pearson if a else None) for a in compared)],
            ["  rank correlation ρ", *(_like(a.spearman if a else None) for a in compared)],
            ["  ρ, prompt by prompt", *(_like(a.prompt_spearman if a else None) for a in compared)],
            ["  of the top 10", *(_like(a.top10 if a else None, "{:.0f}") for a in compared)],
        ]
    if any(test.ranking == RANKING for test in result.statistics.repair):
        rows.append(["gap closed, heads by gradient", *(_repair(result, name) for name in names)])
    table = text_table(["", *names], rows)
    if not any(a.pearson.noise for a in compared if a):
        return table
    under = "in brackets: what weight noise of the same size leaves; *: told from it (corrected)"
    return f"{table}\n{under}"


def _size(result: HeadsResult, name: str) -> str:
    if name not in result.bits:
        return "–"
    return f"{result.bits[name]:.2f} ({result.megabytes[name]:.3g})"


def _means(result: HeadsResult, name: str, write: Callable[[TaskMean], str]) -> str:
    found = _task_mean(result, name)
    return "–" if found is None else write(found)


def _answers_kept(mean: TaskMean) -> str:
    noise = f" ({np.mean(mean.noise_kept):.0f})" if mean.noise_kept else ""
    return f"{mean.kept} of {mean.prompts}{noise}"


def _change(mean: TaskMean) -> str:
    """The change, or that it is not told from none and how much it may be; and the noise's."""
    change = mean.change
    if change is None or change.low is None or change.high is None:
        return "–"  # one prompt tells nothing
    most = max(abs(change.low), abs(change.high))
    text = estimate_text(change, "{:+.2f}".format, p=None) if change.told else f"same ± {most:.2g}"
    return text + (f" ({np.mean(mean.noise):+.2f})" if mean.noise else "")


def _kl(mean: TaskMean) -> str:
    return "–" if mean.kl is None or mean.kl.value is None else f"{mean.kl.value:.1e}"


def _drift(result: HeadsResult, name: str) -> str:
    [drift] = mean_maps([p.precisions[name].drift for p in result.prompts])
    finite = drift[np.isfinite(drift)]
    return f"{100 * finite.mean():.2g} %" if finite.size else "not finite"


def _like(likeness: Likeness | None, form: str = "{:.3f}") -> str:
    if likeness is None or likeness.value is None:
        return "–"
    text = form.format(likeness.value)
    if likeness.noise:
        noise = float(np.mean(likeness.noise))
        text += f" ({'{:.1f}' if form == '{:.0f}' else form})".format(noise)
    told = likeness.p_adjusted is not None and likeness.p_adjusted < LEVEL
    return text + ("*" if told else "")


def _repair(result: HeadsResult, name: str) -> str:
    """The share of the gap that restoring heads closes, and the controls that it beats."""
    tests = [
        test
        for test in result.statistics.repair
        if (test.task, test.precision, test.ranking) == (ALL_TASKS, name, RANKING)
    ]
    if not tests:
        return "not run"
    [first, *_] = tests
    if first.verdict == "below noise":
        return "below noise"
    if not first.gap or first.closed is None:
        return "–"
    closed = f"{100 * first.closed / first.gap:.0f} %"
    if not _is_tested(first.difference):
        return closed
    beaten = sum(test.verdict == "beats it" for test in tests)
    return f"{closed}, beats {beaten} of {len(tests)}"


def _heads(result: HeadsResult) -> str:
    """The heads that matter most as bars, beside a map of all of them."""
    [zero] = mean_maps([p.zero_importance for p in result.prompts])
    known = (
        zero if result.screen is None else np.where(np.isnan(zero), result.screen.estimate, zero)
    )
    bars, drawn = _bars(zero), _map(known)
    left = max(map(len, bars))
    count = max(len(bars), len(drawn))
    bars += [""] * (count - len(bars))
    drawn += [""] * (count - len(drawn))
    lines = [f"{bar.ljust(left)}   {row}".rstrip() for bar, row in zip(bars, drawn, strict=True)]
    return "\n".join(lines)


def _bars(zero: Float[np.ndarray, "L H"]) -> list[str]:
    order = np.argsort(-np.abs(np.nan_to_num(zero)), axis=None, kind="stable")[:BARS]
    most = max(float(np.nanmax(np.abs(zero))), 1e-30)
    lines = ["the lead lost without a head, logits (f32)"]
    for layer, head in zip(*np.unravel_index(order, zero.shape), strict=True):
        value = float(zero[layer, head])
        bar = "█" * max(1, round(BAR * abs(value) / most)) if np.isfinite(value) else ""
        lines.append(f"{head_label(layer, head):>7} {bar:<{BAR}} {value:+.2f}")
    return lines


def _map(zero: Float[np.ndarray, "L H"]) -> list[str]:
    """A character a head, a line a layer; of large models the largest of neighbours."""
    size = np.abs(np.nan_to_num(zero))
    layers, heads = size.shape
    down, across = -(-layers // MAP_ROWS), -(-heads // MAP_WIDTH)
    cells = np.zeros((-(-layers // down), -(-heads // across)))
    for layer in range(layers):
        for head in range(heads):
            at = layer // down, head // across
            cells[at] = max(cells[at], size[layer, head])
    most = max(float(cells.max()), 1e-30)
    steps = np.ceil((len(SHADES) - 1) * np.sqrt(cells / most) - 1e-9).astype(int)
    merged = f", {down} layers a line" if down > 1 else ""
    wide = 2 if cells.shape[1] <= MAP_WIDTH // 2 else 1
    lines = [f"where: layers down, heads across{merged}"]
    for row, own in enumerate(steps):
        drawn = "".join(SHADES[step] * wide for step in own)
        lines.append(f"{head_label(row * down, '')[:-1]:>4} │{drawn}│")
    return lines


def _closing(result: HeadsResult, names: Sequence[str]) -> str:
    """What was tested, what is left out, and what a reader has to know."""
    lines = []
    statistics = result.statistics
    if result.precisions:
        changes = [mean.change for mean in statistics.task_means if _is_tested(mean.change)]
        repairs = [test for test in statistics.repair if _is_tested(test.difference)]
        families = {
            "changes of the lead": [change is not None and change.told for change in changes],
            "tests of repairs": [test.verdict == "beats it" for test in repairs],
        }
        told = ", ".join(
            f"{sum(own)} of {len(own)} {name}" for name, own in families.items() if own
        )
        lines += [f"Told from chance, each family corrected: {told}."] if told else []
        lines += _drift_more(result)
    if more := len(result.precisions) - len(names):
        lines.append(f"{more} more precisions, which change importance less: --verbose.")
    notes = result.provenance.notes
    lines += [shortened(f"note: {one_line(note, 10 * WIDTH)}", WIDTH) for note in notes[:NOTES]]
    if len(notes) > NOTES:
        lines.append(f"{len(notes) - NOTES} more notes: --verbose.")
    return "\n".join(lines)


def _drift_more(result: HeadsResult) -> list[str]:
    """Whether heads that matter drift more, or that this hangs on how drift is measured."""
    rows = [
        c for c in result.statistics.correlations if (c.task, c.importance) == (ALL_TASKS, "zero")
    ]
    values = {(c.precision, c.drift): c.spearman.value for c in rows}
    turned = [
        name
        for name in result.precisions
        if (values.get((name, "relative")) or 0) * (values.get((name, "absolute")) or 0) < 0
    ]
    fixed = [c.given_size for c in rows if c.given_size is not None and c.given_size.p is not None]
    told = sum(one.estimate.told for one in fixed)
    lines = []
    if turned:
        asked = "Do heads that matter drift more? The sign hangs on the measure in "
        lines.append(f"{asked}{one_line(', '.join(turned), WIDTH - len(asked) - 1)}.")
    if fixed:
        lines.append(
            f"With the size of a head's output held fixed, {told} of {len(fixed)} correlations of "
            "importance with drift are told."
        )
    return lines


def _is_tested(change: Estimate | None) -> bool:
    """Whether there are prompts enough for an interval, and so for a verdict."""
    return change is not None and change.low is not None
